"""Outcomes → rewards → returns → advantages. Pure functions over columns; no model, no frame.

Source: RECAP (arXiv 2511.14759), Eq. 5 for the rewards, section IV-C for the advantages.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import pandas as pd

from .options import DATA, LEARNING, check_options, option

SUCCESSES_ABOVE = -0.5  # of steps_to_success: at each frame of a success the return is above, of a failure it is not


class Outcome(StrEnum):
    """How an episode ended, equal to its name as text. A truncated one was cut by a time limit and has no label."""

    SUCCESS = "success"
    FAILURE = "failure"
    TRUNCATED = "truncated"


@dataclass
class RewardConfig:
    """Where rewards and outcomes come from."""

    # steps_to_success (RECAP, Eq. 5) | dataset (the next.reward column).
    source: str = option("steps_to_success", LEARNING, choices=("steps_to_success", "dataset"))
    outcome_file: str | None = option(None, DATA)  # CSV: episode_index,outcome[,dataset]; wins over the columns
    # error | success | failure: what an episode without any label is.
    unlabelled: str = option("error", DATA, choices=("error", "success", "failure"))

    def __post_init__(self) -> None:
        check_options(self, "reward")


def episode_outcome(
    *,
    cut_off: np.ndarray | None = None,
    success: np.ndarray | None = None,
    reward: np.ndarray | None = None,
    truncated: np.ndarray | None = None,
) -> Outcome | None:
    """One episode's outcome, from the first source that knows it; None if none does.

    Args:
        cut_off: (T,) the episode's ``next.cut_off`` column; true at the last step: nobody knows how it would have
            ended, whatever its ``next.success`` says.
        success: (T,) the episode's ``next.success`` (or ``success``) column; true at any step is a success, false at
            the last one a failure. Neither (the end is unknown) says nothing: steps before the end of a success are
            false as well.
        reward: (T,) ``next.reward``; a positive one at the last step is a success, any other says nothing.
        truncated: (T,) ``next.truncated``; true at the last step marks a time limit.

    Flags are booleans or numbers: 1 is true, 0 false, all else unknown (data/flags.py reads other types).
    """
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


class NStepReturns(NamedTuple):
    """n-step returns of each frame of an episode, not yet bootstrapped: rewards, and where the later value comes from.

    The return is ``reward + discount · V(frame t + offset)``."""

    reward: np.ndarray  # (T,) float32 Σ_{k<m} γ^k r_{t+k}; NaN where nothing is known of the future
    offset: np.ndarray  # (T,) int64 m: how many frames later the bootstrap frame lies, 0 where there is none
    discount: np.ndarray  # (T,) float32 γ^m; 0 where the episode's end is reached, nothing being left to estimate


def n_step_returns(rewards: np.ndarray, n: int, *, discount: float, terminated: bool) -> NStepReturns:
    """The ``n``-step returns of every frame of one episode.

    Args:
        rewards: (T,) of the whole episode.
        terminated: the episode ended in a success or failure. A truncated one is bootstrapped from its last
            frame, whose own future is unknown.
    """
    length = len(rewards)
    to_go = discounted_returns(rewards, discount=discount).astype(np.float64)
    frames = np.arange(length)
    inside = frames + n < length
    reaches = np.minimum(frames + n, length - 1)
    offset = np.where(inside | (not terminated), reaches - frames, 0)
    power = discount ** offset.astype(np.float64)
    bootstrapped = inside | (not terminated)
    reward = np.where(bootstrapped, to_go - power * to_go[reaches], to_go)
    if not terminated:
        reward[-1] = np.nan
    weight = np.where(bootstrapped, power, 0.0)
    return NStepReturns(reward.astype(np.float32), offset, weight.astype(np.float32))


def episode_advantages(
    returns: np.ndarray,
    rewards: np.ndarray,
    values: np.ndarray,
    *,
    n_step: int | None = None,
    gae_lambda: float | None = None,
    discount: float = 1.0,
    terminated: bool = True,
) -> np.ndarray:
    """(T,) float32 advantages of one episode from its (T,) returns, rewards and values; no network runs.

    Args:
        n_step: ``Σ_{k<N} γ^k r_{t+k} + γ^N V(o_{t+N}) − V(o_t)`` (RECAP, section IV-C); None: ``G_t − V(o_t)``.
        gae_lambda: λ of the λ-return instead (GAE, arXiv 1506.02438): the n-step advantages' exponential mean.
    """
    if gae_lambda is not None:
        step = n_step_returns(rewards, 1, discount=discount, terminated=terminated)
        errors = _bootstrapped(step, values) - values
        known = slice(None) if terminated else slice(-1)  # what follows a cut episode's last frame is unknown
        errors[known] = discounted_returns(errors[known], discount=discount * gae_lambda)
        return errors.astype(np.float32)
    if n_step is None:
        return (returns - values).astype(np.float32)
    steps = n_step_returns(rewards, n_step, discount=discount, terminated=terminated)
    return (_bootstrapped(steps, values) - values).astype(np.float32)


def share_of_task(share: float, task_length: int) -> int:
    """A share of a task's longest episode in whole steps, at least one. A critic's values differ over so many steps by
    about that share of their range, however long the task and however fast its frames follow each other."""
    return max(1, round(share * task_length))


def smoothed(advantages: np.ndarray, window: int) -> np.ndarray:
    """(T,) float32 the mean of one episode's advantages over ``window`` frames around each; NaN stays NaN.

    Actions are learnt and executed in chunks, so what counts is whether a stretch of them was good; and the critic's
    errors differ from frame to frame where what is done does not.
    """
    mean = pd.Series(advantages).rolling(window, center=True, min_periods=1).mean().to_numpy()
    return np.where(np.isnan(advantages), np.nan, mean).astype(np.float32)


def _bootstrapped(steps: NStepReturns, values: np.ndarray) -> np.ndarray:
    return steps.reward + steps.discount * values[np.arange(len(values)) + steps.offset]
