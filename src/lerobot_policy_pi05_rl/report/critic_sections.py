"""The sections about the critic: values over time, advantages and their thresholds, calibration."""

import pandas as pd

from . import charts, markup, statistics
from .inputs import Subject
from .labels import OUTCOMES, Labeling
from .markup import escape
from .sections import MOST_TASKS, left_out
from .svg import number, percent

MOST_LINES = 400  # value curves on the whole page


def values_section(subject: Subject, labeling: Labeling) -> str:
    """Value over time, one chart per task and outcome."""
    tasks = labeling.tasks[:MOST_TASKS]
    outcomes = {task: set(labeling.frames["outcome"][labeling.frames["task"] == task]) for task in tasks}
    most_lines = max(10, MOST_LINES // max(1, sum(map(len, outcomes.values()))))
    parts = []
    for task in tasks:
        frames = labeling.frames[labeling.frames["task"] == task]
        longest_s = float(frames["frame_index"].max() + 1) / subject.fps
        figures = []
        for outcome in (name for name in OUTCOMES if name in outcomes[task]):
            count = int(frames["episode_index"][frames["outcome"] == outcome].nunique())
            shown = f"{min(most_lines, count)} of {count}" if count > most_lines else str(count)
            figures.append(
                markup.figure(
                    charts.values_chart(frames, outcome, subject.fps, longest_s, most_lines),
                    f"Thin lines are {shown} {_episodes_of(outcome, count)}, thick ones the mean of an outcome (ended "
                    "episodes keep their last value); a good critic rises as success comes near.",
                    title=f"Episodes that ended in {outcome}" if outcome != "truncated" else "Truncated episodes",
                    legend=_means_legend(outcomes[task] & {"success", "failure", outcome}),
                )
            )
        parts.append(_task_heading(labeling, task) + markup.charts(figures))
    return markup.section("Value over time", *parts, left_out(labeling.tasks))


def advantages_section(labeling: Labeling, fps: float) -> str:
    """Thresholds, and how the advantages lie around them."""
    rows = []
    for task in labeling.tasks:
        frames = labeling.frames[labeling.frames["task"] == task]
        threshold, fraction = labeling.threshold(task), labeling.positive_fraction(task)
        shares = [frames, *(frames[frames["outcome"] == outcome] for outcome in ("success", "failure"))]
        shares.append(frames[frames["intervention"]])
        rows.append(
            [
                task,
                "–" if threshold is None else number(threshold, 4),
                "–" if fraction is None else percent(fraction),
                *(percent(statistics.positive_share(part)) for part in shares),
            ]
        )
    headers = ["Task", "Threshold", "Asked for", "Positive", "… in successes", "… in failures", "… in interventions"]
    parts = []
    for task in labeling.tasks[:MOST_TASKS]:
        frames = labeling.frames[labeling.frames["task"] == task]
        parts.append(_task_heading(labeling, task))
        if frames["advantage"].notna().any():
            figures = [_advantages_figure(frames, labeling.threshold(task)), _positives_figure(frames, fps)]
            parts.append(markup.charts(figures))
        else:
            parts.append('<p class="muted">No frame of this task has a known advantage.</p>')
    return markup.section("Advantage", markup.table(headers, rows), *parts, left_out(labeling.tasks))


def _advantages_figure(frames: pd.DataFrame, threshold: float | None) -> str:
    return markup.figure(
        charts.advantages_chart(frames, threshold),
        "Frames to the right of the threshold did better than the critic expected and are tagged positive; human "
        "corrections are positive wherever they lie.",
        title="Advantages and the threshold",
        legend=markup.legend([("bar", "positive", "tagged positive"), ("bar", "negative", "negative")]),
    )


def _positives_figure(frames: pd.DataFrame, fps: float) -> str:
    frames = frames[frames["advantage"].notna() | frames["intervention"]]  # without either there is no tag
    return markup.figure(
        charts.positives_chart(frames, fps),
        "Where in the episodes the positive frames lie; a line for failures as high as that for successes means that "
        "the tag does not tell good from bad.",
        title="When frames are positive",
        legend=_means_legend(set(frames["outcome"]), "{}"),
    )


def _task_heading(labeling: Labeling, task: str) -> str:
    return f"<h3>{escape(task)}</h3>" if len(labeling.tasks) > 1 else ""


def calibration_section(labeling: Labeling) -> str:
    """Does the critic's number mean what it says?"""
    bins = statistics.calibration(labeling.frames)
    if not bins:
        return markup.section("Calibration of the value", "<p>No frame has both a value and a known return.</p>")
    error = number(statistics.calibration_error(labeling.frames), 3)
    figures = [
        markup.figure(
            charts.calibration_chart(bins),
            "On the dashed diagonal the predicted value equals what came; circles above it were underrated, below it "
            "overrated, and a larger circle holds more frames.",
            title="Predicted value and what came",
        ),
        markup.figure(
            charts.calibration_counts_chart(bins),
            "How many frames stand behind each circle; where a bar is short, its circle says little.",
            title="Frames per bin",
        ),
    ]
    return markup.section(
        "Calibration of the value",
        f"<p>Mean distance of predicted value and return, weighted by frames: {error}.</p>",
        markup.charts(figures),
    )


def _episodes_of(outcome: str, count: int) -> str:
    noun = "episode" if count == 1 else "episodes"
    return f"truncated {noun}" if outcome == "truncated" else f"{noun} that ended in {outcome}"


def _means_legend(outcomes: set[str], text: str = "mean of {}") -> str:
    return markup.legend([("line", f"mean {name}", text.format(name)) for name in OUTCOMES if name in outcomes])
