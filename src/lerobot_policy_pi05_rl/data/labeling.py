"""Labelings: outcomes, values and advantages of a whole dataset in a Parquet file beside it, under a name.

``<dataset_root>.labels/<name>.parquet`` holds one row per frame, and in its schema's metadata what it was made of:
the fingerprints of the dataset and of the critic, the advantage estimator and the thresholds. Several labelings lie
side by side, their thresholds change without the critic, and the dataset's own files are never touched.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError, one_line
from ..returns import Outcome, episode_advantages, smoothed
from ..runtime.files import replacing
from .alignment import Alignment
from .episodes import LabelledEpisodes
from .frames import PrecomputedLabels
from .sources import DatasetError, Source, dataset_fingerprint, labels_folder

VALUES = ("value", "success_value")  # what a critic says of a frame: modeling_pi05_rl.py, predict_label_values
OF_A_FAILURE = -1.0  # no advantage under the baseline of a success is below: its returns and values lie in [−1/2, 0]
META_KEY = b"pi05_rl"
RUN_LABELS = "labels"  # folder of a run: the labels that its own critics made (labels/own_run.py)
SCHEMA = {
    "index": pa.int64(),
    "episode_index": pa.int64(),
    "frame_index": pa.int64(),
    "task": pa.string(),
    "outcome": pa.string(),  # success | failure | truncated
    "intervention": pa.bool_(),
    "reward": pa.float32(),  # in units of the return
    "return": pa.float32(),  # NaN where unknown
    "value": pa.float32(),  # of the critic that has not seen the episode
    "success_value": pa.float32(),  # its expectation of a success from there; NaN in labelings of earlier versions
    "fold": pa.int8(),  # that critic; −1: none has seen the episode, and the value is their mean
    "advantage": pa.float32(),  # NaN where unknown
    "positive": pa.bool_(),
    "tag": pa.int8(),  # 1 positive, 0 negative, −1 unknown advantage; a human's correction is always 1
}
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Labeling:
    """One dataset's labels: (frames,) columns as in ``SCHEMA``, and what they were made of."""

    columns: Columns
    meta: dict[str, Any]


def labeling_path(source: Source, name: str) -> Path:
    """Where the labeling ``name`` of this dataset lies: beside it, or, where ``name`` is a run's folder, in there."""
    folder = run_labels(name)
    if folder is None:
        return labels_folder(source.dataset.root) / f"{name}.parquet"
    wanted, here = dataset_fingerprint(source), Path(source.dataset.root).resolve()
    found = [(path, dataset) for path, dataset in labelled_datasets(folder) if dataset["fingerprint"] == wanted]
    found.sort(key=lambda one: Path(one[1]["root"]).resolve() != here)  # of two with the same frames, its own
    return found[0][0] if found else folder / f"{source.name.replace('/', '-')}.parquet"


def run_labels(name: str) -> Path | None:
    """The folder of the labels that a run has made of its own data; None: ``name`` is no run's folder."""
    folder = Path(name) / RUN_LABELS
    return folder if "/" in name or folder.is_dir() else None


def own_labeling(run: Path) -> str | None:
    """The run as the name of the labeling that it has made of its own data; None: it has made none."""
    return str(run.absolute()) if (run / RUN_LABELS).is_dir() else None


