"""The replay as the training reads it: columns in memory, pictures in files, snapshots that never change."""

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.pictures.video import Segment
from ...data.sources import Source
from ...returns import Outcome
from .stored_episode import Stats

TOLERANCE_S = 1e-4  # LeRobot's, between a frame's time and its picture's


@dataclass(frozen=True)
class ReplayMeta:
    """What is read of ``LeRobotDataset.meta``."""

    features: dict[str, dict]
    stats: Stats | None
    fps: int
    video_keys: list[str]
    total_frames: int
    total_episodes: int


@dataclass(frozen=True)
class ReplayDataset:
    """What is read of a ``LeRobotDataset`` whose columns and videos are known."""

    root: Path
    meta: ReplayMeta
    tolerance_s: float = TOLERANCE_S


@dataclass(frozen=True)
class Held:
    """One episode that may be drawn."""

    number: int  # running, never reused while the process lives
    length: int
    outcome: Outcome
    task: str
    videos: dict[str, Path]


class GrowingColumns:
    """Columns that grow behind and shrink in front; a view of them never changes."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}
        self._start = self._end = 0

    def __len__(self) -> int:
        return self._end - self._start

    def append(self, columns: dict[str, np.ndarray]) -> None:
        """(T,) or (T, D) each, all of one T and the same names every time."""
        added = len(next(iter(columns.values())))
        size = len(next(iter(self._buffers.values()))) if self._buffers else 0
        if self._end + added > size:
            self._move(columns, max(1024, 2 * (len(self) + added)))
        for name, values in columns.items():
            self._buffers[name][self._end : self._end + added] = values
        self._end += added

    def drop(self, rows: int) -> None:
        """Forget the first ``rows``."""
        self._start += rows

    def view(self) -> dict[str, np.ndarray]:
        """Read-only; nothing that is appended or dropped later changes it."""
        views = {name: buffer[self._start : self._end] for name, buffer in self._buffers.items()}
        for view in views.values():
            view.flags.writeable = False
        return views

    def _move(self, columns: dict[str, np.ndarray], size: int) -> None:
        """To new buffers, since views hold the old ones."""
        live, held = self.view(), len(self)
        self._buffers = {
            name: np.empty((size, *values.shape[1:]), dtype=values.dtype) for name, values in columns.items()
        }
        for name, values in live.items():
            self._buffers[name][:held] = values
        self._start, self._end = 0, held


class Memory:
    """The newest episodes, at most ``capacity`` transitions (but always one episode)."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.episodes: deque[Held] = deque()
        self._columns = GrowingColumns()
        self._rows = 0  # ever held

    def __len__(self) -> int:
        return len(self._columns)

    def add(self, episode: Held, columns: dict[str, np.ndarray]) -> None:
        """Hold another episode; the oldest ones make room."""
        own = {
            "episode_index": np.full(episode.length, episode.number, dtype=np.int64),
            "index": np.arange(self._rows, self._rows + episode.length, dtype=np.int64),
        }
        self._columns.append({**columns, **own})
        self._rows += episode.length
        self.episodes.append(episode)
        while len(self) > self.capacity and len(self.episodes) > 1:
            self._columns.drop(self.episodes.popleft().length)

    def source(self, name: str, root: Path, features: dict[str, dict], stats: Stats | None, fps: int) -> Source:
        """A snapshot; ``episode_index`` is the episodes' running number."""
        cameras = [key for key, feature in features.items() if feature["dtype"] == "video"]
        ends = np.cumsum([episode.length for episode in self.episodes], dtype=np.int64)
        starts = ends - np.array([episode.length for episode in self.episodes], dtype=np.int64)
        videos = {
            camera: {
                episode.number: Segment(episode.videos[camera], 0.0, episode.length / fps) for episode in self.episodes
            }
            for camera in cameras
        }
        meta = ReplayMeta(features, stats, fps, cameras, len(self), len(self.episodes))
        tasks = [episode.task for episode in self.episodes]
        return Source(name, ReplayDataset(root, meta), "pyav", self._columns.view(), starts, ends, tasks, videos)
