"""Pictures of a LeRobot v3 dataset by episode and step, from its files: videos or images in the Parquet columns."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.video_utils import FrameTimestampError
from PIL import Image
from torch import Tensor

from ...errors import UserError, typed_line
from ..files.metadata import read_episodes
from .cameras import is_camera, is_depth, picture_shape
from .decoding import EXACT, STORED_ERRORS, check_size, open_stored, rgb
from .video import PYAV, ROUNDING_S, VIDEO_ERRORS, Segment, frame_times, read_frames


class DatasetFrames:
    """Random access to the camera pictures of a dataset."""

    def __init__(self, root: Path, info: dict[str, Any]):
        self.root, self.info = root, info
        self.cameras = [
            name for name, feature in info["features"].items() if is_camera(feature) and not is_depth(feature)
        ]
        self._episodes = read_episodes(root, info) if self.cameras else {}

    def read(self, episode: int, steps: list[int], camera: str) -> list[Image.Image]:
        """One RGB picture for each of the episode's ``steps`` (ascending frame indices).

        Raises:
            UserError: the episode or its file is missing or cannot be decoded.
        """
        if episode not in self._episodes:
            raise UserError(f"{self.root} has no episode {episode} (there are {len(self._episodes)})")
        row, feature = self._episodes[episode], self.info["features"][camera]
        segment = row.videos.get(camera)  # None: the pictures lie in the Parquet file
        path = row.data if segment is None else segment.path
        if not path.is_file():
            raise UserError(f"the dataset {self.root} lacks {path.relative_to(self.root)}; download it completely")
        try:
            if segment is not None:
                found = _video_frames(segment, steps, row.length, float(self.info["fps"]))
            else:
                found = [rgb(image) for image in _stored_images(self.root, path, camera, episode, steps)]
        except (*VIDEO_ERRORS, *STORED_ERRORS, pa.ArrowException, KeyError) as error:
            raise UserError(f"episode {episode} of {path} cannot be decoded ({typed_line(error)})") from error
        for step, picture in zip(steps, found, strict=True):
            check_size(f"{path}: episode {episode}, frame {step}: {camera}", picture, picture_shape(camera, feature))
        return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in found]


def _video_frames(segment: Segment, steps: list[int], length: int, fps: float) -> list[Tensor]:
    """The episode's frames of ascending numbers: where the frame rate says, or counted if the video has another."""
    if abs(segment.end - segment.start - length / fps) <= EXACT / fps:
        times = [segment.start + step / fps for step in steps]
        try:
            return list(read_frames(segment.path, times, tolerance_s=EXACT / fps, backend=PYAV[0]))
        except FrameTimestampError:
            pass  # frames come at uneven times
    shown = frame_times(segment, fps)
    if len(shown) != length:
        raise IndexError(f"it has {len(shown)} frames, the episode {length}")
    return list(read_frames(segment.path, shown[steps].tolist(), tolerance_s=ROUNDING_S, backend=PYAV[0]))


def _stored_images(root: Path, path: Path, camera: str, episode: int, steps: list[int]) -> list[Image.Image]:
    table = pq.read_table(path, columns=[camera, "frame_index"], filters=[("episode_index", "==", episode)])
    rows = {step: row for row, step in enumerate(table["frame_index"].to_pylist())}
    return [open_stored(table[camera][rows[step]].as_py(), root) for step in steps]
