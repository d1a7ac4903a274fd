"""The page's sections, one function each: a labeling's numbers → HTML."""

from collections.abc import Sequence

import pandas as pd

from . import charts, curves, markup, statistics
from .inputs import Subject
from .labels import OUTCOMES, Labeling
from .markup import escape
from .svg import number, percent

MOST_TASKS = 6  # with charts; the tables name every task


def header(subject: Subject, labeling: Labeling) -> str:
    """What this page is about."""
    critic = labeling.metadata.get("critic") or {}
    dataset = labeling.metadata.get("dataset") or {}
    repo_id = subject.repo_id or dataset.get("repo_id")
    episodes = labeling.frames["episode_index"].nunique()
    pairs = [
        ("Dataset", " · ".join(escape(part) for part in (repo_id, subject.dataset_root) if part)),
        ("Size", f"{episodes} episodes, {len(labeling.frames)} frames at {subject.fps:g} fps"),
        ("Labeling", _with_detail(labeling.name, _day_and_time(labeling.metadata.get("created")))),
        ("Critic", _with_detail(critic.get("path") or "not named", critic.get("fingerprint"))),
        ("Advantage", advantage_text(labeling.n_step, labeling.traces)),
    ]
    if subject.checkpoint_step is not None:
        pairs.insert(0, ("Run", f"{escape(subject.run)}, newest checkpoint at step {subject.checkpoint_step}"))
    kind = "Run report" if subject.run else "Dataset report"
    return f'<header><p class="eyebrow">{kind}</p><h1>{escape(subject.name)}</h1>{markup.facts(pairs)}</header>'


def advantage_text(n_step: int | None, traces: dict[str, float] | None = None) -> str:
    """How the advantage was computed, in words."""
    if traces is not None:
        return f"{lambda_text(traces)}: the λ-return, − value now"
    if n_step is None:
        return "return − value (the return to the end of the episode)"
    return f"N = {n_step}: the rewards of {n_step} steps, then the critic’s value, − value now"


def lambda_text(traces: dict[str, float]) -> str:
    """λ, or its range over the tasks."""
    low, high = min(traces.values()), max(traces.values())
    return f"λ = {low:.3g}" if low == high else f"λ = {low:.3g} to {high:.3g}, by task"


def horizon_text(labeling: Labeling) -> str:
    """How far the advantage looks ahead, in a table's cell."""
    if labeling.traces is not None:
        return lambda_text(labeling.traces)
    return "to the end" if labeling.n_step is None else str(labeling.n_step)


def overview(labeling: Labeling) -> str:
    """Four numbers to see first."""
    episodes = statistics.episode_table(labeling.frames)
    labelled = episodes[episodes["outcome"] != "truncated"]
    success = float((labelled["outcome"] == "success").mean()) if len(labelled) else float("nan")
    return markup.tiles(
        [
            (percent(success), "of labelled episodes succeed"),
            (percent(statistics.positive_share(labeling.frames)), "of frames tagged positive"),
            (number(statistics.spearman(labeling.frames)), "rank correlation of value and return within an episode"),
            _auc_tile(labeling),
        ]
    )


def _auc_tile(labeling: Labeling) -> tuple[str, str]:
    """A score that rests on a few episodes is no headline."""
    few = statistics.few_outcomes(labeling.frames)
    if few is None:
        return number(statistics.outcome_auc(labeling.frames)), "AUC of mid-episode values, success against failure"
    return "–", f"AUC of mid-episode values: {few}, too few to say"


def _auc_cell(labeling: Labeling) -> str:
    few = statistics.few_outcomes(labeling.frames)
    return number(statistics.outcome_auc(labeling.frames)) if few is None else f"– ({few})"


