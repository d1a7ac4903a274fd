"""What a labeling's critic says of each episode, beside what people say."""

from dataclasses import dataclass

import numpy as np

from ...data.labeling import Labeling, episode_rows
from ...returns import Outcome

END = 0.1  # share of an episode whose mean value is compared with its outcome
# What V is at the end of an episode, whose return is that of its outcome there (returns.py).
EXPECTED = {Outcome.SUCCESS: 0.0, Outcome.FAILURE: -1.0}


@dataclass(frozen=True)
class Curve:
    """V of one episode's frames, and which of them are tagged positive."""

    values: np.ndarray  # (T,)
    positive: np.ndarray  # (T,) bool

    @property
    def end(self) -> float:
        """Mean of V over the last tenth; NaN where nothing is known."""
        last = self.values[-max(1, round(END * len(self.values))) :]
        return float(np.nanmean(last)) if np.isfinite(last).any() else float("nan")


def curves(labelings: list[Labeling]) -> dict[tuple[int, int], Curve]:
    """(source, episode_index) → its curve."""
    found = {}
    for number, labeling in enumerate(labelings):
        columns = labeling.columns
        for rows in episode_rows(columns["episode_index"]):
            episode = int(columns["episode_index"][rows][0])
            found[number, episode] = Curve(columns["value"][rows], columns["positive"][rows].astype(bool))
    return found


def disagreement(curve: Curve | None, outcome: Outcome | None) -> float | None:
    """How far V at the end is from what the outcome makes it, 0 to 1; None: one of the two is unknown."""
    if curve is None or outcome not in EXPECTED or np.isnan(curve.end):
        return None
    return min(1.0, abs(curve.end - EXPECTED[outcome]))
