"""Decoded frames on disk: every picture of a dataset once, as uint8, at the policy's resolution, memory-mapped.

``<folder>/<dataset>-<fingerprint>/<camera>.uint8`` holds (frames, 3, h, w), row by row as the source has them. The
fingerprint covers whatever decides a pixel, so a dataset or a setting that changes never meets the old frames. A cache
is built in ``….partial``, which an interrupted build leaves for the next one to go on with, and renamed when complete.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import batched
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from lerobot.policies.common.vla_utils import resize_with_pad_torch
from torch import Tensor
from torch.utils.data import Dataset

from ...runtime.files import give_name
from ...runtime.progress import progress_bar
from ..sources import DatasetError, Source, dataset_fingerprint
from ..workers import Loader
from .cameras import picture_shape
from .decoding import counts_frames, read_pictures
from .video import Segment

logger = logging.getLogger(__name__)

TAG = "[FRAME CACHE]"
RULE = 2  # raise it when the stored pixels or their layout change
UNIT_FRAMES = 1024  # about so many frames are decoded by one worker at a time, and lost by a kill
BLOCK = 8  # frames resized and written at once
LOG_SECONDS = 10.0


@dataclass
class FrameCache:
    """The frames of one source. Pickles as paths; each process maps the files when it first reads them."""

    folder: Path
    fingerprint: str
    frames: int
    sizes: dict[str, tuple[int, int]]  # camera → (h, w)
    _maps: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def path(self, camera: str) -> Path:
        """The camera's file."""
        return self.folder / f"{camera}.uint8"

    def frame_bytes(self, camera: str) -> int:
        """Of one picture."""
        return 3 * self.sizes[camera][0] * self.sizes[camera][1]

    @property
    def bytes(self) -> int:
        """Of all files: frames × cameras × 3 · h · w."""
        return sum(self.frames * self.frame_bytes(camera) for camera in self.sizes)

    def damage(self) -> str | None:
        """What keeps the cache from being read; None: nothing."""
        stamp = self.folder / "cache.json"
        if not self.folder.is_dir():
            return "not there"
        if not stamp.is_file() or stamp.read_text() != self.stamp():
            return f"incomplete: {stamp} is missing or of another cache"
        for camera in self.sizes:
            path, expected = self.path(camera), self.frames * self.frame_bytes(camera)
            size = path.stat().st_size if path.is_file() else 0
            if size != expected:
                return f"damaged: {path} has {size} bytes, not {expected}"
        return None

    def stamp(self) -> str:
        """What ``cache.json`` says of a complete cache."""
        return json.dumps({"fingerprint": self.fingerprint, "frames": self.frames, "cameras": self.sizes}, indent=1)

    def read(self, camera: str, row: int) -> Tensor:
        """(3, h, w) uint8, a copy of row ``row``.

        Raises:
            DatasetError: the file is gone or was cut since the cache was opened.
        """
        if camera not in self._maps:
            try:
                shape = (self.frames, 3, *self.sizes[camera])
                self._maps[camera] = np.memmap(self.path(camera), dtype=np.uint8, mode="r", shape=shape)
            except (OSError, ValueError) as error:
                raise DatasetError(f"the frame cache {self.path(camera)} cannot be read: {error}") from error
        return torch.from_numpy(np.array(self._maps[camera][row]))


