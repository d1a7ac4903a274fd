"""The charts of a labeling: lengths, values over time, advantages, calibration. Each returns ``<svg>`` text."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup

from .checks.recording import UNKNOWN
from .checks.timing import Lag
from .labels import OUTCOMES
from .statistics import CalibrationBin, evenly_spaced
from .svg import Axis, Plot, axis_around, number

LINE_POINTS = 100  # more cannot be told apart at the size of a chart
SHARE_BINS = 10
ENDINGS = (*OUTCOMES, UNKNOWN)  # of an episode; a labeling knows them all


def lengths_chart(episodes: pd.DataFrame, fps: float) -> Markup:
    """Stacked histogram of one task's episode lengths by outcome."""
    seconds = episodes["length"].to_numpy() / fps
    edges = _bin_edges(seconds, 20, step=1 / fps)
    counts = {
        outcome: np.histogram(seconds[(episodes["outcome"] == outcome).to_numpy()], edges)[0] for outcome in ENDINGS
    }
    most = int(sum(counts.values()).max())
    plot = Plot(
        Axis("episode length (s)", float(edges[0]), float(edges[-1])),
        Axis("episodes", 0, most, 5, whole=True),
        "Histogram of episode lengths by outcome",
    )
    base = np.zeros(len(edges) - 1)
    for outcome in ENDINGS:
        for low, high, bottom, count in zip(edges, edges[1:], base, counts[outcome], strict=False):
            text = f"{number(low, 1)} to {number(high, 1)} s: {count} {outcome}"
            plot.bar(low, high, bottom, bottom + count, f"bar {outcome}", text)
        base = base + counts[outcome]
    return plot.render("lengths")


def values_chart(frames: pd.DataFrame, outcome: str, fps: float, longest_s: float, most_lines: int) -> Markup:
    """The critic's value along every episode of one outcome of one task, and the mean of each outcome's episodes."""
    of_outcome = frames[frames["outcome"] == outcome]
    values = frames["value"].to_numpy()
    plot = Plot(
        Axis("time in the episode (s)", 0.0, longest_s),
        axis_around("value", values, include=(0.0,)),
        f"Value over time in episodes that ended as {outcome}",
        height=240,
    )
    groups = [(index, rows) for index, rows in of_outcome.groupby("episode_index", sort=True)]
    for index, rows in (groups[place] for place in evenly_spaced(len(groups), most_lines)):
        rows = rows.iloc[evenly_spaced(len(rows), LINE_POINTS)]
        plot.line(rows["frame_index"] / fps, rows["value"], f"thin {outcome}", f"episode {index}")
    shown = {"success", "failure", outcome} & set(frames["outcome"])
    for other in sorted(shown, key=lambda name: (name == outcome, name)):
        times, means = _mean_over_episodes(frames[frames["outcome"] == other], fps)
        plot.line(times, means, f"mean {other}" + ("" if other == outcome else " other"), f"mean of {other}")
    return plot.render(f"values-{outcome}")


def advantages_chart(frames: pd.DataFrame, threshold: float | None) -> Markup:
    """Histogram of one task's advantages, split by the tag, with the threshold."""
    known = frames[frames["advantage"].notna()]
    advantages = known["advantage"].to_numpy(float)
    edges = _bin_edges(advantages, 36, through=threshold)
    tags = {"positive": known["positive"].to_numpy(bool), "negative": ~known["positive"].to_numpy(bool)}
    counts = {tag: np.histogram(advantages[rows], edges)[0] for tag, rows in tags.items()}
    highest = float(max(1, (counts["positive"] + counts["negative"]).max()))
    plot = Plot(
        Axis("advantage", float(edges[0]), float(edges[-1])),
        Axis("frames", 0, highest * 1.15, whole=True),
        "Histogram of advantages by tag, with the threshold",
    )
    base = np.zeros(len(edges) - 1)
    for tag in ("positive", "negative"):
        for low, high, bottom, count in zip(edges, edges[1:], base, counts[tag], strict=False):
            text = f"{number(low, 3)} to {number(high, 3)}: {count} frames {tag}"
            plot.bar(low, high, bottom, bottom + count, f"bar {tag}", text)
        base = base + counts[tag]
    if threshold is not None and edges[0] <= threshold <= edges[-1]:
        plot.vertical(threshold, "threshold", f"threshold {number(threshold, 3)}")
    return plot.render("advantages")


