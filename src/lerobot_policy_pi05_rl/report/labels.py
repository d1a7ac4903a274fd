"""Read labelings: the Parquet side-cars that ``pi05-rl label`` writes beside a dataset, never inside it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError

METADATA_KEY = b"pi05_rl"
COLUMNS = (
    "index",
    "episode_index",
    "frame_index",
    "task",
    "outcome",
    "intervention",
    "return",
    "value",
    "advantage",
    "positive",
)
OUTCOMES = ("success", "failure", "truncated")


def ending(outcome: str) -> str:
    """``ended in success``, ``was truncated``."""
    return f"was {outcome}" if outcome == "truncated" else f"ended in {outcome}"


@dataclass(frozen=True)
class Labeling:
    """One side-car: a row per frame in dataset order, and what it was made with."""

    name: str
    path: Path
    frames: pd.DataFrame
    metadata: dict[str, Any]

    @property
    def n_step(self) -> int | None:
        """How many rewards the advantage sums before it asks the critic again; None: to the episode's end."""
        return self.metadata.get("n_step")

    @property
    def traces(self) -> dict[str, float] | None:
        """Task → λ of the λ-returns that the advantage was computed from; None: it was not."""
        return self.metadata.get("trace")

    @property
    def tasks(self) -> list[str]:
        """Task texts, the one with the most frames first."""
        return [str(task) for task in self.frames["task"].value_counts().index]

    def threshold(self, task: str) -> float | None:
        """The advantage above which a frame of ``task`` is tagged positive."""
        value = self.metadata.get("thresholds", {}).get(task)
        return None if value is None else float(value)

    def positive_fraction(self, task: str) -> float | None:
        """The share of the task's frames that the threshold was chosen for."""
        value = self.metadata.get("positive_fraction", {}).get(task)
        return None if value is None else float(value)


def labels_folder(dataset_root: Path) -> Path:
    """Where the labelings of a dataset lie: ``<dataset_root>.labels``."""
    return dataset_root.with_name(dataset_root.name + ".labels")


def read_metadata(path: Path) -> dict[str, Any]:
    """What a side-car says it was made with; its rows are not read.

    Raises:
        UserError: it is not a labeling.
    """
    try:
        raw = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
        metadata = json.loads(raw) if raw is not None else None
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())[:200]}); run `pi05-rl label`"
        ) from error
    if not isinstance(metadata, dict):
        raise UserError(f"{path} is not a labeling: its schema has no {METADATA_KEY.decode()!r} metadata")
    return metadata


def read_labeling(dataset_root: Path, name: str, total_frames: int) -> Labeling:
    """The labeling ``name`` of a dataset.

    Raises:
        UserError: there is none, it is damaged, or it does not have one row for each of the ``total_frames``.
    """
    path = labels_folder(dataset_root) / f"{name}.parquet"
    if not path.is_file():
        there = ", ".join(sorted(other.stem for other in path.parent.glob("*.parquet"))) or "none"
        raise UserError(f"{dataset_root} has no labeling {name!r} (there: {there}); make it with `pi05-rl label`")
    metadata = read_metadata(path)
    missing = sorted(set(COLUMNS) - set(pq.read_schema(path).names))
    if missing:
        raise UserError(f"the labeling {path} lacks the column(s) {', '.join(missing)}; run `pi05-rl label` again")
    frames = pq.read_table(path, columns=list(COLUMNS)).to_pandas()
    if len(frames) != total_frames:
        raise UserError(
            f"the labeling {path} has {len(frames)} rows but the dataset has {total_frames} frames: the dataset "
            "changed since; run `pi05-rl label` again"
        )
    unknown = sorted(set(frames["outcome"].astype(str)) - set(OUTCOMES))
    if unknown:
        raise UserError(f"the labeling {path} has the outcome {unknown[0]!r}; known are {', '.join(OUTCOMES)}")
    return Labeling(name, path, frames, metadata)


def newest_labeling(dataset_root: Path, run: Path | None = None) -> str | None:
    """The name of the side-car written last; with ``run``, of those whose critic lies in that run."""
    paths = sorted(labels_folder(dataset_root).glob("*.parquet"), key=lambda path: path.stat().st_mtime)
    for path in reversed(paths):
        if run is None or _critic_lies_in(read_metadata(path), run):
            return path.stem
    return None


def _critic_lies_in(metadata: dict[str, Any], run: Path) -> bool:
    critic = (metadata.get("critic") or {}).get("path")
    return critic is not None and Path(critic).resolve().is_relative_to(run.resolve())
