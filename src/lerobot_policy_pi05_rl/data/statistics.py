"""Statistics to normalise with: exact ones, of values in memory, under the names that LeRobot's normaliser reads.

LeRobot records those of each episode and averages them, quantiles included; an average of quantiles is no quantile,
and where episodes differ in place most values then lie outside. Pure functions; nothing here reads a file.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from lerobot.configs import NormalizationMode

Stats = dict[str, np.ndarray]  # "min", "max", "mean", "std", "q01" … "q99": (D,) float64; "count": (1,)
Blocks = Callable[[], Iterable[np.ndarray]]  # the values of one dimension, (n,) at a time; each call begins anew

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
# mode → the statistics that become −1 and 1 (of MEAN_STD: those whose difference is one unit)
BOUNDS = {
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.MEAN_STD: ("mean", "std"),
}
AT_ONCE = 1 << 22  # values that are sorted in memory; more are counted in bins first
BINS = 1 << 16
STILL = 1e-6  # of its size: a dimension that moves less does not move, that is how float32 rounds
STILL_WIDTH = 1e-3  # half of what such a dimension is given to move in: of its size, at least of 1
LARGEST_NORMALISED = 10.0  # where quantiles would make values larger than that, minimum and maximum are used


def row_statistics(values: np.ndarray) -> Stats:
    """Statistics of each column of (N, D) ``values``, as numpy has them (``np.quantile``'s linear interpolation)."""
    return statistics([lambda column=column: [column] for column in np.asarray(values).T])


def statistics(dimensions: Iterable[Blocks]) -> Stats:
    """Statistics of each dimension's values, exact, in memory for a few million of them however many there are.

    Raises:
        ValueError: there is no value.
    """
    rows = [_dimension_statistics(blocks) for blocks in dimensions]
    stats = {name: np.array([row[name] for row in rows]) for name in rows[0] if name != "count"}
    return {**stats, "count": np.array([rows[0]["count"]], dtype=np.int64)}


def _dimension_statistics(blocks: Blocks) -> dict[str, float]:
    count, total, low, high = 0, 0.0, np.inf, -np.inf
    for block in _blocks(blocks):
        count, total = count + len(block), total + float(block.sum())
        low, high = min(low, float(block.min())), max(high, float(block.max()))
    if count == 0:
        raise ValueError("there is no value to take statistics of")
    mean = min(max(total / count, low), high)  # the sum rounds: equal values have exactly their own mean
    variance = sum(float(np.square(block - mean).sum()) for block in _blocks(blocks)) / count
    positions = {name: share * (count - 1) for name, share in QUANTILES.items()}
    ranks = {int(np.floor(at)) + step for at in positions.values() for step in (0, 1)}
    ordered = select(blocks, sorted(min(rank, count - 1) for rank in ranks))
    quantiles = {}
    for name, at in positions.items():
        below = int(np.floor(at))
        first, second = ordered[below], ordered[min(below + 1, count - 1)]
        quantiles[name] = first + (second - first) * (at - below)
    return {"min": low, "max": high, "mean": mean, "std": float(np.sqrt(variance)), **quantiles, "count": count}


def select(blocks: Blocks, ranks: list[int], *, at_once: int = AT_ONCE) -> dict[int, float]:
    """Rank → the value that has so many values before it, of all the values of ``blocks``.

    Bins of equal width are counted; only the values of those in which a rank lies are sorted, or, where these are too
    many, binned again.
    """
    count, low, high = 0, np.inf, -np.inf
    for block in _blocks(blocks):
        count, low, high = count + len(block), min(low, float(block.min())), max(high, float(block.max()))
    if low == high:
        return dict.fromkeys(ranks, low)
    if count <= at_once:
        return _sorted_ranks(list(_blocks(blocks)), {rank: rank for rank in ranks})

    def bins(block: np.ndarray) -> np.ndarray:  # never falls where values rise, whatever is rounded
        return np.minimum((block - low) * (BINS / (high - low)), BINS - 1).astype(np.int64)

    ends = np.cumsum(sum(np.bincount(bins(block), minlength=BINS) for block in _blocks(blocks)))
    of_rank = {rank: int(np.searchsorted(ends, rank, side="right")) for rank in ranks}
    first = {bin_: int(ends[bin_ - 1]) if bin_ else 0 for bin_ in of_rank.values()}  # the rank that a bin begins with
    found: dict[int, float] = {}
    light, places, held = np.zeros(BINS, dtype=bool), {}, 0
    for bin_ in sorted(first):
        within = [rank for rank in ranks if of_rank[rank] == bin_]
        size = int(ends[bin_]) - first[bin_]
        if held + size > at_once:

            def inside(bin_: int = bin_) -> Iterator[np.ndarray]:
                return (block[bins(block) == bin_] for block in _blocks(blocks))

            values = select(inside, [rank - first[bin_] for rank in within], at_once=at_once)
            found |= {rank: values[rank - first[bin_]] for rank in within}
        else:
            light[bin_] = True
            places |= {rank: held + rank - first[bin_] for rank in within}
            held += size
    if places:
        found |= _sorted_ranks([block[light[bins(block)]] for block in _blocks(blocks)], places)
    return found


def _sorted_ranks(blocks: list[np.ndarray], places: dict[int, int]) -> dict[int, float]:
    """Rank → the value at its place among the values of ``blocks`` alone."""
    values = np.partition(np.concatenate(blocks), sorted(set(places.values())))
    return {rank: float(values[place]) for rank, place in places.items()}


def _blocks(blocks: Blocks) -> Iterator[np.ndarray]:
    return (np.asarray(block, dtype=np.float64) for block in blocks() if len(block))


def usable(stats: Stats, mode: NormalizationMode) -> tuple[Stats, dict[int, str]]:
    """``stats`` with bounds that keep every normalised value finite and small, and why, of each changed dimension.

    - A dimension that does not move is given a thousandth of its size to move in: its value becomes 0, a policy's
      small errors stay small, and nothing is divided by (nearly) zero.
    - A dimension most of whose values coincide or nearly so (a gripper that is closed for a moment, a joint that
      moved in one episode) has quantiles that say nothing of how far it moves: minimum and maximum take their place.
    """
    if mode not in BOUNDS:
        return stats, {}
    low_name, high_name = BOUNDS[mode]
    size = np.maximum(np.abs(stats["min"]), np.abs(stats["max"]))
    still = stats["max"] - stats["min"] <= STILL * size
    width = STILL_WIDTH * np.maximum(size, 1.0)
    if mode is NormalizationMode.MEAN_STD:
        changed = {**stats, "std": np.where(still, width, stats["std"])}
        return changed, {int(d): "never moves" for d in np.flatnonzero(still)}
    low, high = stats[low_name], stats[high_name]
    beyond = np.maximum(low - stats["min"], stats["max"] - high)
    far = ~still & (2 * beyond > (LARGEST_NORMALISED - 1) * (high - low))
    reasons = {int(d): f"never moves from {stats['min'][d]:.6g}" for d in np.flatnonzero(still)}
    for d in np.flatnonzero(far):
        reasons[int(d)] = (
            f"runs from {stats['min'][d]:.6g} to {stats['max'][d]:.6g}, but its {low_name} and {high_name} are "
            f"{low[d]:.6g} and {high[d]:.6g}: minimum and maximum are used instead"
        )
    middle = (stats["min"] + stats["max"]) / 2
    changed = {
        **stats,
        low_name: np.where(still, middle - width, np.where(far, stats["min"], low)),
        high_name: np.where(still, middle + width, np.where(far, stats["max"], high)),
    }
    return changed, dict(sorted(reasons.items()))


def differing(found: Stats, other: dict, mode: NormalizationMode, *, tolerance: float = 0.1) -> list[int] | None:
    """Dimensions in which the bounds of two statistics lie further apart than ``tolerance`` of ``found``'s range;
    None where ``other`` has none that can be compared."""
    names = BOUNDS[mode]
    try:
        theirs = [np.asarray(other[name], dtype=np.float64).reshape(-1) for name in names]
    except (KeyError, TypeError, ValueError):
        return None
    ours = [found[name] for name in names]
    if any(values.shape != ours[0].shape or not np.isfinite(values).all() for values in theirs):
        return None
    spread = ours[1] if mode is NormalizationMode.MEAN_STD else ours[1] - ours[0]
    apart = np.maximum(*(np.abs(a - b) for a, b in zip(ours, theirs, strict=True)))
    return np.flatnonzero(apart > tolerance * spread).tolist()
