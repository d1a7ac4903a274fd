"""Whether the rows of a dataset are those that its metadata describe: counts, order, indices, tasks, times."""

from collections.abc import Mapping

import numpy as np

from ...errors import DatasetError
from .columns import Columns
from .metadata import EpisodeRow

LEAVE_OUT = "copy the data anew, or leave the episode out (dataset.episodes lists those to use)"


def check_rows(name: str, columns: Columns, rows: Mapping[int, EpisodeRow], tasks: Mapping[int, str]) -> None:
    """Compare the bookkeeping columns of the episodes ``rows`` with the metadata.

    Args:
        name: the dataset's, for errors.
        columns: (frames,) episode_index, frame_index, index, timestamp, task_index, in file order.

    Raises:
        DatasetError: with the first episode, and frame, that differ.
    """
    episode = columns["episode_index"]
    starts = np.flatnonzero(np.r_[True, episode[1:] != episode[:-1]]) if len(episode) else np.zeros(0, dtype=np.int64)
    ends = np.r_[starts[1:], len(episode)]
    blocks = episode[starts]
    _check_blocks(name, blocks, rows)
    for start, end, index in zip(starts.tolist(), ends.tolist(), blocks.tolist(), strict=True):
        _check_episode(name, rows[index], {key: values[start:end] for key, values in columns.items()})
    unknown = np.flatnonzero(~np.isin(columns["task_index"], list(tasks)))
    if unknown.size:
        row = unknown[0]
        raise DatasetError(
            f"dataset {name}: frame {columns['frame_index'][row]} of episode {episode[row]} has task_index "
            f"{columns['task_index'][row]}, which meta/tasks.parquet does not list (it lists {sorted(tasks)[:8]}); "
            "copy both anew, or add the task"
        )


def _check_blocks(name: str, blocks: np.ndarray, rows: Mapping[int, EpisodeRow]) -> None:
    found, counts = np.unique(blocks, return_counts=True)
    strange = np.setdiff1d(found, list(rows))
    if strange.size:
        raise DatasetError(
            f"dataset {name}: the data hold rows of episode {strange[0]}, which meta/episodes does not list; copy "
            "both anew"
        )
    absent = np.setdiff1d(list(rows), found)
    if absent.size:
        row = rows[int(absent[0])]
        raise DatasetError(
            f"dataset {name}: {row.data} has no row of episode {row.index}, which has {row.length} frames in "
            f"meta/episodes; {LEAVE_OUT}"
        )
    if (counts > 1).any():
        raise DatasetError(
            f"dataset {name}: the rows of episode {found[counts > 1][0]} do not lie together; write the data sorted "
            "by the column index"
        )
    if (np.diff(blocks) < 0).any():
        place = int(np.flatnonzero(np.diff(blocks) < 0)[0])
        raise DatasetError(
            f"dataset {name}: the rows of episode {blocks[place + 1]} come after those of episode {blocks[place]}; "
            "write the data sorted by the column index"
        )


def _check_episode(name: str, row: EpisodeRow, columns: Columns) -> None:
    """One episode's (T,) columns against its row of ``meta/episodes``."""
    frames, where = columns["frame_index"], f"dataset {name}: episode {row.index}"
    count = len(frames)
    wrong = np.flatnonzero(frames != np.arange(count))
    if count != row.length:
        which = "missing" if count < row.length else "too many"
        place = (
            f"the first that differs is frame {frames[wrong[0]]} in place {wrong[0]}"
            if wrong.size
            else (f"its last is frame {frames[-1]}")
        )
        raise DatasetError(
            f"{where} has {count} rows in {row.data}, and {row.length} frames in meta/episodes: "
            f"{abs(count - row.length)} are {which} ({place}); {LEAVE_OUT}"
        )
    if wrong.size:
        raise DatasetError(
            f"{where}: row {wrong[0]} has frame_index {frames[wrong[0]]} (rows count from 0 in every episode); write "
            "the data sorted by the column index, or leave the episode out"
        )
    wrong = np.flatnonzero(columns["index"] != row.first + np.arange(count))
    if wrong.size:
        raise DatasetError(
            f"{where}: frame {wrong[0]} has index {columns['index'][wrong[0]]}, and by meta/episodes it is "
            f"{row.first + wrong[0]} (dataset_from_index {row.first}); {LEAVE_OUT}"
        )


def off_grid(columns: Columns, fps: float) -> tuple[float, int] | None:
    """The largest distance (s) between a frame's timestamp and ``frame_index / fps``, where LeRobot puts its picture,
    and the row that has it; infinite where a timestamp is no number. None without rows."""
    if not len(columns["timestamp"]):
        return None
    distance = np.abs(columns["timestamp"].astype(np.float64) - columns["frame_index"] / fps)
    distance[~np.isfinite(distance)] = np.inf
    row = int(np.argmax(distance))
    return float(distance[row]), row