def labelled_datasets(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The side-cars in a run's :func:`run_labels`, the first dataset's first, and of which dataset each is."""
    return [(path, read_meta(path)["dataset"]) for path in sorted(folder.glob("*.parquet"))]


def labeling_names(folder: Path) -> list[str]:
    """The finished labelings in a dataset's :func:`labels_folder`."""
    return sorted(path.stem for path in folder.glob("*.parquet"))


def frame_columns(number: int, source: Source, labels: LabelledEpisodes) -> Columns:
    """The columns of source ``number`` that need no critic."""
    count = len(source.columns["index"])
    outcome = np.empty(count, dtype=object)
    for episode in (episode for episode in labels.episodes if episode.source == number):
        outcome[episode.start : episode.end] = episode.outcome.value
    return {
        **{key: source.columns[key].astype(np.int64) for key in ("index", "episode_index", "frame_index")},
        "task": np.array(labels.tasks, dtype=object)[labels.frame_tasks[number]],
        "outcome": outcome,
        "intervention": labels.interventions[number],
        "reward": labels.rewards[number],
        "return": labels.returns[number],
    }


def out_of_fold(values: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(T, K) values of K critics, (T,) folds → (T,) float32; the critics' mean where the fold is −1."""
    chosen = np.take_along_axis(values, np.maximum(folds, 0).astype(np.int64)[:, None], axis=1)[:, 0]
    return np.where(folds < 0, values.mean(axis=1), chosen).astype(np.float32)


def value_columns(values: np.ndarray, folds: np.ndarray) -> Columns:
    """(T, K, 2) values of K critics, as ``predict_label_values`` has them, (T,) folds → the labeling's columns."""
    return {name: out_of_fold(values[:, :, kind], folds) for kind, name in enumerate(VALUES)}


def advantages(
    columns: Columns,
    *,
    baseline: str = "all",
    n_steps: Mapping[str, int] | None = None,
    gae_lambdas: Mapping[str, float] | None = None,
    smoothing: Mapping[str, int] | None = None,
    discount: float,
    alignment: Alignment | None = None,
) -> np.ndarray:
    """(T,) float32 advantages from the columns of a labeling, episode by episode; no network runs.

    Args:
        baseline: all: values are the critic's; success: they are its expectation of a success, and all of a failed
            episode has the least advantage there is.
        n_steps: task → N of the N-step advantage, in policy steps; None: the λ-return's, or else G − V.
        gae_lambdas: task → λ of the λ-return.
        smoothing: task → over how many steps the mean is taken; None: none is.
        alignment: the source's, which says how many frames a step has; None: one.
    """
    alignment = alignment or Alignment()

    def frames(steps: int) -> int:
        return max(1, int(alignment.frame_offset(steps)))

    result = np.full(len(columns["index"]), np.nan, dtype=np.float32)
    for rows in episode_rows(columns["episode_index"]):
        task, outcome = columns["task"][rows.start], columns["outcome"][rows.start]
        if baseline == "success" and outcome == Outcome.FAILURE.value:
            result[rows] = OF_A_FAILURE
            continue
        result[rows] = episode_advantages(
            columns["return"][rows],
            columns["reward"][rows],
            columns["value" if baseline == "all" else "success_value"][rows],
            n_step=None if n_steps is None else frames(n_steps[task]),
            gae_lambda=None if gae_lambdas is None else alignment.per_frame(gae_lambdas[task]),
            discount=alignment.per_frame(discount),
            terminated=outcome != Outcome.TRUNCATED.value,
        )
        if smoothing is not None:
            result[rows] = smoothed(result[rows], frames(smoothing[task]))
    return result


def episode_rows(episode_index: np.ndarray) -> Iterator[slice]:
    """The row range of each episode."""
    starts = np.flatnonzero(np.r_[True, episode_index[1:] != episode_index[:-1]])
    for start, end in zip(starts, np.r_[starts[1:], len(episode_index)], strict=True):
        yield slice(int(start), int(end))


def write_labeling(path: Path, labeling: Labeling) -> None:
    """Write aside, then rename: a crash leaves the labeling of before."""
    unknown = np.full(len(labeling.columns["index"]), np.nan)
    columns = {"success_value": unknown, **labeling.columns}
    arrays = {name: pa.array(columns[name], type=kind) for name, kind in SCHEMA.items()}
    table = pa.table(arrays).replace_schema_metadata({META_KEY: json.dumps(labeling.meta).encode()})
    with replacing(path) as aside:
        pq.write_table(table, aside)


def read_labeling(path: Path) -> Labeling:
    """Read :func:`write_labeling`'s file.

    Raises:
        DatasetError: it is damaged, or not a labeling.
    """
    meta = read_meta(path)
    try:
        table = pq.read_table(path)
        columns = {"success_value": np.full(len(table), np.nan, dtype=np.float32)}
        columns |= {n: table.column(n).to_numpy(zero_copy_only=False) for n in SCHEMA if n in table.column_names}
        columns = {name: columns[name] for name in SCHEMA}
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _not_a_labeling(path, error) from error
    return Labeling(columns, meta)


def read_meta(path: Path) -> dict[str, Any]:
    """What a labeling says it was made of; its rows are not read.

    Raises:
        DatasetError: it is damaged, or not a labeling.
    """
    try:
        return json.loads((pq.read_schema(path).metadata or {})[META_KEY])
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _not_a_labeling(path, error) from error


def _not_a_labeling(path: Path, error: Exception) -> DatasetError:
    return DatasetError(f"{path} is not a labeling, or damaged ({one_line(error)}); make it again with pi05-rl label")


def find_labeling(source: Source, name: str) -> Labeling:
    """The labeling ``name`` of this dataset.

    Raises:
        DatasetError: there is none, or it was made for other frames.
    """
    path = labeling_path(source, name)
    if not path.is_file() and run_labels(name) is not None:
        names = [f"{meta['repo_id']} in {meta['root']}" for _, meta in labelled_datasets(path.parent)]
        there = f"it has labelled {', '.join(names)}" if names else f"there is no {path.parent}"
        raise DatasetError(
            f"the run {name} has labelled other data than dataset {source.name} in {source.dataset.root}: {there}. "
            "Give it the data that it began with, or another labeling (pi05-rl label)"
        )
    if not path.is_file():
        names = labeling_names(path.parent)
        there = f"it has {', '.join(names)}" if names else "it has none"
        raise DatasetError(
            f"dataset {source.name} has no labeling {name!r} ({path}); {there}. Make it: pi05-rl label "
            f"CONFIG_OR_RUN --name {name}"
        )
    labeling = read_labeling(path)
    rows, frames = len(labeling.columns["index"]), len(source.columns["index"])
    made_for = labeling.meta["dataset"]
    if made_for["fingerprint"] != dataset_fingerprint(source) or rows != frames:
        raise DatasetError(
            f"the labeling {name!r} was made for other frames than those of dataset {source.name}: for "
            f"{made_for['repo_id']} in {made_for['root']}, {rows} frames (here {frames}). Label this dataset anew "
            "under another name: pi05-rl label CONFIG_OR_RUN --name NAME"
        )
    return labeling


def replaceable_labeling(source: Source, name: str, critic_fingerprint: str) -> Labeling | None:
    """The labeling of this name if there is one; of the same dataset and critic, else it is not ours to replace.

    Raises:
        UserError: it is of another dataset or critic.
    """
    path = labeling_path(source, name)
    if not path.is_file():
        return None
    labeling = read_labeling(path)
    dataset, critic = labeling.meta["dataset"], labeling.meta["critic"]
    if dataset["fingerprint"] != dataset_fingerprint(source):
        raise UserError(
            f"the labeling {name!r} in {path.parent} was made for another dataset ({dataset['repo_id']} in "
            f"{dataset['root']}) or before this one changed; choose another --name"
        )
    if critic["fingerprint"] != critic_fingerprint:
        raise UserError(
            f"the labeling {name!r} in {path.parent} was made by another critic ({critic['path']}); choose another "
            "--name"
        )
    return labeling


def read_labelings(sources: list[Source], name: str) -> list[Labeling]:
    """The labeling ``name`` of each source.

    Raises:
        DatasetError: a dataset has no labeling of that name, or one that was made for other frames.
    """
    return [find_labeling(source, name) for source in sources]


def precomputed_labels(labelings: list[Labeling]) -> list[PrecomputedLabels]:
    """Advantages and tags, per source."""
    return [PrecomputedLabels(labeling.columns["advantage"], labeling.columns["tag"]) for labeling in labelings]


def labeling_outcomes(labeling: Labeling) -> dict[int, Outcome]:
    """Episode → the outcome that the labeling was made under."""
    columns = labeling.columns
    starts = [rows.start for rows in episode_rows(columns["episode_index"])]
    return {int(columns["episode_index"][start]): Outcome(columns["outcome"][start]) for start in starts}


def outcomes_if_labelled(source: Source, name: str | None) -> dict[int, Outcome]:
    """:func:`labeling_outcomes` of the labeling ``name``; none where there is no such labeling of these frames."""
    path = None if name is None else labeling_path(source, name)
    if path is None or not path.is_file():
        return {}
    if read_meta(path)["dataset"]["fingerprint"] != dataset_fingerprint(source):
        return {}
    return labeling_outcomes(read_labeling(path))