def open_frame_cache(
    folder: Path, source: Source, *, cameras: list[str], resolution: tuple[int, int], loader_kwargs: dict[str, Any]
) -> FrameCache:
    """The cache of ``source`` below ``folder``, built if it is not there, whole and of exactly these frames.

    Of several processes one builds; the others wait for it.

    Args:
        resolution: the policy's (height, width).
        loader_kwargs: of the DataLoader whose workers decode.

    Raises:
        DatasetError: the folder cannot be written or has too little space, or a frame cannot be decoded.
    """
    root = Path(source.dataset.root).resolve()
    if folder.resolve().is_relative_to(root):
        raise DatasetError(f"dataset.frame_cache {folder} lies inside the dataset {root}, whose files are not touched")
    fingerprint = frame_fingerprint(source, cameras, resolution)
    features = source.dataset.meta.features
    sizes = {camera: stored_size(picture_shape(camera, features[camera])[1:], resolution) for camera in cameras}
    name = f"{re.sub(r'[^\w.-]+', '_', Path(source.name).name)}-{fingerprint[:16]}"
    cache = FrameCache(folder / name, fingerprint, len(source.columns["index"]), sizes)
    try:
        if cache.damage() is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder / f"{name}.lock", source.name):
                damage = cache.damage()  # another process may have built it meanwhile
                if damage is not None:
                    if cache.folder.exists():
                        logger.warning("%s %s is %s; it is built anew", TAG, cache.folder, damage)
                        shutil.rmtree(cache.folder)
                    _build(source, cache, resolution, loader_kwargs)
    except OSError as error:
        raise DatasetError(f"dataset.frame_cache {folder} cannot be used: {error}") from error
    logger.info("%s %s: %d frames, %.2f GB in %s", TAG, source.name, cache.frames, cache.bytes / 1e9, cache.folder)
    return cache


@contextmanager
def _alone(path: Path, name: str) -> Iterator[None]:
    """Hold the lock file; say so when another process has it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s %s: waiting for another process that builds it", TAG, name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def stored_size(recorded: tuple[int, int], resolution: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the stored frames: what ``resize_with_pad_torch`` makes of the recorded ones, without its black
    borders, which the model puts back; never more than recorded."""
    ratio = max(recorded[1] / resolution[1], recorded[0] / resolution[0])
    resized = (int(recorded[0] / ratio), int(recorded[1] / ratio))
    # LeRobot rounds down, and now and then a pixel short: the model would stretch such a picture once more.
    is_final = max(resized[1] / resolution[1], resized[0] / resolution[0]) == 1.0
    return resized if ratio > 1.0 and is_final else tuple(recorded)


