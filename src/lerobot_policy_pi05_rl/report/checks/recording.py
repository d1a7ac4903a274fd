"""A recording as the checks read it: columns in memory and where its episodes lie. No picture, no file."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...labels.outcomes import format_ranges

UNKNOWN = "unknown"  # the outcome of an episode of which nobody said how it ended
MOST_RANGES = 8  # of episodes that a line names


@dataclass(frozen=True)
class Signal:
    """State or action."""

    key: str  # the column's
    values: np.ndarray  # (N, D), finite
    labels: list[str]  # (D,) names, or numbers where the dataset gives none
    named: bool  # whether they are names

    @cached_property
    def ranges(self) -> np.ndarray:
        """(D,) float64 greatest minus least value."""
        return self.values.max(axis=0).astype(np.float64) - self.values.min(axis=0)


@dataclass(frozen=True)
class Recording:
    """One dataset: N frames of E episodes."""

    name: str
    fps: float
    episodes: np.ndarray  # (E,) episode_index
    starts: np.ndarray  # (E,) first row of each episode
    ends: np.ndarray  # (E,) one past its last row
    tasks: list[str]  # (E,)
    outcomes: list[str]  # (E,) success, failure, truncated or UNKNOWN
    state: Signal
    action: Signal
    timestamps: np.ndarray  # (N,) seconds since the episode's first frame

    @property
    def lengths(self) -> np.ndarray:
        """(E,) frames."""
        return self.ends - self.starts

    @property
    def signals(self) -> tuple[Signal, Signal]:
        """What a policy reads and what it learns."""
        return self.state, self.action

    def ended_as(self, outcome: str) -> np.ndarray:
        """(E,) bool: which episodes did."""
        return np.array([own == outcome for own in self.outcomes])

    def of_task(self, task: str) -> np.ndarray:
        """(E,) bool: which episodes are of it."""
        return np.array([own == task for own in self.tasks])


def numbered(episodes: Sequence[int] | np.ndarray) -> str:
    """``episode 3``, ``episodes 0-4,7``; of many the first ones, and how many there are."""
    numbers = sorted(int(episode) for episode in episodes)
    ranges = format_ranges(numbers).split(",")
    more = f",… ({len(numbers)} in all)" if len(ranges) > MOST_RANGES else ""
    return f"episode{'s' if len(numbers) > 1 else ''} {','.join(ranges[:MOST_RANGES])}{more}"
