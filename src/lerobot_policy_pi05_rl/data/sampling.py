"""The order of samples: a pure function of (seed, epoch), the same on any number of processes.

The run is one endless sequence of samples, numbered by their *position*: epoch ``position // n`` visits the ``n``
frames in a permutation derived from (seed, epoch), as LeRobot's ``EpisodeAwareSampler`` does
(datasets/sampler.py). A batch never stops at an epoch's end; nothing is dropped or padded.
"""

from collections.abc import Iterator

import numpy as np

from .frames import FrameIndex
from .sources import DatasetError, Source


class SampleOrder:
    """Maps a position to a frame number in ``range(num_frames)``.

    An epoch visits every frame once or, with ``repetitions``, frame i ``repetitions[i]`` times. Where that is no whole
    number, the first e epochs visit it ``floor(e · repetitions[i] + phase[i])`` times with a phase in [0, 1) derived
    from the seed: the count never strays from ``e · repetitions[i]`` by a whole visit, and is a pure function of
    (seed, epoch).
    """

    def __init__(self, num_frames: int, seed: int, repetitions: np.ndarray | None = None):
        """``repetitions``: (num_frames,) how often an epoch visits each frame, above 0; None: once."""
        self.num_frames, self.seed, self._repetitions = num_frames, seed, repetitions
        self._phases = None if repetitions is None else np.random.default_rng([seed, 0, num_frames]).random(num_frames)
        self._epoch, self._first, self._frames = -1, 0, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        if self._epoch < 0 or not 0 <= position - self._first < len(self._frames):
            self._visit(self._epoch_of(position))
        return int(self._frames[position - self._first])

    def _visit(self, epoch: int) -> None:
        frames = np.arange(self.num_frames)
        if self._repetitions is not None:
            frames = np.repeat(frames, self._visits(epoch + 1) - self._visits(epoch))
        self._epoch, self._first = epoch, self._begin(epoch)
        self._frames = frames[np.random.default_rng([self.seed, epoch]).permutation(len(frames))]

    def _epoch_of(self, position: int) -> int:
        if self._repetitions is None:
            return position // self.num_frames
        epoch = int(position / self._repetitions.sum())  # to within one: each frame's count is off by less than one
        while self._begin(epoch) > position:
            epoch -= 1
        while self._begin(epoch + 1) <= position:
            epoch += 1
        return epoch

    def _begin(self, epoch: int) -> int:
        """The position at which ``epoch`` begins."""
        return epoch * self.num_frames if self._repetitions is None else int(self._visits(epoch).sum())

    def _visits(self, epochs: int) -> np.ndarray:
        """(num_frames,) how often the first ``epochs`` epochs visit each frame."""
        return np.floor(epochs * self._repetitions + self._phases).astype(np.int64)


class MixedOrder:
    """Maps a position to a frame number where every source has a weight.

    Positions come in blocks; each block holds every source in its share, to the nearest draw, in an order derived from
    (seed, block). What a source is drawn for the k-th time is its own :class:`SampleOrder`: all of its frames come
    before its next epoch begins.
    """

    BLOCK = 1024

    def __init__(
        self, num_frames: list[int], weights: list[float], seed: int, repetitions: list[np.ndarray] | None = None
    ):
        """Args:
        num_frames: per source; frame numbers run through the sources in order.
        repetitions: per source, as of :class:`SampleOrder`.
        """
        self.firsts = np.cumsum([0, *num_frames])
        self.seed, self._bounds = seed, np.cumsum(weights) / np.sum(weights)
        every = repetitions or [None] * len(num_frames)
        self._orders = [SampleOrder(count, seed, own) for count, own in zip(num_frames, every, strict=True)]
        self._block, self._sources, self._ranks = -1, np.empty(0, np.int64), np.empty(0, np.int64)

    def __getitem__(self, position: int) -> int:
        block, place = divmod(position, self.BLOCK)
        if block != self._block:
            self._draw(block)
        source = int(self._sources[place])
        return int(self.firsts[source]) + self._orders[source][int(self._ranks[place])]

    def _draw(self, block: int) -> None:
        before, after = (self._drawn(number * self.BLOCK) for number in (block, block + 1))
        counts = after - before
        sources = np.repeat(np.arange(len(counts)), counts)
        sources = np.random.default_rng([self.seed, block, len(counts)]).permutation(sources)
        ranks = np.empty_like(sources)
        for source, first in enumerate(before):
            ranks[sources == source] = first + np.arange(counts[source])
        self._block, self._sources, self._ranks = block, sources, ranks

    def _drawn(self, positions: int) -> np.ndarray:
        """(sources,) how many of the first ``positions`` samples are of each source."""
        return np.diff(np.rint(self._bounds * positions).astype(np.int64), prepend=0)


def sample_order(
    sources: list[Source], frames: FrameIndex, weights: list[float] | None, seed: int
) -> SampleOrder | MixedOrder:
    """All frames as often as their index says, or each dataset by its weight.

    Raises:
        DatasetError: nothing is left to draw of a dataset that has a weight.
    """
    if weights is None:
        return SampleOrder(len(frames), seed, frames.repetitions)
    counts = frames.frames_per_source(len(sources))
    for source, count in zip(sources, counts, strict=True):
        if count == 0:
            raise DatasetError(f"dataset.weights: nothing is left to draw of the dataset {source.name}; leave it out")
    repetitions = None if frames.repetitions is None else np.split(frames.repetitions, np.cumsum(counts)[:-1])
    return MixedOrder(counts, weights, seed, repetitions)


class BatchPositions:
    """The batches of one process, for a DataLoader's ``batch_sampler``: lists of (position, frame number).

    Batch k of all processes holds the positions ``start + k · world_size · batch_size`` onwards; rank r takes its r-th
    part. A run that goes on with other processes starts where the last one stopped.
    """

    def __init__(
        self,
        order: SampleOrder | MixedOrder,
        batch_size: int,
        *,
        batches: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.order, self.batch_size, self.batches = order, batch_size, batches
        self.start, self.rank, self.world_size = start, rank, world_size

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.batches):
            first = self.start + (batch * self.world_size + self.rank) * self.batch_size
            yield [(position, self.order[position]) for position in range(first, first + self.batch_size)]
