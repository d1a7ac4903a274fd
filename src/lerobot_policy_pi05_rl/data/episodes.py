"""Label the frames of all sources: outcome and return of every episode, tasks, the held-out split."""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from lerobot.utils.constants import REWARD

from ..configuration_pi05_rl import PI05RLConfig
from ..returns import Outcome, RewardConfig, dataset_rewards, discounted_returns, steps_to_success_rewards
from .flags import number_column
from .outcomes import LabelColumns, find_outcomes, intervention_flags, log_outcomes
from .sources import DatasetError, Source, check_outcome_file_datasets, use_outcomes_beside

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Episode:
    """One labelled episode: rows ``start`` to ``end`` of source ``source``."""

    source: int
    index: int  # the dataset's episode_index
    start: int
    end: int
    task: int  # of its first frame; `LabelledEpisodes.frame_tasks` has every frame's
    outcome: Outcome

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class LabelledEpisodes:
    """All episodes with the per-frame labels of their sources."""

    episodes: list[Episode]
    tasks: list[str]
    task_lengths: np.ndarray  # (tasks,) longest episode in policy steps, the normaliser of the returns
    frame_tasks: list[np.ndarray]  # per source (frames,) int64 index of each frame's task
    rewards: list[np.ndarray]  # per source (frames,) float32, in units of the return; NaN where no label is needed
    returns: list[np.ndarray]  # per source (frames,) float32, NaN where unknown
    interventions: list[np.ndarray]  # per source (frames,) bool


def label_episodes(
    sources: list[Source],
    reward: RewardConfig,
    policy: PI05RLConfig,
    *,
    needs_returns: bool = True,
    recorded: list[Mapping[int, Outcome]] | None = None,
) -> LabelledEpisodes:
    """Outcomes, tasks, rewards and returns of every episode of every source.

    Args:
        needs_returns: false for plain cloning, which learns from no label: unlabelled episodes are then allowed.
        recorded: per source, the outcomes under which the labeling that is trained from was made; they hold where
            neither file nor columns know one.

    Raises:
        DatasetError: unlabelled episodes under ``reward.unlabelled: error``, no label at all, a missing reward
            column or a reward that is no number, or returns outside the critic's support.
    """
    tasks, frame_tasks = index_tasks(sources, policy.task)
    unlabelled = Outcome(reward.unlabelled) if reward.unlabelled != "error" else None
    check_outcome_file_datasets(reward.outcome_file, sources)
    columns = [LabelColumns(source) for source in sources]
    found = [
        find_outcomes(own, reward.outcome_file, primary=number == 0, recorded=recorded and recorded[number])
        for number, own in enumerate(columns)
    ]
    if needs_returns:
        log_outcomes(columns, found)
    episodes, unknown = [], []
    for number, source in enumerate(sources):
        bounds = zip(source.starts.tolist(), source.ends.tolist(), found[number], strict=True)
        for start, end, (outcome, _) in bounds:
            index = int(source.columns["episode_index"][start])
            if outcome is None:
                unknown.append(f"{source.name}#{index}")
                outcome = unlabelled or Outcome.TRUNCATED
            episodes.append(Episode(number, index, start, end, int(frame_tasks[number][start]), outcome))
    if needs_returns and unknown and unlabelled is None:
        advice = (
            "Say how they ended: pi05-rl label CONFIG --browser shows them, pi05-rl label CONFIG --success 0-3 "
            "--failure 4 takes numbers of episodes; or give a CSV episode_index,outcome as reward.outcome_file, or "
            "set reward.unlabelled to success or failure"
        )
        beside = use_outcomes_beside(sources[0], reward.outcome_file)
        raise DatasetError(
            f"{len(unknown)} of {len(episodes)} episodes have no outcome ({_shortened(unknown)}). {beside or advice}"
        )
    counts = Counter(episode.outcome.value for episode in episodes)
    logger.info("Outcomes of %d episodes: %s", len(episodes), dict(sorted(counts.items())))
    if needs_returns and unknown:
        logger.warning(
            "%d episodes have no outcome and are taken for a %s, as reward.unlabelled says: %s",
            len(unknown),
            reward.unlabelled,
            _shortened(unknown),
        )
    if needs_returns and counts[Outcome.TRUNCATED.value] == len(episodes):
        raise DatasetError(
            "every episode was cut by a time limit and none is labelled: the critic has nothing to learn from. Give "
            "a CSV episode_index,outcome as reward.outcome_file"
        )

    task_lengths = longest_episodes(episodes, frame_tasks, sources, len(tasks))
    unknown_frames = [np.full(len(source.columns["index"]), np.nan, dtype=np.float32) for source in sources]
    rewards, returns = unknown_frames, [frames.copy() for frames in unknown_frames]
    for episode in episodes if needs_returns else ():
        rows, source = slice(episode.start, episode.end), sources[episode.source]
        labels = label_frames(episode, source, reward, policy, int(task_lengths[episode.task]))
        rewards[episode.source][rows], returns[episode.source][rows] = labels
    if needs_returns:
        _check_support(returns, policy)
    interventions = [intervention_flags(source) for source in sources]
    return LabelledEpisodes(episodes, tasks, task_lengths, frame_tasks, rewards, returns, interventions)


