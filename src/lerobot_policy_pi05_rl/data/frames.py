"""Frames by row: observation, action chunk and labels. Chunks come from columns in memory; only the cameras the
policy declares are decoded, one frame each."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor
from torch.utils.data import Dataset

from ..returns import NStepReturns
from .batch import (
    ACTION_IS_PAD,
    FOLD,
    IMPORTANCE_WEIGHT,
    INTERVENTION,
    N_STEP_DISCOUNT,
    N_STEP_REWARD,
    POSITION,
    PRECOMPUTED_ADVANTAGE,
    PRECOMPUTED_TAG,
    RETURN,
    TASK,
    TASK_INDEX,
    n_step_key,
)
from .episodes import Episode, LabelledEpisodes
from .pictures.decoding import read_picture
from .pictures.frame_cache import FrameCache, resize
from .sources import Source


class PrecomputedLabels(NamedTuple):
    """One source's columns of a labeling, computed once before training."""

    advantages: np.ndarray  # (frames,) float32, NaN where unknown
    tags: np.ndarray  # (frames,) int8: 1 positive, 0 negative, −1 unknown


@dataclass(frozen=True)
class FrameIndex:
    """Which frames may be drawn: contiguous row ranges of the sources, one per episode; and how often."""

    episodes: list[Episode]
    offsets: np.ndarray  # (episodes + 1,) cumulative number of frames
    chosen: np.ndarray | None = None  # (frames,) which of those, None: all
    repetitions: np.ndarray | None = None  # (frames,) float64 how often an epoch repeats each, None: once
    by_source: bool = False  # each source has a share of the samples of its own (`dataset.weights`)

    @classmethod
    def of(
        cls, episodes: list[Episode], repetitions: list[np.ndarray] | None = None, *, by_source: bool = False
    ) -> "FrameIndex":
        """``repetitions``: per source (frames,) how often an epoch repeats each frame, 0: never; None: all once."""
        offsets = np.cumsum([0, *(episode.length for episode in episodes)])
        if repetitions is None:
            return cls(episodes, offsets, by_source=by_source)
        every = [repetitions[episode.source][episode.start : episode.end] for episode in episodes]
        counts = np.concatenate(every).astype(np.float64)
        chosen = np.flatnonzero(counts)
        return cls(episodes, offsets, chosen, counts[chosen], by_source)

    @cached_property
    def importance_weights(self) -> np.ndarray:
        """(frames,) importance weights: how often a frame was recorded over how often it is drawn.

        Over the frames as drawn, the mean of anything times this weight is its mean over the frames as recorded
        (within each source where sources have shares of their own: that mixture is the user's choice).
        """
        if self.repetitions is None:
            return np.ones(len(self))
        sources = np.zeros(len(self), dtype=np.int64)
        if self.by_source:
            lengths = np.diff(self.offsets)
            sources = np.repeat([episode.source for episode in self.episodes], lengths)[self.chosen]
        mean = np.bincount(sources, weights=self.repetitions) / np.maximum(1, np.bincount(sources))
        return mean[sources] / self.repetitions

    @cached_property
    def cumulative_repetitions(self) -> np.ndarray:
        """(frames,) float64 how many samples of an epoch are of this frame or one before it, where they repeat."""
        return np.cumsum(self.repetitions)

    @property
    def samples_per_epoch(self) -> float:
        """Expected number; a whole one where every frame is drawn a whole number of times."""
        total = len(self) if self.repetitions is None else round(float(self.repetitions.sum()), 6)
        return int(total) if total == int(total) else total

    def frames_per_source(self, sources: int) -> list[int]:
        """How many of the frames are of each source; numbers run through the sources in order."""
        last = [self.offsets[sum(episode.source <= number for episode in self.episodes)] for number in range(sources)]
        if self.chosen is not None:
            last = np.searchsorted(self.chosen, last).tolist()
        return np.diff([0, *last]).tolist()

    def __len__(self) -> int:
        return int(self.offsets[-1]) if self.chosen is None else len(self.chosen)

    def __getitem__(self, number: int) -> tuple[Episode, int]:
        """The ``number``-th frame: its episode and its row in the episode's source."""
        number = number if self.chosen is None else int(self.chosen[number])
        position = int(np.searchsorted(self.offsets, number, side="right")) - 1
        episode = self.episodes[position]
        return episode, episode.start + number - int(self.offsets[position])


