"""What a frame of video costs: CPU time of a random access, bytes on disk; defaults of benchmarks/scaling.py.

    python benchmarks/scaling_codec.py [--height 480] [--width 640] [--codec h264]

A static textured scene with a moving square and a camera's noise, recorded by LeRobot, read as training reads it.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_policy_pi05_rl.data.pictures.video import read_frame
from lerobot_policy_pi05_rl.data.sources import load_source

CAMERA = "observation.images.front"
FRAMES, NOISE = 120, 3  # NOISE: standard deviation, of 255 levels
BLOCK = 8  # pixels of the texture's squares


def record(root: Path, height: int, width: int, codec: str) -> LeRobotDataset:
    """One episode."""
    features = {
        CAMERA: {"dtype": "video", "shape": (height, width, 3), "names": ["height", "width", "channels"]},
        **{key: {"dtype": "float32", "shape": (1,), "names": None} for key in (OBS_STATE, ACTION)},
    }
    encoder = RGBEncoderConfig(vcodec=codec)
    dataset = LeRobotDataset.create(
        "local/codec",
        fps=30,
        features=features,
        root=root,
        rgb_encoder=encoder,
        streaming_encoding=True,
        encoder_threads=1,
        encoder_queue_maxsize=FRAMES + 1,  # LeRobot drops frames when the queue is full
    )
    rng = np.random.default_rng(0)
    scene = rng.normal(128, 40, (height // BLOCK, width // BLOCK, 3)).repeat(BLOCK, 0).repeat(BLOCK, 1)
    for step in range(FRAMES):
        picture = scene + rng.normal(0, NOISE, scene.shape)
        left = 4 * step % (width - 64)
        picture[height // 2 : height // 2 + 64, left : left + 64] = 250
        numbers = dict.fromkeys((OBS_STATE, ACTION), np.zeros(1, dtype=np.float32))
        dataset.add_frame({CAMERA: picture.clip(0, 255).astype(np.uint8), **numbers, "task": "none"})
    dataset.save_episode()
    dataset.finalize()
    return LeRobotDataset("local/codec", root=root)


def main() -> None:
    """Record, read in random order, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--codec", default="h264")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "dataset"
        source = load_source("codec", record(root, args.height, args.width, args.codec), "pyav")
        size = sum(path.stat().st_size for path in (root / "videos").rglob("*.mp4")) / FRAMES
        path, start, _ = source.videos[CAMERA][0]
        times = start + np.random.default_rng(1).permutation(FRAMES) / 30
        begin = time.process_time()
        for timestamp in times:
            read_frame(path, float(timestamp), tolerance_s=1e-3, backend="pyav")
        milliseconds = (time.process_time() - begin) / FRAMES * 1000
    print(f"{args.codec}, {args.height} x {args.width}: {milliseconds:.2f} CPU ms a frame, {size:,.0f} bytes a frame")


if __name__ == "__main__":
    main()
