"""Confidence intervals for closed-loop results."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of the rate of `successes` among `n` trials (E. B. Wilson, JASA 22, 1927, p. 209).

    Returns:
        Lower and upper bound, both in [0, 1].

    Raises:
        ValueError: for n < 1, successes outside 0..n, or a confidence outside (0, 1).
    """
    if n < 1 or not 0 <= successes <= n or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"Need 0 <= successes <= n, n >= 1 and 0 < confidence < 1, got {successes=}, {n=}, {confidence=}."
        )
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1.0 + z * z / n)
    half_width = z / (1.0 + z * z / n) * (rate * (1.0 - rate) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def successes_per_1000_steps(success: Sequence[bool], steps: Sequence[int]) -> float:
    """Throughput: successes per thousand environment steps, failed episodes' steps counted as well.

    Args:
        success, steps: of each episode; environment steps until success or truncation.

    Raises:
        ValueError: when the lengths differ, nothing was given, or a step count is not positive.
    """
    won, taken = _checked(success, steps)
    return float(1000.0 * won.sum() / taken.sum())


def bootstrap_interval(
    success: Sequence[bool],
    steps: Sequence[int],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `successes_per_1000_steps`, episodes drawn with replacement.

    Returns:
        Lower and upper bound, successes per thousand steps.

    Raises:
        ValueError: as `successes_per_1000_steps`, or for a confidence outside (0, 1) or resamples < 1.
    """
    won, taken = _checked(success, steps)
    if not 0.0 < confidence < 1.0 or resamples < 1:
        raise ValueError(f"Need 0 < confidence < 1 and resamples >= 1, got {confidence=}, {resamples=}.")
    drawn = np.random.default_rng(seed).integers(len(won), size=(resamples, len(won)))
    throughput = 1000.0 * won[drawn].sum(axis=1) / taken[drawn].sum(axis=1)
    low, high = np.quantile(throughput, [0.5 - confidence / 2.0, 0.5 + confidence / 2.0])
    return float(low), float(high)


def throughput_ratio(
    success: Sequence[bool],
    steps: Sequence[int],
    other_success: Sequence[bool],
    other_steps: Sequence[int],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """How many times as many successes per thousand steps as another policy, with a percentile bootstrap interval.

    Episode i of both began in the same state, so that pairs are drawn, with replacement.

    Returns:
        The ratio, its lower and its upper bound; infinite where the other policy never succeeds.

    Raises:
        ValueError: as `bootstrap_interval`, or when the numbers of episodes differ.
    """
    won, taken = _checked(success, steps)
    other_won, other_taken = _checked(other_success, other_steps)
    if len(won) != len(other_won):
        raise ValueError(f"Need pairs of episodes, got {len(won)} and {len(other_won)}.")
    drawn = np.random.default_rng(seed).integers(len(won), size=(resamples, len(won)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (won[drawn].sum(axis=1) * other_taken[drawn].sum(axis=1)) / (
            taken[drawn].sum(axis=1) * other_won[drawn].sum(axis=1)
        )
        ratio = float(won.sum() * other_taken.sum() / (taken.sum() * other_won.sum()))
    low, high = np.quantile(
        np.nan_to_num(ratios, nan=np.inf, posinf=np.inf), [0.5 - confidence / 2, 0.5 + confidence / 2]
    )
    return ratio, float(low), float(high)


def _checked(success: Sequence[bool], steps: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays (episodes,): bool and int64."""
    won, taken = np.asarray(success, dtype=bool), np.asarray(steps, dtype=np.int64)
    if won.ndim != 1 or won.shape != taken.shape or len(won) == 0 or (taken < 1).any():
        raise ValueError(
            "Need as many step counts as success flags, at least one, all positive; "
            f"got {len(won)} flags and steps {taken.tolist()}."
        )
    return won, taken
