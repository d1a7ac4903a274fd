"""Genuine LeRobot v3 datasets of any size, quick to make: one recording through LeRobot's own writer, then copies of
its episodes.

Two cameras of 32x32 in LeRobot's default codec, state and action drawn at random, every other episode a success. A
copy is a copy of the rows (with their own indices) and of the packets of the video; nothing is encoded twice, and the
files of a large dataset are links to one.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.video_utils import concatenate_video_files
from lerobot.utils.constants import ACTION, OBS_STATE

REPO_ID = "local/synthetic"
CAMERAS = ("observation.images.front", "observation.images.wrist")
DIMENSIONS = 4  # of state and of action
FPS, SIZE = 10, 32
COPIES_PER_FILE = 10


def record(root: Path, episodes: int, length: int, seed: int = 0) -> Path:
    """Write ``episodes`` episodes of ``length`` frames as LeRobot records them."""
    picture = {"dtype": "video", "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]}
    features = {
        **dict.fromkeys(CAMERAS, picture),
        **{key: {"dtype": "float32", "shape": (DIMENSIONS,), "names": None} for key in (OBS_STATE, ACTION)},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    dataset = LeRobotDataset.create(
        REPO_ID,
        fps=FPS,
        features=features,
        root=root,
        use_videos=True,
        streaming_encoding=True,
        encoder_threads=1,
        encoder_queue_maxsize=length + 1,  # LeRobot drops frames when the queue is full
    )
    rng = np.random.default_rng(seed)
    for episode in range(episodes):
        for step in range(length):
            success = episode % 2 == 0 and step == length - 1
            dataset.add_frame(
                {
                    **{camera: _picture(episode, step, shift) for shift, camera in enumerate(CAMERAS)},
                    OBS_STATE: rng.normal(size=DIMENSIONS).astype(np.float32),
                    ACTION: rng.normal(size=DIMENSIONS).astype(np.float32),
                    "next.reward": np.array([float(success)], dtype=np.float32),
                    "next.success": np.array([success]),
                    "task": "pick the cube",
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return root


def _picture(episode: int, step: int, shift: int) -> np.ndarray:
    """(32, 32, 3) uint8 ramps whose brightness tells the frame."""
    ramp = np.arange(SIZE)[:, None, None] * 2 + np.arange(3) * 20 + shift * 10
    return np.broadcast_to(ramp + (episode * 13 + step * 7) % 120, (SIZE, SIZE, 3)).astype(np.uint8)


def copy_episodes(recording: Path, root: Path, copies: int) -> Path:
    """A dataset at ``root`` that holds the episodes of ``recording`` ``copies`` times.

    Raises:
        ValueError: the recording has more than one file per camera or of rows.
    """
    info = json.loads((recording / "meta" / "info.json").read_text())
    frames, episodes = info["total_frames"], info["total_episodes"]
    for name in ("data", "meta/episodes", *(f"videos/{camera}" for camera in CAMERAS)):
        if sum(path.is_file() for path in (recording / name).rglob("*")) != 1:
            raise ValueError(f"{recording / name} must hold one file")
    shutil.copytree(recording, root)

    rows = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(rows)
    parts = (_shifted(table, {"index": copy * frames, "episode_index": copy * episodes}) for copy in range(copies))
    pq.write_table(pa.concat_tables(parts), rows)

    for camera in CAMERAS:
        _copy_videos(root / "videos" / camera / "chunk-000", copies)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table, parts = pq.read_table(path), []
    for copy in range(copies):
        file, place = divmod(copy, COPIES_PER_FILE)
        shifts = {"episode_index": copy * episodes, "dataset_from_index": copy * frames}
        shifts |= {"dataset_to_index": copy * frames}
        for camera in CAMERAS:
            shifts |= {f"videos/{camera}/{end}_timestamp": place * frames / FPS for end in ("from", "to")}
            shifts[f"videos/{camera}/file_index"] = file
        parts.append(_shifted(table, shifts))
    pq.write_table(pa.concat_tables(parts), path)

    info |= {"total_frames": frames * copies, "total_episodes": episodes * copies}
    info["splits"] = {"train": f"0:{episodes * copies}"}
    (root / "meta" / "info.json").write_text(json.dumps(info, indent=4))
    return root


def _shifted(table: pa.Table, shifts: dict[str, float]) -> pa.Table:
    """The table with numbers added to whole columns; types and metadata stay."""
    for name, shift in shifts.items():
        place, field = table.schema.get_field_index(name), table.schema.field(name)
        values = table.column(name).to_numpy() + shift
        table = table.set_column(place, field, pa.array(values, type=field.type))
    return table


def _copy_videos(folder: Path, copies: int) -> None:
    """Replace ``file-000.mp4`` by files that hold it ``COPIES_PER_FILE`` times each (the last one the rest)."""
    once = (folder / "file-000.mp4").rename(folder / "once.mp4")
    full, rest = divmod(copies, COPIES_PER_FILE)
    for number in range(full):
        file = folder / f"file-{number:03d}.mp4"
        if number == 0:
            concatenate_video_files([once] * COPIES_PER_FILE, file)
        else:
            os.link(folder / "file-000.mp4", file)
    if rest:
        concatenate_video_files([once] * rest, folder / f"file-{full:03d}.mp4")
    once.unlink()


def check(recording: Path, root: Path, frames: int = 20) -> None:
    """Stock LeRobot reads frames of the copies, spread over all of them, as it reads those of the recording.

    Raises:
        ValueError: one of them differs.
    """
    original, copied = LeRobotDataset(REPO_ID, root=recording), LeRobotDataset(REPO_ID, root=root)
    for index in np.linspace(0, len(copied) - 1, frames).astype(int).tolist():
        expected, found = original[index % len(original)], copied[index]
        same = all(bool((expected[key] == found[key]).all()) for key in (*CAMERAS, OBS_STATE, ACTION, "frame_index"))
        if not same or int(found["index"]) != index:
            raise ValueError(f"frame {index} of {root} is not its original's")
