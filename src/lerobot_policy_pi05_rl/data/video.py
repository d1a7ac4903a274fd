"""Single video frames with decoders that stay open.

LeRobot keeps torchcodec's decoders but opens the file anew for every frame it reads with pyav
(datasets/video_utils.py). On small pictures that costs several times as much: ``benchmarks/video_reading.py``.
"""

import os
from functools import lru_cache
from pathlib import Path

import av
import torch
from lerobot.datasets.video_utils import FrameTimestampError, decode_video_frames
from torch import Tensor

OPEN_FILES = 32  # per process; a LeRobot v3 file holds many episodes, so few are ever open


def read_frame(path: Path, timestamp: float, *, tolerance_s: float, backend: str) -> Tensor:
    """The frame of ``path`` at ``timestamp`` seconds: (3, H, W) uint8.

    Raises:
        FrameTimestampError: no frame lies within ``tolerance_s`` of it.
    """
    if backend != "pyav":
        return decode_video_frames(path, [timestamp], tolerance_s, backend, return_uint8=True)[0]
    container = _open(str(path), os.getpid())
    stream = container.streams.video[0]
    container.seek(round(timestamp / stream.time_base), stream=stream)  # to the key frame at or before it
    nearest = None
    for frame in container.decode(stream):
        if nearest is None or abs(frame.time - timestamp) < abs(nearest.time - timestamp):
            nearest = frame
        if frame.time >= timestamp:
            break
    if nearest is None or abs(nearest.time - timestamp) > tolerance_s:
        found = "none" if nearest is None else f"{nearest.time:.4f} s"
        raise FrameTimestampError(f"{path} has no frame at {timestamp:.4f} s (nearest: {found})")
    return torch.from_numpy(nearest.to_ndarray(format="rgb24")).permute(2, 0, 1)


@lru_cache(maxsize=OPEN_FILES)
def _open(path: str, process: int) -> av.container.InputContainer:
    """``process`` keeps a forked worker from sharing its parent's file position."""
    container = av.open(path)
    container.streams.video[0].thread_type = "NONE"  # the loader's workers are the parallelism
    return container