def index_tasks(sources: list[Source], override: str | None) -> tuple[list[str], list[np.ndarray]]:
    """Task texts in order, and per source (frames,) the index of each frame's task, as LeRobot gives it to the frame.

    Args:
        override: ``policy.task``, which every frame has then.
    """
    if override:
        return [override], [np.zeros(len(source.columns["index"]), dtype=np.int64) for source in sources]
    texts = []
    for source in sources:
        numbers, inverse = np.unique(source.columns["task_index"].reshape(-1), return_inverse=True)
        texts.append(np.array([source.task_texts[int(number)] for number in numbers], dtype=object)[inverse])
    tasks = sorted(set().union(*(set(frames) for frames in texts)))
    index = {task: number for number, task in enumerate(tasks)}
    return tasks, [np.array([index[task] for task in frames], dtype=np.int64) for frames in texts]


def longest_episodes(
    episodes: list[Episode], frame_tasks: list[np.ndarray], sources: list[Source], tasks: int
) -> np.ndarray:
    """(tasks,) the longest episode, in policy steps, among those that a task occurs in.

    Tasks that follow each other within an episode share it: the episode has one outcome and one return, which must
    rise by the same amount at each of its steps, and a task's returns must have one unit wherever the task occurs.
    """
    group = np.arange(tasks)
    for episode in episodes:
        joined = np.unique(group[frame_tasks[episode.source][episode.start : episode.end]])
        group[np.isin(group, joined)] = joined[0]
    longest = np.zeros(tasks, dtype=np.int64)
    for episode in episodes:
        steps = math.ceil(episode.length / sources[episode.source].alignment.rate)
        longest[group[episode.task]] = max(longest[group[episode.task]], steps)
    return longest[group]


