"""A finished labeling, and what it says, per task, on the console."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from ..data.labeling import Columns, read_labeling
from ..returns import Outcome


@dataclass(frozen=True)
class LabelingResult:
    """A finished labeling."""

    name: str  # what dataset.labeling and --labels call it
    paths: list[Path]  # one Parquet file per dataset, a row per frame
    thresholds: dict[str, float]  # task → the advantage above which a frame is positive

    def frames(self) -> pd.DataFrame:
        """All rows; the columns of ``data/labeling.SCHEMA``, and ``dataset``: the file's number in ``paths``."""
        tables = [pd.read_parquet(path).assign(dataset=number) for number, path in enumerate(self.paths)]
        return pd.concat(tables, ignore_index=True)


def print_summary(result: LabelingResult) -> None:
    """The table of what became of the frames, and how to train from the labeling."""
    name, tables = result.name, [read_labeling(path).columns for path in result.paths]
    label_table(tables, result.thresholds, title=f"labeling {name}")
    print(f"Train from this labeling: --dataset.labeling={name} (add --policy.train_critic=false to train no critic)")


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
