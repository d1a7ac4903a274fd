"""Labels of the replay's episodes, as the offline data's are labelled: each computed once, when it arrives."""

import zlib
from typing import NamedTuple

import numpy as np
from lerobot.utils.constants import ACTION, OBS_STATE, REWARD

from ...configuration_pi05_rl import PI05RLConfig
from ...data.batch import RETURN
from ...data.dataset import OfflineData, bootstrap_steps, episode_n_step_returns, policy_cameras
from ...data.episodes import Episode, LabelledEpisodes, label_frames, reward_discount
from ...data.frames import FrameDataset, FrameIndex
from ...data.outcomes import intervention_flags, known_outcome
from ...data.sources import Source
from ...returns import NStepReturns, Outcome, RewardConfig
from .memory import GrowingColumns


class Label(NamedTuple):
    """Of one episode."""

    length: int
    task: int
    outcome: Outcome
    fold: int


class ReplayLabels:
    """The replay's frames with their labels; those of an episode are computed when it is first seen."""

    def __init__(self, data: OfflineData, reward: RewardConfig, seed: int):
        self._data, self._reward, self._seed = data, reward, seed
        self._folds = data.policy.critic_folds if data.policy.trains_critic else 1
        self._ahead = bootstrap_steps(data.policy, running=True)
        self._columns = GrowingColumns()  # rows as those of the episodes in _known
        self._known: dict[int, Label] = {}  # running number of an episode in the replay, oldest first

    def frames(self, source: Source) -> FrameDataset:
        """What may be drawn of ``source``, a snapshot of the replay that is no older than the last call's."""
        present = source.columns["episode_index"][source.starts].tolist()
        for number in self._known.keys() - set(present):
            self._columns.drop(self._known.pop(number).length)
        for row, number in enumerate(present):
            if number not in self._known:
                self._label(source, row, number)
        columns, data = self._columns.view(), self._data
        episodes = [
            Episode(0, number, start, end, self._known[number].task, self._known[number].outcome)
            for number, start, end in zip(present, source.starts.tolist(), source.ends.tolist(), strict=True)
        ]
        labelled = LabelledEpisodes(
            episodes,
            data.labels.tasks,
            data.labels.task_lengths,
            [np.repeat([episode.task for episode in episodes], [episode.length for episode in episodes])],
            [columns[REWARD]],
            [columns[RETURN]],
            [intervention_flags(source)],
        )
        return FrameDataset(
            [source],
            labelled,
            FrameIndex.of(episodes),
            cameras=policy_cameras(data.policy),
            chunk_size=data.policy.chunk_size,
            image_transforms=data.train.image_transforms,
            folds={(0, number): label.fold for number, label in self._known.items()} if self._folds > 1 else {},
            n_step_returns={
                n: [NStepReturns(*(columns[f"{n}.{name}"] for name in NStepReturns._fields))] for n in self._ahead
            },
            seed=self._seed,
        )

    def _label(self, source: Source, row: int, number: int) -> None:
        policy, labels = self._data.policy, self._data.labels
        discount = reward_discount(self._reward, policy)
        start, end = int(source.starts[row]), int(source.ends[row])
        task = labels.tasks.index(source.tasks[row])
        episode = Episode(0, number, start, end, task, known_outcome(source, row))
        rewards, returns = label_online(episode, source, self._reward, policy, labels.task_lengths)
        columns = {REWARD: rewards, RETURN: returns}
        for n in self._ahead:
            steps = episode_n_step_returns(episode, source, rewards, n, discount)
            columns |= {f"{n}.{name}": values for name, values in steps._asdict().items()}
        self._columns.append(columns)
        self._known[number] = Label(episode.length, task, episode.outcome, fold_of(source, start, self._folds))


def label_online(
    episode: Episode, source: Source, reward: RewardConfig, policy: PI05RLConfig, task_lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(T,) rewards and (T,) returns of an online episode, in the unit of the offline data's returns.

    The critic learnt returns normalised by the offline data's longest episode of each task (``task_lengths``); an
    online episode that is longer is as bad as that scale can say: its returns are cut at the support.
    """
    rewards, returns = label_frames(episode, source, reward, policy, int(task_lengths[episode.task]))
    return rewards, np.clip(returns, policy.value_support_min, policy.value_support_max)


def fold_of(source: Source, start: int, folds: int) -> int:
    """The fold of the episode that begins at row ``start``: a function of what is seen and done there, so that it is
    the same after a restart, and whatever was evicted before it."""
    return zlib.crc32(b"".join(source.recorded(key)[start].tobytes() for key in (OBS_STATE, ACTION))) % folds
