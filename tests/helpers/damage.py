"""Ways in which a LeRobot dataset is damaged, one function each: ``damage(root, …)`` changes the dataset in ``root``.

``DAMAGES`` pairs each with what the one error must say of it.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def data_file(root: Path) -> Path:
    """The first data file."""
    return next(iter(sorted((root / "data").rglob("*.parquet"))))


def episodes_file(root: Path) -> Path:
    """The first file of episode metadata."""
    return next(iter(sorted((root / "meta" / "episodes").rglob("*.parquet"))))


def change_info(root: Path, change: Callable[[dict], Any]) -> None:
    """Apply ``change`` to ``meta/info.json``."""
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def change_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Apply ``change`` to a Parquet file."""
    table = change(pq.read_table(path))
    path.unlink()
    pq.write_table(table, path)


def change_column(root: Path, name: str, change: Callable[[pa.ChunkedArray], Any]) -> None:
    """Replace a column of the data by what ``change`` makes of it."""

    def replaced(table: pa.Table) -> pa.Table:
        place = table.column_names.index(name)
        return table.set_column(place, name, change(table.column(name))).replace_schema_metadata(None)

    change_table(data_file(root), replaced)


def set_values(root: Path, name: str, rows: list[int], value: Any) -> None:
    """Put ``value`` into these rows of a column of single numbers."""

    def change(column: pa.ChunkedArray) -> pa.Array:
        values = column.to_pylist()
        for row in rows:
            values[row] = value
        return pa.array(values, type=column.type)

    change_column(root, name, change)


def set_entry(root: Path, name: str, row: int, dimension: int, value: float | None) -> None:
    """Put ``value`` into one entry of a column of vectors."""

    def change(column: pa.ChunkedArray) -> pa.Array:
        values = column.to_pylist()
        values[row][dimension] = value
        return pa.array(values, type=column.type)

    change_column(root, name, change)


def set_meta(root: Path, name: str, row: int, value: Any) -> None:
    """Put ``value`` into a row of ``meta/episodes``."""

    def change(table: pa.Table) -> pa.Table:
        column = table.column(name)
        values = column.to_pylist()
        values[row] = value
        return table.set_column(table.column_names.index(name), name, pa.array(values, type=column.type))

    change_table(episodes_file(root), change)


def keep_rows(root: Path, kept: Callable[[np.ndarray], np.ndarray]) -> None:
    """Keep the rows of the data that ``kept`` chooses of their numbers, in that order."""
    change_table(data_file(root), lambda table: table.take(pa.array(kept(np.arange(table.num_rows)))))


def lose_rows(root: Path, first: int, last: int) -> None:
    """Rows ``first`` to ``last`` - 1 are not there."""
    keep_rows(root, lambda rows: rows[(rows < first) | (rows >= last)])


def repeat_row(root: Path, row: int) -> None:
    """One row is there twice."""
    keep_rows(root, lambda rows: np.insert(rows, row, row))


def swap_rows(root: Path, first: int, second: int) -> None:
    """Two rows are in each other's place."""

    def swapped(rows: np.ndarray) -> np.ndarray:
        rows[[first, second]] = rows[[second, first]]
        return rows

    keep_rows(root, swapped)


def drop_column(root: Path, name: str) -> None:
    """The data have no such column, though ``info.json`` declares it."""
    change_table(data_file(root), lambda table: table.drop_columns([name]).replace_schema_metadata(None))


def undeclare(root: Path, name: str) -> None:
    """``info.json`` does not declare the column."""
    change_info(root, lambda info: info["features"].pop(name))


def lose_episode(root: Path, episode: int) -> None:
    """Neither data nor metadata have the episode; the others keep their numbers."""

    def without(table: pa.Table) -> pa.Table:
        return table.filter(pa.array(np.asarray(table["episode_index"]) != episode))

    length = pq.read_table(episodes_file(root))["length"][episode].as_py()
    change_table(data_file(root), without)
    change_table(episodes_file(root), without)
    change_info(
        root,
        lambda info: info.update(
            total_episodes=info["total_episodes"] - 1, total_frames=info["total_frames"] - length
        ),
    )