def data_section(subject: Subject, labeling: Labeling) -> str:
    """Episodes per task and how long they are."""
    whole, episodes = (statistics.episode_table(labeling.frames, by_task=by_task) for by_task in (False, True))
    summaries = statistics.task_summaries(episodes, labeling.tasks)
    headers = ["Task", "Episodes", "Successes", "Failures", "Truncated", "Intervention frames"]
    headers += ["Shortest (s)", "Median (s)", "Longest (s)"]
    rows: list[list[object]] = [
        [
            item.task,
            item.episodes,
            *(item.outcomes[outcome] for outcome in OUTCOMES),
            item.interventions,
            *(number(length / subject.fps, 1) for length in item.lengths),
        ]
        for item in summaries
    ]
    several = len(summaries) > 1
    if several:
        counts = [int((whole["outcome"] == outcome).sum()) for outcome in OUTCOMES]
        sums = [len(whole), *counts, int(whole["interventions"].sum())]
        lengths = whole["length"] / subject.fps
        spread = (number(float(value), 1) for value in (lengths.min(), lengths.median(), lengths.max()))
        rows.append(["All tasks", *sums, *spread])
    figures = [
        markup.figure(
            charts.lengths_chart(episodes[episodes["task"] == task], subject.fps),
            "Each bar counts the episodes of that length; the parts of a bar are their outcomes.",
            title=task if several else "Episode lengths",
            legend=_outcome_legend("bar", set(episodes[episodes["task"] == task]["outcome"])),
        )
        for task in labeling.tasks[:MOST_TASKS]
    ]
    return markup.section(
        "What was trained on" if subject.run else "What is in the data",
        markup.table(headers, rows, total=several),
        markup.charts(figures),
        left_out(labeling.tasks),
    )


def curves_section(metrics: dict[str, curves.Series]) -> str:
    """Learning curves; nothing without a run."""
    known = curves.known_curves(metrics)
    if not known:
        return ""
    figures = []
    for curve in known:
        kinds = (("train", "training", curve.train), ("held-out", "held out", curve.held_out))
        shown = [("line", f"curve {kind}", text) for kind, text, name in kinds if metrics.get(name or "")]
        figures.append(
            markup.figure(
                curves.curve_chart(curve, metrics), curve.caption, title=curve.title, legend=markup.legend(shown)
            )
        )
    return markup.section("Learning curves", markup.charts(figures))


def comparison_section(labelings: Sequence[Labeling]) -> str:
    """Two or more labelings of the dataset side by side; agreement of the first with each other."""
    if len(labelings) < 2:
        return ""
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
    parts = [
        markup.table(["Labeling", "N", "Positive", "Rank correlation", "AUC", "Calibration error"], settings),
    ]
    for other in labelings[1:]:
        headers = ["Task", "Frames", "Both positive", f"Only {first.name}", f"Only {other.name}", "Neither"]
        rows = [
            [item.task, item.frames, *map(percent, (item.both, item.only_first, item.only_second, item.neither))]
            for item in statistics.agreement(first, other)
        ]
        title = f"<h3>Which frames {escape(first.name)} and {escape(other.name)} tag positive</h3>"
        parts.append(title + markup.table(headers, rows))
    parts.append(_compared_histograms(labelings))
    return markup.section("Labelings compared", *parts)


def _compared_histograms(labelings: Sequence[Labeling]) -> str:
    task = labelings[0].tasks[0]
    of_task: list[pd.DataFrame] = [item.frames[item.frames["task"] == task] for item in labelings]
    figures = [
        markup.figure(
            charts.advantages_chart(frames, item.threshold(task)),
            f"Advantages of “{task}” in this labeling; frames right of the threshold are positive.",
            title=item.name,
            legend=markup.legend([("bar", "positive", "tagged positive"), ("bar", "negative", "negative")]),
        )
        for item, frames in zip(labelings, of_task, strict=True)
    ]
    return markup.charts(figures)


def videos_section(names: Sequence[str]) -> str:
    """Links to the overlay videos that lie beside the page."""
    if not names:
        return ""
    items = "".join(f'<li><a href="{escape(name)}">{escape(name)}</a></li>' for name in names)
    intro = "<p>Pictures with the value growing beneath; the files lie beside this page.</p>"
    return markup.section("Videos", intro, f"<ul>{items}</ul>")


def _day_and_time(iso: str | None) -> str | None:
    """``2025-06-01T12:30:00.123+00:00`` → ``2025-06-01 12:30``."""
    return None if iso is None else str(iso)[:16].replace("T", " ")


def _with_detail(text: object, detail: object) -> str:
    return escape(text) + (f' <span class="muted">({escape(detail)})</span>' if detail else "")


def _outcome_legend(kind: str, outcomes: set[str]) -> str:
    return markup.legend([(kind, outcome, outcome) for outcome in OUTCOMES if outcome in outcomes])


def left_out(tasks: list[str]) -> str:
    """Says so where tasks have no chart."""
    if len(tasks) <= MOST_TASKS:
        return ""
    more = len(tasks) - MOST_TASKS
    return (
        f'<p class="muted">Charts show the {MOST_TASKS} tasks with the most frames; {more} more are in the tables.</p>'
    )
