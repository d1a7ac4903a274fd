"""The batches of a run: training frames in the data's order, held-out frames in theirs."""

import copy

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..distributed.processes import ALONE, Processes
from .batch import Batch
from .dataset import OfflineData
from .frames import FrameDataset, FrameIndex
from .sampling import BatchPositions
from .workers import Loader


def make_train_loader(
    data: OfflineData,
    *,
    batch_size: int,
    batches: int,
    start: int = 0,
    processes: Processes = ALONE,
) -> DataLoader:
    """This process's part of so many batches in the data's order, collated, images as uint8.

    Args:
        start: position in that order at which they begin.
    """
    positions = BatchPositions(
        data.order, batch_size, rank=processes.rank, world_size=processes.count, start=start, batches=batches
    )
    return Loader(data.train, batch_sampler=positions, **data.workers.loader_kwargs)


def make_held_out_loader(
    data: OfflineData, *, batch_size: int, most: int, processes: Processes = ALONE
) -> DataLoader | None:
    """The held-out frames in order, each once, thinned to about ``most`` unless that is 0.

    Every episode keeps its middle frame, and every so many frames before and behind it.
    """
    if data.held_out is None:
        return None
    return _loader_in_order(data.held_out, held_out_numbers(data.held_out.frames, most), batch_size, processes)


def make_probe_loader(
    data: OfflineData, *, batch_size: int, most: int, processes: Processes = ALONE
) -> DataLoader | None:
    """As many training frames as :func:`make_held_out_loader` reads, evenly spread and read as those are (no
    augmentation, no n-step returns), so that the two can be compared."""
    if data.held_out is None:
        return None
    probe = copy.copy(data.train)
    probe.image_transforms, probe.n_step_returns = None, {}
    count = min(len(probe), len(held_out_numbers(data.held_out.frames, most)))
    return _loader_in_order(probe, np.linspace(0, len(probe) - 1, count).astype(int).tolist(), batch_size, processes)


def held_out_numbers(frames: FrameIndex, most: int) -> list[int]:
    """Numbers of frames: all if ``most`` is 0, else about that many, the middle of each episode among them."""
    stride = max(1, -(-len(frames) // most)) if most > 0 else 1
    numbers = []
    for start, end in zip(frames.offsets[:-1].tolist(), frames.offsets[1:].tolist(), strict=True):
        middle = (start + end - 1) // 2
        numbers += range(middle - (middle - start) // stride * stride, end, stride)
    return numbers


def _loader_in_order(dataset: FrameDataset, numbers: list[int], batch_size: int, processes: Processes) -> DataLoader:
    """This process's batches, as many as every other has: the last is read again by those that would be short."""
    batches = [
        [(number, number) for number in numbers[start : start + batch_size]]
        for start in range(0, len(numbers), batch_size)
    ]
    turns = range(processes.rank, -(-len(batches) // processes.count) * processes.count, processes.count)
    own = [batches[min(turn, len(batches) - 1)] for turn in turns]
    return DataLoader(dataset, batch_sampler=own, generator=torch.Generator())


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Tensors to ``device``; uint8 images to fp32 in [0, 1], as stock ``lerobot-train`` does."""
    moved = {}
    for key, value in batch.items():
        if isinstance(value, Tensor):
            value = value.to(device, non_blocking=True)
            if value.dtype == torch.uint8:
                value = value.to(torch.float32) / 255.0
        moved[key] = value
    return moved
