"""Open a dataset in a folder, or what LeRobot downloads from the Hub: its metadata, checked, and its files."""

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow.dataset as pads
from datasets import Dataset, Features, Image
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import (
    INFO_PATH,
    BackwardCompatibilityError,
    get_repo_versions,
    has_legacy_hub_download_metadata,
)
from lerobot.utils.constants import HF_LEROBOT_HOME
from lerobot.utils.utils import SuppressProgressBars

from ...errors import DatasetError, one_line
from .format import old_format
from .metadata import EpisodeRow, check_statistics, column_names, read_episodes, read_info, read_tasks

logger = logging.getLogger(__name__)

TOLERANCE_S = 1e-4  # LeRobot's


@dataclass(frozen=True)
class LocalDataset:
    """A dataset in a folder: its metadata, and where its files lie."""

    repo_id: str
    root: Path
    meta: LeRobotDatasetMetadata
    episodes: list[int] | None = None  # only these; None: all
    tolerance_s: float = TOLERANCE_S  # largest distance between a frame's timestamp and its picture's

    @cached_property
    def all_rows(self) -> dict[int, EpisodeRow]:
        """episode_index → its row of ``meta/episodes``, of all episodes."""
        return read_episodes(self.root, self.meta.info.to_dict())

    @cached_property
    def rows(self) -> dict[int, EpisodeRow]:
        """Of the episodes that are used, ascending: those asked for, else all that are not empty.

        Raises:
            DatasetError: one that is asked for is not there, or empty; or none is left.
        """
        rows, asked = self.all_rows, self.episodes
        if asked is None:
            used = {index: row for index, row in rows.items() if row.length}
            if not used:
                raise DatasetError(f"the dataset in {self.root} has no episode with a frame; record some")
            return used
        if not asked:
            raise DatasetError("dataset.episodes is an empty list; name the episodes, or leave it out to use all")
        for index in asked:
            named = f"dataset.episodes names episode {index}"
            if index not in rows:
                what = "no such episode" if 0 <= index < max(rows, default=0) else f"{len(rows)}"
                raise DatasetError(f"{named}, but the dataset in {self.root} has {what}")
            if not rows[index].length:
                raise DatasetError(f"{named}, which is empty; leave it out")
        return {index: rows[index] for index in sorted(asked)}

    @cached_property
    def files(self) -> list[Path]:
        """The Parquet files of these episodes, in LeRobot's order.

        Raises:
            DatasetError: one is missing.
        """
        for row in self.rows.values():
            if not row.data.is_file():
                raise missing_file(row.data, row.index, self.repo_id, self.root)
        return sorted({row.data for row in self.rows.values()})

    @property
    def chosen(self) -> list[int] | None:
        """The episodes whose rows are read; None: all that the files hold."""
        return None if len(self.rows) == len(self.all_rows) else list(self.rows)

    @cached_property
    def hf_dataset(self) -> Dataset:
        """The pictures that lie in the Parquet files, in the order of the columns' rows.

        Raises:
            DatasetError: they are no pictures.
        """
        present = column_names(self.files[0])
        cameras = [key for key in self.meta.image_keys if key in present]
        if not cameras:
            return Dataset.from_dict({})
        some = None if self.chosen is None else pads.field("episode_index").isin(self.chosen)
        images = Features({camera: Image() for camera in cameras})
        try:
            with SuppressProgressBars():
                return Dataset.from_parquet(list(map(str, self.files)), columns=cameras, features=images, filters=some)
        except Exception as error:  # datasets wraps whatever Parquet or a cast raised
            reason = one_line(error.__cause__ or error)
            raise DatasetError(f"the pictures of the dataset in {self.root} cannot be read ({reason})") from error


