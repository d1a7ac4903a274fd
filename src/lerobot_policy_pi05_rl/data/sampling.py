"""The order of samples: a pure function of (seed, epoch), the same on any number of processes.

The run is one endless sequence of draws, numbered by their *position*: epoch ``position // n`` visits the ``n``
frames in a permutation derived from (seed, epoch), as LeRobot's ``EpisodeAwareSampler`` does
(datasets/sampler.py). A batch never stops at an epoch's end; nothing is dropped or padded.
"""

from collections.abc import Iterator

import numpy as np


class SampleOrder:
    """Maps a position to a frame number in ``range(num_frames)``."""

    def __init__(self, num_frames: int, seed: int):
        self.num_frames, self.seed = num_frames, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self.num_frames)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_frames)
        return int(self._permutation[index])


class BatchPositions:
    """The batches of one process, for a DataLoader's ``batch_sampler``: lists of (position, frame number).

    Global batch k holds the positions ``k · world_size · batch_size`` onwards; rank r takes its r-th part.
    """

    def __init__(
        self,
        order: SampleOrder,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        first: int = 0,
        last: int,
    ):
        """``first`` and ``last`` bound the global batches; a resumed run starts at the first not yet drawn."""
        self.order, self.batch_size, self.rank, self.world_size = order, batch_size, rank, world_size
        self.first, self.last = first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.first, self.last):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield [(position, self.order[position]) for position in range(start, start + self.batch_size)]
