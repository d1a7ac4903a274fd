"""What the page's sections hold, one function each: a labeling's numbers → tables and figures for the template."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup

from . import charts, curves, statistics
from .inputs import Subject
from .labels import OUTCOMES, LabelingTable
from .svg import number, percent

MOST_TASKS = 6  # with charts; the tables name every task
Legend = list[tuple[str, str, str]]  # "line" or "bar", CSS classes, text


class Table(NamedTuple):
    """Cells under headers; the last row is a sum if ``total``."""

    headers: list[str]
    rows: list[list[object]]
    total: bool = False


class Figure(NamedTuple):
    """A chart with its title, legend and the sentence that says how to read it."""

    chart: Markup
    caption: str
    title: str = ""
    legend: Legend = []  # noqa: RUF012


TAGS: Legend = [("bar", "positive", "tagged positive"), ("bar", "negative", "negative")]


def facts(subject: Subject, labeling: LabelingTable) -> list[tuple[str, object, object]]:
    """What this page is about: name, value, and what stands behind it in brackets."""
    critic = labeling.metadata.get("critic") or {}
    dataset = labeling.metadata.get("dataset") or {}
    repo_id = subject.repo_id or dataset.get("repo_id")
    episodes = labeling.frames["episode_index"].nunique()
    created = labeling.metadata.get("created")
    day_and_time = None if created is None else str(created)[:16].replace("T", " ")
    found = [
        ("Dataset", " · ".join(str(part) for part in (repo_id, subject.dataset_root) if part), None),
        ("Size", f"{episodes} episodes, {len(labeling.frames)} frames at {subject.fps:g} fps", None),
    ]
    if not labeling.no_values:
        found += [
            ("Labeling", labeling.name, day_and_time),
            ("Critic", critic.get("path") or "not named", critic.get("fingerprint")),
            ("Advantage", advantage_text(labeling), None),
        ]
    if subject.checkpoint_step is not None:
        found.insert(0, ("Run", f"{subject.run}, newest checkpoint at step {subject.checkpoint_step}", None))
    return found


def advantage_text(labeling: LabelingTable) -> str:
    """How the advantage was computed, in words."""
    if labeling.gae_lambdas is not None:
        text = f"λ = {of_tasks(labeling.gae_lambdas)}: the λ-return, − value now"
    elif labeling.n_steps is None:
        text = "return − value (the return to the end of the episode)"
    else:
        count = of_tasks(labeling.n_steps)
        text = f"N = {count}: the rewards of {count} steps, then the critic’s value, − value now"
    if labeling.baseline == "success":
        text += "; values are those of a success, and all of a failure has −1"
    return text if labeling.smoothing is None else f"{text}; mean over {of_tasks(labeling.smoothing)} frames"


def of_tasks(found: dict[str, float]) -> str:
    """A number, or its range over the tasks."""
    low, high = min(found.values()), max(found.values())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}, by task"


def horizon_text(labeling: LabelingTable) -> str:
    """How far the advantage looks ahead, in a table's cell."""
    if labeling.gae_lambdas is not None:
        return f"λ = {of_tasks(labeling.gae_lambdas)}"
    return "to the end" if labeling.n_steps is None else of_tasks(labeling.n_steps)


def tiles(labeling: LabelingTable) -> list[tuple[str, str]]:
    """Four numbers to see first, and what they are; without values the first of them, if any outcome is known."""
    episodes = statistics.episode_table(labeling.frames)
    labelled = episodes[episodes["outcome"] != "truncated"]
    success = float((labelled["outcome"] == "success").mean()) if len(labelled) else float("nan")
    succeed = (percent(success), "of labelled episodes succeed")
    if labeling.no_values:
        return [succeed] if len(labelled) else []
    return [
        succeed,
        (percent(statistics.positive_share(labeling.frames)), "of frames tagged positive"),
        (number(statistics.spearman(labeling.frames)), "rank correlation of value and return within an episode"),
        _auc_tile(labeling),
    ]


def _auc_tile(labeling: LabelingTable) -> tuple[str, str]:
    """A score that rests on a few episodes is no headline."""
    few = statistics.few_outcomes(labeling.frames)
    if few is None:
        return number(statistics.outcome_auc(labeling.frames)), "AUC of mid-episode values, success against failure"
    return "–", f"AUC of mid-episode values: {few}, too few to say"


def _auc_cell(labeling: LabelingTable) -> str:
    few = statistics.few_outcomes(labeling.frames)
    return number(statistics.outcome_auc(labeling.frames)) if few is None else f"– ({few})"


