"""One episode as LeRobot stores it: a table of frames, a video per camera, a row of ``meta/episodes``."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.compute_stats import auto_downsample_height_width, get_feature_stats
from lerobot.datasets.feature_utils import get_hf_features_from_features
from lerobot.utils.constants import ACTION, DEFAULT_FEATURES, DONE, OBS_STATE, REWARD
from lerobot.utils.utils import flatten_dict, unflatten_dict

from ...data.sources import CUT_OFF, INTERVENTION, SUCCESS
from ...returns import Outcome
from ...runtime.scheduling import unchanged_scheduling
from ..episode import POLICY_VERSION, BadEpisodeError, Episode, EpisodeSpec, decode_picture

EPISODE_UID = "episode_uid"
UID, ACTOR, STARTED = "uid", "actor", "started"  # of meta/episodes, beside LeRobot's own
PICTURES_IN_STATS = 100
Stats = dict[str, dict[str, np.ndarray]]


def replay_features(spec: EpisodeSpec, names: dict[str, Any]) -> dict[str, dict]:
    """LeRobot's features of the replay.

    ``next.success``: true on the last frame of a success. ``next.cut_off``: true on the last frame of an episode of
    which nobody knows how it would have ended. ``episode_uid``: the episode's uid as two numbers, on each of its
    frames.
    """
    features: dict[str, dict] = {
        OBS_STATE: {"dtype": "float32", "shape": (spec.state_dim,), "names": names.get(OBS_STATE)},
        ACTION: {"dtype": "float32", "shape": (spec.action_dim,), "names": names.get(ACTION)},
    }
    for camera, (height, width) in spec.cameras.items():
        features[camera] = {
            "dtype": "video",
            "shape": (height, width, 3),
            "names": ["height", "width", "channels"],
        }
    dtypes = {
        REWARD: "float32",
        SUCCESS: "bool",
        DONE: "bool",
        CUT_OFF: "bool",
        INTERVENTION: "bool",
        POLICY_VERSION: "int64",
    }
    features |= {name: {"dtype": dtype, "shape": (1,), "names": None} for name, dtype in dtypes.items()}
    features[EPISODE_UID] = {"dtype": "int64", "shape": (2,), "names": None}
    return features | {name: dict(feature) for name, feature in DEFAULT_FEATURES.items()}


def uid_numbers(uid: str) -> np.ndarray:
    """(2,) int64: the 32 hexadecimal digits of a uid in two halves."""
    return np.frombuffer(bytes.fromhex(uid), dtype=">i8").astype(np.int64)


def frame_columns(episode: Episode, fps: float, *, number: int, first: int, task: int) -> dict[str, np.ndarray]:
    """The episode's numeric columns, (T,) or (T, D).

    Args:
        number: its ``episode_index``.
        first: the ``index`` of its first frame.
        task: its ``task_index``.
    """
    length = len(episode)
    steps = np.arange(length, dtype=np.int64)
    last = steps == length - 1
    return {
        OBS_STATE: episode.state.astype(np.float32),
        ACTION: episode.action.astype(np.float32),
        REWARD: episode.reward.astype(np.float32),
        SUCCESS: last & episode.success,
        DONE: last,
        CUT_OFF: last & (episode.outcome is Outcome.TRUNCATED),
        INTERVENTION: episode.intervention.astype(bool),
        POLICY_VERSION: episode.policy_version.astype(np.int64),
        EPISODE_UID: np.tile(uid_numbers(episode.uid), (length, 1)),
        "timestamp": (steps / fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(length, number, dtype=np.int64),
        "index": first + steps,
        "task_index": np.full(length, task, dtype=np.int64),
    }


def frame_table(columns: dict[str, np.ndarray], features: dict[str, dict]) -> pa.Table:
    """The columns as LeRobot's parquet holds them."""
    schema = get_hf_features_from_features(features).arrow_schema
    arrays = []
    for field in schema:
        values = pa.array(columns[field.name].reshape(-1))
        if not pa.types.is_primitive(field.type):
            values = pa.FixedSizeListArray.from_arrays(values, columns[field.name].shape[1])
        arrays.append(values.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def table_columns(table: pa.Table) -> dict[str, np.ndarray]:
    """:func:`frame_table` backwards; state and action are (T, D) also where D is 1."""
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        flat = column if pa.types.is_primitive(column.type) else column.flatten()
        values = flat.to_numpy(zero_copy_only=False)
        wide = len(values) > table.num_rows or name in (OBS_STATE, ACTION)
        columns[name] = values.reshape(table.num_rows, -1) if wide else values
    return columns


def column_stats(columns: dict[str, np.ndarray]) -> Stats:
    """LeRobot's statistics of an episode's columns, every value a float; a uid has none."""
    stats = {}
    for name, values in columns.items():
        if name == EPISODE_UID:
            continue
        found = get_feature_stats(values.astype(np.float64), axis=0, keepdims=values.ndim == 1)
        stats[name] = {key: np.asarray(value, np.int64 if key == "count" else None) for key, value in found.items()}
    return stats


def write_videos(
    folder: Path, episode: Episode, spec: EpisodeSpec, encoder: RGBEncoderConfig
) -> tuple[dict[str, Path], Stats]:
    """Encode the cameras' videos, side by side: camera → file, and LeRobot's statistics of the pictures.

    One decoded picture of a camera is in memory at a time (and those that the statistics are of).

    Raises:
        BadEpisodeError: a picture is damaged or of another size.
    """
    paths = {camera: folder / f"video-{number}.mp4" for number, camera in enumerate(spec.cameras)}

    def write(camera: str) -> dict[str, np.ndarray]:
        return _write_video(paths[camera], episode.pictures[camera], spec.cameras[camera], int(spec.fps), encoder)

    with ThreadPoolExecutor(max(len(paths), 1)) as pool:
        return paths, dict(zip(paths, pool.map(write, paths), strict=True))


def _write_video(
    path: Path, pictures: list[bytes], size: tuple[int, int], fps: int, encoder: RGBEncoderConfig
) -> dict[str, np.ndarray]:
    samples = set(np.linspace(0, len(pictures) - 1, min(len(pictures), PICTURES_IN_STATS)).astype(int).tolist())
    sampled = []
    with unchanged_scheduling() as restore, av.open(str(path), "w") as container:
        # One thread: the cameras are encoded side by side, and training needs the other cores.
        stream = container.add_stream(encoder.vcodec, fps, options=encoder.get_codec_options(1, as_strings=True))
        stream.height, stream.width = size
        stream.pix_fmt, stream.time_base = encoder.pix_fmt, Fraction(1, fps)
        for number, data in enumerate(pictures):
            picture = decode_picture(data)
            if picture.shape != (*size, 3):
                raise BadEpisodeError(f"a picture is {picture.shape[0]}x{picture.shape[1]}, not {size[0]}x{size[1]}")
            if number in samples:
                sampled.append(auto_downsample_height_width(picture.transpose(2, 0, 1)))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
            if number == 0:
                restore()
        container.mux(stream.encode())
    found = get_feature_stats(np.stack(sampled), axis=(0, 2, 3), keepdims=True)
    return {
        name: value if name == "count" else np.squeeze(np.asarray(value, np.float64) / 255.0, axis=0)
        for name, value in found.items()
    }


def episode_row(
    episode: Episode, stats: Stats, *, number: int, first: int, places: dict[str, dict[str, int]], fps: float
) -> dict[str, Any]:
    """The episode's row of ``meta/episodes``.

    Args:
        places: "data", "meta/episodes" and "videos/<camera>" → chunk and file.
    """
    row: dict[str, Any] = {
        "episode_index": number,
        "tasks": [episode.task],
        "length": len(episode),
        "dataset_from_index": first,
        "dataset_to_index": first + len(episode),
        UID: episode.uid,
        ACTOR: episode.actor,
        STARTED: float(episode.started),
    }
    for kind, place in places.items():
        row |= {f"{kind}/{name}": value for name, value in place.items()}
        if kind.startswith("videos/"):
            row |= {f"{kind}/from_timestamp": 0.0, f"{kind}/to_timestamp": len(episode) / fps}
    flat = flatten_dict({"stats": stats})
    return row | {name: np.asarray(flat[name]).tolist() for name in sorted(flat)}


def row_stats(row: dict[str, Any]) -> Stats:
    """The statistics in a row of ``meta/episodes``."""
    flat = {name: np.asarray(value) for name, value in row.items() if name.startswith("stats/")}
    return unflatten_dict(flat)["stats"]


def without_stats(row: dict[str, Any]) -> dict[str, Any]:
    """The row as it is kept in memory: the statistics are hundreds of numbers."""
    return {name: value for name, value in row.items() if not name.startswith("stats/")}
