"""How every episode of a dataset ended, and who says so."""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from lerobot.utils.constants import REWARD

from ..returns import Outcome, episode_outcome
from .flags import CUT, NO, UNKNOWN, describe_unknown, flag_columns, number_column
from .sources import CUT_OFF, INTERVENTION_COLUMNS, SUCCESS_COLUMNS, TRUNCATED_COLUMNS, Source, read_outcome_file

logger = logging.getLogger(__name__)

OUTCOME_COLUMNS = (*SUCCESS_COLUMNS, "outcome")
FILE, LABELING = "the outcome file", "the labeling"


class FoundOutcome(NamedTuple):
    """An episode's outcome and the column, or file, that says so; (None, None): nothing does."""

    outcome: Outcome | None = None
    by: str | None = None


def find_outcomes(
    columns: "LabelColumns",
    outcome_file: str | None,
    *,
    primary: bool,
    recorded: Mapping[int, Outcome] | None = None,
) -> list[FoundOutcome]:
    """(episodes,) each episode's outcome from the first that knows it.

    The order: the outcome file; ``next.cut_off``; ``next.success``, ``success``, ``outcome``; a positive last
    ``next.reward``; ``next.truncated``, ``truncated``; the labeling that is trained from. Each episode goes through it
    by itself: a column that knows some episodes only leaves the others to what comes next.

    Args:
        recorded: episode → outcome under which a labeling was made.
    """
    source = columns.source
    given = read_outcome_file(outcome_file, source, primary=primary)
    found = []
    for row, start in enumerate(source.starts):
        index = int(source.columns["episode_index"][start])
        if index in given:
            found.append(FoundOutcome(given[index], FILE))
            continue
        own = columns.find(row)
        if own.outcome is None and recorded and index in recorded:
            own = FoundOutcome(recorded[index], LABELING)
        found.append(own)
    return found


def known_outcomes(source: Source, outcome_file: str | None, *, primary: bool) -> list[Outcome | None]:
    """(episodes,) the outcome of each episode of ``source``, None where neither file nor columns know it."""
    return [found.outcome for found in find_outcomes(LabelColumns(source), outcome_file, primary=primary)]


def known_outcome(source: Source, row: int) -> Outcome | None:
    """What the columns say of the ``row``-th episode of ``source``."""
    return LabelColumns(source).find(row).outcome


class LabelColumns:
    """The columns of a dataset that say how its episodes ended."""

    def __init__(self, source: Source):
        self.source = source
        self._flags = flag_columns(source, (CUT_OFF, *OUTCOME_COLUMNS, *TRUNCATED_COLUMNS))
        self.rewards = number_column(source, REWARD)

    def find(self, row: int) -> FoundOutcome:
        """The ``row``-th episode's outcome from the first column that knows it."""
        rows = slice(self.source.starts[row], self.source.ends[row])
        for name, flags in self._flags.items():
            outcome = column_outcome(name, flags[rows]) if name not in TRUNCATED_COLUMNS else None
            if outcome is not None:
                return FoundOutcome(outcome, name)
        if self.rewards is not None and episode_outcome(reward=self.rewards[rows]) is not None:
            return FoundOutcome(Outcome.SUCCESS, REWARD)
        for name in TRUNCATED_COLUMNS:
            if name in self._flags and episode_outcome(truncated=self._flags[name][rows]) is not None:
                return FoundOutcome(Outcome.TRUNCATED, name)
        return FoundOutcome()

    def warn_of_unknown(self) -> None:
        """Warn, for each outcome column, which episodes it leaves open."""
        bounds = list(zip(self.source.starts, self.source.ends, strict=True))
        for name in OUTCOME_COLUMNS:
            if name in self._flags:
                flags = self._flags[name]
                left = np.concatenate(
                    [np.full(e - s, column_outcome(name, flags[s:e]) is None, dtype=bool) for s, e in bounds]
                )
                text = "what it leaves open is unknown, and asked of what comes next"
                warn_of_unknown(self.source, name, np.where(left, flags, NO), text)


def column_outcome(name: str, flags: np.ndarray) -> Outcome | None:
    """What one column's (T,) flags say of an episode."""
    if name == CUT_OFF:
        return episode_outcome(cut_off=flags)
    return Outcome.TRUNCATED if flags[-1] == CUT else episode_outcome(success=flags)


def warn_of_unknown(source: Source, name: str, flags: np.ndarray, consequence: str) -> None:
    """Warn, once for the column, where its (frames,) flags are neither yes nor no."""
    text = describe_unknown(source, name, flags, consequence)
    if text:
        logger.warning("%s", text)


def intervention_flags(source: Source) -> np.ndarray:
    """(frames,) bool: a person corrected the frame's action. Each frame is asked of the first column that knows it;
    unknown is not a correction."""
    flags = np.full(int(source.ends[-1]), UNKNOWN, dtype=np.int8)
    columns = flag_columns(source, INTERVENTION_COLUMNS)
    for own in columns.values():
        flags = np.where(flags == UNKNOWN, own, flags)
    for name in columns if (flags == UNKNOWN).any() else ():
        warn_of_unknown(source, name, np.where(flags == UNKNOWN, columns[name], NO), "such frames are no corrections")
    return flags == 1


def log_outcomes(datasets: list[LabelColumns], found: list[list[FoundOutcome]]) -> None:
    """Log of each dataset how many episodes ended how, by which column, and what its columns leave open; warn where
    all episodes ended alike, or those of a dataset did and its rewards say otherwise."""
    everything_alike = len({t.outcome for own in found for t in own}) == 1
    for columns, own in zip(datasets, found, strict=True):
        columns.warn_of_unknown()
        source = columns.source
        counts = Counter((t.outcome.value, t.by) for t in own if t.outcome is not None)
        text = ", ".join(f"{count} {outcome} ({by})" for (outcome, by), count in sorted(counts.items()))
        logger.info("Outcomes of %s: %s", source.name, text or "none known")
        outcomes = {t.outcome for t in own}
        if len(own) < 2 or len(outcomes) > 1 or not outcomes <= {Outcome.SUCCESS, Outcome.FAILURE}:
            continue
        alike = outcomes.pop()
        contradiction = _contradiction(columns, alike)
        if everything_alike or contradiction:
            logger.warning(
                "dataset %s: all %d episodes are a %s, by %s%s. A critic then learns how long an episode takes, not "
                "what leads to success. Where that is wrong, say so: pi05-rl label CONFIG --%s 0-40,52 writes the CSV "
                "that reward.outcome_file names",
                source.name,
                len(own),
                alike.value,
                ", ".join(sorted({t.by for t in own})),
                contradiction,
                ("success", "failure")[alike is Outcome.SUCCESS],
            )


def _contradiction(columns: LabelColumns, outcome: Outcome) -> str:
    """What the last rewards say against the outcome that all episodes have; empty where there is nothing."""
    if columns.rewards is None:
        return ""
    last = columns.rewards[columns.source.ends - 1]
    against = last > 0 if outcome is Outcome.FAILURE else last < 0
    if not against.any():
        return ""
    low, high = last[against].min(), last[against].max()
    sign = "above" if outcome is Outcome.FAILURE else "below"
    return f"; but the last {REWARD} is {sign} 0 in {int(against.sum())} of them (from {low:.3g} to {high:.3g})"
