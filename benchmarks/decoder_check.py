"""Every frame of a dataset as this package reads it, beside LeRobot's own reader: how many differ, how many fail.

python benchmarks/decoder_check.py                 a recording by each encoder that LeRobot has, and images in Parquet
python benchmarks/decoder_check.py DATASET_ROOT    every frame of every camera of a dataset
    --backend pyav|torchcodec    what reads videos here (LeRobot's reader is the same, or pyav if that fails)

Frames are read in random order, in a run, and from a frame cache. A frame that LeRobot's reader does not find is
compared with the file decoded from its beginning. Exits with 1 if one frame differs or cannot be read.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch import Tensor

from lerobot_policy_pi05_rl.data.files.folder import open_dataset
from lerobot_policy_pi05_rl.data.pictures.cameras import is_camera, is_depth, picture_shape
from lerobot_policy_pi05_rl.data.pictures.decoding import read_picture, read_pictures
from lerobot_policy_pi05_rl.data.pictures.frame_cache import open_frame_cache
from lerobot_policy_pi05_rl.data.sources import DatasetError, Source, load_source

CAMERA = "observation.images.front"
FPS, SIZE, LENGTHS = 30, 64, (40, 71, 9)
OPEN_GROUPS = {"bf": 3, "x264-params": "open-gop=1"}
ENCODERS = {
    "h264": {"vcodec": "h264"},
    "h264, g=None": {"vcodec": "h264", "g": None},
    "h264, g=250, B-frames": {"vcodec": "h264", "g": 250, "extra_options": {"bf": 3}},
    "h264, open groups": {"vcodec": "h264", "g": 12, "extra_options": OPEN_GROUPS},
    "hevc": {"vcodec": "hevc"},
    "hevc, g=None": {"vcodec": "hevc", "g": None},
    "hevc, g=12": {"vcodec": "hevc", "g": 12},
    "libsvtav1": {},
    "libsvtav1, g=None": {"g": None},
    "libsvtav1, g=30": {"g": 30},
    "images": None,
}


def record(root: Path, encoder: RGBEncoderConfig | None) -> Path:
    """Three episodes of a moving texture as LeRobot records them, in one file; None: images."""
    kind = "image" if encoder is None else "video"
    features = {
        CAMERA: {"dtype": kind, "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]},
        **{key: {"dtype": "float32", "shape": (2,), "names": None} for key in ("observation.state", "action")},
    }
    dataset = LeRobotDataset.create(
        "local/codec",
        fps=FPS,
        features=features,
        root=root,
        use_videos=encoder is not None,
        rgb_encoder=encoder,
        video_backend="pyav",
    )
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    for length in LENGTHS:
        for step in range(length):
            picture = np.roll(texture, 2 * step, axis=1)
            picture[:8] = rng.integers(0, 255, (8, SIZE, 3), dtype=np.uint8)
            vectors = dict.fromkeys(("observation.state", "action"), np.zeros(2, np.float32))
            dataset.add_frame({CAMERA: picture, **vectors, "task": "look"})
        dataset.save_episode()
    dataset.finalize()
    return root


def references(dataset: LeRobotDataset, source: Source, camera: str) -> tuple[list[Tensor], int]:
    """Every row's picture by LeRobot, and how many of them it did not find."""
    pictures, unfound = [], 0
    whole: dict[Path, tuple[np.ndarray, list[Tensor]]] = {}
    for row in range(len(source.columns["index"])):
        try:
            picture = dataset[row][camera]
            pictures.append(picture if picture.dtype == torch.uint8 else (picture * 255).round().to(torch.uint8))
        except Exception:  # LeRobot's several; the frame is then looked for without seeking
            unfound += 1
            segment = source.videos[camera][int(source.columns["episode_index"][row])]
            if segment.path not in whole:
                whole = {segment.path: decode_whole(segment.path)}
            times, frames = whole[segment.path]
            pictures.append(frames[np.abs(times - segment.start - source.columns["timestamp"][row]).argmin()])
    return pictures, unfound