def label_frames(
    episode: Episode, source: Source, reward: RewardConfig, policy: PI05RLConfig, task_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """(T,) rewards and (T,) returns of one episode, NaN where nobody knows what would have followed."""
    rewards = _episode_rewards(episode, source, reward, policy, task_length)
    if reward.source != "dataset" and episode.outcome is Outcome.TRUNCATED:
        return rewards, np.full(len(rewards), np.nan, dtype=np.float32)
    discount = source.alignment.per_frame(reward_discount(reward, policy))
    return rewards, discounted_returns(rewards, discount=discount)


def reward_discount(reward: RewardConfig, policy: PI05RLConfig) -> float:
    """γ of the return, per policy step: RECAP's steps-to-success return is undiscounted."""
    return 1.0 if reward.source == "steps_to_success" else policy.discount


def _episode_rewards(
    episode: Episode, source: Source, reward: RewardConfig, policy: PI05RLConfig, task_length: int
) -> np.ndarray:
    if reward.source == "steps_to_success":
        return steps_to_success_rewards(episode.length, episode.outcome, task_length, rate=source.alignment.rate)
    rewards = number_column(source, REWARD)
    if rewards is None:
        raise DatasetError(
            f"reward.source is 'dataset' but {source.name} has no {REWARD} column; use steps_to_success"
        )
    column = rewards[episode.start : episode.end]
    if not np.isfinite(column).all():
        bad = int(np.flatnonzero(~np.isfinite(column))[0])
        raise DatasetError(
            f"dataset {source.name}: {REWARD} is {column[bad]} in frame {bad} of episode {episode.index}, and a "
            "return is the sum of all rewards that follow. Correct the column, leave the episode out "
            "(dataset.episodes), or set reward.source to steps_to_success, which reads no reward"
        )
    return dataset_rewards(
        column,
        episode.outcome,
        reward_normalization_constant=policy.reward_normalization_constant,
        terminal_failure_reward=policy.terminal_failure_reward,
    )


def _check_support(returns: list[np.ndarray], policy: PI05RLConfig) -> None:
    low = min(float(np.nanmin(values)) for values in returns if not np.isnan(values).all())
    high = max(float(np.nanmax(values)) for values in returns if not np.isnan(values).all())
    if low < policy.value_support_min or high > policy.value_support_max:
        raise DatasetError(
            f"returns lie in [{low:.4g}, {high:.4g}], outside the critic's support "
            f"[{policy.value_support_min:.4g}, {policy.value_support_max:.4g}]. Set policy.value_support_min and "
            "value_support_max around them, or scale with policy.reward_normalization_constant"
        )


def split_episodes(episodes: list[Episode], eval_split: float) -> tuple[list[Episode], list[Episode]]:
    """(training, held-out): ``ceil(n · eval_split)`` episodes of each task and source are held out, evenly spaced
    within each outcome.

    LeRobot's ``make_train_eval_datasets`` (datasets/factory.py) holds out the last ones; people record failures in
    a row, and what is held out must hold both outcomes to say anything of a critic.

    Raises:
        DatasetError: nothing would be left to train on.
    """
    groups: dict[tuple[int, int], list[Episode]] = {}
    for episode in episodes:
        groups.setdefault((episode.source, episode.task), []).append(episode)
    held_out = set()
    single = sum(len(group) == 1 for group in groups.values())
    if eval_split and single:
        logger.info("Nothing is held out of %d task(s) with a single episode", single)
    for group in groups.values():
        if len(group) == 1:
            continue  # a task keeps its only episode
        by_outcome = sorted(group, key=lambda episode: (episode.outcome.value, episode.start))
        count = math.ceil(len(group) * eval_split)
        held_out |= {by_outcome[int((k + 0.5) * len(group) / count)] for k in range(count)}
    train = [episode for episode in episodes if episode not in held_out]
    if not train:
        raise DatasetError(f"dataset.eval_split={eval_split} leaves no episode to train on ({len(episodes)} in all)")
    return train, [episode for episode in episodes if episode in held_out]


def assign_folds(episodes: list[Episode], folds: int) -> dict[tuple[int, int], int]:
    """(source, episode index) → fold, for cross-fitting: each task's outcomes are dealt out evenly, in order.

    A pure function of the episodes, so that every process and every later labeling finds the same folds.

    Raises:
        DatasetError: there are fewer episodes than folds.
    """
    if folds > len(episodes):
        raise DatasetError(
            f"policy.critic_folds is {folds}, but there are only {len(episodes)} episodes to train on; lower it"
        )
    ordered = sorted(episodes, key=lambda e: (e.task, e.outcome.value, e.source, e.index))
    return {(episode.source, episode.index): number % folds for number, episode in enumerate(ordered)}


def cap_transitions(episodes: list[Episode], capacity: int | None, seed: int) -> list[Episode]:
    """A random choice of episodes that together hold at most ``capacity`` transitions, the last one cut short.

    A cut episode keeps its labels; only its later frames are not drawn (chunks still read the actions there).
    """
    if capacity is None or sum(episode.length for episode in episodes) <= capacity:
        return episodes
    kept, left = [], capacity
    for number in np.random.default_rng(seed).permutation(len(episodes)):
        if left <= 0:
            break
        episode = episodes[number]
        kept.append(replace(episode, end=min(episode.end, episode.start + left)))
        left -= episode.length
    return sorted(kept, key=lambda episode: (episode.source, episode.start))


def _shortened(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
