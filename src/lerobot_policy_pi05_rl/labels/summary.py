"""What a labeling says, per task, on the console."""

import numpy as np
from rich.console import Console
from rich.table import Table

from ..data.labeling import Columns
from ..returns import Outcome


def label_table(tables: list[Columns], thresholds: dict[str, float], *, title: str) -> None:
    """Print frames, positive share, threshold, and the positive share of each outcome, per task over all tables."""
    columns = {
        key: np.concatenate([part[key] for part in tables]) for key in ("task", "tag", "outcome", "intervention")
    }
    outcomes = [outcome.value for outcome in Outcome if (columns["outcome"] == outcome.value).any()]
    table = Table(title=f"{title}: positive frames")
    table.add_column("task", overflow="fold")
    for heading in ("frames", "threshold", "all", *outcomes):
        table.add_column(heading, justify="right")
    for task, threshold in thresholds.items():
        rows = columns["task"] == task
        shares = [positive_share(columns["tag"][rows & (columns["outcome"] == outcome)]) for outcome in outcomes]
        table.add_row(task, str(rows.sum()), f"{threshold:.4f}", positive_share(columns["tag"][rows]), *shares)
    if columns["intervention"].any():
        table.caption = f"{columns['intervention'].sum()} corrected frames are positive whatever their advantage"
    Console().print(table)


def positive_share(tags: np.ndarray) -> str:
    """The share of positive tags among the known ones, for a cell."""
    known = tags[tags >= 0]
    return f"{(known == 1).mean():.1%}" if len(known) else "–"
