"""What the decoded-frame cache saves: time per sample from the codec beside the cache, disk, and time to build.

python benchmarks/frame_cache.py CONFIG [--key=value …]   (builds the cache in dataset.frame_cache, or in a temporary
folder)
"""

import sys
import tempfile
import time

import numpy as np
import torch

from lerobot_policy_pi05_rl.cli import split_config_path
from lerobot_policy_pi05_rl.config import load_config
from lerobot_policy_pi05_rl.data.loading import open_offline_data

SAMPLES = 200
ROUNDS = 5


def main() -> None:
    """Alternate the two over the same random samples; print CPU milliseconds a sample and the ratio per round."""
    torch.set_num_threads(1)
    path, overrides = split_config_path(sys.argv[1:])
    with tempfile.TemporaryDirectory() as temporary:
        cfg = load_config(path, overrides)
        cfg.validate()
        folder, cfg.dataset.frame_cache = cfg.dataset.frame_cache or temporary, None
        decoded = open_offline_data(cfg).train
        cfg.dataset.frame_cache = folder
        begin = time.perf_counter()
        cached = open_offline_data(cfg).train
        opened = time.perf_counter() - begin
        frames, size = (sum(getattr(cache, name) for cache in cached.caches) for name in ("frames", "bytes"))
        print(f"{frames} frames, {size / 1e6:.1f} MB; opened (and built, if it was not there) in {opened:.1f} s")
        numbers = np.random.default_rng(0).integers(0, len(decoded), SAMPLES).tolist()
        ratios = []
        for _ in range(ROUNDS):
            milliseconds = {}
            for name, data in (("decoded", decoded), ("cached", cached)):
                begin = time.process_time()
                for number in numbers:
                    data[(0, number)]
                milliseconds[name] = (time.process_time() - begin) / SAMPLES * 1000
            ratios.append(milliseconds["decoded"] / milliseconds["cached"])
            times = ", ".join(f"{name} {value:.3f} ms" for name, value in milliseconds.items())
            print(f"{times}, ratio {ratios[-1]:.1f}")
        spread = f"min {min(ratios):.1f}, max {max(ratios):.1f}"
        print(f"median ratio over {ROUNDS} rounds: {np.median(ratios):.1f} ({spread})")


if __name__ == "__main__":
    main()
