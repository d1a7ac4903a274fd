"""Frames by row: observation, action chunk and labels. Chunks come from columns in memory; only the cameras the
policy declares are decoded, one frame each."""

from dataclasses import dataclass

import av
import numpy as np
import torch
from lerobot.datasets.video_utils import FrameTimestampError
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor
from torch.utils.data import Dataset

from .episodes import Episode, LabelledEpisodes
from .sources import DatasetError, Source
from .video import read_frame

RETURN = "return"
TASK_INDEX = "task_index"
INTERVENTION = "intervention"
POSITION = "position"  # global sample index: the how-manieth draw of the run
ACTION_IS_PAD = f"{ACTION}_is_pad"


@dataclass(frozen=True)
class FrameIndex:
    """Which frames may be drawn: contiguous row ranges of the sources, one per episode."""

    episodes: list[Episode]
    offsets: np.ndarray  # (episodes + 1,) cumulative number of frames

    @classmethod
    def of(cls, episodes: list[Episode]) -> "FrameIndex":
        return cls(episodes, np.cumsum([0, *(episode.length for episode in episodes)]))

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, number: int) -> tuple[Episode, int]:
        """The ``number``-th frame: its episode and its row in the episode's source."""
        position = int(np.searchsorted(self.offsets, number, side="right")) - 1
        episode = self.episodes[position]
        return episode, episode.start + number - int(self.offsets[position])


class FrameDataset(Dataset):
    """Items are addressed by ``(position, number)``: the draw's global index and the frame's number."""

    def __init__(
        self,
        sources: list[Source],
        labels: LabelledEpisodes,
        frames: FrameIndex,
        *,
        cameras: list[str],
        chunk_size: int,
        image_transforms=None,
    ):
        self.sources, self.labels, self.frames = sources, labels, frames
        self.cameras, self.chunk_size, self.image_transforms = cameras, chunk_size, image_transforms

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, address: tuple[int, int]) -> dict[str, Tensor | str]:
        """One sample; shapes without the batch: images (3, H, W) uint8, state (S,), action (chunk, A) fp32."""
        position, number = address
        episode, row = self.frames[number]
        source = self.sources[episode.source]
        actions, is_pad = self._action_chunk(source, row)
        return {
            **self._images(source, row),
            OBS_STATE: torch.from_numpy(source.columns[OBS_STATE][row].astype(np.float32)),
            ACTION: actions,
            ACTION_IS_PAD: is_pad,
            "task": self.labels.tasks[episode.task],
            RETURN: torch.tensor(self.labels.returns[episode.source][row]),
            TASK_INDEX: torch.tensor(episode.task),
            INTERVENTION: torch.tensor(bool(self.labels.interventions[episode.source][row])),
            POSITION: torch.tensor(position),
        }

    def _action_chunk(self, source: Source, row: int) -> tuple[Tensor, Tensor]:
        """(chunk, A) actions from ``row`` on, the last one repeated behind the episode's end, and (chunk,) padding."""
        last = int(source.ends[np.searchsorted(source.ends, row, side="right")]) - 1
        rows = row + np.arange(self.chunk_size)
        chunk = source.columns[ACTION][np.minimum(rows, last)].astype(np.float32)
        return torch.from_numpy(chunk), torch.from_numpy(rows > last)

    def _images(self, source: Source, row: int) -> dict[str, Tensor]:
        images = {}
        meta = source.dataset.meta
        for camera in self.cameras:
            if camera in meta.video_keys:
                images[camera] = self._video_frame(source, camera, row)
            else:
                image = source.dataset.hf_dataset.with_format(None).select_columns(camera)[row][camera]
                images[camera] = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
            if self.image_transforms is not None:
                images[camera] = self.image_transforms(images[camera])
        return images

    def _video_frame(self, source: Source, camera: str, row: int) -> Tensor:
        episode_index = int(source.columns["episode_index"][row])
        path, start = source.videos[camera][episode_index]
        timestamp = start + float(source.columns["timestamp"][row])
        try:
            return read_frame(path, timestamp, tolerance_s=source.dataset.tolerance_s, backend=source.video_backend)
        except (av.error.FFmpegError, FrameTimestampError, RuntimeError) as error:
            raise DatasetError(
                f"dataset {source.name}: episode {episode_index} of {path} cannot be decoded at {timestamp:.3f} s "
                f"({' '.join(str(error).split())[:200]})"
            ) from error