def open_dataset(
    repo_id: str,
    root: str | Path | None,
    *,
    key: str = "dataset",
    revision: str | None = None,
    episodes: list[int] | None = None,
    tolerance_s: float = TOLERANCE_S,
    pictures: bool = True,
) -> LocalDataset:
    """A dataset that lies in a folder or, where there is none, what LeRobot downloads from the Hub.

    A folder that is there is never completed from the Hub: what is missing in it is named.

    Args:
        key: the configuration key that names it, for errors.
        episodes: only these; None: all.
        pictures: whether videos are needed.

    Raises:
        DatasetError: nothing readable lies at ``root`` (or in LeRobot's home), and the Hub has no such dataset; or
            its metadata are damaged, or of a format that LeRobot does not read.
    """
    folder = Path(root) if root is not None else HF_LEROBOT_HOME / repo_id
    if not (folder / INFO_PATH).is_file() or (root is None and has_legacy_hub_download_metadata(folder)):
        folder = _download(repo_id, root, folder, key, revision=revision, episodes=episodes, download_videos=pictures)
    with reading(folder):
        read_episodes(folder, read_info(folder, repo_id))
        read_tasks(folder)
        check_statistics(folder)
        try:  # everything that it reads is there; it would ask the Hub for what it does not find
            meta = LeRobotDatasetMetadata(repo_id, root=folder)
        except Exception as error:  # a dozen unrelated types, of datasets, pyarrow, pandas and the Hub
            raise DatasetError(one_line(error.__cause__ or error)) from error
    dataset = LocalDataset(repo_id, folder, meta, episodes, tolerance_s)
    _say_gaps(dataset)
    return dataset


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Errors of the block begin with the dataset's folder."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"the dataset in {root} cannot be read: {error}") from error


def _download(repo_id: str, root: str | Path | None, folder: Path, key: str, **kwargs) -> Path:
    """Where LeRobot put the dataset of the Hub."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        return Path(LeRobotDataset(repo_id, root=root, **kwargs).root)
    except Exception as error:  # LeRobot, datasets and the Hub raise a dozen unrelated types
        for path in missing:  # LeRobot creates the folder before it looks for the dataset
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        if isinstance(error, BackwardCompatibilityError | NotImplementedError):
            version = f"v{max(get_repo_versions(repo_id))}"  # the newest that the Hub has
            raise DatasetError(old_format(version, folder, repo_id, there=False)) from error
        if (folder / INFO_PATH).is_file():
            raise DatasetError(
                f"the dataset {repo_id!r} cannot be fetched anew ({type(error).__name__}); to use what lies in "
                f"{folder} as it is, give that folder: dataset.root, or in dataset.additional_offline_dataset_paths"
            ) from error
        advice = "Set dataset.root to the dataset's folder, or dataset.repo_id to its Hub id"
        if key != "dataset":
            advice = f"{key} takes folders and Hub ids"
        raise DatasetError(
            f"no dataset {repo_id!r}: {folder} has no meta/info.json and the Hub gave none "
            f"({type(error).__name__}). {advice}"
        ) from error


def _say_gaps(dataset: LocalDataset) -> None:
    """A dataset may lack episodes, or hold empty ones: tables are read by their keys."""
    rows = dataset.all_rows
    gaps = sorted(set(range(max(rows, default=-1) + 1)) - set(rows))
    empty = [index for index, row in rows.items() if row.length == 0]
    if gaps:
        logger.info("[DATA] %s has no episode %s; the others are read", dataset.repo_id, shortened(gaps))
    if empty and dataset.episodes is None:
        logger.warning("[DATA] %s: episode %s is empty and left out", dataset.repo_id, shortened(empty))


def missing_file(path: Path, episode: int, repo_id: str, root: Path) -> DatasetError:
    """The error for a file that the metadata name and nobody finds."""
    download = f"hf download {shlex.quote(repo_id)} --repo-type dataset --local-dir {shlex.quote(str(root))}"
    return DatasetError(
        f"{path} is missing, which holds episode {episode}: the copy or download is not whole. Copy "
        f"that file (a dataset of the Hub: {download}), or use other episodes (dataset.episodes)"
    )


def shortened(numbers: list[int], most: int = 8) -> str:
    """``0, 1, 2, …``"""
    return ", ".join(map(str, numbers[:most])) + (", …" if len(numbers) > most else "")
