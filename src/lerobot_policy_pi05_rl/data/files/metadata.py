"""What a LeRobot dataset says of itself in ``meta/``, read by keys and checked before anything else is opened.

LeRobot reads these tables by the position of their rows, and asks the Hub for whatever it does not find; here a row is
what its keys say, and what is missing or contradicts itself is named.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from lerobot.datasets.io_utils import load_stats
from lerobot.datasets.utils import (
    DEFAULT_DATA_PATH,
    DEFAULT_TASKS_PATH,
    DEFAULT_VIDEO_PATH,
    EPISODES_DIR,
    INFO_PATH,
    STATS_PATH,
)

from ...errors import DatasetError, one_line
from ..pictures.video import Segment
from .format import check_format

VISUAL = ("image", "video")


@dataclass(frozen=True)
class EpisodeRow:
    """One row of ``meta/episodes``."""

    index: int
    length: int
    first: int  # dataset_from_index
    data: Path
    videos: dict[str, Segment]  # of the cameras whose place is known


def read_info(root: Path, repo_id: str) -> dict[str, Any]:
    """``meta/info.json``.

    Raises:
        DatasetError: it is not JSON, lacks a key, or is of a format that LeRobot does not read.
    """
    path = root / INFO_PATH
    try:
        info = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read ({one_line(error)}); copy the dataset anew") from error
    if not isinstance(info, dict):
        raise DatasetError(f"{path} holds {type(info).__name__}, not a mapping of keys; copy the dataset anew")
    check_format(info.get("codebase_version"), root, repo_id)
    for key, kinds in (
        ("fps", (int, float)),
        ("features", (dict,)),
        ("total_episodes", (int,)),
        ("total_frames", (int,)),
    ):
        value = info.get(key)
        if not isinstance(value, kinds) or isinstance(value, bool):
            found = "is missing" if key not in info else f"is {value!r}"
            raise DatasetError(f"{path}: {key} {found}; it must be a {_kind(kinds)}")
    if not 0 < info["fps"] < float("inf"):
        raise DatasetError(f"{path}: fps is {info['fps']}; it must be a positive number")
    for key, feature in info["features"].items():
        if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
            raise DatasetError(f"{path}: features.{key} must be a mapping with a dtype, got {feature!r:.100}")
    for key in ("data_path", "video_path"):
        _check_template(path, key, info.get(key))
    return info


def is_shape(shape: Any) -> bool:
    """Whether this is a list (or tuple) of positive integers."""
    return isinstance(shape, list | tuple) and all(type(size) is int and size > 0 for size in shape)


def _check_template(path: Path, key: str, template: Any) -> None:
    if template is None:
        return  # LeRobot's default
    try:
        str.format(template, video_key="camera", chunk_index=0, file_index=0)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise DatasetError(
            f"{path}: {key} is {template!r:.100}; it must be a path with {{chunk_index}} and {{file_index}}, as "
            "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        ) from error


def check_statistics(root: Path) -> None:
    """Refuse a ``meta/stats.json`` that LeRobot would stumble over; none at all is fine.

    Raises:
        DatasetError: it is not what LeRobot writes.
    """
    path = root / STATS_PATH
    try:
        stats = load_stats(root) or {}
        foreign = [key for key, values in stats.items() if not isinstance(values, dict)]
        if foreign:
            raise ValueError(f"{foreign[0]} holds no statistics by name")
    except Exception as error:  # whatever JSON, numpy and LeRobot's un-flattening make of it
        raise DatasetError(
            f"{path} cannot be read ({one_line(error)}); delete it: what training needs is computed from the data"
        ) from error


def read_tasks(root: Path) -> dict[int, str]:
    """task_index → text, from ``meta/tasks.parquet``, whichever columns, index or order it has.

    Raises:
        DatasetError: it is missing or damaged, or does not say which text belongs to which index.
    """
    path = root / DEFAULT_TASKS_PATH
    table = read_table(path)
    if "task_index" not in table.column_names:
        raise DatasetError(f"{path} has no column task_index; it has {table.column_names}")
    texts = [name for name in table.column_names if _is_text(table.schema.field(name).type)]
    names = [name for name in ("task", "__index_level_0__") if name in texts] or texts
    if not names or (len(texts) > 1 and names == texts):
        raise DatasetError(
            f"{path}: which column holds the tasks' texts? LeRobot calls it task; it has {table.column_names}"
        )
    indices, tasks = integers(path, table, "task_index"), table.column(names[0]).to_pylist()
    unknown = next((int(index) for index, task in zip(indices, tasks, strict=True) if task is None), None)
    if unknown is not None:
        raise DatasetError(f"{path}: task_index {unknown} has no text")
    if len(set(indices.tolist())) < len(indices):
        twice = next(index for index in indices.tolist() if (indices == index).sum() > 1)
        raise DatasetError(f"{path} gives task_index {twice} twice")
    return dict(zip(indices.tolist(), map(str, tasks), strict=True))


def read_episodes(root: Path, info: dict[str, Any]) -> dict[int, EpisodeRow]:
    """episode_index → its row, over all files of ``meta/episodes``, ascending; gaps are allowed.

    Args:
        info: :func:`read_info`.

    Raises:
        DatasetError: a file is missing or damaged, or the rows contradict one another or ``info``.
    """
    data_path, video_path = info.get("data_path") or DEFAULT_DATA_PATH, info.get("video_path") or DEFAULT_VIDEO_PATH
    folder = root / EPISODES_DIR
    files = sorted(folder.glob("*/*.parquet"))
    if not files:
        raise DatasetError(f"{folder} has no Parquet file; copy the dataset anew")
    cameras = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    rows: dict[int, EpisodeRow] = {}
    for path in files:
        table = read_table(path)
        needed = ("episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index")
        numbers = {name: integers(path, table, name).tolist() for name in needed}
        to = integers(path, table, "dataset_to_index") if "dataset_to_index" in table.column_names else None
        places = {camera: _video_places(path, table, camera) for camera in cameras}
        for row, (index, length, first, chunk, file) in enumerate(zip(*numbers.values(), strict=True)):
            if index in rows:
                raise DatasetError(f"{folder} lists episode {index} twice")
            if index < 0 or length < 0 or (to is not None and to[row] - first != length):
                bounds = f"runs from {first} to {'?' if to is None else to[row]}"
                raise DatasetError(f"{path}: episode {index} has {length} frames and {bounds}; copy the dataset anew")
            videos = {}
            for camera, place in places.items():
                if place is not None:
                    name = video_path.format(video_key=camera, chunk_index=place[0][row], file_index=place[1][row])
                    end = place[2][row] + length / info["fps"] if place[3] is None else place[3][row]
                    videos[camera] = Segment(root / name, place[2][row], end)
            data = root / data_path.format(chunk_index=chunk, file_index=file)
            rows[index] = EpisodeRow(index, length, first, data, videos)
    _check_totals(root, info, rows)
    return dict(sorted(rows.items()))


def _check_totals(root: Path, info: dict[str, Any], rows: dict[int, EpisodeRow]) -> None:
    listed = {"total_episodes": len(rows), "total_frames": sum(row.length for row in rows.values())}
    for key, found in listed.items():
        if info[key] != found:
            what = key.removeprefix("total_")
            raise DatasetError(
                f"{root / INFO_PATH} counts {info[key]} {what}, {root / EPISODES_DIR} lists {found}: one of them is "
                "not of this dataset, or recording was cut off before its metadata were written; copy both anew, or "
                f"correct {key}"
            )


def _video_places(
    path: Path, table: pa.Table, camera: str
) -> tuple[list[int], list[int], list[float], list[float] | None] | None:
    """Chunk, file, start and end (s; None: not said) of each row's video; None where the table does not say."""
    prefix = f"videos/{camera}/"
    if any(prefix + name not in table.column_names for name in ("chunk_index", "file_index", "from_timestamp")):
        return None
    chunks, files = (integers(path, table, prefix + name).tolist() for name in ("chunk_index", "file_index"))
    starts = _floats(path, table, prefix + "from_timestamp")
    if not (np.isfinite(starts) & (starts >= 0)).all():
        raise DatasetError(f"{path}: {prefix}from_timestamp must be seconds, and is {starts.tolist()[:3]} …")
    last = prefix + "to_timestamp"
    ends = _floats(path, table, last).tolist() if last in table.column_names else None
    return chunks, files, starts.tolist(), ends


