"""A dataset's labeling as the report reads it: as a table, without opening the dataset."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..data import labeling
from ..data.files.metadata import read_episodes, read_info
from ..errors import UserError
from ..labels.critic import load_critic
from ..model.weights import CheckpointError
from ..returns import Outcome

OUTCOMES = tuple(outcome.value for outcome in Outcome)


def ending(outcome: str) -> str:
    """``ended in success``, ``was truncated``."""
    return f"was {outcome}" if outcome == "truncated" else f"ended in {outcome}"


@dataclass(frozen=True)
class LabelingTable:
    """One side-car: a row per frame in dataset order, and what it was made with.

    Without values, of a run that trained no critic, there is no side-car: ``name`` is empty, and of the columns there
    are those alone that need no critic.
    """

    name: str
    frames: pd.DataFrame
    metadata: dict[str, Any]
    no_values: str = ""  # why there are none, a sentence; empty: there are
    note: str = ""  # on the outcomes, a sentence

    @property
    def n_steps(self) -> dict[str, int] | None:
        """Task → how many rewards the advantage sums before it asks the critic again; None: to the episode's end."""
        found = self.metadata.get("n_step")
        return found if found is None or isinstance(found, dict) else dict.fromkeys(self.tasks, found)

    @property
    def smoothing(self) -> dict[str, int] | None:
        """Task → over how many frames the advantage is a mean; None: it is that of one frame."""
        return self.metadata.get("smoothing")

    @property
    def baseline(self) -> str:
        """What returns are compared with: "success" or "all"."""
        return self.metadata.get("baseline", "all")

    @property
    def gae_lambdas(self) -> dict[str, float] | None:
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


def read_labeling_table(
    dataset_root: Path, name: str, total_frames: int, episodes: list[int] | None = None
) -> LabelingTable:
    """The labeling ``name`` of a dataset.

    Args:
        episodes: those that the run reads (``dataset.episodes``); a labeling of them alone is as good.

    Raises:
        UserError: there is none, it is damaged, or it does not have one row for each of the ``total_frames``, or for
            each frame of the episodes that it or the run was made of.
    """
    path = labeling_file(dataset_root, name)
    if not path.is_file():
        there = ", ".join(labeling.labeling_names(path.parent)) or "none"
        raise UserError(f"{dataset_root} has no labeling {name!r} (there: {there}); make it with `pi05-rl label`")
    found = labeling.read_labeling(path)
    frames = pd.DataFrame(found.columns)
    chosen = (found.meta.get("dataset") or {}).get("episodes") or episodes
    if len(frames) != total_frames and not (chosen and _is_of(frames, dataset_root, chosen)):
        selected = f", and its episodes {chosen} others" if chosen else ""
        raise UserError(
            f"the labeling {path} has {len(frames)} rows but the dataset has {total_frames} frames{selected}: the "
            "dataset changed since; run `pi05-rl label` again"
        )
    return LabelingTable(found.meta.get("name", name), frames, found.meta)


def labeling_file(dataset_root: Path, name: str) -> Path:
    """The side-car ``name`` beside the dataset, or, where that is a run's folder, what the run made of the dataset:
    of its first one, where the dataset has moved."""
    folder = labeling.run_labels(name)
    if folder is None:
        return labeling.labels_folder(dataset_root) / f"{name}.parquet"
    described = labeling.labelled_datasets(folder)
    here = [path for path, dataset in described if Path(dataset["root"]).resolve() == dataset_root.resolve()]
    return next(iter([*here, *(path for path, _ in described)]), folder / "0.parquet")


def _is_of(frames: pd.DataFrame, dataset_root: Path, episodes: list[int]) -> bool:
    """Whether these rows are the frames of just these episodes."""
    rows = read_episodes(dataset_root, read_info(dataset_root, dataset_root.name))
    lengths = {index: rows[index].length if index in rows else None for index in episodes}
    return frames.groupby("episode_index").size().to_dict() == lengths


def newest_labeling(dataset_root: Path, run: Path | None = None) -> str | None:
    """The name of the side-car written last; with ``run``, of those that a critic of that run made."""
    paths = sorted(labeling.labels_folder(dataset_root).glob("*.parquet"), key=lambda path: path.stat().st_mtime)
    for path in reversed(paths):
        if run is None or _critic_lies_in(labeling.read_meta(path), run):
            return path.stem
    return None


def _critic_lies_in(metadata: dict[str, Any], run: Path) -> bool:
    """Whether the critic is the run's, and still the one that lies there: another run may have had its folder."""
    critic = metadata.get("critic") or {}
    path = critic.get("path")
    if path is None or not Path(path).resolve().is_relative_to(run.resolve()):
        return False
    present = current_fingerprint(path)
    return present is None or present == critic.get("fingerprint")


def current_fingerprint(path: str) -> str | None:
    """The fingerprint of the critic that lies in a checkpoint now; None where the checkpoint is gone or not whole."""
    try:
        critic = load_critic(path)
    except CheckpointError:
        return None
    return None if critic is None else critic.fingerprint