def positives_chart(frames: pd.DataFrame, fps: float) -> Markup:
    """Share of one task's frames that are tagged positive, over the time in the episode, by outcome."""
    seconds = frames["frame_index"].to_numpy() / fps
    edges = _bin_edges(seconds, SHARE_BINS, step=1 / fps)
    plot = Plot(
        Axis("time in the episode (s)", 0.0, float(seconds.max()) + 1 / fps),
        Axis("share tagged positive", 0.0, 1.0),
        "Share of frames tagged positive over time, by outcome",
    )
    which = np.clip(np.searchsorted(edges, seconds, side="right") - 1, 0, len(edges) - 2)
    for outcome in OUTCOMES:
        rows = (frames["outcome"] == outcome).to_numpy()
        shares = frames["positive"][rows].astype(float).groupby(which[rows]).mean()
        middles = [max(0.0, float(edges[number] + edges[number + 1]) / 2) for number in shares.index]
        plot.line(middles, shares.tolist(), f"mean {outcome}")
    return plot.render("positives")


def lag_chart(found: Lag, fps: float) -> Markup:
    """How well the state matches the action, over the time by which it is later."""
    known = found.match > -1
    seconds, match = (found.shifts[known] / fps).tolist(), found.match[known].tolist()
    plot = Plot(
        Axis("state later than action (s)", min(seconds), max(seconds)),
        axis_around("correlation", [*match, max(match) + 0.25 * (max(match) - min(match))]),  # room for the note
        "Correlation of action and state over the shift between them",
    )
    plot.line(seconds, match, "curve train")
    plot.vertical(found.best / fps, "threshold", f"{number(found.best / fps)} s")
    return plot.render("lag")


def calibration_chart(bins: Sequence[CalibrationBin]) -> Markup:
    """Mean return against mean predicted value, a circle's area by its frames."""
    values, returns = [item.mean_value for item in bins], [item.mean_return for item in bins]
    axis = _calibration_axis("predicted value", bins)
    plot = Plot(
        axis,
        _calibration_axis("mean return", bins),
        "Mean return against predicted value",
        height=280,
    )
    plot.line([axis.low, axis.high], [axis.low, axis.high], "diagonal")
    plot.line(values, returns, "plain")
    largest = max((item.count for item in bins), default=1)
    plot.points(values, returns, "point", [2.5 + 6.5 * (item.count / largest) ** 0.5 for item in bins])
    return plot.render("calibration")


def calibration_counts_chart(bins: Sequence[CalibrationBin]) -> Markup:
    """How many frames stand behind each circle of the calibration, on the same horizontal axis."""
    plot = Plot(
        _calibration_axis("predicted value", bins),
        Axis("frames", 0, max((item.count for item in bins), default=1) * 1.12, whole=True),
        "Frames per bin of the predicted value",
        height=280,
    )
    for item in bins:
        text = f"{number(item.low)} to {number(item.high)}: {item.count} frames"
        plot.bar(item.low, item.high, 0, item.count, "bar plain-fill", text)
        middle = (plot.px(item.low) + plot.px(item.high)) / 2
        if len(str(item.count)) * 7 <= plot.px(item.high) - plot.px(item.low) + 4:
            plot.parts.append(
                f'<text class="note" x="{middle:g}" y="{plot.py(item.count) - 4:g}" '
                f'text-anchor="middle">{item.count}</text>'
            )
    return plot.render("calibration-counts")


def _calibration_axis(label: str, bins: Sequence[CalibrationBin]) -> Axis:
    """One range for both directions, so that the diagonal is the line value = return."""
    numbers = [number for item in bins for number in (item.low, item.high, item.mean_return)]
    return axis_around(label, numbers, include=(0.0,))


def _bin_edges(values: np.ndarray, most: int, *, step: float = 0.0, through: float | None = None) -> np.ndarray:
    """Edges of at most about ``most`` equal bins around ``values``.

    Args:
        step: the values' resolution; bins are whole multiples of it, or some would hold more values than others.
        through: an edge lies exactly here, so that no bin is cut by a threshold.
    """
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if step:
        width = step * max(1, int(np.ceil((high - low) / step / most)))
        low -= step / 2
        return low + width * np.arange(int(np.floor((high - low) / width + 1e-6)) + 2)
    width = (high - low) / most or 1.0
    origin = low if through is None else through - width * np.ceil((through - low) / width)
    edges = origin + width * np.arange(max(2, int(np.ceil((high - origin) / width - 1e-6)) + 1))
    edges[-1] = max(edges[-1], high)  # rounding must not put the largest value outside
    return edges


def _mean_over_episodes(frames: pd.DataFrame, fps: float) -> tuple[list[float], list[float]]:
    """Mean value at each time. An episode that has ended keeps its last value: a mean over those that still run would
    fall whenever a good one ends."""
    values = frames.pivot(index="frame_index", columns="episode_index", values="value").sort_index().ffill()
    means = values.mean(axis=1)
    means = means.iloc[evenly_spaced(len(means), LINE_POINTS)]
    return [step / fps for step in means.index], means.tolist()
