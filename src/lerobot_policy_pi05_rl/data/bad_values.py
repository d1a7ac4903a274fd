"""NaN and infinity in what the policy reads and learns: found when a dataset is opened, before a step is made."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from .outliers import outliers


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


def find_nonfinite(columns: Mapping[str, np.ndarray], keys: tuple[str, ...]) -> list[BadValue]:
    """Per column of ``keys`` that holds NaN or infinity (a null is NaN), where.

    Args:
        columns: (frames, D) under ``keys``, and (frames,) episode_index, frame_index.
    """
    return _find(columns, keys, lambda values: ~np.isfinite(values))


def find_outliers(
    columns: Mapping[str, np.ndarray], keys: tuple[str, ...], starts: np.ndarray, ends: np.ndarray
) -> list[BadValue]:
    """As :func:`find_nonfinite`, of finite columns: values far beyond all others (:func:`~.outliers.outliers`).

    Args:
        starts, ends: (E,) the rows of each episode.
    """
    return _find(columns, keys, lambda values: outliers(values, starts, ends))


def _find(
    columns: Mapping[str, np.ndarray], keys: tuple[str, ...], is_bad: Callable[[np.ndarray], np.ndarray]
) -> list[BadValue]:
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
