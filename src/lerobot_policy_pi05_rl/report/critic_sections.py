"""The sections about the critic: values over time, advantages and their thresholds, calibration."""

import pandas as pd

from . import charts, statistics
from .inputs import Subject
from .labels import OUTCOMES, LabelingTable, ending
from .sections import MOST_TASKS, TAGS, Figure, Legend, Table
from .svg import number, percent

MOST_LINES = 400  # value curves on the whole page


def value_figures(subject: Subject, labeling: LabelingTable) -> list[tuple[str, list[Figure]]]:
    """Task → value over time, one chart per outcome."""
    tasks = labeling.tasks[:MOST_TASKS]
    outcomes = {task: set(labeling.frames["outcome"][labeling.frames["task"] == task]) for task in tasks}
    most_lines = max(10, MOST_LINES // max(1, sum(map(len, outcomes.values()))))
    groups = []
    for task in tasks:
        frames = labeling.frames[labeling.frames["task"] == task]
        longest_s = float(frames["frame_index"].max() + 1) / subject.fps
        figures = []
        for outcome in (name for name in OUTCOMES if name in outcomes[task]):
            count = int(frames["episode_index"][frames["outcome"] == outcome].nunique())
            shown = f"{min(most_lines, count)} of {count}" if count > most_lines else str(count)
            figures.append(
                Figure(
                    charts.values_chart(frames, outcome, subject.fps, longest_s, most_lines),
                    f"Thin lines are {shown} {_episodes_of(outcome, count)}, thick ones the mean of an outcome (ended "
                    "episodes keep their last value); a good critic rises as success comes near.",
                    f"Episodes that {ending(outcome)}" if outcome != "truncated" else "Truncated episodes",
                    _means(outcomes[task] & {"success", "failure", outcome}),
                )
            )
        groups.append((task, figures))
    return groups


def threshold_table(labeling: LabelingTable) -> Table:
    """Each task's threshold, and how many frames lie above it."""
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
    return Table(headers, rows)


def advantage_figures(labeling: LabelingTable, fps: float) -> list[tuple[str, list[Figure]]]:
    """Task → how the advantages lie around the threshold; no figures where no advantage is known."""
    groups = []
    for task in labeling.tasks[:MOST_TASKS]:
        frames = labeling.frames[labeling.frames["task"] == task]
        known = frames["advantage"].notna().any()
        groups.append((task, _figures_of(labeling, frames, task, fps) if known else []))
    return groups


def _figures_of(labeling: LabelingTable, frames: pd.DataFrame, task: str, fps: float) -> list[Figure]:
    if labeling.baseline == "success":
        check = (
            "no frame of a failure is, by the rule of the advantage (but a person’s corrections), so whether the "
            "critic tells good from bad is not to be seen here but in its AUC and its values over time."
        )
    else:
        check = "a line for failures as high as that for successes means that the tag does not tell good from bad."
    tagged = frames[frames["advantage"].notna() | frames["intervention"]]  # without either there is no tag
    return [
        Figure(
            charts.advantages_chart(frames, labeling.threshold(task)),
            "Frames to the right of the threshold did better than the critic expected and are tagged positive; human "
            "corrections are positive wherever they lie.",
            "Advantages and the threshold",
            TAGS,
        ),
        Figure(
            charts.positives_chart(tagged, fps),
            f"Where in the episodes the positive frames lie; {check}",
            "When frames are positive",
            _means(set(tagged["outcome"]), "{}"),
        ),
    ]


def calibration_error(labeling: LabelingTable) -> str:
    """For the reader."""
    return number(statistics.calibration_error(labeling.frames), 3)


def calibration_figures(labeling: LabelingTable) -> list[Figure]:
    """Does the critic's number mean what it says? Empty where no frame has both value and return."""
    bins = statistics.calibration(labeling.frames)
    if not bins:
        return []
    return [
        Figure(
            charts.calibration_chart(bins),
            "On the dashed diagonal the predicted value equals what came; circles above it were underrated, below it "
            "overrated, and a larger circle holds more frames.",
            "Predicted value and what came",
        ),
        Figure(
            charts.calibration_counts_chart(bins),
            "How many frames stand behind each circle; where a bar is short, its circle says little.",
            "Frames per bin",
        ),
    ]


def _episodes_of(outcome: str, count: int) -> str:
    noun = "episode" if count == 1 else "episodes"
    return f"truncated {noun}" if outcome == "truncated" else f"{noun} that ended in {outcome}"


def _means(outcomes: set[str], text: str = "mean of {}") -> Legend:
    return [("line", f"mean {name}", text.format(name)) for name in OUTCOMES if name in outcomes]
