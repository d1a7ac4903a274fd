"""Open a replay's folder: create it, or finish and clean what a crash left."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from lerobot.datasets.dataset_metadata import CODEBASE_VERSION
from lerobot.datasets.feature_utils import create_empty_dataset_info
from lerobot.datasets.io_utils import load_info, load_tasks, write_tasks
from lerobot.datasets.utils import DEFAULT_TASKS_PATH, INFO_PATH, DatasetInfo

from ...errors import UserError
from ..episode import EpisodeSpec
from . import files
from .stored_episode import replay_features

logger = logging.getLogger(__name__)

Row = dict[str, Any]  # of meta/episodes


class ReplayError(UserError):
    """A replay that cannot be opened or written."""


def task_table(tasks: list[str]) -> pd.DataFrame:
    """LeRobot's ``meta/tasks.parquet``."""
    return pd.DataFrame({"task_index": range(len(tasks))}, index=pd.Index(tasks, name="task"))


def open_folder(
    root: Path, spec: EpisodeSpec, names: dict[str, Any], robot_type: str | None
) -> tuple[DatasetInfo, list[Row], list[str]]:
    """The folder's info, the rows of ``meta/episodes`` that count, and the tasks in the order of their numbers.

    Raises:
        ReplayError: as :meth:`Replay.open`.
    """
    if spec.fps != int(spec.fps):
        raise ReplayError(f"env.fps is {spec.fps:g}; a LeRobotDataset takes whole frames per second")
    features = replay_features(spec, names)
    files.finish_compaction(root)
    if not (root / INFO_PATH).exists():
        _create(root, spec, features, robot_type)
    try:
        info = load_info(root)
    except (ValueError, TypeError, KeyError) as error:
        raise ReplayError(f"{root / INFO_PATH} is damaged ({error}); move the folder away") from error
    _check(root, info, spec, features)
    rows = _clean(root, info)
    return info, rows, _enter_tasks(root, spec)


def _create(root: Path, spec: EpisodeSpec, features: dict[str, dict], robot_type: str | None) -> None:
    """An empty dataset; ``info.json`` last, so that an interrupted creation starts over."""
    there = [path.relative_to(root) for path in root.rglob("*") if path.is_file()] if root.exists() else []
    info = Path(INFO_PATH)
    unfinished = (Path(DEFAULT_TASKS_PATH), info.with_name(f".{info.name}.new"))
    foreign = [path for path in there if path not in unfinished and path.parts[0] != files.INCOMING]
    if foreign:
        raise ReplayError(f"{root} is no replay (it has {foreign[0]} and no {INFO_PATH}); move it away")
    _write_tasks(root, list(spec.tasks))
    empty = create_empty_dataset_info(CODEBASE_VERSION, int(spec.fps), features, True, robot_type)
    files.write_json(empty.to_dict(), root / INFO_PATH)


def _check(root: Path, info: DatasetInfo, spec: EpisodeSpec, features: dict[str, dict]) -> None:
    """Refuse a replay that this run's episodes do not fit."""
    if info.fps != int(spec.fps):
        raise ReplayError(
            f"the replay in {root} was recorded at {info.fps} frames per second, not {spec.fps:g}; "
            "use another output_dir or the same env.fps"
        )
    there, wanted = (
        {key: (feature["dtype"], tuple(feature["shape"])) for key, feature in table.items()}
        for table in (info.features, features)
    )
    odd = sorted(key for key in there.keys() | wanted.keys() if there.get(key) != wanted.get(key))
    if odd:
        raise ReplayError(
            f"the replay in {root} is of another policy or environment: {odd[0]} is {there.get(odd[0], 'missing')} "
            f"there and {wanted.get(odd[0], 'missing')} here; use another output_dir"
        )


def _clean(root: Path, info: DatasetInfo) -> list[Row]:
    """Remove what ``info.json`` does not count; the rows that it does."""
    rows = [row for row in read_rows(root) if row["episode_index"] < info.total_episodes]
    if [row["episode_index"] for row in rows] != list(range(info.total_episodes)):
        raise ReplayError(
            f"the replay in {root} has {len(rows)} of the {info.total_episodes} episodes that it should have: files "
            "were removed or changed; move the folder away"
        )
    kept = set()
    for row in rows:
        kinds = [name.removesuffix("/chunk_index") for name in row if name.endswith("/chunk_index")]
        for kind in kinds:
            place = place_of(row, kind)
            if kind == "data":
                kept.add(info.data_path.format(**place))
            elif kind == "meta/episodes":
                kept.add(files.DEFAULT_EPISODES_PATH.format(**place))
            else:
                kept.add(info.video_path.format(video_key=kind.removeprefix("videos/"), **place))
    missing = sorted(name for name in kept if not (root / name).exists())
    if missing:
        raise ReplayError(f"the replay in {root} lacks {missing[0]}: files were removed; move the folder away")
    strays = files.remove_strays(root, kept)
    if strays:
        logger.info("[LEARNER] Removed %d files of an interrupted run from %s", strays, root)
    return rows


def place_of(row: Row, kind: str) -> dict[str, int]:
    """Chunk and file of "data", "meta/episodes" or "videos/<camera>"."""
    return {name: row[f"{kind}/{name}"] for name in ("chunk_index", "file_index")}


def data_file(row: Row) -> str:
    """The table that holds the episode's frames, relative to the root."""
    return files.DEFAULT_DATA_PATH.format(**place_of(row, "data"))


def read_rows(root: Path) -> list[Row]:
    """All of ``meta/episodes``, in order."""
    paths = sorted((root / "meta" / "episodes").glob("*/*.parquet"), key=files.numbered)
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def _enter_tasks(root: Path, spec: EpisodeSpec) -> list[str]:
    """The dataset's tasks; new ones of ``spec`` are added behind them."""
    there = [str(task) for task in load_tasks(root).index]
    tasks = there + [task for task in spec.tasks if task not in there]
    if tasks != there:
        _write_tasks(root, tasks)
    return tasks


def _write_tasks(root: Path, tasks: list[str]) -> None:
    written = files.fresh_folder(root / files.INCOMING)
    write_tasks(task_table(tasks), written)
    files.adopt(written / DEFAULT_TASKS_PATH, root / DEFAULT_TASKS_PATH)
