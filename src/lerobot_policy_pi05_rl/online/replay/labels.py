"""Labels of the replay's episodes, as the offline data's are labelled: each computed once, when it arrives."""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from lerobot.utils.constants import ACTION, OBS_STATE, REWARD

from ...configuration_pi05_rl import PI05RLConfig
from ...data.batch import RETURN
from ...data.dataset import (
    OfflineData,
    bootstrap_steps,
    episode_n_step_returns,
    frame_repetitions,
    policy_cameras,
)
from ...data.episodes import Episode, LabelledEpisodes, label_frames, reward_discount
from ...data.frames import FrameDataset, FrameIndex, PrecomputedLabels
from ...data.labeling import value_columns
from ...data.outcomes import intervention_flags, known_outcome
from ...data.sources import Source
from ...returns import NStepReturns, Outcome, RewardConfig
from .memory import GrowingColumns
from .rule import LabelRule

ADVANTAGE = "advantage"


class Label(NamedTuple):
    """Of one episode."""

    length: int
    task: int
    outcome: Outcome
    fold: int


class ReplayLabels:
    """The replay's frames with their labels; those of an episode are computed when it is first seen."""

    def __init__(
        self,
        data: OfflineData,
        reward: RewardConfig,
        seed: int,
        *,
        rule: LabelRule | None = None,
        values: Callable[[FrameDataset], np.ndarray] | None = None,
    ):
        """Args:
        rule: that of advantages and tags; None: each batch's are computed as it is trained on.
        values: frames → (T, K, 2) what the critics of the moment say of them; needed with ``rule``.
        """
        self._data, self._reward, self._seed, self._rule, self._values = data, reward, seed, rule, values
        self._folds = data.policy.critic_folds if data.policy.trains_critic else 1
        self._ahead = bootstrap_steps(data.policy, running=rule is None)
        self._columns = GrowingColumns()  # rows as those of the episodes in _known
        self._known: dict[int, Label] = {}  # running number of an episode in the replay, oldest first

    def frames(self, source: Source) -> FrameDataset:
        """What may be drawn of ``source``, a snapshot of the replay that is no older than the last call's.

        Raises:
            DatasetError: the policy extraction draws none of them.
        """
        present = source.columns["episode_index"][source.starts].tolist()
        for number in self._known.keys() - set(present):
            self._columns.drop(self._known.pop(number).length)
        for row, number in enumerate(present):
            if number not in self._known:
                self._label(source, row, number)
        columns, policy = self._columns.view(), self._data.policy
        episodes = [
            Episode(0, number, start, end, self._known[number].task, self._known[number].outcome)
            for number, start, end in zip(present, source.starts.tolist(), source.ends.tolist(), strict=True)
        ]
        tasks = np.repeat([episode.task for episode in episodes], [episode.length for episode in episodes])
        corrected = intervention_flags(source)
        precomputed, repetitions = None, None
        if self._rule is not None:
            names = np.array(self._data.labels.tasks, dtype=object)[tasks]
            tags = self._rule.tags({"task": names, ADVANTAGE: columns[ADVANTAGE], "intervention": corrected})
            precomputed = [PrecomputedLabels(columns[ADVANTAGE], tags)]
            repetitions = frame_repetitions(policy, episodes, precomputed)
        labelled = self._labelled(episodes, tasks, columns, corrected)
        folds = {(0, number): label.fold for number, label in self._known.items()} if self._folds > 1 else {}
        return FrameDataset(
            [source],
            labelled,
            FrameIndex.of(episodes, repetitions),
            cameras=policy_cameras(policy),
            chunk_size=policy.chunk_size,
            image_transforms=self._data.train.image_transforms,
            folds=folds,
            n_step_returns={
                n: [NStepReturns(*(columns[f"{n}.{name}"] for name in NStepReturns._fields))] for n in self._ahead
            },
            precomputed=precomputed,
            seed=self._seed,
        )

    def _labelled(
        self, episodes: list[Episode], tasks: np.ndarray, columns: dict[str, np.ndarray], corrected: np.ndarray
    ) -> LabelledEpisodes:
        """The episodes of one source and its frames' columns, in the offline data's scale."""
        of = self._data.labels
        return LabelledEpisodes(
            episodes, of.tasks, of.task_lengths, [tasks], [columns[REWARD]], [columns[RETURN]], [corrected]
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
        fold = fold_of(source, start, self._folds)
        if self._rule is not None:
            columns[ADVANTAGE] = self._advantages(source, episode, columns, fold)
        self._columns.append(columns)
        self._known[number] = Label(episode.length, task, episode.outcome, fold)

    def _advantages(self, source: Source, episode: Episode, columns: dict[str, np.ndarray], fold: int) -> np.ndarray:
        """(T,) by the rule, from the values of the critic that never learns from the episode."""
        count, rows = len(source.columns["index"]), slice(episode.start, episode.end)
        unread = dict.fromkeys((REWARD, RETURN), np.zeros(count, dtype=np.float32))  # a critic looks at no label
        labelled = self._labelled([episode], np.full(count, episode.task), unread, np.zeros(count, dtype=bool))
        frames = FrameDataset(
            [source],
            labelled,
            FrameIndex.of([episode]),
            cameras=policy_cameras(self._data.policy),
            chunk_size=self._data.policy.chunk_size,
        )
        of_episode = {
            "index": source.columns["index"][rows],
            "episode_index": source.columns["episode_index"][rows],
            "task": np.full(episode.length, self._data.labels.tasks[episode.task], dtype=object),
            "outcome": np.full(episode.length, episode.outcome.value, dtype=object),
            "reward": columns[REWARD],
            "return": columns[RETURN],
            **value_columns(self._values(frames), np.full(episode.length, fold)),
        }
        return self._rule.advantages(of_episode, source.alignment)


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
