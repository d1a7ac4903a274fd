"""What the page of a recording shows beside its verdicts: tables, charts and film strips."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..data.pictures.stored_frames import DatasetFrames
from . import charts, sections, strips
from .checks import motion
from .checks.finding import Finding, Verdict
from .checks.pictures import Seen
from .checks.recording import UNKNOWN, Recording
from .checks.timing import FOLLOWS, Lag
from .labels import OUTCOMES, ending
from .svg import number, percent

MOST_STRIPS = 4  # and one more of an episode whose pictures show nothing


def facts(recording: Recording, place: str, cameras: Sequence[str]) -> list[tuple[str, str]]:
    """What this page is about: name and value."""
    return [
        ("Dataset", place),
        ("Size", f"{len(recording.episodes)} episodes, {recording.lengths.sum()} frames at {recording.fps:g} fps"),
        ("Cameras", ", ".join(cameras)),
        *(
            (name, ", ".join(signal.labels))
            for name, signal in zip(("State", "Action"), recording.signals, strict=True)
        ),
    ]


def tiles(findings: Sequence[Finding], recording: Recording) -> list[tuple[str, str]]:
    """Four numbers to see first, and what they are."""
    texts = {Verdict.HARMS: "harm RL", Verdict.LOOK: "to look at", Verdict.OK: "ok"}
    found = [each.verdict for each in findings]
    counts = [(str(found.count(verdict)), f"checks: {text}") for verdict, text in texts.items()]
    known = [outcome for outcome in recording.outcomes if outcome in ("success", "failure")]
    share = known.count("success") / len(known) if known else float("nan")
    return [*counts, (percent(share), "of labelled episodes succeed")]


def episode_table(recording: Recording) -> pd.DataFrame:
    """One row per episode: task, outcome, length (frames)."""
    columns = {"task": recording.tasks, "outcome": recording.outcomes, "length": recording.lengths}
    return pd.DataFrame(columns, index=pd.Index(recording.episodes, name="episode_index"))


def tasks(recording: Recording) -> list[str]:
    """Texts, that of the most episodes first."""
    return pd.Series(recording.tasks).value_counts().index.tolist()


def outcome_table(recording: Recording) -> sections.Table:
    """Episodes by task: how they ended and how long they took."""
    episodes = episode_table(recording)
    endings = [*OUTCOMES, *([UNKNOWN] if UNKNOWN in recording.outcomes else [])]
    plural = {"success": "Successes", "failure": "Failures", "truncated": "Truncated", UNKNOWN: "Unknown"}
    headers = ["Task", "Episodes", *(plural[name] for name in endings), "Failed"]
    headers += ["Shortest (s)", "Median (s)", "Longest (s)", "Slowest / fastest success"]

    def cells(rows: pd.DataFrame) -> list[object]:
        counts = [int((rows["outcome"] == name).sum()) for name in endings]
        known = counts[0] + counts[1]
        seconds, successes = rows["length"] / recording.fps, rows["length"][rows["outcome"] == "success"]
        ratio = float(successes.max() / successes.min()) if len(successes) > 1 else float("nan")
        spread = [number(float(value), 1) for value in (seconds.min(), seconds.median(), seconds.max())]
        return [len(rows), *counts, percent(counts[1] / known if known else float("nan")), *spread, number(ratio, 1)]

    names = tasks(recording)
    found: list[list[object]] = [[name, *cells(episodes[episodes["task"] == name])] for name in names]
    if len(names) > 1:
        found.append(["All tasks", *cells(episodes)])
    return sections.Table(headers, found, len(names) > 1)


def dimension_table(recording: Recording) -> sections.Table:
    """Each dimension of state and action: where it is and how it steps."""
    headers = ["Dimension", "Least", "Greatest", "At either of them", "Usual largest step", "Largest step"]
    rows: list[list[object]] = []
    for signal in recording.signals:
        low, high = signal.values.min(axis=0), signal.values.max(axis=0)
        largest = motion.largest_steps(signal, recording.starts)
        usual, shares = motion.usual_steps(largest), motion.at_the_stop(signal)
        for column, label in enumerate(signal.labels):
            steps = [_short(usual[column]), _short(largest[:, column].max())]
            rows.append(
                [f"{signal.key} {label}", _short(low[column]), _short(high[column]), percent(shares[column]), *steps]
            )
    return sections.Table(headers, rows)


def _short(value: float) -> str:
    return f"{float(value):.4g}".replace("-", "−")


def lag_figures(found: Lag | None, fps: float) -> list[sections.Figure]:
    """Which state matches an action best; nothing where none does."""
    if found is None or found.match.max() < FOLLOWS:
        return []
    caption = (
        "How well the state of so many seconds later matches an action, as the mean correlation over "
        f"{', '.join(found.dimensions)}. The dashed line is the best match: right of 0 the robot follows its action."
    )
    return [sections.Figure(charts.lag_chart(found, fps), caption, "Action against state")]


def camera_table(seen: Sequence[Seen]) -> sections.Table:
    """What was looked at of each camera."""
    headers = ["Camera", "Episodes", "Frames", "Darkest episode (of 255)", "Frozen", "Dark"]
    rows: list[list[object]] = []
    for camera in dict.fromkeys(each.camera for each in seen):
        own = [each for each in seen if each.camera == camera]
        counts = [sum(each.frozen for each in own), sum(each.dark for each in own)]
        darkest = number(min(each.brightness for each in own), 0)
        rows.append([camera, len(own), sum(each.frames for each in own), darkest, *counts])
    return sections.Table(headers, rows)


def film_strips(recording: Recording, pictures: DatasetFrames, seen: Sequence[Seen]) -> list[dict[str, Any]]:
    """A few whole episodes in pictures: of each outcome the fastest and the slowest, and one that shows nothing.

    Raises:
        UserError: a frame cannot be decoded.
    """
    chosen: dict[int, str] = {}
    for outcome, titles in {
        "success": ("the fastest success", "the slowest success"),
        "failure": ("a failure", ""),
        UNKNOWN: ("the shortest without an outcome", "the longest without an outcome"),
        "truncated": ("one that was cut by a time limit", ""),
    }.items():
        rows = np.flatnonzero(recording.ended_as(outcome))
        ordered = rows[np.argsort(recording.lengths[rows], kind="stable")].tolist()
        places = (len(ordered) // 2,) if not titles[1] else (0, -1)
        for place, title in zip(places, titles, strict=False):
            if ordered and len(chosen) < MOST_STRIPS:
                chosen.setdefault(ordered[place], title)
    bad = next((each.episode for each in seen if each.frozen or each.dark), None)
    if bad is not None:
        chosen.setdefault(int(np.flatnonzero(recording.episodes == bad)[0]), "a camera is frozen or dark")
    found = []
    for row, title in chosen.items():
        episode, length = int(recording.episodes[row]), int(recording.lengths[row])
        outcome = recording.outcomes[row]
        ended = "nobody said how it ended" if outcome == UNKNOWN else ending(outcome)
        found.append(
            {
                "episode": episode,
                "title": title,
                "text": f"{length / recording.fps:.1f} s, {recording.tasks[row]}; {ended}",
                "frames": strips.film(pictures, episode, length, recording.fps),
            }
        )
    return found
