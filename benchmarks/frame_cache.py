"""What the decoded-frame cache saves: time per sample from the codec beside the cache, disk, and time to build.

python benchmarks/frame_cache.py CONFIG [--write-docs] [--key=value …]

Builds the cache in dataset.frame_cache, or in a temporary folder.
"""

import sys
import tempfile
import time

import numpy as np
import torch
from docs_section import write_section

from lerobot_policy_pi05_rl.config.arguments import split_config_path
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.resolve import changed, resolved
from lerobot_policy_pi05_rl.data.dataset import open_offline_data
from lerobot_policy_pi05_rl.data.frames import FrameDataset

SAMPLES = 200
ROUNDS = 5


def main() -> None:
    """Alternate the two over the same random samples; print CPU milliseconds a sample and the ratio per round."""
    torch.set_num_threads(1)
    arguments = [argument for argument in sys.argv[1:] if argument != "--write-docs"]
    path, overrides = split_config_path(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        cfg = resolved(load_config(path, overrides))
        without, folder = changed(cfg.dataset, frame_cache=None), cfg.dataset.frame_cache or temporary
        decoded = open_offline_data(changed(cfg, dataset=without)).train
        cfg = changed(cfg, dataset=changed(cfg.dataset, frame_cache=folder))
        begin = time.perf_counter()
        cached = open_offline_data(cfg).train
        opened = time.perf_counter() - begin
        frames, size = (sum(getattr(cache, name) for cache in cached.caches) for name in ("frames", "bytes"))
        numbers = np.random.default_rng(0).integers(0, len(decoded), SAMPLES).tolist()
        rounds = [(milliseconds(decoded, numbers), milliseconds(cached, numbers)) for _ in range(ROUNDS)]
    ratios = [slow / fast for slow, fast in rounds]
    body = "\n".join(
        [
            f"{frames:,} frames, {size / 1e6:.1f} MB; opened (and built, if it was not there) in {opened:.1f} s.",
            "",
            "| CPU ms a sample | median of the rounds | least to most |",
            "| --- | ---: | ---: |",
            *(
                f"| {name} | {np.median(values):.3f} | {min(values):.3f} to {max(values):.3f} |"
                for name, values in zip(("decoded", "from the cache"), zip(*rounds, strict=True), strict=True)
            ),
            f"| ratio | {np.median(ratios):.1f} | {min(ratios):.1f} to {max(ratios):.1f} |",
        ]
    )
    print(body)
    if "--write-docs" in sys.argv:
        write_section("frame_cache", f"python benchmarks/frame_cache.py {' '.join(arguments)}", body)


def milliseconds(data: FrameDataset, numbers: list[int]) -> float:
    """CPU time per sample of reading these frames."""
    begin = time.process_time()
    for number in numbers:
        data[(0, number)]
    return (time.process_time() - begin) / len(numbers) * 1000


if __name__ == "__main__":
    main()
