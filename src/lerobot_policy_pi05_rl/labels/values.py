"""The values of every frame of a dataset, in one pass of the critic that goes on where an earlier one was stopped."""

import glob
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..configuration_pi05_rl import PI05RLConfig
from ..data.batch import Batch, Preprocess
from ..data.dataset import policy_cameras
from ..data.episodes import LabelledEpisodes
from ..data.frames import FrameDataset, FrameIndex
from ..data.labeling import VALUES
from ..data.sources import Source
from ..data.workers import Loader, Workers
from ..distributed.processes import ALONE, Processes
from ..errors import UserError
from ..runtime.progress import StopSignal, TimedIterator, progress_bar

logger = logging.getLogger(__name__)

TAG = "[LABEL]"
FLUSH_FRAMES = 512  # values this many frames apart are put on disk


class Interrupted(Exception):  # noqa: N818
    """SIGINT or SIGTERM; what was computed is on disk."""


class PartialValues:
    """Values on disk as they are computed, one file a process: a JSON line that says whose they are, then a row per
    frame, its number and its (K, 2) float32 values (modeling_pi05_rl.py: predict_label_values).

    Appended to, so that a kill at any instant costs at most what was not yet written. However many processes go on,
    together they read all that was written before.
    """

    def __init__(self, path: Path, *, dataset: str, critic: str, critics: int, rank: int = 0, replaces: bool = False):
        """Args:
            path: the first process's file; the others' names end in their ranks.
            dataset, critic: fingerprints.
            critics: K.
            replaces: values of another dataset or critic are overwritten.

        Raises:
            UserError: a file there is of another dataset or critic, and none is to be replaced.
        """
        self.path, self.critics = path, critics
        self.own = path if rank == 0 else path.with_name(f"{path.name}.{rank}")
        header = {"critic": critic, "critics": critics, "dataset": dataset, "values": VALUES}
        self._line = json.dumps(header).encode() + b"\n"
        self._row = np.dtype([("frame", "<i8"), ("values", "<f4", (critics, len(VALUES)))])
        for file in () if replaces else self._files():
            if self._is_of_another(file):
                raise UserError(
                    f"{file} holds unfinished values of another critic or dataset; choose another --name, or delete it"
                )

    def _files(self) -> list[Path]:
        others = self.path.parent.glob(f"{glob.escape(self.path.name)}.*")
        own = [self.path] if self.path.is_file() else []
        return own + sorted(file for file in others if file.suffix[1:].isdigit())

    def _is_of_another(self, file: Path) -> bool:
        with file.open("rb") as opened:
            found = opened.readline()
        return found.endswith(b"\n") and found != self._line

    def _rows(self, file: Path) -> np.ndarray:
        """Whole rows alone; none of another critic's."""
        if self._is_of_another(file):
            return np.empty(0, dtype=self._row)
        body = file.read_bytes()[len(self._line) :]
        return np.frombuffer(body[: len(body) - len(body) % self._row.itemsize], dtype=self._row)

    def read(self, total: int) -> tuple[np.ndarray, np.ndarray]:
        """(total, K, 2) float32 values, (total,) bool which of them are there."""
        values, known = np.zeros((total, *self._row["values"].shape), dtype=np.float32), np.zeros(total, dtype=bool)
        for file in self._files():
            rows = self._rows(file)
            values[rows["frame"]], known[rows["frame"]] = rows["values"], True
        return values, known

    def begin(self) -> None:
        """Make this process's file, or cut a torn row off its end."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        count = len(self._rows(self.own)) if self.own.is_file() else 0
        with self.own.open("r+b" if self.own.is_file() else "w+b") as file:
            file.write(self._line)
            file.truncate(len(self._line) + count * self._row.itemsize)

    def append(self, batches: list[tuple[range, np.ndarray]]) -> None:
        """Add batches of frames and their (n, K, 2) float32 values, and see them onto the disk."""
        rows = np.empty(sum(len(frames) for frames, _ in batches), dtype=self._row)
        if not len(rows):
            return
        rows["frame"] = np.concatenate([np.arange(frames.start, frames.stop) for frames, _ in batches])
        rows["values"] = np.concatenate([values for _, values in batches])
        with self.own.open("ab") as file:
            file.write(rows.tobytes())
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
    batches: list[range],
    *,
    policy: PI05RLConfig,
    workers: Workers,
) -> DataLoader:
    """These batches of source ``number``'s frames."""
    frames = FrameIndex.of([episode for episode in labels.episodes if episode.source == number])
    dataset = FrameDataset(sources, labels, frames, cameras=policy_cameras(policy), chunk_size=policy.chunk_size)
    return Loader(
        dataset, batch_sampler=[[(frame, frame) for frame in batch] for batch in batches], **workers.loader_kwargs
    )