def resize(frames: Tensor, resolution: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) uint8 → (B, 3, h, w) uint8 by the model's own resize, which works on [0, 1]; rounding to the
    nearest of 255 levels is the only difference, at most half a level."""
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    padded = resize_with_pad_torch(frames.permute(0, 2, 3, 1).to(torch.float32) / 255.0, *resolution)
    top, left = ((whole - part) // 2 for whole, part in zip(resolution, size, strict=True))
    picture = padded[:, top : top + size[0], left : left + size[1]].permute(0, 3, 1, 2)
    return (picture * 255.0).round().to(torch.uint8)


def frame_fingerprint(source: Source, cameras: list[str], resolution: tuple[int, int]) -> str:
    """A hash of whatever decides the stored pixels: the frames, the files they lie in (name, size, time of change),
    where in them, the decoder, the cameras and their size.

    Raises:
        DatasetError: a file is missing.
    """
    root = source.dataset.root
    episodes = [int(index) for index in source.columns["episode_index"][source.starts]]
    places: dict[str, list[tuple[str, float, float]]] = {}
    for camera in cameras:
        segments = source.videos.get(camera) or {index: Segment(source.files[index], 0.0, 0.0) for index in episodes}
        places[camera] = [(os.path.relpath(segments[i].path, root), *segments[i][1:]) for i in episodes]
    files = {}
    for name in sorted({name for camera in cameras for name, *_ in places[camera]}):
        try:
            status = (root / name).stat()
        except OSError as error:
            raise DatasetError(f"dataset {source.name}: {root / name} cannot be read ({error.strerror})") from error
        files[name] = [status.st_size, status.st_mtime_ns]
    identity = [RULE, UNIT_FRAMES, dataset_fingerprint(source), places, files, list(resolution), source.video_backend]
    identity.append(counts_frames(source))
    digest = hashlib.blake2b(json.dumps(identity).encode(), digest_size=16)
    digest.update((root / "meta" / "info.json").read_bytes())
    for key in ("timestamp", "frame_index"):
        if key in source.columns:
            digest.update(np.ascontiguousarray(source.columns[key]).tobytes())
    return digest.hexdigest()


class Unit(NamedTuple):
    """What one worker decodes in one go: rows of consecutive episodes that lie in the same file."""

    camera: str
    start: int
    end: int


def make_units(source: Source, cameras: list[str]) -> list[Unit]:
    """All frames of the cameras, cut between episodes."""
    units: list[Unit] = []
    indices = source.columns["episode_index"][source.starts].tolist()
    for camera in cameras:
        before = None  # of the unit that still grows: last episode and file
        for index, start, end in zip(indices, source.starts.tolist(), source.ends.tolist(), strict=True):
            path = source.videos[camera][index].path if camera in source.videos else None
            if before == (index - 1, path) and end - units[-1].start <= UNIT_FRAMES:
                units[-1] = units[-1]._replace(end=end)
            else:
                units.append(Unit(camera, start, end))
            before = (index, path)
    return units


@dataclass
class UnitWriter(Dataset):
    """Item ``n`` is unit ``n``, decoded and written; its value, the number of frames."""

    source: Source
    cache: FrameCache
    units: list[Unit]
    resolution: tuple[int, int]

    def marker(self, number: int) -> Path:
        """The empty file that says that the unit is on the disk."""
        return self.cache.folder / "done" / str(number)

    def __getitem__(self, number: int) -> int:
        camera, start, end = self.units[number]
        size = self.cache.sizes[camera]
        try:
            with self.cache.path(camera).open("r+b") as file:
                file.seek(start * self.cache.frame_bytes(camera))
                for block in batched(read_pictures(self.source, camera, range(start, end)), BLOCK):
                    file.write(resize(torch.stack(block), self.resolution, size).contiguous().numpy().tobytes())
                file.flush()
                os.fsync(file.fileno())
            self.marker(number).touch()
        except OSError as error:  # a full disk; here, because a worker's OSError arrives without its strerror
            raise DatasetError(f"the frame cache {self.cache.folder} cannot be written: {error}") from error
        return end - start


def _build(source: Source, cache: FrameCache, resolution: tuple[int, int], loader_kwargs: dict[str, Any]) -> None:
    """Decode what an earlier build has not, then give the folder its name."""
    partial = replace(cache, folder=cache.folder.with_name(f"{cache.folder.name}.partial"), _maps={})
    writer = UnitWriter(source, partial, make_units(source, list(cache.sizes)), resolution)
    (partial.folder / "done").mkdir(parents=True, exist_ok=True)
    todo = [number for number in range(len(writer.units)) if not writer.marker(number).exists()]
    for camera in cache.sizes:
        with partial.path(camera).open("ab") as file:
            file.truncate(cache.frames * cache.frame_bytes(camera))  # sparse: takes space as it is written
    frames = [unit.end - unit.start for unit in writer.units]
    needed = sum(frames[number] * cache.frame_bytes(writer.units[number].camera) for number in todo)
    free = shutil.disk_usage(partial.folder).free
    if needed > free:
        raise DatasetError(
            f"dataset.frame_cache: {partial.folder.parent} has {free / 1e9:.2f} GB free, and the frames of "
            f"{source.name} need {needed / 1e9:.2f} GB more; make room or choose another folder"
        )
    total, done = sum(frames), sum(frames) - sum(frames[number] for number in todo)
    begun = f", {done} of them there already" if done else ""
    logger.info("%s %s: decoding %d pictures%s to %s", TAG, source.name, total, begun, partial.folder)
    start = last_log = time.monotonic()
    with progress_bar(total, done, desc="Frame cache", unit="picture") as bar:
        before = done
        for count in Loader(writer, sampler=todo, batch_size=None, **loader_kwargs):
            done += count
            bar.update(count)
            if time.monotonic() - last_log >= LOG_SECONDS:
                last_log = time.monotonic()
                left = (total - done) * (last_log - start) / (done - before)
                logger.info("%s %s: %d of %d pictures, %.0f s left", TAG, source.name, done, total, left)
    shutil.rmtree(partial.folder / "done")
    (partial.folder / "cache.json").write_text(partial.stamp())
    give_name(partial.folder, cache.folder)
