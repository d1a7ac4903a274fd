"""Open LeRobot datasets and read their low-dimensional columns once."""

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, HF_LEROBOT_HOME, OBS_STATE

from ..errors import UserError
from ..returns import Outcome
from .alignment import Alignment, renamed
from .video import Segment

logger = logging.getLogger(__name__)

INTERVENTION = "intervention"  # lerobot-rollout's name
SUCCESS, CUT_OFF = "next.success", "next.cut_off"
INTERVENTION_COLUMNS = (INTERVENTION, "is_intervention", "complementary_info.is_intervention")
SUCCESS_COLUMNS = (SUCCESS, "success")
TRUNCATED_COLUMNS = ("next.truncated", "truncated")


class DatasetError(UserError):
    """A dataset that is missing, incomplete or does not fit the policy."""


@dataclass(frozen=True)
class Source:
    """One dataset: its LeRobot object (metadata, frames) and its columns, one row per frame, in file order."""

    name: str
    dataset: LeRobotDataset
    video_backend: str
    columns: dict[str, np.ndarray]  # by the policy's names, once it is aligned
    starts: np.ndarray  # (episodes,) first row of each episode
    ends: np.ndarray  # (episodes,) one past its last row
    tasks: list[str]  # (episodes,) task text
    videos: dict[str, dict[int, Segment]]  # its camera → episode_index → where the episode lies
    alignment: Alignment = field(default_factory=Alignment)

    @property
    def features(self) -> dict[str, dict]:
        """LeRobot's features under the policy's names."""
        return renamed(self.dataset.meta.features, self.alignment.names)

    @property
    def stats(self) -> dict[str, dict[str, np.ndarray]] | None:
        """LeRobot's statistics under the policy's names, as recorded."""
        stats = self.dataset.meta.stats
        return None if stats is None else renamed(stats, self.alignment.names)

    def recorded(self, key: str) -> np.ndarray:
        """(frames, D) the column of the policy's ``key`` as recorded."""
        values = self.columns[key]
        return values.reshape(len(values), -1)

    def column(self, names: tuple[str, ...], episode: int) -> np.ndarray | None:
        """The episode's rows of the first of these columns that exists, (T,); None if none does."""
        for name in names:
            if name in self.columns:
                return self.columns[name][self.starts[episode] : self.ends[episode]].reshape(-1)
        return None


def open_dataset(repo_id: str, root: str | Path | None, *, key: str = "dataset", **kwargs) -> LeRobotDataset:
    """LeRobot's dataset, with one clear error where LeRobot has a traceback and an empty folder.

    Args:
        key: the configuration key that names it, for the error.

    Raises:
        DatasetError: nothing readable lies at ``root`` (or in LeRobot's home), and the Hub has no such dataset.
    """
    folder = Path(root) if root is not None else HF_LEROBOT_HOME / repo_id
    info = folder / "meta" / "info.json"
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        return LeRobotDataset(repo_id, root=root, **kwargs)
    except Exception as error:  # LeRobot, datasets and the Hub raise a dozen unrelated types on a damaged dataset
        for path in missing:  # LeRobot creates the folder before it looks for the dataset
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        if info.is_file():
            _check_episodes(folder, info, kwargs.get("episodes"))
            reason = " ".join(str(error.__cause__ or error).split())
            raise DatasetError(f"the dataset in {folder} cannot be read: {reason[:300]}") from error
        advice = "Set dataset.root to the dataset's folder, or dataset.repo_id to its Hub id"
        if key != "dataset":
            advice = f"{key} takes folders and Hub ids"
        raise DatasetError(
            f"no dataset {repo_id!r}: {folder} has no meta/info.json and the Hub gave none "
            f"({type(error).__name__}). {advice}"
        ) from error


def _check_episodes(folder: Path, info: Path, episodes: list[int] | None) -> None:
    """LeRobot asks the Hub for episodes that a local dataset does not have; say which those are instead."""
    try:
        total = int(json.loads(info.read_text())["total_episodes"])
    except (ValueError, KeyError, TypeError):
        return  # damaged metadata: the caller reports what LeRobot made of it
    beyond = [episode for episode in episodes or [] if episode >= total]
    if beyond:
        raise DatasetError(f"dataset.episodes names episode {beyond[0]}, but the dataset in {folder} has {total}")


