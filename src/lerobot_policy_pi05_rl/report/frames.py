"""Pictures of a LeRobot v3 dataset by episode and step, from its files: videos or images in the Parquet columns."""

import io
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..errors import UserError


class DatasetFrames:
    """Random access to the camera pictures of a dataset."""

    def __init__(self, root: Path, info: dict[str, Any]):
        self.root, self.info = root, info
        self.cameras = [name for name, feature in info["features"].items() if _is_camera(feature)]
        self._episodes = _read_episodes(root) if self.cameras else {}

    def read(self, episode: int, steps: list[int], camera: str) -> list[Image.Image]:
        """One RGB picture for each of the episode's ``steps`` (ascending frame indices).

        Raises:
            UserError: the episode or its file is missing or cannot be decoded.
        """
        if episode not in self._episodes:
            raise UserError(f"{self.root} has no episode {episode} (there are {len(self._episodes)})")
        row = self._episodes[episode]
        is_video = self.info["features"][camera]["dtype"] == "video"
        path = self._path(row, camera if is_video else None)
        try:
            if is_video:
                begin = float(row[f"videos/{camera}/from_timestamp"])
                return _decode(path, [begin + step / float(self.info["fps"]) for step in steps])
            return _stored_images(path, camera, episode, steps)
        except (OSError, av.error.FFmpegError, pa.ArrowException, IndexError, KeyError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UserError(f"episode {episode} of {path} cannot be decoded ({reason})") from error

    def _path(self, row: dict[str, Any], camera: str | None) -> Path:
        prefix = f"videos/{camera}" if camera else "data"
        template = self.info["video_path" if camera else "data_path"]
        numbers = {name: int(row[f"{prefix}/{name}"]) for name in ("chunk_index", "file_index")}
        path = self.root / template.format(video_key=camera, **numbers)
        if not path.is_file():
            raise UserError(f"the dataset {self.root} lacks {path.relative_to(self.root)}; download it completely")
        return path


def _is_camera(feature: dict[str, Any]) -> bool:
    return feature["dtype"] in ("image", "video") and not (feature.get("info") or {}).get("is_depth_map")


def _read_episodes(root: Path) -> dict[int, dict[str, Any]]:
    """Episode → where its rows and pictures lie (``meta/episodes``), without the statistics."""
    episodes = {}
    for path in sorted((root / "meta" / "episodes").rglob("*.parquet")):
        names = [name for name in pq.read_schema(path).names if name.startswith(("episode_index", "data/", "videos/"))]
        for row in pq.read_table(path, columns=names).to_pylist():
            episodes[int(row["episode_index"])] = row
    return episodes


def _decode(path: Path, timestamps: list[float]) -> list[Image.Image]:
    """The video's frames nearest to ascending ``timestamps`` (s), decoded in one pass."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        container.seek(round(timestamps[0] / stream.time_base), stream=stream)  # to the key frame at or before it
        nearest: list[av.VideoFrame | None] = [None] * len(timestamps)
        for frame in container.decode(stream):
            for number, timestamp in enumerate(timestamps):
                best = nearest[number]
                if best is None or abs(frame.time - timestamp) < abs(best.time - timestamp):
                    nearest[number] = frame
            if frame.time >= timestamps[-1]:
                break
        if any(frame is None for frame in nearest):
            raise IndexError(f"no frame at {timestamps[0]:.3f} s")
        return [frame.to_image() for frame in nearest]


def _stored_images(path: Path, camera: str, episode: int, steps: list[int]) -> list[Image.Image]:
    table = pq.read_table(path, columns=[camera, "frame_index"], filters=[("episode_index", "==", episode)])
    rows = {step: row for row, step in enumerate(table["frame_index"].to_pylist())}
    cells = [table[camera][rows[step]].as_py() for step in steps]
    return [Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in cells]
