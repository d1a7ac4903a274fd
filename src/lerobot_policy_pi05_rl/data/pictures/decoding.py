"""Pictures of a dataset by row, as recorded: decoded from its videos, or stored in its Parquet files.

Which frame of a video a row has: LeRobot looks for the one at the row's timestamp, and so do we where ``tolerance_s``
is at most a quarter of a frame. A wider one says that timestamps are not to be trusted. Then frames are counted: row
n of an episode has the n-th of the episode's frames, wherever its timestamp lies within the tolerance. Either way a
frame outside the episode's part of the file is never given.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Image as StoredImage
from PIL import Image
from torch import Tensor

from ...errors import typed_line
from ..sources import DatasetError, Source
from .cameras import PictureShape, picture_shape
from .video import PYAV, ROUNDING_S, VIDEO_ERRORS, Segment, frame_times, read_frames

EXACT = 0.25  # of a frame: within it no other frame can be meant
COLOUR_MODES = ("RGB", "L", "P")  # of PIL, that become RGB without loss
STORED_ERRORS = (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError)  # PIL's and datasets'


def counts_frames(source: Source) -> bool:
    """Whether pictures are found by counting, since timestamps may be off by a neighbour's distance."""
    return source.dataset.tolerance_s > EXACT / source.dataset.meta.fps


def read_picture(source: Source, camera: str, row: int) -> Tensor:
    """(3, H, W) uint8 of the source's own ``camera``.

    Raises:
        DatasetError: it cannot be read, is not what the dataset declares, or lies outside the episode.
    """
    return next(read_pictures(source, camera, [row]))


def read_pictures(source: Source, camera: str, rows: Sequence[int]) -> Iterator[Tensor]:
    """:func:`read_picture` of ascending ``rows``, which lie in the same video; every frame is decoded once.

    Raises:
        DatasetError: as :func:`read_picture`.
    """
    declared = picture_shape(camera, source.dataset.meta.features[camera])
    pictures = _frames(source, camera, rows) if camera in source.videos else _stored(source, camera, rows)
    for row, picture in zip(rows, pictures, strict=True):
        check_size(f"{_frame_name(source, row)}: {camera}", picture, declared)
        yield picture


def check_size(what: str, picture: Tensor, declared: PictureShape) -> None:
    """
    Raises:
        DatasetError: the (3, H, W) picture has another size than ``declared``.
    """
    if tuple(picture.shape[1:]) != declared[1:]:
        height, width = picture.shape[1:]
        raise DatasetError(
            f"{what} is {height} x {width} (height x width), and meta/info.json declares {declared.height} x "
            f"{declared.width}. Correct the shape there if all pictures are of that size"
        )


def open_stored(cell: dict[str, Any] | None, root: Path) -> Image.Image:
    """A picture as Parquet holds it: the file's bytes, or a path (from the dataset's folder if it is relative).

    Raises:
        one of STORED_ERRORS: it is missing, or no picture.
    """
    if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):  # null, or text
        raise ValueError("there is no picture")
    if not cell.get("bytes") and "://" not in cell["path"]:
        cell = {**cell, "path": str(root / cell["path"])}
    return StoredImage().decode_example(cell)


def rgb(image: Image.Image) -> Tensor:
    """(3, H, W) uint8; grey ones with three equal channels.

    Raises:
        ValueError: colours would be lost or saturated.
    """
    if image.mode not in COLOUR_MODES:
        raise ValueError(f"it is stored as {image.mode!r} (PIL's mode), which is not 8-bit colour or grey")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _frame_name(source: Source, row: int) -> str:
    return f"dataset {source.name}: episode {source.columns['episode_index'][row]}, frame {_frame_index(source, row)}"


def _frame_index(source: Source, row: int) -> int:
    """How many frames of its episode were recorded before the row's."""
    if "frame_index" in source.columns:
        return int(source.columns["frame_index"][row])
    return row - int(source.starts[np.searchsorted(source.ends, row, side="right")])


