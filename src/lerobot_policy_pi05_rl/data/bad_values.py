"""NaN, infinity and outliers in what the policy reads and learns: found when a dataset is opened, before any step.

Outliers are values so far from all others that, normalised beside them, all others would be one value. What lies far
away is not always wrong: a gripper that closes for a moment, a joint that moves in one episode of many. A wrong value
stands alone: the value before it and the value behind it are where all others are.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

FAR = 100.0  # so many widths of the bulk away, all others lie within a hundredth of what is normalised to −1 … 1
SURELY_FAR = 1e4  # a jump as far as that is no motion, however long it lasts (65535, −9999)
SHORT = 2  # frames: motion lasts longer
BULK = 0.01  # the share of frames at each end that may be outliers


class BadValue(NamedTuple):
    """The first bad value of a column, and how many there are."""

    key: str
    episode: int
    frame: int
    dimension: int
    value: float
    count: int
    episodes: tuple[int, ...]  # all that hold one, ascending

    def __str__(self) -> str:
        more = f", and {self.count - 1} more in {len(self.episodes)} episode(s)" if self.count > 1 else ""
        place = f"episode {self.episode}, frame {self.frame}, dimension {self.dimension}"
        return f"{self.key} is {self.value} at {place}{more}"


def find_bad(
    columns: Mapping[str, np.ndarray], keys: tuple[str, ...], is_bad: Callable[[np.ndarray], np.ndarray]
) -> list[BadValue]:
    """Per column of ``keys`` that holds bad values, where.

    Args:
        columns: (frames, D) under ``keys`` (a null is NaN), and (frames,) episode_index, frame_index.
        is_bad: (frames, D) values → bool of that shape: NaN and infinity, or :func:`outliers`.
    """
    found = []
    for key in keys:
        values = columns[key].reshape(len(columns["episode_index"]), -1)
        bad = is_bad(values)
        rows = np.flatnonzero(bad.any(axis=1))
        if not rows.size:
            continue
        row, dimension = rows[0], int(np.flatnonzero(bad[rows[0]])[0])
        episodes = tuple(np.unique(columns["episode_index"][rows]).tolist())
        place = int(columns["episode_index"][row]), int(columns["frame_index"][row]), dimension
        found.append(BadValue(key, *place, float(values[row, dimension]), int(bad.sum()), episodes))
    return found


def outliers(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(N, D) bool: which ``values`` are outliers of their dimension.

    Outliers lie :data:`FAR` widths of the bulk (all but the outermost 1 % of the frames at each end, at least three)
    from it and last at most :data:`SHORT` frames, or jump :data:`SURELY_FAR` widths. A bulk that does not move at all
    has no outliers: nothing of it can be lost.

    Args:
        values: (N, D), finite.
        starts, ends: (E,) the rows of each episode.
    """
    found = np.zeros(values.shape, dtype=bool)
    for dimension in range(values.shape[1]):
        column = values[:, dimension].astype(np.float64)
        low, high = bulk(column)
        width = high - low
        if width <= 1e-6 * max(abs(low), abs(high)):  # that is how float32 rounds
            continue
        distance = np.maximum(np.maximum(low - column, column - high), 0.0)
        if distance.max() > FAR * width:
            _mark(found[:, dimension], column, distance / width, starts, ends)
    return found


def bulk(column: np.ndarray) -> tuple[float, float]:
    """Where the (N,) values of ``column`` lie but for the outermost at each end."""
    count = len(column)
    outermost = min(max(math.ceil(BULK * count), min(3, count // 10)), (count - 1) // 2)
    ordered = np.partition(column, [outermost, count - 1 - outermost])
    return float(ordered[outermost]), float(ordered[count - 1 - outermost])


def _mark(found: np.ndarray, column: np.ndarray, widths: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
    """Set ``found`` (N,) where values stand alone, or jump too far to have moved there."""
    far = widths > FAR
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        edges = np.flatnonzero(np.diff(np.r_[False, far[start:end], False])) + start
        for first, behind in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            farthest = float(widths[first:behind].max())
            entered = float(widths[first]) - (float(widths[first - 1]) if first > start else 0.0)
            if behind - first <= SHORT or (farthest > SURELY_FAR and entered > farthest / 2):
                found[first:behind] = True
