"""Where a sample's time goes before the network sees it, and who waits for whom.

    python benchmarks/profile_data.py CONFIG [--batches 40] [--skip 5] [--key=value …]

First the configuration's loader alone, as fast as it goes; then the same loader under the configuration's own training
steps. The workers time themselves: reading the pictures (decoding, or the frame cache), the rest of a sample (columns,
image transforms), putting a batch together. Nothing is saved.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from lerobot_policy_pi05_rl.command.run import set_up_logging
from lerobot_policy_pi05_rl.config.arguments import split_config_path
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.resolve import resolved
from lerobot_policy_pi05_rl.config.train import PI05RLTrainConfig
from lerobot_policy_pi05_rl.data.dataset import OfflineData
from lerobot_policy_pi05_rl.data.frames import FrameDataset
from lerobot_policy_pi05_rl.data.loaders import make_train_loader, to_device
from lerobot_policy_pi05_rl.training.start import prepare

PARTS = ("pictures", "other columns", "collate")
SECONDS = "seconds_in_worker"  # the key under which they travel


class TimedFrames(FrameDataset):
    """The run's samples with the seconds that each took: (pictures, everything)."""

    def __init__(self, frames: FrameDataset):
        self.__dict__.update(frames.__dict__)

    def __getitem__(self, address: tuple[int, int]) -> dict[str, Tensor | str]:
        begin, self.reading = time.perf_counter(), 0.0
        sample = super().__getitem__(address)
        return {**sample, SECONDS: (self.reading, time.perf_counter() - begin)}

    def _picture(self, number: int, camera: str, row: int) -> Tensor:
        begin = time.perf_counter()
        picture = super()._picture(number, camera, row)
        self.reading += time.perf_counter() - begin
        return picture


def timed_collate(samples: list[dict]) -> dict:
    """A batch with the seconds of :data:`PARTS` that it took a worker."""
    begin = time.perf_counter()
    reading, whole = (sum(values) for values in zip(*(sample.pop(SECONDS) for sample in samples), strict=True))
    batch = default_collate(samples)
    return {**batch, SECONDS: (reading, whole - reading, time.perf_counter() - begin)}


@dataclass
class Watch:
    """What the consumer of the batches sees."""

    waited: float = 0.0
    batches: int = 0
    seconds: tuple[float, ...] = (0.0, 0.0, 0.0)  # of PARTS, over all workers

    def over(self, loader: DataLoader) -> Iterator[dict]:
        """The loader's batches, without the workers' times."""
        iterator = iter(loader)
        while True:
            begin = time.perf_counter()
            batch = next(iterator, None)
            if batch is None:
                return
            self.waited += time.perf_counter() - begin
            self.batches += 1
            self.seconds = tuple(a + b for a, b in zip(self.seconds, batch.pop(SECONDS), strict=True))
            yield batch


def timed_loader(cfg: PI05RLTrainConfig, data: OfflineData, batches: int) -> DataLoader:
    """The run's loader, timed."""
    order = make_train_loader(data, batch_size=cfg.batch_size, batches=batches).batch_sampler
    kwargs = data.workers.loader_kwargs
    return DataLoader(TimedFrames(data.train), batch_sampler=order, collate_fn=timed_collate, **kwargs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--batches", type=int, default=40, help="measured batches")
    parser.add_argument("--skip", type=int, default=5, help="batches before them, in which files are opened")
    args, rest = parser.parse_known_args()
    set_up_logging()
    path, overrides = split_config_path(rest)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        cfg = resolved(load_config(path, [*overrides, f"--output_dir_offline={folder}/run"]))
        data, algorithm, _ = prepare(cfg, None)
        device = next(algorithm.policy.parameters()).device
        samples = args.batches * cfg.batch_size

        alone, moving = Watch(), 0.0
        for batch in alone.over(timed_loader(cfg, data, args.skip + args.batches)):
            if alone.batches == args.skip:
                alone.seconds, began, moving = (0.0,) * len(PARTS), time.perf_counter(), 0.0
            begin = time.perf_counter()
            to_device(batch, device)
            if device.type == "cuda":
                torch.cuda.synchronize()
            moving += time.perf_counter() - begin
        capacity = samples / (time.perf_counter() - began)

        watch, skipped = Watch(), Watch()
        batches = watch.over(timed_loader(cfg, data, (args.skip + args.batches) * algorithm.batches_per_step))
        for step in range(args.skip + args.batches):
            if step == args.skip:
                skipped = Watch(watch.waited, watch.batches, watch.seconds)
                began = time.perf_counter()
            algorithm.update(batches)
        wall = time.perf_counter() - began
        batches.close()

    table = Table(title=f"one sample, {cfg.num_workers} worker(s), batches of {cfg.batch_size}")
    for heading in ("part", "ms", "share"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    parts = {**dict(zip(PARTS, alone.seconds, strict=True)), f"to {device} as float": moving}
    for name, seconds in parts.items():
        table.add_row(name, f"{seconds / samples * 1e3:.3f}", f"{seconds / sum(parts.values()):.1%}")
    console.print(table)
    drawn = (watch.batches - skipped.batches) * cfg.batch_size
    waited = watch.waited - skipped.waited
    console.print(f"the loader alone gives {capacity:.0f} samples per second; training takes {drawn / wall:.0f}")
    console.print(f"training waits for data {waited / wall:.1%} of its time")
    if cfg.num_workers:
        busy = (sum(watch.seconds) - sum(skipped.seconds)) / (wall * cfg.num_workers)
        console.print(f"workers are idle {max(0.0, 1.0 - busy):.1%} of that time")


if __name__ == "__main__":
    main()