def _stored(source: Source, camera: str, rows: Sequence[int]) -> Iterator[Tensor]:
    column = source.dataset.hf_dataset.data.column(camera)
    for row in rows:
        try:
            yield rgb(open_stored(column[row].as_py(), Path(source.dataset.root)))
        except STORED_ERRORS as error:
            raise DatasetError(f"{_frame_name(source, row)}: {camera} cannot be read ({typed_line(error)})") from error


def _frames(source: Source, camera: str, rows: Sequence[int]) -> Iterator[Tensor]:
    path = source.videos[camera][int(source.columns["episode_index"][rows[0]])].path
    times = [_time(source, camera, row) for row in rows]
    known = counts_frames(source)  # then the times are frames' own
    frames = read_frames(
        path,
        times,
        tolerance_s=ROUNDING_S if known else source.dataset.tolerance_s,
        backend=PYAV[0] if known else source.video_backend,
    )
    for row, time in zip(rows, times, strict=True):
        try:
            yield next(frames)
        except VIDEO_ERRORS as error:
            raise DatasetError(
                f"{_frame_name(source, row)}: {path} cannot be decoded at {time:.3f} s ({typed_line(error)})"
            ) from error


def _time(source: Source, camera: str, row: int) -> float:
    """When the row's frame is shown (s of the file).

    Raises:
        DatasetError: outside its episode; or its number among the frames is unknown.
    """
    segment = source.videos[camera][int(source.columns["episode_index"][row])]
    slack = 0.5 / source.dataset.meta.fps  # episodes are a frame apart, and bounds are rounded
    wanted = segment.start + float(source.columns["timestamp"][row])
    if counts_frames(source):
        return _counted_time(source, segment, row, wanted)
    if not segment.start - slack <= wanted < segment.end - slack:
        raise DatasetError(
            f"{_frame_name(source, row)}: its timestamp points at {wanted:.4f} s of {segment.path}, outside the "
            f"episode, which lies from {segment.start:.4f} to {segment.end:.4f} s. If timestamps are not exact, a "
            f"tolerance_s of more than {EXACT / source.dataset.meta.fps:.4f} s finds pictures by counting frames"
        )
    return wanted


def _counted_time(source: Source, segment: Segment, row: int, wanted: float) -> float:
    """When the episode's frame with the row's ``frame_index`` is shown.

    The video of an episode may hold more or fewer frames than the episode has rows. Then that is the frame nearest to
    where it should be by the frame rate, if the timestamp agrees.
    """
    fps, number = source.dataset.meta.fps, _frame_index(source, row)
    try:
        times = frame_times(segment, fps)
    except VIDEO_ERRORS as error:
        raise DatasetError(
            f"{_frame_name(source, row)}: {segment.path} cannot be read ({typed_line(error)})"
        ) from error
    rows = _frame_index(source, int(source.ends[np.searchsorted(source.ends, row, side="right")]) - 1) + 1
    expected = segment.start + number / fps
    time = times[number] if len(times) == rows else min(times, key=lambda time: abs(time - expected), default=math.inf)
    if len(times) != rows and max(abs(wanted - expected), abs(time - expected)) > EXACT / fps:
        raise DatasetError(
            f"{_frame_name(source, row)}: {segment.path} has {len(times)} frames from {segment.start:.4f} to "
            f"{segment.end:.4f} s, where the episode has {rows}, and its timestamps do not say which is whose. "
            "Replace the file if it was cut, or leave the episode out (dataset.episodes)"
        )
    if abs(time - wanted) > source.dataset.tolerance_s:
        raise DatasetError(
            f"{_frame_name(source, row)}: its picture is shown at {time - segment.start:.4f} s of the episode, its "
            f"timestamp is {wanted - segment.start:.4f} s, further away than tolerance_s "
            f"({source.dataset.tolerance_s:g}). Widen tolerance_s: pictures are found by counting frames"
        )
    return float(time)