def empty_episode(root: Path) -> None:
    """There is one episode more, with no frame."""

    def longer(table: pa.Table) -> pa.Table:
        row = table.slice(table.num_rows - 1).to_pylist()[0]
        end = row["dataset_to_index"]
        row |= {"episode_index": table.num_rows, "length": 0, "dataset_from_index": end, "dataset_to_index": end}
        return pa.concat_tables([table, pa.Table.from_pylist([row], schema=table.schema)])

    change_table(episodes_file(root), longer)
    change_info(root, lambda info: info.update(total_episodes=info["total_episodes"] + 1))


def truncate(path: Path) -> None:
    """The second half of the file is not there."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def as_strings(column: pa.ChunkedArray) -> pa.Array:
    """Numbers as texts, in lists where they were in lists."""
    first = column[0].as_py()
    if isinstance(first, list):
        return pa.array([[str(value) for value in row] for row in column.to_pylist()])
    return pa.array([str(value) for value in column.to_pylist()])


Damage = tuple[str, Callable[[Path], Any], str]
# Of a dataset of four episodes of 9, 12, 7 and 10 frames (conftest.MIXED_EPISODES): what is done, and a pattern of
# what is said.
DAMAGES: list[Damage] = [
    ("info is no JSON", lambda root: (root / "meta/info.json").write_text("{"), r"info\.json cannot be read"),
    ("info is empty", lambda root: (root / "meta/info.json").write_text("{}"), r"codebase_version is None"),
    ("info is a list", lambda root: (root / "meta/info.json").write_text("[]"), r"info\.json holds list"),
    ("no features", lambda root: undeclare_all(root), r"features is missing"),
    ("fps is a text", lambda root: change_info(root, lambda i: i.update(fps="ten")), r"fps is 'ten'"),
    ("fps is zero", lambda root: change_info(root, lambda i: i.update(fps=0)), r"fps is 0"),
    (
        "newer format",
        lambda root: change_info(root, lambda i: i.update(codebase_version="v4.0")),
        r"format v4\.0, newer",
    ),
    (
        "stats are no JSON",
        lambda root: (root / "meta/stats.json").write_text("{"),
        r"stats\.json cannot be read.*delete",
    ),
    ("no tasks", lambda root: (root / "meta/tasks.parquet").unlink(), r"tasks\.parquet is missing"),
    ("no episodes", lambda root: shutil.rmtree(root / "meta/episodes"), r"meta/episodes has no Parquet file"),
    ("no data", lambda root: shutil.rmtree(root / "data"), r"data/chunk-000/file-000\.parquet is missing"),
    ("data cut", lambda root: truncate(data_file(root)), r"file-000\.parquet is not a whole Parquet file"),
    ("episodes cut", lambda root: truncate(episodes_file(root)), r"file-000\.parquet is not a whole Parquet file"),
    ("tasks cut", lambda root: truncate(root / "meta/tasks.parquet"), r"tasks\.parquet is not a whole Parquet file"),
    (
        "too few episodes counted",
        lambda root: change_info(root, lambda i: i.update(total_episodes=3)),
        r"counts 3 episodes.*lists 4",
    ),
    (
        "too many frames counted",
        lambda root: change_info(root, lambda i: i.update(total_frames=99)),
        r"counts 99 frames.*lists 38",
    ),
    (
        "length contradicts bounds",
        lambda root: set_meta(root, "length", 1, 11),
        r"episode 1 has 11 frames and runs from 9 to 21",
    ),
    ("episode listed twice", lambda root: set_meta(root, "episode_index", 1, 0), r"lists episode 0 twice"),
    (
        "unknown episode",
        lambda root: set_meta(root, "episode_index", 3, 9),
        r"rows of episode 3, which meta/episodes does not",
    ),
    (
        "rows lost at the end",
        lambda root: lose_rows(root, 34, 38),
        r"episode 3 has 6 rows.*and 10 frames.*4 are missing",
    ),
    (
        "rows lost inside",
        lambda root: lose_rows(root, 12, 14),
        r"episode 1 has 10 rows.*2 are missing .*frame 5 in place 3",
    ),
    ("an episode's rows lost", lambda root: lose_rows(root, 21, 28), r"has no row of episode 2, which has 7 frames"),
    ("row twice", lambda root: repeat_row(root, 10), r"episode 1 has 13 rows.*1 are too many"),
    ("rows swapped", lambda root: swap_rows(root, 2, 3), r"episode 0: row 2 has frame_index 3"),
    ("rows interleaved", lambda root: swap_rows(root, 2, 30), r"rows of episode 0 do not lie together"),
    (
        "episodes unsorted",
        lambda root: keep_rows(root, lambda rows: np.r_[rows[9:21], rows[:9], rows[21:]]),
        r"episode 0 come after those of episode 1",
    ),
    ("wrong index", lambda root: set_values(root, "index", [22], 5), r"episode 2: frame 1 has index 5.*it is 22"),
    (
        "wrong frame_index",
        lambda root: set_values(root, "frame_index", [22], 5),
        r"episode 2: row 1 has frame_index 5",
    ),
    ("unknown task", lambda root: set_values(root, "task_index", [22], 7), r"frame 1 of episode 2 has task_index 7"),
    ("null index", lambda root: set_values(root, "index", [3], None), r"column index: row 3 is null"),
    ("index as text", lambda root: change_column(root, "index", as_strings), r"column index holds string"),
    (
        "state as text",
        lambda root: change_column(root, "observation.state", as_strings),
        r"column observation\.state holds string; .*4 × float32",
    ),
    (
        "action of other width",
        lambda root: change_column(root, "action", lambda c: pa.array([row[:2] for row in c.to_pylist()])),
        r"column action holds 2 values a row; .*3 × float32",
    ),
    (
        "action of uneven width",
        lambda root: change_column(root, "action", uneven),
        r"column action: row 4 holds 2 values, others 3",
    ),
    (
        "state of nothing",
        lambda root: change_column(root, "observation.state", lambda c: pa.nulls(len(c))),
        r"column observation\.state holds",
    ),
    ("no state", lambda root: drop_column(root, "observation.state"), r"has no column observation\.state"),
    ("no success", lambda root: drop_column(root, "next.success"), r"has no column next\.success"),
    (
        "success undeclared",
        lambda root: undeclare(root, "next.success"),
        r"column next\.success, which meta/info\.json does not declare",
    ),
    ("no timestamp", lambda root: drop_column(root, "timestamp"), r"has no column timestamp"),
    (
        "success is 7",
        lambda root: change_column(root, "next.success", lambda c: pa.array([7.0] * len(c))),
        r"column next\.success: row 0 holds 7",
    ),
    (
        "NaN in the state",
        lambda root: set_entry(root, "observation.state", 12, 2, float("nan")),
        r"observation\.state is nan at episode 1, frame 3, dimension 2",
    ),
    (
        "infinity in the action",
        lambda root: set_entry(root, "action", 0, 0, float("-inf")),
        r"action is -inf at episode 0, frame 0, dimension 0",
    ),
    (
        "null in the action",
        lambda root: set_entry(root, "action", 37, 1, None),
        r"action is nan at episode 3, frame 9, dimension 1",
    ),
    (
        "null row of the state",
        lambda root: set_values(root, "observation.state", [21], None),
        r"observation\.state is nan at episode 2, frame 0, dimension 0, and 3 more",
    ),
]


def undeclare_all(root: Path) -> None:
    """``info.json`` has no features."""
    change_info(root, lambda info: info.pop("features"))


def uneven(column: pa.ChunkedArray) -> pa.Array:
    """Row 4 is one value short."""
    rows = column.to_pylist()
    rows[4] = rows[4][:2]
    return pa.array(rows, type=pa.list_(pa.float32()))
