"""The values of every frame of a dataset, in one pass of the critic that goes on where an earlier one was stopped."""

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from ..configuration_pi05_rl import PI05RLConfig
from ..data.batch import Batch, Preprocess
from ..data.dataset import policy_cameras
from ..data.episodes import LabelledEpisodes
from ..data.frames import FrameDataset, FrameIndex
from ..data.sources import Source
from ..data.workers import Workers
from ..errors import UserError
from ..runtime.progress import StopSignal, TimedIterator, progress_bar

logger = logging.getLogger(__name__)

TAG = "[LABEL]"
FLUSH_FRAMES = 512  # values this many frames apart are put on disk


class Interrupted(Exception):  # noqa: N818
    """SIGINT or SIGTERM; what was computed is on disk."""


class PartialValues:
    """Values on disk as they are computed: one JSON line that says whose they are, then (K,) float32 per frame.

    Appended to, so that a kill at any instant costs at most what was not yet written.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, critics: int):
        """
        Raises:
            UserError: the file there is of another dataset or critic.
        """
        self.path, self.critics = path, critics
        self._line = json.dumps(header, sort_keys=True).encode() + b"\n"
        if path.is_file():
            with path.open("rb") as file:
                found = file.readline()
            if found.endswith(b"\n") and found != self._line:
                raise UserError(
                    f"{path} holds unfinished values of another critic or dataset; choose another --name, or delete it"
                )

    def read(self, *, multiple_of: int) -> np.ndarray:
        """(T', K) the values that are there, whole batches only, so that later batches are those of an
        uninterrupted run; the rest is cut off."""
        row = 4 * self.critics
        self.path.parent.mkdir(parents=True, exist_ok=True)
        size = self.path.stat().st_size if self.path.is_file() else 0
        rows = max(0, size - len(self._line)) // row
        rows -= rows % multiple_of
        with self.path.open("r+b" if size else "w+b") as file:
            file.write(self._line)
            values = np.frombuffer(file.read(rows * row), dtype=np.float32)
            file.truncate(len(self._line) + rows * row)
        return values.reshape(rows, self.critics)

    def append(self, values: np.ndarray) -> None:
        """Add (n, K) float32 rows and see them onto the disk."""
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(values, dtype=np.float32).tobytes())
            file.flush()
            os.fsync(file.fileno())


@dataclass
class Timing:
    """Where the seconds of a pass went."""

    total: float = 0.0
    forward: float = 0.0  # the critic, until its values are on the CPU
    data: float = 0.0  # waiting for decoded frames
    frames: int = 0

    def __str__(self) -> str:
        if not self.frames:
            return "no frame was left to compute; the critic did not run"
        share = {name: 100 * getattr(self, name) / self.total for name in ("forward", "data")}
        return (
            f"{self.frames} frames in {self.total:.1f} s ({self.frames / self.total:.1f} a second): critic's forward "
            f"{share['forward']:.0f} %, waiting for data {share['data']:.0f} %, the rest "
            f"{100 - share['forward'] - share['data']:.0f} %"
        )


def frame_loader(
    sources: list[Source],
    labels: LabelledEpisodes,
    number: int,
    first: int,
    *,
    policy: PI05RLConfig,
    batch_size: int,
    workers: Workers,
) -> DataLoader:
    """Batches of source ``number``'s frames in order, from frame ``first`` on."""
    frames = FrameIndex.of([episode for episode in labels.episodes if episode.source == number])
    dataset = FrameDataset(sources, labels, frames, cameras=policy_cameras(policy), chunk_size=policy.chunk_size)
    batches = [
        [(frame, frame) for frame in range(start, min(start + batch_size, len(frames)))]
        for start in range(first, len(frames), batch_size)
    ]
    return DataLoader(dataset, batch_sampler=batches, **workers.loader_kwargs)


def compute_values(
    preprocess: Preprocess,
    predict: Callable[[Batch], Tensor],
    partial: PartialValues,
    make_loader: Callable[[int], DataLoader],
    *,
    total: int,
    batch_size: int,
    timing: Timing,
) -> np.ndarray:
    """(total, K) float32 values of all frames; those on disk are taken from there.

    Args:
        preprocess: collated samples → what ``predict`` reads.
        predict: → (B, K) values.
        make_loader: first frame → batches from there on.

    Raises:
        Interrupted: a signal came; everything computed so far is on disk.
    """
    values = [partial.read(multiple_of=batch_size)]
    first = done = len(values[0])
    if first:
        logger.info("%s %d of %d frames were computed before; going on", TAG, first, total)
    pending: list[np.ndarray] = []
    log_every, logged = max(FLUSH_FRAMES, total // 50), first
    start, stop = time.perf_counter(), StopSignal()
    batches = TimedIterator(make_loader(first)) if first < total else iter(())
    with stop, progress_bar(total, first, desc="Label", unit="frame") as bar:
        while done < total and not stop.requested:
            batch = preprocess(next(batches))
            before = time.perf_counter()
            pending.append(predict(batch).float().cpu().numpy())
            timing.forward += time.perf_counter() - before
            done += len(pending[-1])
            bar.update(len(pending[-1]))
            if sum(map(len, pending)) >= FLUSH_FRAMES or done == total:
                values.append(flush(partial, pending))
            if done - logged >= log_every or done == total:
                logger.info("%s %d/%d frames, %.1f a second", TAG, done, total, speed(done - first, start))
                logged = done
        if pending:
            values.append(flush(partial, pending))
    timing.total += time.perf_counter() - start
    timing.data += batches.flush() if isinstance(batches, TimedIterator) else 0.0
    timing.frames += done - first
    if done < total:
        raise Interrupted(f"{done} of {total} frames are labelled; the same command goes on from there")
    return np.concatenate(values)


def flush(partial: PartialValues, pending: list[np.ndarray]) -> np.ndarray:
    """Append the pending values to the file and empty the list."""
    values = np.concatenate(pending)
    partial.append(values)
    pending.clear()
    return values


def speed(frames: int, start: float) -> float:
    """Frames a second since ``start``."""
    return frames / max(1e-9, time.perf_counter() - start)