def decode_whole(path: Path) -> tuple[np.ndarray, list[Tensor]]:
    """Times (s) and (3, H, W) pictures of a file, from its beginning to its end."""
    with av.open(str(path)) as container:
        shown = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return np.array([time for time, _ in shown]), [torch.from_numpy(picture).permute(2, 0, 1) for _, picture in shown]


def compare(expected: list[Tensor], rows: list[int], read: Callable[[int], Tensor]) -> tuple[int, int]:
    """(different, unreadable) of the rows."""
    different = unreadable = 0
    for row in rows:
        try:
            different += not torch.equal(read(row), expected[row])
        except DatasetError:
            unreadable += 1
    return different, unreadable


def in_a_run(source: Source, camera: str) -> Callable[[int], Tensor]:
    """Reads ascending rows, file by file, each in one pass."""

    def pictures() -> Iterator[Tensor]:
        rows = range(len(source.columns["index"]))
        paths = [segments[int(e)].path for e in source.columns["episode_index"]] if segments else [None] * len(rows)
        begin = 0
        for row in rows:
            if row + 1 == len(rows) or paths[row + 1] != paths[row]:
                yield from read_pictures(source, camera, range(begin, row + 1))
                begin = row + 1

    segments, run = source.videos.get(camera), None

    def read(row: int) -> Tensor:
        nonlocal run
        run = pictures() if row == 0 else run
        try:
            return next(run)
        except StopIteration:
            raise DatasetError("the run ended early") from None

    return read


def from_cache(source: Source, camera: str, folder: Path) -> Callable[[int], Tensor]:
    """Reads rows from a frame cache at the recorded size."""
    side = max(picture_shape(camera, source.dataset.meta.features[camera])[1:])
    cache = open_frame_cache(folder, source, cameras=[camera], resolution=(side, side), loader_kwargs={})
    return partial(cache.read, camera)


def check_camera(name: str, dataset: LeRobotDataset, source: Source, camera: str, folder: Path) -> int:
    """Print the camera's line; returns how many reads were not as they should be."""
    expected, unfound = references(dataset, source, camera)
    rows = list(range(len(expected)))
    shuffled = np.random.default_rng(0).permutation(rows).tolist()
    try:
        cached = compare(expected, rows, from_cache(source, camera, folder))
    except DatasetError:
        cached = (0, len(rows))
    found = {
        "random order": compare(expected, shuffled, partial(read_picture, source, camera)),
        "in a run": compare(expected, rows, in_a_run(source, camera)),
        "frame cache": cached,
    }
    counts = ", ".join(f"{how} {different}/{failed}" for how, (different, failed) in found.items())
    print(
        f"{name:22} {len(rows):6} frames; different/unreadable: {counts}; LeRobot's unreadable {unfound}", flush=True
    )
    return sum(map(sum, found.values()))


def check(name: str, root: Path, backend: str, folder: Path) -> int:
    """Print a line for each camera; returns how many reads were not as they should be."""
    dataset = LeRobotDataset("local/codec", root=root, video_backend=backend, return_uint8=True)
    source = load_source("own", open_dataset("local/codec", root), backend)
    cameras = [key for key, feature in dataset.meta.features.items() if is_camera(feature) and not is_depth(feature)]
    return sum(check_camera(name, dataset, source, camera, folder / "frames") for camera in cameras)


def main() -> int:
    """Check a dataset, or one of each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path)
    parser.add_argument("--backend", default="pyav", choices=("pyav", "torchcodec"))
    parser.add_argument("--only", help="encoders whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.root is not None:
            return min(1, check(args.root.name, args.root, args.backend, folder))
        wrong = 0
        for number, (encoder, options) in enumerate(ENCODERS.items()):
            if args.only is None or args.only in encoder:
                config = None if options is None else RGBEncoderConfig(**options)
                wrong += check(encoder, record(folder / str(number), config), args.backend, folder)
    print(f"{wrong} reads were not as they should be")
    return min(1, wrong)


if __name__ == "__main__":
    sys.exit(main())
