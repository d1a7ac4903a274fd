"""Batches of an online run: a part of each from the replay, the rest from the offline data, in that data's order."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ...data.batch import POSITION, Batch
from ...data.dataset import OfflineData
from ...data.frames import FrameDataset, FrameIndex
from ...data.loaders import make_train_loader

logger = logging.getLogger(__name__)


def online_count(batch_size: int, online_ratio: float) -> int:
    """How many samples of a batch are online ones: at least one, as LeRobot's OnlineOfflineMixer has it."""
    return max(1, int(batch_size * online_ratio))


class OnlineBatches:
    """An endless iterator of collated batches; the next one is read while the present one is learnt from.

    Which offline frames a batch holds, and every draw, is a function of (seed, position); which online frames, of what
    the replay held when the batch was read.
    """

    def __init__(self, data: OfflineData, batch_size: int, online: int, *, seed: int, start: int = 0):
        """Args:
        online: samples of each batch that are online ones.
        start: how many samples the run has drawn before.
        """
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.online, self.offline = online, batch_size - online
        self.number = start // batch_size
        self._frames: FrameDataset | None = None
        self._offline = self._offline_batches() if self.offline else None
        self._reader, self._next = ThreadPoolExecutor(1, "batches"), None
        self._waited = 0.0

    def show(self, frames: FrameDataset) -> None:
        """From the next batch that is read on, these are the online frames."""
        self._frames = frames

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        batch = (self._next or self._reader.submit(self._read, self.number)).result()
        self.number += 1
        self._next: Future | None = self._reader.submit(self._read, self.number)
        self._waited += time.perf_counter() - began
        return batch

    def flush(self) -> float:
        """Seconds waited for batches since the last call."""
        seconds, self._waited = self._waited, 0.0
        return seconds

    def close(self) -> None:
        """End the reading thread."""
        self._reader.shutdown(cancel_futures=True)

    def _offline_batches(self) -> Iterator[Batch]:
        start = self.number * self.offline
        loader = make_train_loader(self.data, batch_size=self.offline, batches=1 << 40, start=start)
        return iter(loader)

    def _read(self, number: int) -> Batch:
        frames, first = self._frames, number * self.batch_size
        if frames is None:
            raise RuntimeError("no online frames were shown")
        chosen = draw(frames.frames, self.online, np.random.default_rng([self.seed, 1, number]))
        batch = default_collate([frames[first + place, frame] for place, frame in enumerate(chosen)])
        if self._offline is not None:
            batch = joined(batch, next(self._offline))
        batch[POSITION] = torch.arange(first, first + self.batch_size)
        return batch


def draw(frames: FrameIndex, count: int, rng: np.random.Generator) -> list[int]:
    """``count`` of the frames, with replacement, each as likely as an epoch repeats it often."""
    if frames.repetitions is None:
        return rng.integers(len(frames), size=count).tolist()
    ends = frames.cumulative_repetitions
    return np.searchsorted(ends, rng.random(count) * ends[-1], side="right").tolist()


def joined(first: Batch, second: Batch) -> Batch:
    """Two collated batches with the same keys as one.

    Raises:
        KeyError: one of them has a key that the other lacks.
    """
    if first.keys() != second.keys():
        raise KeyError(f"online and offline samples differ in {sorted(first.keys() ^ second.keys())}")
    return {
        key: torch.cat([value, second[key]]) if isinstance(value, Tensor) else [*value, *second[key]]
        for key, value in first.items()
    }
