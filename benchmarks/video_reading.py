"""How long one frame takes: LeRobot's pyav reader, which opens the file each time, beside a decoder kept open.

python benchmarks/video_reading.py [DATASET_ROOT]   (default: the demo's dataset)
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets.video_utils import decode_video_frames

from lerobot_policy_pi05_rl.data.files.folder import open_dataset
from lerobot_policy_pi05_rl.data.pictures.video import read_frames
from lerobot_policy_pi05_rl.data.sources import load_source

FRAMES = 200
ROUNDS = 5


def main() -> None:
    """Alternate the two readers over the same random frames; print CPU milliseconds and the ratio per round."""
    torch.set_num_threads(1)
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/demo/dataset")
    source = load_source("benchmark", open_dataset("local/benchmark", root), "pyav")
    camera = source.dataset.meta.video_keys[0]
    rows = np.random.default_rng(0).integers(0, len(source.columns["index"]), FRAMES)
    places = []
    for row in rows:
        path, start, _ = source.videos[camera][int(source.columns["episode_index"][row])]
        places.append((path, start + float(source.columns["timestamp"][row])))
    readers = {
        "opened each time": lambda path, t: decode_video_frames(path, [t], 1e-4, "pyav", return_uint8=True)[0],
        "kept open": lambda path, t: next(read_frames(path, [t], tolerance_s=1e-4, backend="pyav")),
    }
    ratios = []
    for _ in range(ROUNDS):
        milliseconds, frames = {}, {}
        for name, reader in readers.items():
            begin = time.process_time()
            frames[name] = [reader(path, timestamp) for path, timestamp in places]
            milliseconds[name] = (time.process_time() - begin) / FRAMES * 1000
        first, second = frames.values()
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "the readers disagree"
        ratios.append(milliseconds["opened each time"] / milliseconds["kept open"])
        print(" ".join(f"{name}: {value:.2f} ms" for name, value in milliseconds.items()), f"ratio {ratios[-1]:.1f}")
    print(f"median ratio over {ROUNDS} rounds: {np.median(ratios):.1f} (min {min(ratios):.1f}, max {max(ratios):.1f})")


if __name__ == "__main__":
    main()