def read_table(path: Path, columns: list[str] | None = None, filter: pads.Expression | None = None) -> pa.Table:
    """A Parquet file's ``columns`` (exact names); None: those that are no statistics.

    Raises:
        DatasetError: it is missing, damaged, or lacks a column.
    """
    present = column_names(path)
    if columns is None:
        columns = [name for name in present if not name.startswith("stats/")]
    absent = [name for name in columns if name not in present]
    if absent:
        raise DatasetError(
            f"{path} has no column {absent[0]}, which meta/info.json declares (or every dataset has); it has "
            f"{present}. Copy the data anew, or remove the feature from meta/info.json"
        )
    with _whole_file(path):
        return pads.dataset(path, format="parquet").to_table(columns=columns, filter=filter)


def column_names(path: Path) -> list[str]:
    """Of a Parquet file.

    Raises:
        DatasetError: it is missing or damaged.
    """
    if not path.is_file():
        raise DatasetError(f"{path} is missing; copy the dataset anew")
    with _whole_file(path):
        return pq.read_schema(path).names


@contextmanager
def _whole_file(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(
            f"{path} is not a whole Parquet file ({one_line(error)}); copy it anew (a recording that was cut off "
            "before its end leaves such files)"
        ) from error


def integers(path: Path, table: pa.Table, name: str) -> np.ndarray:
    """(rows,) int64 of a column.

    Raises:
        DatasetError: it is missing, or holds something else.
    """
    if name not in table.column_names:
        raise DatasetError(f"{path} has no column {name}; it has {table.column_names}")
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)) or column.null_count:
            raise pa.ArrowInvalid(f"{column.null_count} nulls" if column.null_count else f"it holds {column.type}")
        return column.cast(pa.int64()).combine_chunks().to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DatasetError(f"{path}: {name} must hold whole numbers ({one_line(error)})") from error


def _floats(path: Path, table: pa.Table, name: str) -> np.ndarray:
    try:
        return table.column(name).cast(pa.float64()).combine_chunks().to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DatasetError(f"{path}: {name} must hold numbers ({one_line(error)})") from error


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _kind(kinds: tuple[type, ...]) -> str:
    return {int: "whole number", float: "number", dict: "mapping"}[kinds[-1]]
