"""Time: whether frames lie where the frame rate says, and how long a state takes to follow its action."""

from typing import NamedTuple

import numpy as np

from .finding import Finding, Verdict, judge
from .motion import moving
from .recording import Recording

SEARCHED_S = 1.0  # shifts up to that
LATE_S = 0.3  # a robot that follows later than that is slow
FOLLOWS = 0.7  # correlation; below, the two do not describe the same motion (an action of differences, for example)
COPY = 1e-6  # of a dimension's range
MOST_ROWS = 50_000  # of the episodes that are compared: more says no more


def timestamps(recording: Recording, tolerance_s: float, refused: str = "") -> Finding:
    """The largest distance of an interval between frames from that of the frame rate, in such intervals.

    Args:
        tolerance_s: by how much a run lets a frame's time be off, seconds.
        refused: what a run says that refuses these times; empty: it takes them.
    """
    period = 1 / recording.fps
    inside = np.ones(len(recording.timestamps), dtype=bool)
    inside[recording.starts] = False
    intervals = np.diff(recording.timestamps.astype(np.float64), prepend=0.0)[inside]
    intervals = np.where(np.isfinite(intervals), intervals, np.inf)
    off = float(np.max(np.abs(intervals - period), initial=0.0) / period)
    allowed = (recording.timestamps.max(initial=0.0) * np.finfo(np.float32).eps + tolerance_s) / period
    irregular = float(np.mean(np.abs(intervals / period - 1) > max(0.01, allowed))) if len(intervals) else 0.0
    text = (
        f"intervals differ from 1/{recording.fps:g} s by up to {off:.1%} of it, {irregular:.1%} of them by more than "
        "a hundredth"
    )
    if refused:
        return Finding("time stamps", Verdict.HARMS, off, text, f"a run refuses them: {refused}")
    verdict = judge(off, look=max(0.01, allowed))
    advice = "actions are taken to be evenly spaced in time: record with a steady rate"
    return Finding("time stamps", verdict, off, text, "" if verdict is Verdict.OK else advice)


class Lag(NamedTuple):
    """How well a state matches the action of so many frames before."""

    dimensions: list[str]  # that state and action both have, and that move
    shifts: np.ndarray  # (S,) frames, ascending
    match: np.ndarray  # (S,) mean correlation over the dimensions
    copied: bool  # the action is the state of its own frame

    @property
    def best(self) -> int:
        """Frames from an action to the state that matches it best."""
        return int(self.shifts[np.argmax(self.match)])


def find_lag(recording: Recording) -> Lag | None:
    """Shift the action against the state, within episodes.

    None where no dimension of both has the same name (or, of nameless ones, the same number), or none of them moves.
    """
    pairs = _pairs(recording)
    if not pairs:
        return None
    rows, episode = _rows(recording)
    states = recording.state.values[rows][:, [own for own, _ in pairs]].astype(np.float64)
    actions = recording.action.values[rows][:, [other for _, other in pairs]].astype(np.float64)
    ranges = recording.state.ranges[[own for own, _ in pairs]]
    most = max(1, round(SEARCHED_S * recording.fps))
    shifts = np.arange(-most, most + 1)
    match = np.array([_match(actions, states, episode, int(shift)) for shift in shifts])
    copied = bool((np.abs(actions - states) <= COPY * ranges).all())
    return Lag([recording.state.labels[own] for own, _ in pairs], shifts, match, copied)


def _pairs(recording: Recording) -> list[tuple[int, int]]:
    """(dimension of the state, of the action) that mean the same and move."""
    state, action = recording.signals
    if state.named != action.named or (not state.named and len(state.labels) != len(action.labels)):
        return []
    moves, others = moving(state), moving(action)
    place = {label: number for number, label in enumerate(action.labels)}
    found = [(number, place[label]) for number, label in enumerate(state.labels) if label in place]
    return [(own, other) for own, other in found if moves[own] and others[other]]


def _rows(recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """Rows of evenly chosen episodes, together about :data:`MOST_ROWS`, and the number of each row's episode."""
    share = max(1, round(len(recording.timestamps) / MOST_ROWS))
    chosen = range(0, len(recording.starts), share)
    rows = [np.arange(recording.starts[number], recording.ends[number]) for number in chosen]
    return np.concatenate(rows), np.repeat(list(chosen), [len(own) for own in rows])


def _match(actions: np.ndarray, states: np.ndarray, episode: np.ndarray, shift: int) -> float:
    """Mean over the dimensions of the correlation of an action with the state ``shift`` frames later; −1 where too few
    frames have such a state."""
    count = len(episode) - abs(shift)
    early, late = max(0, -shift), max(0, shift)
    if count < 2:
        return -1.0
    same = episode[early : early + count] == episode[late : late + count]
    if same.sum() < len(episode) / 2:  # the shift leaves less than half of them: chance decides
        return -1.0
    own = actions[early : early + count][same]
    other = states[late : late + count][same]
    own, other = own - own.mean(axis=0), other - other.mean(axis=0)
    size = np.sqrt((own**2).sum(axis=0) * (other**2).sum(axis=0))
    return float(np.mean(np.where(size > 0, (own * other).sum(axis=0) / np.where(size > 0, size, 1.0), 0.0)))


def lag(recording: Recording, found: Lag | None) -> Finding:
    """How many frames after an action the state is where it said."""
    check, nan = "action to state", float("nan")
    if found is None:
        return Finding(check, Verdict.OK, nan, "no dimension has the same name in both: not compared")
    best, match = found.best, float(found.match.max())
    where = f"of {len(found.dimensions)} dimension(s) of the same name"
    if match < FOLLOWS:
        text = f"they do not follow each other (correlation at most {match:.2f} {where}): not compared"
        return Finding(check, Verdict.OK, nan, text)
    text = f"the state matches the action of {best} frame(s) before ({best / recording.fps:.2f} s), "
    text += f"with a correlation of {match:.3f} {where}"
    if found.copied:
        advice = "an action is the state of its own frame, so the first of each chunk says: stay. Record commands"
        return Finding(check, Verdict.LOOK, best, "the action is a copy of the state of its frame", advice)
    if best < 0:
        text = f"the action comes {-best} frame(s) after the state that it leads to (correlation {match:.3f} {where})"
        advice = "an action is credited with what was already seen: shift the column, or record anew"
        return Finding(check, Verdict.HARMS, best, text, advice)
    verdict = judge(best / recording.fps, look=LATE_S)
    advice = "the robot follows late, or the columns are shifted: check both, and the delay that online control adds"
    return Finding(check, verdict, best, text, "" if verdict is Verdict.OK else advice)
