"""Label the frames of all sources: outcome and return of every episode, tasks, the held-out split."""

import logging
import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from lerobot.utils.constants import REWARD

from ..configuration_pi05_rl import PI05RLConfig
from ..returns import (
    Outcome,
    RewardConfig,
    dataset_rewards,
    discounted_returns,
    episode_outcome,
    steps_to_success_rewards,
)
from .sources import (
    CUT_OFF,
    INTERVENTION_COLUMNS,
    SUCCESS_COLUMNS,
    TRUNCATED_COLUMNS,
    DatasetError,
    Source,
    check_outcome_file_datasets,
    read_outcome_file,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Episode:
    """One labelled episode: rows ``start`` to ``end`` of source ``source``."""

    source: int
    index: int  # the dataset's episode_index
    start: int
    end: int
    task: int
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
    rewards: list[np.ndarray]  # per source (frames,) float32, in units of the return; NaN where no label is needed
    returns: list[np.ndarray]  # per source (frames,) float32, NaN where unknown
    interventions: list[np.ndarray]  # per source (frames,) bool


def label_episodes(
    sources: list[Source], reward: RewardConfig, policy: PI05RLConfig, *, needs_returns: bool = True
) -> LabelledEpisodes:
    """Outcomes, rewards and returns of every episode of every source.

    Args:
        needs_returns: false for plain cloning, which learns from no label: unlabelled episodes are then allowed.

    Raises:
        DatasetError: unlabelled episodes under ``reward.unlabelled: error``, no label at all, a missing reward
            column, or returns outside the critic's support.
    """
    tasks = sorted({policy.task or task for source in sources for task in source.tasks})
    task_ids = {task: index for index, task in enumerate(tasks)}
    unlabelled = Outcome(reward.unlabelled) if reward.unlabelled != "error" else None
    check_outcome_file_datasets(reward.outcome_file, sources)
    episodes, unknown = [], []
    for number, source in enumerate(sources):
        outcomes = known_outcomes(source, reward.outcome_file, primary=number == 0)
        rows = zip(source.starts.tolist(), source.ends.tolist(), outcomes, strict=True)
        for row, (start, end, outcome) in enumerate(rows):
            index = int(source.columns["episode_index"][start])
            if outcome is None:
                unknown.append(f"{source.name}#{index}")
                outcome = unlabelled or Outcome.TRUNCATED
            task = task_ids[policy.task or source.tasks[row]]
            episodes.append(Episode(number, index, start, end, task, outcome))
    if needs_returns and unknown and unlabelled is None:
        raise DatasetError(
            f"{len(unknown)} of {len(episodes)} episodes have no outcome ({_shortened(unknown)}). Give a CSV "
            "episode_index,outcome as reward.outcome_file, or set reward.unlabelled to success or failure"
        )
    counts = Counter(episode.outcome.value for episode in episodes)
    logger.info("Outcomes of %d episodes: %s", len(episodes), dict(sorted(counts.items())))
    if needs_returns and counts[Outcome.TRUNCATED.value] == len(episodes):
        raise DatasetError(
            "every episode was cut by a time limit and none is labelled: the critic has nothing to learn from. Give "
            "a CSV episode_index,outcome as reward.outcome_file"
        )

    task_lengths = np.zeros(len(tasks), dtype=np.int64)
    for episode in episodes:
        steps = math.ceil(episode.length / sources[episode.source].alignment.rate)
        task_lengths[episode.task] = max(task_lengths[episode.task], steps)
    unknown_frames = [np.full(len(source.columns["index"]), np.nan, dtype=np.float32) for source in sources]
    rewards, returns = unknown_frames, [frames.copy() for frames in unknown_frames]
    for episode in episodes if needs_returns else ():
        rows, source = slice(episode.start, episode.end), sources[episode.source]
        labels = label_frames(episode, source, reward, policy, int(task_lengths[episode.task]))
        rewards[episode.source][rows], returns[episode.source][rows] = labels
    if needs_returns:
        _check_support(returns, policy)
    interventions = []
    for source in sources:
        name = next((name for name in INTERVENTION_COLUMNS if name in source.columns), None)
        flags = source.columns[name] if name else np.zeros(len(source.columns["index"]))
        interventions.append(flags.astype(bool))
    return LabelledEpisodes(episodes, tasks, task_lengths, rewards, returns, interventions)


def label_frames(
    episode: Episode, source: Source, reward: RewardConfig, policy: PI05RLConfig, task_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """(T,) rewards and (T,) returns of one episode, NaN where nobody knows what would have followed."""
    rewards = _episode_rewards(episode, source, reward, policy, task_length)
    if reward.source != "dataset" and episode.outcome is Outcome.TRUNCATED:
        return rewards, np.full(len(rewards), np.nan, dtype=np.float32)
    discount = source.alignment.per_frame(reward_discount(reward, policy))
    return rewards, discounted_returns(rewards, discount=discount)


def known_outcomes(source: Source, outcome_file: str | None, *, primary: bool) -> list[Outcome | None]:
    """(episodes,) the outcome of each episode of ``source``, None where neither file nor columns know it."""
    given = read_outcome_file(outcome_file, source, primary=primary)
    return [
        known_outcome(source, row, given.get(int(source.columns["episode_index"][start])))
        for row, start in enumerate(source.starts)
    ]


def known_outcome(source: Source, row: int, given: Outcome | None = None) -> Outcome | None:
    """The outcome of the ``row``-th episode of ``source``: what a file gives, else what its columns say."""
    return episode_outcome(
        given=given,
        cut_off=source.column((CUT_OFF,), row),
        success=source.column(SUCCESS_COLUMNS, row),
        reward=source.column((REWARD,), row),
        truncated=source.column(TRUNCATED_COLUMNS, row),
    )


def reward_discount(reward: RewardConfig, policy: PI05RLConfig) -> float:
    """γ of the return, per policy step: RECAP's steps-to-success return is undiscounted."""
    return 1.0 if reward.source == "steps_to_success" else policy.discount


def _episode_rewards(
    episode: Episode, source: Source, reward: RewardConfig, policy: PI05RLConfig, task_length: int
) -> np.ndarray:
    if reward.source == "steps_to_success":
        return steps_to_success_rewards(episode.length, episode.outcome, task_length, rate=source.alignment.rate)
    if REWARD not in source.columns:
        raise DatasetError(
            f"reward.source is 'dataset' but {source.name} has no {REWARD} column; use steps_to_success"
        )
    return dataset_rewards(
        source.columns[REWARD][episode.start : episode.end],
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
