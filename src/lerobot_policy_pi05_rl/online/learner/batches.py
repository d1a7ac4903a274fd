"""Batches of an online run: a part of each from the replay, the rest from the offline data, in that data's order."""

import copy
import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ...data.batch import POSITION
from ...data.dataset import OfflineData
from ...data.frames import FrameDataset
from ...data.loaders import make_train_loader
from ..config import OnlineTrainConfig

logger = logging.getLogger(__name__)


def online_count(batch_size: int, online_ratio: float) -> int:
    """How many samples of a batch are online ones: at least one, as LeRobot's OnlineOfflineMixer has it."""
    return max(1, int(batch_size * online_ratio))


class OnlineBatches:
    """An endless iterator of collated batches; the next one is read while the present one is learnt from.

    Which offline frames a batch holds, and every draw, is a function of (seed, position); which online frames, of what
    the replay held when the batch was read.
    """

    def __init__(self, cfg: OnlineTrainConfig, data: OfflineData, *, start: int = 0):
        """``start``: how many samples the run has drawn before."""
        self.cfg, self.data = cfg, data
        self.online = online_count(cfg.batch_size, cfg.online_ratio)
        self.offline = cfg.batch_size - self.online
        self.number = start // cfg.batch_size
        self._frames: FrameDataset | None = None
        self._offline = self._offline_batches() if self.offline else None
        self._reader, self._next = ThreadPoolExecutor(1, "batches"), None
        self._waited = 0.0

    def show(self, frames: FrameDataset) -> None:
        """From the next batch that is read on, these are the online frames."""
        self._frames = frames

    def __iter__(self) -> Iterator[dict]:
        return self

    def __next__(self) -> dict:
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

    def _offline_batches(self) -> Iterator[dict]:
        part = copy.copy(self.cfg)
        part.batch_size = self.offline
        loader = make_train_loader(part, self.data, batches=1 << 40, start=self.number * self.offline)
        return iter(loader)

    def _read(self, number: int) -> dict:
        frames, first = self._frames, number * self.cfg.batch_size
        if frames is None:
            raise RuntimeError("no online frames were shown")
        chosen = np.random.default_rng([self.cfg.seed, 1, number]).integers(len(frames), size=self.online).tolist()
        batch = default_collate([frames[first + place, frame] for place, frame in enumerate(chosen)])
        if self._offline is not None:
            batch = joined(batch, next(self._offline))
        batch[POSITION] = torch.arange(first, first + self.cfg.batch_size)
        return batch


def joined(first: dict, second: dict) -> dict:
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
