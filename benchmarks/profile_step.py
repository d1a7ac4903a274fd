"""Where a training step's time goes, phase by phase, and the largest operators.

    python benchmarks/profile_step.py CONFIG [--steps 10] [--skip 3] [--trace FILE] [--key=value …]

Runs the configuration's own steps (``pi05-rl offline``) under ``torch.profiler``; nothing is saved. On a GPU it also
says how long a step leaves the device idle: the host gap. ``--trace`` writes what chrome://tracing and Perfetto read.
"""

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from lerobot_policy_pi05_rl.command.run import set_up_logging
from lerobot_policy_pi05_rl.config.arguments import split_config_path
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.resolve import resolved
from lerobot_policy_pi05_rl.data.loaders import make_train_loader
from lerobot_policy_pi05_rl.training.start import prepare

PHASES = ("data", "preprocess", "forward", "backward", "clip", "optimizer")  # as recap.py names them
OPERATORS = 12


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--steps", type=int, default=10, help="profiled steps")
    parser.add_argument("--skip", type=int, default=3, help="steps before them, in which allocations settle")
    parser.add_argument("--trace", type=Path, help="write a trace for chrome://tracing")
    args, rest = parser.parse_known_args()
    set_up_logging()
    path, overrides = split_config_path(rest)
    with tempfile.TemporaryDirectory() as folder:
        cfg = resolved(load_config(path, [*overrides, f"--output_dir_offline={folder}/run"]))
        data, algorithm, _ = prepare(cfg, None)
        count = (args.skip + args.steps) * algorithm.batches_per_step
        batches = iter(make_train_loader(data, batch_size=cfg.batch_size, batches=count))
        for _ in range(args.skip):
            algorithm.update(batches)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        with profile(activities=activities) as profiler:
            began = time.perf_counter()
            for _ in range(args.steps):
                algorithm.update(batches)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            wall = time.perf_counter() - began
    if args.trace:
        profiler.export_chrome_trace(str(args.trace))
    report(profiler, wall, args.steps)


def report(profiler: profile, wall: float, steps: int) -> None:
    """Print the phases of a step, the device's share where there is one, and the largest operators."""
    console, averages = Console(), profiler.key_averages()
    by_name = {event.key: event for event in averages if event.key in PHASES}
    table = Table(title=f"one step of {steps}: {wall / steps * 1e3:.1f} ms")
    for heading in ("phase", "ms", "share"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    seconds = {name: by_name[name].cpu_time_total * 1e-6 for name in PHASES if name in by_name}
    for name, spent in {**seconds, "elsewhere on the host": wall - sum(seconds.values())}.items():
        table.add_row(name, f"{spent / steps * 1e3:.1f}", f"{spent / wall:.1%}")
    console.print(table)
    busy = sum(event.self_device_time_total for event in averages) * 1e-6
    if busy:
        console.print(
            f"device busy {busy / wall:.1%} of the time; host gap {(wall - busy) / steps * 1e3:.1f} ms a step"
        )
    attribute = "self_device_time_total" if busy else "self_cpu_time_total"
    operators = [event for event in averages if event.key not in PHASES]
    table = Table(title="largest operators (own time)")
    for heading in ("operator", "calls a step", "ms", "share"):
        table.add_column(heading, justify="left" if heading == "operator" else "right")
    for event in islice(sorted(operators, key=lambda event: -getattr(event, attribute)), OPERATORS):
        spent = getattr(event, attribute) * 1e-6
        table.add_row(
            event.key, f"{event.count / steps:.0f}", f"{spent / steps * 1e3:.2f}", f"{spent / (busy or wall):.1%}"
        )
    console.print(table)


if __name__ == "__main__":
    main()