def batches_left(known: np.ndarray, batch_size: int) -> list[range]:
    """The batches of (T,) frames of which one is not ``known`` yet: those of an undisturbed pass, whoever asks."""
    total = len(known)
    every = (range(start, min(start + batch_size, total)) for start in range(0, total, batch_size))
    return [batch for batch in every if not known[batch.start : batch.stop].all()]


def share_of(batches: list[range], processes: Processes) -> list[list[range]]:
    """Turn → the batch that each process takes, in the order of their ranks.

    Each has neighbours, so that videos are read forwards. Sharded processes run every pass together: those that are
    done take the last batch again.
    """
    shares = [part.tolist() for part in np.array_split(np.arange(len(batches)), processes.count)]
    turns = max(map(len, shares), default=0)
    again = len(batches) - 1 if processes.fsdp is not None else None
    rows = [[share[turn] if turn < len(share) else again for share in shares] for turn in range(turns)]
    return [[None if number is None else batches[number] for number in row] for row in rows]


def compute_values(
    preprocess: Preprocess,
    predict: Callable[[Batch], Tensor],
    partial: PartialValues,
    make_loader: Callable[[list[range]], DataLoader],
    stop: StopSignal,
    *,
    total: int,
    batch_size: int,
    timing: Timing,
    processes: Processes = ALONE,
    device: torch.device | None = None,
) -> np.ndarray:
    """(total, K, 2) float32 values of all frames, those on disk from there. Every process computes its share.

    Args:
        preprocess: collated samples → what ``predict`` reads.
        predict: → (B, K, 2) values.
        make_loader: batches of frames → these batches, collated.
        stop: asked behind every batch.
        device: on which processes speak with one another.

    Raises:
        Interrupted: a signal came to one of them; everything computed so far is on disk.
    """
    processes.wait()  # nobody writes while others read what was there
    _, known = partial.read(total)
    left = batches_left(known, batch_size)
    first = done = int(known.sum())
    if first:
        logger.info("%s %d of %d frames were computed before; going on", TAG, first, total)
    turns = share_of(left, processes)
    own = [row[processes.rank] for row in turns]
    processes.wait()
    partial.begin()
    pending: list[tuple[range, np.ndarray]] = []
    log_every, logged = max(FLUSH_FRAMES, total // 50), first
    start, stopping = time.perf_counter(), False
    batches = TimedIterator(make_loader([batch for batch in own if batch is not None])) if own else iter(())
    with progress_bar(total, first, desc="Label", unit="frame", shown=processes.is_main) as bar:
        for turn, row in enumerate(turns):
            if own[turn] is not None:
                batch = preprocess(next(batches))
                before = time.perf_counter()
                pending.append((own[turn], predict(batch).float().cpu().numpy()))
                timing.forward += time.perf_counter() - before
            fresh = sum(len(batch) for batch in dict.fromkeys(row) if batch is not None)
            done = min(total, done + fresh)
            bar.update(fresh)
            if sum(len(frames) for frames, _ in pending) >= FLUSH_FRAMES:
                partial.append(pending)
                pending.clear()
            if done - logged >= log_every or turn == len(turns) - 1:
                logger.info("%s %d/%d frames, %.1f a second", TAG, done, total, speed(done - first, start))
                logged = done
            stopping = processes.any(stop.requested, device or torch.device("cpu"))
            if stopping and turn < len(turns) - 1:
                break
        partial.append(pending)
    timing.total += time.perf_counter() - start
    timing.data += batches.flush() if isinstance(batches, TimedIterator) else 0.0
    timing.frames += done - first
    processes.wait()
    values, known = partial.read(total)
    processes.wait()  # one of them removes the files when all have read them
    if not known.all():
        raise Interrupted(f"{known.sum()} of {total} frames are labelled")
    return values


def speed(frames: int, start: float) -> float:
    """Frames a second since ``start``."""
    return frames / max(1e-9, time.perf_counter() - start)
