"""Outcomes → rewards → returns, and advantages → tags. Pure functions over columns; no model, no frame.

Sources: RECAP (arXiv 2511.14759), Eq. 5 for the rewards, section IV-C and App. F for the threshold.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import UserError

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
    cut_off: np.ndarray | None = None,
    success: np.ndarray | None = None,
    reward: np.ndarray | None = None,
    truncated: np.ndarray | None = None,
) -> Outcome | None:
    """One episode's outcome, from the first source that knows it; None if none does.

    Args:
        given: from an outcome file.
        cut_off: (T,) the episode's ``next.cut_off`` column; true at the last step: nobody knows how it would have
            ended, whatever its ``next.success`` says.
        success: (T,) the episode's ``next.success`` (or ``success``) column; true at any step is a success, false at
            the last one a failure. Neither (the end is unknown) says nothing: steps before the end of a success are
            false as well.
        reward: (T,) ``next.reward``; a positive one at the last step is a success, any other says nothing.
        truncated: (T,) ``next.truncated``; true at the last step marks a time limit.

    Flags are booleans or numbers: 1 is true, 0 false, all else unknown (data/flags.py reads other types).
    """
    if given is not None:
        return given
    if cut_off is not None and cut_off[-1] == 1:
        return Outcome.TRUNCATED
    if success is not None:
        if np.any(success == 1):
            return Outcome.SUCCESS
        if success[-1] == 0:
            return Outcome.FAILURE
    if reward is not None and reward[-1] is not None and 0 < reward[-1] < np.inf:
        return Outcome.SUCCESS
    if truncated is not None and truncated[-1] == 1:
        return Outcome.TRUNCATED
    return None


def steps_to_success_rewards(length: int, outcome: Outcome, task_length: int, *, rate: float = 1.0) -> np.ndarray:
    """(T,) float32 rewards of RECAP's Eq. 5, in units of the normalised return: −1 per step, 0 at a success,
    −C_fail at a failure. ``length`` counts frames, of which there are ``rate`` in a step.

    ``G_t = −(remaining + failed · C) / (task_length + C)`` with C = ``task_length``, the task's longest episode, so
    that returns lie in [−1, 0]: successes above −1/2, failures below. A truncated episode's steps cost as any
    other's; what follows them is unknown.
    """
    rewards = np.full(length, -1.0 / rate)
    if outcome is Outcome.SUCCESS:
        rewards[-1] = 0.0
    elif outcome is Outcome.FAILURE:
        rewards[-1] = -float(task_length)
    return (rewards / (2 * task_length)).astype(np.float32)


def dataset_rewards(
    column: np.ndarray, outcome: Outcome, *, reward_normalization_constant: float, terminal_failure_reward: float
) -> np.ndarray:
    """(T,) float32 the ``next.reward`` column in units of the normalisation constant.

    ``terminal_failure_reward`` (in the column's units) is added at the last step of a failed episode only.
    """
    rewards = np.asarray(column, dtype=np.float64).copy()
    if outcome is Outcome.FAILURE:
        rewards[-1] += terminal_failure_reward
    return (rewards / reward_normalization_constant).astype(np.float32)


def discounted_returns(rewards: np.ndarray, *, discount: float) -> np.ndarray:
    """(T,) rewards of a whole episode → (T,) float32 discounted sums to its end."""
    returns = np.empty(len(rewards), dtype=np.float64)
    following = 0.0
    for step in range(len(rewards) - 1, -1, -1):
        following = returns[step] = float(rewards[step]) + discount * following
    return returns.astype(np.float32)


class Lookahead(NamedTuple):
    """What stands for the rest of an episode, seen from each of its frames: rewards, then one later frame's value."""

    reward: np.ndarray  # (T,) float32 Σ_{k<m} γ^k r_{t+k}; NaN where nothing is known of the future
    offset: np.ndarray  # (T,) int64 m: how many frames ahead the bootstrap frame lies, 0 where there is none
    discount: np.ndarray  # (T,) float32 γ^m; 0 where the episode's end is reached, nothing being left to estimate


def lookahead(rewards: np.ndarray, n: int, *, discount: float, terminated: bool) -> Lookahead:
    """The ``n``-step look-ahead of every frame of one episode.

    Args:
        rewards: (T,) of the whole episode.
        terminated: the episode ended in a success or failure. A truncated one is bootstrapped from its last
            frame, whose own future is unknown.
    """
    length = len(rewards)
    to_go = discounted_returns(rewards, discount=discount).astype(np.float64)
    frames = np.arange(length)
    ahead = frames + n
    inside = ahead < length
    if not terminated:
        ahead = np.minimum(ahead, length - 1)
    reaches = np.minimum(ahead, length - 1)
    offset = np.where(inside | (not terminated), reaches - frames, 0)
    power = discount ** offset.astype(np.float64)
    bootstrapped = inside | (not terminated)
    reward = np.where(bootstrapped, to_go - power * to_go[reaches], to_go)
    if not terminated:
        reward[-1] = np.nan
    weight = np.where(bootstrapped, power, 0.0)
    return Lookahead(reward.astype(np.float32), offset, weight.astype(np.float32))


def episode_advantages(
    returns: np.ndarray,
    rewards: np.ndarray,
    values: np.ndarray,
    *,
    n_step: int | None = None,
    trace: float | None = None,
    discount: float = 1.0,
    terminated: bool = True,
) -> np.ndarray:
    """(T,) float32 advantages of one episode from its (T,) returns, rewards and values; no network runs.

    Args:
        n_step: ``Σ_{k<N} γ^k r_{t+k} + γ^N V(o_{t+N}) − V(o_t)`` (RECAP, section IV-C); None: ``G_t − V(o_t)``.
        trace: λ of the λ-return instead (GAE, arXiv 1506.02438): the n-step advantages' exponential mean.
    """
    if trace is not None:
        step = lookahead(rewards, 1, discount=discount, terminated=terminated)
        errors = _bootstrapped(step, values) - values
        known = slice(None) if terminated else slice(-1)  # what follows a cut episode's last frame is unknown
        errors[known] = discounted_returns(errors[known], discount=discount * trace)
        return errors.astype(np.float32)
    if n_step is None:
        return (returns - values).astype(np.float32)
    steps = lookahead(rewards, n_step, discount=discount, terminated=terminated)
    return (_bootstrapped(steps, values) - values).astype(np.float32)


def horizon_trace(horizon: float, task_length: int) -> float:
    """λ whose λ-return looks ``horizon · task_length`` steps ahead, in the mean over its n-step returns.

    Args:
        horizon: share of the task's longest episode. A critic's values differ over so many steps by about
            ``horizon`` of their range, however long the task and however fast its frames follow each other.
        task_length: the task's longest episode, frames.
    """
    return 1.0 - 1.0 / max(1.0, horizon * task_length)


def _bootstrapped(steps: Lookahead, values: np.ndarray) -> np.ndarray:
    return steps.reward + steps.discount * values[np.arange(len(values)) + steps.offset]


class AdvantageThresholds:
    """ε per task: the quantile of the task's recent advantages above which its positive fraction of them lies.

    Holds a window of the last ``window`` advantages of each task on the CPU. Until a task has ``min_count`` of
    them its threshold is NaN, and nothing of it is tagged.
    """

    def __init__(self, positive_fractions: list[float], *, window: int, min_count: int = 64):
        """``positive_fractions``: one per task."""
        self.positive_fractions, self.min_count = positive_fractions, min_count
        self._values = torch.full((len(positive_fractions), window), float("nan"))
        self._counts = torch.zeros(len(positive_fractions), dtype=torch.int64)

    def update(self, task_index: Tensor, advantages: Tensor) -> None:
        """Append (B,) advantages of tasks (B,) to the windows; NaNs (no known return) are left out."""
        known = ~advantages.isnan()
        for task, value in zip(task_index[known].tolist(), advantages[known].tolist(), strict=True):
            self._values[task, self._counts[task] % self._values.shape[1]] = value
            self._counts[task] += 1

    def __getitem__(self, task_index: Tensor) -> Tensor:
        """(B,) task indices → (B,) thresholds, NaN where too few advantages are known."""
        return self._per_task(task_index, lambda known, task: torch.quantile(known, 1 - self.positive_fractions[task]))

    def spread(self, task_index: Tensor) -> Tensor:
        """(B,) task indices → (B,) standard deviations of recent advantages, NaN where too few are known."""
        return self._per_task(task_index, lambda known, _: known.std(correction=0))

    def _per_task(self, task_index: Tensor, statistic: Callable[[Tensor, int], Tensor]) -> Tensor:
        result = torch.full((len(self._counts),), float("nan"))
        for task in task_index.unique().tolist():
            known = self._values[task, : min(int(self._counts[task]), self._values.shape[1])]
            if len(known) >= min(self.min_count, self._values.shape[1]):
                result[task] = statistic(known, task)
        return result[task_index]

    def state_dict(self) -> dict[str, Tensor]:
        """The windows, for the checkpoint."""
        return {"advantage_window": self._values.clone(), "advantage_counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: it is of other tasks or another window.
        """
        for name, own in (("advantage_window", self._values), ("advantage_counts", self._counts)):
            if state[name].shape != own.shape or state[name].dtype != own.dtype:  # copy_ would broadcast and cast
                raise ValueError(f"{name} is {tuple(state[name].shape)}, here {tuple(own.shape)}")
        self._values.copy_(state["advantage_window"])
        self._counts.copy_(state["advantage_counts"])


def positive_fractions(tasks: list[str], default: float, per_task: Mapping[str, float]) -> list[float]:
    """The fraction of each task: its own if it is given, else the default.

    Raises:
        UserError: a fraction is given for a task that the data does not have.
    """
    unknown = sorted(set(per_task) - set(tasks))
    if unknown:
        raise UserError(
            f"policy.advantage_positive_fraction_per_task: no task {unknown[0]!r} in the data; its tasks are "
            f"{', '.join(map(repr, tasks))}"
        )
    return [per_task.get(task, default) for task in tasks]


def advantage_tags(advantages: Tensor, thresholds: Tensor, *, interventions: Tensor) -> Tensor:
    """(B,) tags: 1 positive (A > ε), 0 negative, −1 none.

    A human's correction is always positive (RECAP, section IV-C). No tag where the advantage or the threshold
    is unknown.
    """
    tags = (advantages > thresholds).long()
    tags[advantages.isnan() | thresholds.isnan()] = -1
    tags[interventions] = 1
    return tags


def awr_weights(advantages: Tensor, spread: Tensor, *, temperature: float, max_weight: float) -> Tensor:
    """(B,) ``exp(A / (temperature · spread))``, at most ``max_weight`` (AWR, arXiv 1910.00177); 0 where A or the
    spread of the task's advantages is unknown: such a sample is worth nothing yet."""
    weights = torch.exp(advantages / (temperature * spread.clamp(min=1e-6))).clamp(max=max_weight)
    return weights.nan_to_num(nan=0.0)
