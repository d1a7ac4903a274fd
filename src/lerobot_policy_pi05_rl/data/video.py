"""Single video frames with decoders that stay open.

LeRobot keeps torchcodec's decoders but opens the file anew for every frame it reads with pyav
(datasets/video_utils.py). On small pictures that costs several times as much: ``benchmarks/video_reading.py``.
"""

import os
import threading
from collections.abc import Iterator
from functools import lru_cache
from itertools import batched
from pathlib import Path

import av
import torch
from lerobot.datasets.video_utils import FrameTimestampError, decode_video_frames
from torch import Tensor

OPEN_FILES = 128  # per process; a LeRobot v3 file holds many episodes, but a replay's holds one
DECODED_AT_ONCE = 16  # frames, by the backends that read several


def read_frame(path: Path, timestamp: float, *, tolerance_s: float, backend: str) -> Tensor:
    """The frame of ``path`` at ``timestamp`` seconds: (3, H, W) uint8.

    Raises:
        FrameTimestampError: no frame lies within ``tolerance_s`` of it.
    """
    if backend != "pyav":
        return decode_video_frames(path, [timestamp], tolerance_s, backend, return_uint8=True)[0]
    container = _open(str(path), os.getpid(), threading.get_ident())
    stream = container.streams.video[0]
    container.seek(round(timestamp / stream.time_base), stream=stream)  # to the key frame at or before it
    nearest = None
    for frame in container.decode(stream):
        if nearest is None or abs(frame.time - timestamp) < abs(nearest.time - timestamp):
            nearest = frame
        if frame.time >= timestamp:
            break
    return _pixels(path, nearest, timestamp, tolerance_s)


def read_frames(path: Path, timestamps: list[float], *, tolerance_s: float, backend: str) -> Iterator[Tensor]:
    """The frames of ``path`` at ascending ``timestamps``, each as :func:`read_frame` gives it; every frame is decoded
    once.

    Raises:
        FrameTimestampError: no frame lies within ``tolerance_s`` of one of them.
    """
    if backend != "pyav":
        for block in batched(timestamps, DECODED_AT_ONCE):
            yield from decode_video_frames(path, list(block), tolerance_s, backend, return_uint8=True)
        return
    container = _open(str(path), os.getpid(), threading.get_ident())
    stream = container.streams.video[0]
    container.seek(round(timestamps[0] / stream.time_base), stream=stream)
    frames = container.decode(stream)
    before = after = None  # the last frame before the time, and the first at or behind it
    for timestamp in timestamps:
        while after is None or after.time < timestamp:
            following = next(frames, None)
            if following is None:
                break
            before, after = after, following
        found = [frame for frame in (before, after) if frame is not None]
        nearest = min(found, key=lambda frame: abs(frame.time - timestamp), default=None)
        yield _pixels(path, nearest, timestamp, tolerance_s)


def _pixels(path: Path, frame: av.VideoFrame | None, timestamp: float, tolerance_s: float) -> Tensor:
    """(3, H, W) uint8 of ``frame``, if it is near enough."""
    if frame is None or abs(frame.time - timestamp) > tolerance_s:
        found = "none" if frame is None else f"{frame.time:.4f} s"
        raise FrameTimestampError(f"{path} has no frame at {timestamp:.4f} s (nearest: {found})")
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)


@lru_cache(maxsize=OPEN_FILES)
def _open(path: str, process: int, thread: int) -> av.container.InputContainer:
    """``process`` and ``thread`` keep a forked worker, or another thread, from sharing a file position."""
    container = av.open(path)
    container.streams.video[0].thread_type = "NONE"  # the loader's workers are the parallelism
    return container
