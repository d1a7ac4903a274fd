"""Video frames by time or by number, with decoders that stay open: the one decoder of this package.

LeRobot keeps torchcodec's decoders but opens the file anew for every frame it reads with pyav
(datasets/video_utils.py). On small pictures that costs several times as much: ``benchmarks/video_reading.py``.
``benchmarks/decoder_check.py`` compares every frame of every codec with LeRobot's own reader.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import batched, chain
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from lerobot.datasets.video_utils import FrameTimestampError, decode_video_frames
from torch import Tensor

OPEN_FILES = 128  # per process; a LeRobot v3 file holds many episodes, but a replay's holds one
DECODED_AT_ONCE = 16  # frames, by the backends that read several
PYAV = ("pyav", "video_reader")  # the second is LeRobot's old name of the first
ROUNDING_S = 1e-4  # LeRobot's tolerance: what float32 timestamps and a file's clock lose
VIDEO_ERRORS = (av.error.FFmpegError, FrameTimestampError, RuntimeError, IndexError, OSError)  # undecodable, unfound


class Segment(NamedTuple):
    """Where the frames of one episode lie: ``start`` <= time < ``end`` (s) of the file."""

    path: Path
    start: float
    end: float


def read_frames(path: Path, timestamps: Sequence[float], *, tolerance_s: float, backend: str) -> Iterator[Tensor]:
    """The frames of ``path`` nearest to ascending ``timestamps`` (s), each (3, H, W) uint8; each is decoded once.

    Raises:
        FrameTimestampError: no frame lies within ``tolerance_s`` of one of them.
        OSError, RuntimeError: the file cannot be decoded.
    """
    if backend not in PYAV:
        for block in batched(timestamps, DECODED_AT_ONCE):
            try:
                found = decode_video_frames(path, list(block), tolerance_s, backend, return_uint8=True)
            except FrameTimestampError:  # torchcodec, too, loses frames of an open group when it is read at random
                found = read_frames(path, block, tolerance_s=tolerance_s, backend=PYAV[0])
            yield from found
        return
    file = _open(str(path), os.getpid(), threading.get_ident())
    frames = file.frames_from(timestamps[0])
    before = after = None  # the last frame before the time, and the first at or behind it
    for timestamp in timestamps:
        while after is None or after.time < timestamp:
            following = next(frames, None)
            if following is None:
                break
            before, after = after, following
        found = [shown for shown in (before, after) if shown is not None]
        nearest = min(found, key=lambda shown: abs(shown.time - timestamp), default=None)
        if nearest is None or abs(nearest.time - timestamp) > tolerance_s:
            seen = "none" if nearest is None else f"{nearest.time:.4f} s"
            raise FrameTimestampError(f"{path} has no frame at {timestamp:.4f} s (nearest: {seen})")
        if nearest.frame.is_corrupt:
            raise FrameTimestampError(f"{path} is damaged at {timestamp:.4f} s")
        yield file.pixels(nearest.frame)


def frame_times(segment: Segment, fps: float) -> np.ndarray:
    """(n,) float64, ascending: the times (s) of the episode's frames in its file.

    The file's packets are read once per process, and nothing is decoded.

    Raises:
        OSError: the file cannot be read.
    """
    times = _presentation_times(str(segment.path))
    slack = 0.5 / fps  # neighbouring episodes are a frame apart, and bounds are rounded
    first, last = np.searchsorted(times, (segment.start - slack, segment.end - slack))
    return times[first:last]


class Shown(NamedTuple):
    """A decoded frame and when it is shown (s)."""

    time: float
    frame: av.VideoFrame


class VideoFile:
    """One open file. Frames come in the order in which they are shown.

    A decoder can start at key frames only, and not every frame that is shown near one can be decoded from it: the
    leading pictures of an open group refer to frames before the key frame, are shown before it and stored after it.
    Some decoders skip them, others deliver them damaged. So frames shown before the key frame where decoding began do
    not count, and decoding begins one key frame further back where the wanted one would be among them.
    """

    def __init__(self, path: str):
        self.container = av.open(path)
        if not self.container.streams.video:
            raise FrameTimestampError(f"{path} holds no video")
        self.stream = self.container.streams.video[0]
        if self.stream.codec_context is None:  # a header cut short does not say which codec it is
            raise FrameTimestampError(f"{path} is damaged: its header names no decoder")
        self.stream.thread_type = "NONE"  # the loader's workers are the parallelism
        self.stream.codec_context.thread_count = 1  # and of itself a decoder of AV1 starts a thread per core
        self.first = next(self._packets(), None)
        self._reformatter = VideoReformatter()

    def frames_from(self, time: float) -> Iterator[Shown]:
        """All frames from a key frame on that is shown at or before ``time`` (s), or from the file's first."""
        wanted = round(time / self.stream.time_base)
        rounding = round(ROUNDING_S / self.stream.time_base)
        target, step = wanted, 1
        while True:
            self.container.seek(target, stream=self.stream)  # also forgets what the decoder was at, its end included
            packets = self._packets()
            begin = next(packets, None)
            if begin is None:
                return
            at_first = self.first is None or begin.dts <= self.first.dts
            if at_first or begin.pts <= wanted + rounding:
                break
            target, step = min(target, begin.dts) - step, step * 2  # containers seek by decoding time
        for packet in chain([begin], packets, [None]):  # None: the decoder gives out what it holds back
            for frame in self.stream.codec_context.decode(packet):
                if frame.pts is not None and (at_first or frame.pts >= begin.pts):
                    yield Shown(float(frame.pts * self.stream.time_base), frame)

    def times(self) -> np.ndarray:
        """(n,) float64, ascending: when each frame is shown (s)."""
        self.container.seek(self.first.dts if self.first else 0, stream=self.stream)
        ticks = sorted(packet.pts for packet in self._packets() if not packet.is_discard)
        return np.array(ticks, dtype=np.float64) * float(self.stream.time_base)

    def pixels(self, frame: av.VideoFrame) -> Tensor:
        """(3, H, W) uint8."""
        picture = self._reformatter.reformat(frame, format="rgb24")  # keeps its tables, unlike the frame's own
        return torch.from_numpy(picture.to_ndarray()).permute(2, 0, 1)

    def _packets(self) -> Iterator[av.Packet]:
        """From where the file is; without the empty one that marks its end."""
        for packet in self.container.demux(self.stream):
            if packet.pts is not None and packet.dts is not None:
                yield packet


@lru_cache(maxsize=OPEN_FILES)
def _open(path: str, process: int, thread: int) -> VideoFile:
    """``process`` and ``thread`` keep a forked worker, or another thread, from sharing a file position."""
    return VideoFile(path)


@cache  # 8 bytes a frame
def _presentation_times(path: str) -> np.ndarray:
    return VideoFile(path).times()
