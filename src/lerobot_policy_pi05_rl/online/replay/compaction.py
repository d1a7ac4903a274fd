"""The newest episodes of a replay, renumbered, in one table of frames and one of episodes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.compute_stats import aggregate_stats
from lerobot.datasets.io_utils import write_stats, write_table_one_row_group_per_episode, write_tasks
from lerobot.datasets.utils import INFO_PATH

from . import files
from .recovery import Row, data_file, read_rows, task_table
from .stored_episode import row_stats


def build_compacted(
    root: Path, keep: int, tasks: list[str], counted: Callable[[int, int], dict[str, Any]]
) -> tuple[list[Row], list[Row]]:
    """Write ``data`` and ``meta`` of the last ``keep`` episodes to the root's ``.building``.

    Args:
        counted: (episodes, frames) → the contents of ``info.json``.

    Returns:
        The rows of ``meta/episodes`` of those that are gone, and of those that are left, renumbered.
    """
    there = read_rows(root)
    gone, kept = there[: len(there) - keep], there[len(there) - keep :]
    building = files.fresh_folder(root / files.BUILDING)
    rows = [_moved(row, number, kept[0]["dataset_from_index"]) for number, row in enumerate(kept)]
    data, episodes = building / files.data_path(0), building / files.episodes_path(0)
    for path in (data, episodes):
        path.parent.mkdir(parents=True)
    write_table_one_row_group_per_episode(_merged(root, kept), data)
    pq.write_table(pa.Table.from_pylist(rows), episodes)
    write_stats(aggregate_stats([row_stats(row) for row in rows]), building)
    write_tasks(task_table(tasks), building)
    files.write_json(counted(len(rows), rows[-1]["dataset_to_index"]), building / INFO_PATH)
    return gone, rows


def _moved(row: Row, number: int, frames: int) -> Row:
    """The row as ``episode_index`` ``number``, after ``frames`` earlier frames are gone."""
    moved = {name: row[name] - frames for name in ("dataset_from_index", "dataset_to_index")}
    moved |= {f"{kind}/{name}": at for kind in ("data", "meta/episodes") for name, at in files.place(0).items()}
    return row | moved | {"episode_index": number}


def _merged(root: Path, kept: list[Row]) -> pa.Table:
    """The frames of the last rows, numbered from 0."""
    names = dict.fromkeys(data_file(row) for row in kept)
    table = pa.concat_tables([pq.read_table(root / name) for name in names])
    table = table.slice(table.num_rows - sum(row["length"] for row in kept))
    for name, base in (("episode_index", kept[0]["episode_index"]), ("index", kept[0]["dataset_from_index"])):
        column, field = table.schema.get_field_index(name), table.schema.field(name)
        moved = pa.array(table.column(name).to_numpy() - base, type=field.type)
        table = table.set_column(column, field, moved)
    return table
