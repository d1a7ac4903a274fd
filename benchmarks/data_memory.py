"""Memory and start-up of a run on a small and on a large dataset.

    python benchmarks/data_memory.py [--copies 100] [--steps 300] [--write-docs]

The datasets hold the same 2,000 recorded frames once and ``--copies`` times (``synthetic_dataset.py``: genuine
LeRobot v3, two cameras, video). Each run is a process of its own that trains the demo's model with two workers. Memory
is anonymous memory, of which the page cache is no part: what the main process and its workers hold together at most,
pages that they share counted once (Linux, /proc/PID/smaps_rollup).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

BEGIN = time.perf_counter()

from docs_section import write_section  # noqa: E402  (imports are a part of the start-up)

CONFIG = Path(__file__).parents[1] / "configs" / "demo.json"
EPISODES, LENGTH = 10, 200
SAMPLE_EVERY = 10  # steps
LIMIT = 5.0  # MB per 1000 frames


def train_and_measure(root: Path, steps: int) -> dict[str, float]:
    """Seconds of each part of the start-up, and bytes at most."""
    import torch

    from lerobot_policy_pi05_rl.config.file import load_config
    from lerobot_policy_pi05_rl.config.resolve import resolved
    from lerobot_policy_pi05_rl.data import dataset, loaders
    from lerobot_policy_pi05_rl.training.start import prepare

    found = {"import": time.perf_counter() - BEGIN}
    torch.set_num_threads(1)

    def timed(name: str, function: Callable) -> Callable:
        def measured(*args, **kwargs):
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            found[name] = time.perf_counter() - begin
            return result

        return measured

    dataset.open_sources = timed("open", dataset.open_sources)
    dataset.label_episodes = timed("label", dataset.label_episodes)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"--dataset.root={root}", f"--output_dir_offline={folder}/run", "--num_workers=2"]
        cfg = resolved(load_config(CONFIG, overrides))
        begin = time.perf_counter()
        data, algorithm, _ = prepare(cfg, None)
        found["model and the rest"] = time.perf_counter() - begin - found["open"] - found["label"]
        begin = time.perf_counter()
        last = steps * algorithm.batches_per_step
        batches = iter(loaders.make_train_loader(data, batch_size=cfg.batch_size, batches=last))
        algorithm.update(batches)
        found["first step"] = time.perf_counter() - begin
        found["start-up"] = time.perf_counter() - BEGIN
        main, all_ = 0, 0
        for step in range(1, steps):
            algorithm.update(batches)
            if step % SAMPLE_EVERY == 0:
                processes = [anonymous_bytes(pid) for pid in ("self", *children())]
                main, all_ = max(main, processes[0]), max(all_, sum(processes))
    return {**found, "main": main, "all": all_, "frames": len(data.train) + len(data.held_out or ())}


def anonymous_bytes(pid: str) -> int:
    """The process's proportional share of its anonymous pages."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))


def children() -> list[str]:
    """Process numbers of this process's own children (all its threads')."""
    return [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def main() -> None:
    """Make the datasets, measure both, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=100)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(train_and_measure(args.measure, args.steps)))
        return
    from synthetic_dataset import check, copy_episodes, record

    runs = []
    with tempfile.TemporaryDirectory() as folder:
        small = record(Path(folder) / "small", EPISODES, LENGTH)
        large = copy_episodes(small, Path(folder) / "large", args.copies)
        check(small, large)
        for root in (small, large):
            command = [sys.executable, __file__, "--measure", str(root), "--steps", str(args.steps)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": f"{folder}/cache"}
            result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(result.stdout.splitlines()[-1]))
    body = report(*runs)
    print(body)
    if args.write_docs:
        write_section("data_memory", "python benchmarks/data_memory.py", body)


def report(small: dict[str, float], large: dict[str, float]) -> str:
    """The table, and the growth per 1000 frames beside its limit."""
    lines = [
        "| frames | " + " | ".join(f"{run['frames']:,}" for run in (small, large)) + " |",
        "| --- | ---: | ---: |",
    ]
    for key, words in (("main", "main process"), ("all", "with its workers")):
        lines.append(f"| memory, {words} (MB) | {small[key] / 1e6:.0f} | {large[key] / 1e6:.0f} |")
    for key in ("import", "open", "label", "model and the rest", "first step", "start-up"):
        lines.append(f"| {key} (s) | {small[key]:.1f} | {large[key]:.1f} |")
    growth = (large["all"] - small["all"]) / 1e6 / ((large["frames"] - small["frames"]) / 1e3)
    verdict = "met" if growth <= LIMIT else "missed"
    return "\n".join(lines) + f"\n\n{growth:.2f} MB more per 1000 frames; goal {LIMIT:g}: {verdict}."


if __name__ == "__main__":
    main()