def data_table(subject: Subject, labeling: LabelingTable) -> Table:
    """Episodes per task."""
    whole, episodes = (statistics.episode_table(labeling.frames, by_task=by_task) for by_task in (False, True))
    headers = ["Task", "Episodes", "Successes", "Failures", "Truncated", "Intervention frames"]
    headers += ["Shortest (s)", "Median (s)", "Longest (s)"]
    rows: list[list[object]] = [
        [task, *_episode_cells(episodes[episodes["task"] == task], subject.fps)] for task in labeling.tasks
    ]
    several = len(rows) > 1
    if several:
        rows.append(["All tasks", *_episode_cells(whole, subject.fps)])
    return Table(headers, rows, several)


def _episode_cells(episodes: pd.DataFrame, fps: float) -> list[object]:
    counts = [int((episodes["outcome"] == outcome).sum()) for outcome in OUTCOMES]
    seconds = episodes["length"] / fps
    spread = [number(float(value), 1) for value in (seconds.min(), seconds.median(), seconds.max())]
    return [len(episodes), *counts, int(episodes["interventions"].sum()), *spread]


def lengths_figures(episodes: pd.DataFrame, tasks: Sequence[str], fps: float) -> list[Figure]:
    """How long the episodes of each task are.

    Args:
        episodes: columns task, outcome, length (frames).
        tasks: those with charts first.
    """
    figures = []
    for task in tasks[:MOST_TASKS]:
        of_task = episodes[episodes["task"] == task]
        figures.append(
            Figure(
                charts.lengths_chart(of_task, fps),
                "Each bar counts the episodes of that length; the parts of a bar are their outcomes.",
                task if len(tasks) > 1 else "Episode lengths",
                [("bar", name, name) for name in charts.ENDINGS if name in set(of_task["outcome"])],
            )
        )
    return figures


def curve_figures(metrics: dict[str, curves.Series]) -> list[Figure]:
    """Learning curves, those of which the run wrote at least one number; nothing without a run."""
    figures = []
    for curve in curves.CURVES:
        if not any(metrics.get(name or "") for name in (curve.train, curve.held_out)):
            continue
        kinds = (("train", "training", curve.train), ("held-out", "held out", curve.held_out))
        legend = [("line", f"curve {kind}", text) for kind, text, name in kinds if metrics.get(name or "")]
        figures.append(Figure(curves.curve_chart(curve, metrics), curve.caption, curve.title, legend))
    return figures


def comparison(labelings: Sequence[LabelingTable]) -> dict[str, Any]:
    """Two or more labelings of the dataset side by side; agreement of the first with each other."""
    if len(labelings) < 2:
        return {"compared": None}
    first = labelings[0]
    settings = [
        [
            item.name,
            horizon_text(item),
            percent(statistics.positive_share(item.frames)),
            number(statistics.spearman(item.frames)),
            _auc_cell(item),
            number(statistics.calibration_error(item.frames), 3),
        ]
        for item in labelings
    ]
    headers = ["Labeling", "N", "Positive", "Rank correlation", "AUC", "Calibration error"]
    return {
        "compared": Table(headers, settings),
        "first": first.name,
        "agreements": [(other.name, _agreement(first, other)) for other in labelings[1:]],
        "histograms": [_histogram(item, first.tasks[0]) for item in labelings],
    }


def _agreement(first: LabelingTable, other: LabelingTable) -> Table:
    """Which frames the two tag positive, per task. Both have one row for each frame of the dataset."""
    headers = ["Task", "Frames", "Both positive", f"Only {first.name}", f"Only {other.name}", "Neither"]
    a, b = first.frames["positive"].to_numpy(bool), other.frames["positive"].to_numpy(bool)
    rows: list[list[object]] = []
    for task in first.tasks:
        of_task = (first.frames["task"] == task).to_numpy()
        shares = [float(cell[of_task].mean()) for cell in (a & b, a & ~b, ~a & b, ~a & ~b)]
        rows.append([task, int(of_task.sum()), *map(percent, shares)])
    return Table(headers, rows)


def _histogram(labeling: LabelingTable, task: str) -> Figure:
    frames = labeling.frames[labeling.frames["task"] == task]
    caption = f"Advantages of “{task}” in this labeling; frames right of the threshold are positive."
    return Figure(charts.advantages_chart(frames, labeling.threshold(task)), caption, labeling.name, TAGS)