class FrameDataset(Dataset):
    """Items are addressed by ``(position, number)``: the sample's global index and the frame's number."""

    def __init__(
        self,
        sources: list[Source],
        labels: LabelledEpisodes,
        frames: FrameIndex,
        *,
        cameras: list[str],
        chunk_size: int,
        image_transforms=None,
        folds: dict[tuple[int, int], int] | None = None,
        n_step_returns: dict[int, list[NStepReturns]] | None = None,
        precomputed: list[PrecomputedLabels] | None = None,
        caches: list[FrameCache] | None = None,
        padded: dict[str, tuple[int, int]] | None = None,
        seed: int = 0,
    ):
        """Args:
        folds: (source, episode index) → fold.
        n_step_returns: n → per source, with (frames,) columns; the frames n steps later are read too.
        precomputed: per source, the labels of a labeling.
        caches: per source, its decoded frames, under its own names of the cameras.
        padded: camera → (h, w) to which its pictures are resized, with black borders.
        seed: with the position it decides what ``image_transforms`` draw.
        """
        self.sources, self.labels, self.frames = sources, labels, frames
        self.cameras, self.chunk_size, self.image_transforms = cameras, chunk_size, image_transforms
        self.folds, self.n_step_returns, self.precomputed = folds or {}, n_step_returns or {}, precomputed
        self.caches, self.padded, self.seed = caches, padded or {}, seed

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, address: tuple[int, int]) -> dict[str, Tensor | str]:
        """One sample; shapes without the batch: images (3, H, W) uint8, state (S,), action (chunk, A) fp32."""
        if self.image_transforms is None:
            return self._sample(*address)
        with torch.random.fork_rng(devices=()):  # a function of seed and position, in whatever process: exact resume
            torch.manual_seed(int(np.random.SeedSequence([self.seed, address[0]]).generate_state(1)[0]))
            return self._sample(*address)

    def _sample(self, position: int, number: int) -> dict[str, Tensor | str]:
        episode, row = self.frames[number]
        source = self.sources[episode.source]
        actions, is_pad = self._action_chunk(source, row)
        task = int(self.labels.frame_tasks[episode.source][row])
        observation = self._observation(episode.source, row)
        return {
            **observation,
            **self._bootstrap(episode.source, row, observation),
            **self._precomputed(episode.source, row),
            ACTION: actions,
            ACTION_IS_PAD: is_pad,
            TASK: self.labels.tasks[task],
            RETURN: torch.tensor(self.labels.returns[episode.source][row]),
            TASK_INDEX: torch.tensor(task),
            INTERVENTION: torch.tensor(bool(self.labels.interventions[episode.source][row])),
            FOLD: torch.tensor(self.folds.get((episode.source, episode.index), -1)),
            IMPORTANCE_WEIGHT: torch.tensor(self.frames.importance_weights[number], dtype=torch.float32),
            POSITION: torch.tensor(position),
        }

    def _observation(self, number: int, row: int) -> dict[str, Tensor]:
        source = self.sources[number]
        state = source.alignment.scaled(OBS_STATE, source.recorded(OBS_STATE)[row])
        return {**self._images(number, row), OBS_STATE: torch.from_numpy(state)}

    def _bootstrap(self, number: int, row: int, observation: dict[str, Tensor]) -> dict[str, Tensor]:
        """The observations that the n-step returns bootstrap from; past the episode's end the present one stands in,
        with discount 0, and nothing is decoded."""
        sample = {}
        for n, per_source in self.n_step_returns.items():
            steps = per_source[number]
            offset = int(steps.offset[row])
            later = observation if offset == 0 else self._observation(number, row + offset)
            sample |= {n_step_key(n, key): value for key, value in later.items()}
            sample[n_step_key(n, N_STEP_REWARD)] = torch.tensor(steps.reward[row])
            sample[n_step_key(n, N_STEP_DISCOUNT)] = torch.tensor(steps.discount[row])
        return sample

    def _precomputed(self, number: int, row: int) -> dict[str, Tensor]:
        if self.precomputed is None:
            return {}
        labels = self.precomputed[number]
        return {
            PRECOMPUTED_ADVANTAGE: torch.tensor(labels.advantages[row]),
            PRECOMPUTED_TAG: torch.tensor(int(labels.tags[row])),
        }

    def _action_chunk(self, source: Source, row: int) -> tuple[Tensor, Tensor]:
        """(chunk, A) actions from ``row`` on, the last one repeated behind the episode's end, and (chunk,) padding."""
        last = int(source.ends[np.searchsorted(source.ends, row, side="right")]) - 1
        rows = row + source.alignment.frame_offset(np.arange(self.chunk_size))
        chunk = source.alignment.scaled(ACTION, source.recorded(ACTION)[np.minimum(rows, last)])
        return torch.from_numpy(chunk), torch.from_numpy(rows > last)

    def _images(self, number: int, row: int) -> dict[str, Tensor]:
        images = {}
        for camera in self.cameras:
            images[camera] = self._picture(number, camera, row)
            if self.image_transforms is not None:
                images[camera] = self.image_transforms(images[camera])
            if camera in self.padded:
                images[camera] = resize(images[camera][None], self.padded[camera], self.padded[camera])[0]
        return images

    def _picture(self, number: int, camera: str, row: int) -> Tensor:
        """(3, H, W) uint8, from the frame cache or decoded."""
        source = self.sources[number]
        own = source.alignment.own_name(camera)
        if self.caches is not None:
            return self.caches[number].read(own, row)
        return read_picture(source, own, row)
