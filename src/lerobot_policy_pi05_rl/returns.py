"""Outcomes → rewards → returns, and advantages → tags. Pure functions over columns; no model, no frame.

Sources: RECAP (arXiv 2511.14759), Eq. 5 for the rewards, section IV-C and App. F for the threshold.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from torch import Tensor

REWARD_SOURCES = ("steps_to_success", "dataset")
UNLABELLED = ("error", "success", "failure")


class Outcome(Enum):
    """How an episode ended. A truncated one was cut by a time limit and carries no label."""

    SUCCESS = "success"
    FAILURE = "failure"
    TRUNCATED = "truncated"


@dataclass
class RewardConfig:
    """Where rewards and outcomes come from."""

    source: str = "steps_to_success"  # steps_to_success (RECAP, Eq. 5) | dataset (the next.reward column)
    outcome_file: str | None = None  # CSV: episode_index,outcome[,dataset]; wins over the dataset's columns
    unlabelled: str = "error"  # error | success | failure: what an episode without any label is

    def __post_init__(self) -> None:
        if self.source not in REWARD_SOURCES:
            raise ValueError(f"reward.source must be one of {', '.join(REWARD_SOURCES)}; got {self.source!r}")
        if self.unlabelled not in UNLABELLED:
            raise ValueError(f"reward.unlabelled must be one of {', '.join(UNLABELLED)}; got {self.unlabelled!r}")


def episode_outcome(
    *,
    given: Outcome | None = None,
    success: np.ndarray | None = None,
    reward: np.ndarray | None = None,
    truncated: np.ndarray | None = None,
) -> Outcome | None:
    """One episode's outcome, from the first source that knows it; None if none does.

    Args:
        given: from an outcome file.
        success: (T,) the episode's ``next.success`` (or ``success``) column; any true value is a success, none
            a failure.
        reward: (T,) ``next.reward``; a positive one at the last step is a success, any other says nothing.
        truncated: (T,) ``next.truncated``; true at the last step marks a time limit.
    """
    if given is not None:
        return given
    if success is not None:
        return Outcome.SUCCESS if bool(np.any(success)) else Outcome.FAILURE
    if reward is not None and reward[-1] > 0:
        return Outcome.SUCCESS
    if truncated is not None and bool(truncated[-1]):
        return Outcome.TRUNCATED
    return None


def steps_to_success_returns(length: int, outcome: Outcome, task_length: int) -> np.ndarray:
    """(T,) float32 returns of RECAP's reward: −1 per step, 0 at a success, −C_fail at a failure; undiscounted.

    ``G_t = −(remaining + failed · C) / (task_length + C)`` with C = ``task_length``, the task's longest episode, so
    that returns lie in [−1, 0]: successes above −1/2, failures below. A truncated episode's future is unknown:
    its returns are NaN (no critic target, no tag).
    """
    if outcome is Outcome.TRUNCATED:
        return np.full(length, np.nan, dtype=np.float32)
    remaining = np.arange(length - 1, -1, -1)
    penalty = task_length if outcome is Outcome.FAILURE else 0
    return (-(remaining + penalty) / (2 * task_length)).astype(np.float32)


def discounted_returns(
    rewards: np.ndarray,
    outcome: Outcome,
    *,
    discount: float,
    reward_normalization_constant: float,
    terminal_failure_reward: float,
) -> np.ndarray:
    """(T,) float32 discounted sums of the ``next.reward`` column, in units of the normalisation constant.

    ``terminal_failure_reward`` (in the column's units) is added at the last step of a failed episode only.
    """
    rewards = np.asarray(rewards, dtype=np.float64).copy()
    if outcome is Outcome.FAILURE:
        rewards[-1] += terminal_failure_reward
    rewards /= reward_normalization_constant
    returns = np.empty_like(rewards)
    following = 0.0
    for step in range(len(rewards) - 1, -1, -1):
        following = returns[step] = rewards[step] + discount * following
    return returns.astype(np.float32)


class AdvantageThresholds:
    """ε per task: the quantile of the task's recent advantages above which ``positive_fraction`` of them lie.

    Holds a window of the last ``window`` advantages of each task on the CPU. Until a task has ``min_count`` of
    them its threshold is NaN, and nothing of it is tagged.
    """

    def __init__(self, num_tasks: int, *, positive_fraction: float, window: int, min_count: int = 64):
        self.positive_fraction, self.min_count = positive_fraction, min_count
        self._values = torch.full((num_tasks, window), float("nan"))
        self._counts = torch.zeros(num_tasks, dtype=torch.int64)

    def update(self, task_index: Tensor, advantages: Tensor) -> None:
        """Append (B,) advantages of tasks (B,) to the windows; NaNs (no known return) are left out."""
        known = ~advantages.isnan()
        for task, value in zip(task_index[known].tolist(), advantages[known].tolist(), strict=True):
            self._values[task, self._counts[task] % self._values.shape[1]] = value
            self._counts[task] += 1

    def __getitem__(self, task_index: Tensor) -> Tensor:
        """(B,) task indices → (B,) thresholds, NaN where too few advantages are known."""
        thresholds = torch.full((len(self._counts),), float("nan"))
        for task in task_index.unique().tolist():
            known = self._values[task, : min(int(self._counts[task]), self._values.shape[1])]
            if len(known) >= min(self.min_count, self._values.shape[1]):
                thresholds[task] = torch.quantile(known, 1 - self.positive_fraction)
        return thresholds[task_index]

    def state_dict(self) -> dict[str, Tensor]:
        """The windows, for the checkpoint."""
        return {"advantage_window": self._values.clone(), "advantage_counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`state_dict`."""
        self._values.copy_(state["advantage_window"])
        self._counts.copy_(state["advantage_counts"])


def advantage_tags(advantages: Tensor, thresholds: Tensor, *, interventions: Tensor, dropped: Tensor) -> Tensor:
    """(B,) tags: 1 positive (A > ε), 0 negative, −1 none.

    A human's correction is always positive (RECAP, section IV-C). No tag where the advantage or the threshold
    is unknown, nor where ``dropped`` (B,) says so, so that the untagged policy stays trained.
    """
    tags = (advantages > thresholds).long()
    tags[advantages.isnan() | thresholds.isnan()] = -1
    tags[interventions] = 1
    tags[dropped] = -1
    return tags