def load_source(name: str, dataset: LeRobotDataset, video_backend: str) -> Source:
    """Read every low-dimensional column of ``dataset`` into memory (images stay where they are)."""
    meta = dataset.meta
    table = dataset.hf_dataset.data
    columns = {}
    for key, feature in meta.features.items():
        if feature["dtype"] in ("image", "video", "string") or key not in table.column_names:
            continue
        column = table.column(key).combine_chunks()
        width = int(np.prod(feature["shape"])) if feature.get("shape") else 1
        while hasattr(column, "flatten") and column.type.num_fields:  # nested lists: one row each
            column = column.flatten()
        values = column.to_numpy(zero_copy_only=False)
        columns[key] = values.reshape(-1, width) if width > 1 or key in (ACTION, OBS_STATE) else values
    episodes = columns["episode_index"]
    starts = np.flatnonzero(np.r_[True, episodes[1:] != episodes[:-1]])
    ends = np.r_[starts[1:], len(episodes)]
    task_texts = [str(task) for task in meta.tasks.index]
    tasks = [task_texts[index] for index in columns["task_index"][starts]]
    videos = {}
    for camera in meta.video_keys:
        begins, ends_at = (meta.episodes[f"videos/{camera}/{name}_timestamp"] for name in ("from", "to"))
        videos[camera] = {
            index: Segment(
                dataset.root / meta.get_video_file_path(index, camera), float(begins[index]), float(ends_at[index])
            )
            for index in episodes[starts].tolist()
        }
    return Source(name, dataset, video_backend, columns, starts, ends, tasks, videos)


def check_outcome_file_datasets(path: str | None, sources: list[Source]) -> None:
    """Refuse rows of an outcome file that name a dataset nobody opened: their labels would be lost silently.

    Raises:
        DatasetError: there is such a row.
    """
    table = None if path is None else _read_outcome_table(path)
    if table is None or "dataset" not in table.columns:
        return
    names = [source.name for source in sources]
    unknown = sorted(set(table["dataset"].dropna().astype(str)) - set(names))
    if unknown:
        raise DatasetError(f"{path} names the dataset {unknown[0]}, which is not one of {', '.join(names)}")


def _read_outcome_table(path: str) -> pd.DataFrame:
    if not Path(path).is_file():
        raise DatasetError(f"reward.outcome_file {path} does not exist")
    try:
        table = pd.read_csv(path)
    except ValueError as error:  # empty, unbalanced quotes, not text
        raise DatasetError(f"reward.outcome_file {path} is not a CSV: {' '.join(str(error).split())}") from error
    missing = {"episode_index", "outcome"} - set(table.columns)
    if missing:
        raise DatasetError(f"{path} lacks the column(s) {', '.join(sorted(missing))}; it has {list(table.columns)}")
    return table


def read_outcome_file(path: str | None, source: Source, *, primary: bool) -> dict[int, Outcome]:
    """Episode → outcome from a CSV ``episode_index,outcome[,dataset]``; rows without a dataset are the primary's.

    Raises:
        DatasetError: the file, a column, an episode or an outcome is not what it should be.
    """
    if path is None:
        return {}
    table = _read_outcome_table(path)
    if "dataset" in table.columns:
        table = table[table["dataset"].isna() & primary | (table["dataset"] == source.name)]
    elif not primary:
        return {}
    known = set(source.columns["episode_index"][source.starts].tolist())
    outcomes = {}
    for row in table.itertuples():
        if row.episode_index not in known:
            raise DatasetError(f"{path}: dataset {source.name} has no episode {row.episode_index}")
        if row.episode_index in outcomes:
            raise DatasetError(f"{path} gives episode {row.episode_index} of dataset {source.name} twice")
        try:
            outcomes[int(row.episode_index)] = Outcome(str(row.outcome).strip().lower())
        except ValueError:
            choices = ", ".join(outcome.value for outcome in Outcome)
            raise DatasetError(
                f"{path}: episode {row.episode_index} has the outcome {row.outcome!r}; it must be one of {choices}"
            ) from None
    return outcomes


def dataset_fingerprint(source: Source) -> str:
    """A hash of what identifies the frames: sizes, features, episode bounds, states and actions.

    Paths, times and everything that people may change beside the frames (outcomes, statistics) are left out.
    """
    meta = source.dataset.meta
    features = {key: [feature["dtype"], list(feature["shape"] or ())] for key, feature in meta.features.items()}
    essentials = [int(meta.total_frames), float(meta.fps), features, (source.ends - source.starts).tolist()]
    digest = hashlib.blake2b(json.dumps(essentials, sort_keys=True).encode(), digest_size=16)
    for key in ("episode_index", ACTION, OBS_STATE):
        if key in meta.features and (name := source.alignment.policy_name(key)) in source.columns:
            digest.update(np.ascontiguousarray(source.columns[name]).tobytes())
    return digest.hexdigest()
