"""Our cloning and our RL beside stock ``lerobot-train`` with π0.5: samples per second, time to first steps, memory.

    python benchmarks/vs_lerobot.py CONFIG [--repeats 3] [--steps 200] [--write-docs]

Every run is a process of its own on the same dataset, sizes, batch and threads; variants alternate, so that a slow
minute meets all of them. Ratios are taken within one round of runs. Samples per second count from the tenth logged
step on, by the clock of this process; memory is the process's largest resident set. Stock's π0.5 at these sizes is
``benchmarks/stock_pi05``; it pads text to 200 tokens, as its default is, and once more to what ours allows at most.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from docs_section import write_section

LOG_EVERY = 10
STEP_LINE = {"stock": re.compile(r"\bstep:(\S+) "), "ours": re.compile(r"Optimization step: (\d+)/")}


class Run(NamedTuple):
    """What one process showed."""

    samples_per_s: float
    first_steps_s: float  # from the process's start to its tenth step
    peak_mb: float


def stock_command(config: dict, steps: int, output: Path, text: int) -> list[str]:
    """``lerobot-train`` with the sizes of ``config``."""
    sizes = {key: value for key, value in config["policy"].items() if key in SIZES}
    sizes |= {"tokenizer_max_length": text, "device": config["policy"].get("device", "cpu"), "push_to_hub": False}
    dataset, policy = config["dataset"], {key: json.dumps(value).strip('"') for key, value in sizes.items()}
    return [
        *(sys.executable, __file__, "--stock", "--policy.type=stock_pi05", f"--dataset.repo_id={dataset['repo_id']}"),
        *(f"--dataset.root={dataset['root']}", f"--dataset.video_backend={dataset['video_backend']}"),
        *(f"--batch_size={config['batch_size']}", f"--num_workers={config['num_workers']}", f"--steps={steps}"),
        *(f"--log_freq={LOG_EVERY}", "--save_checkpoint=false", f"--output_dir={output}", "--seed=0"),
        *(f"--policy.{key}={value}" for key, value in policy.items()),
    ]


def our_command(path: Path, steps: int, output: Path, *overrides: str) -> list[str]:
    """``pi05-rl offline`` without held-out evaluations, which stock does not make either."""
    return [
        *(sys.executable, "-m", "lerobot_policy_pi05_rl.offline_learner", str(path)),
        *(f"--policy.offline_steps={steps}", f"--log_freq={LOG_EVERY}", "--save_checkpoint=false", "--eval_steps=0"),
        *(f"--output_dir_offline={output}", "--seed=0", *overrides),
    ]


def measure(command: list[str], kind: str, steps: int, batch: int) -> Run:
    """Run to the end.

    Raises:
        RuntimeError: it failed, with the end of what it printed.
    """
    environment = {**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    began, times, tail = time.perf_counter(), [], []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    for line in process.stdout:
        if STEP_LINE[kind].search(line):
            times.append(time.perf_counter())
        tail = [*tail[-20:], line]
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or len(times) != steps // LOG_EVERY:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(tail)}")
    samples = (len(times) - 1) * LOG_EVERY * batch
    return Run(samples / (times[-1] - times[0]), times[0] - began, usage.ru_maxrss / 1024)


def report(results: dict[str, list[Run]]) -> str:
    """A table: medians, and the ratio to stock within each round with its spread."""
    stock = next(iter(results.values()))
    lines = [
        "| run | samples/s | × stock | 10 steps after (s) | peak memory (MB) |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in results.items():
        ratios = sorted(run.samples_per_s / base.samples_per_s for run, base in zip(runs, stock, strict=True))
        ratio = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        cells = [f"{median(run[field] for run in runs):.{digits}f}" for field, digits in ((0, 1), (1, 1), (2, 0))]
        lines.append(f"| {name} | {cells[0]} | {ratio} | {cells[1]} | {cells[2]} |")
    return "\n".join(lines)


def train_stock(arguments: list[str]) -> None:
    """``lerobot-train``, which finds ``stock_pi05``."""
    import stock_pi05  # noqa: F401 – registers the policy
    from lerobot.scripts.lerobot_train import main as lerobot_train

    sys.argv = ["lerobot-train", *arguments]
    lerobot_train()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--dataset-root", help="in place of the configuration's")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    args = parser.parse_args()
    config = json.loads(args.config.read_text())
    root = args.dataset_root or config["dataset"]["root"]
    config["dataset"]["root"] = root
    steps, batch = args.steps, config["batch_size"]
    text = config["policy"]["tokenizer_max_length"]
    with tempfile.TemporaryDirectory() as folder:

        def ours(*overrides: str) -> Callable[[Path], list[str]]:
            return lambda output: our_command(args.config, steps, output, f"--dataset.root={root}", *overrides)

        variants: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
            "lerobot-train, π0.5": ("stock", lambda output: stock_command(config, steps, output, 200)),
            f"lerobot-train, π0.5, text to {text}": (
                "stock",
                lambda output: stock_command(config, steps, output, text),
            ),
            "ours, cloning": ("ours", ours("--policy.policy_extraction=none")),
            "ours, RL, one critic": ("ours", ours("--policy.critic_folds=1", "--policy.advantage_n_step=null")),
            "ours, RL, as configured": ("ours", ours()),
        }
        results: dict[str, list[Run]] = {name: [] for name in variants}
        for repeat in range(args.repeats):
            for number, (name, (kind, command)) in enumerate(variants.items()):
                run = measure(command(Path(folder) / f"{repeat}_{number}"), kind, steps, batch)
                results[name].append(run)
                print(f"round {repeat + 1}: {name}: {run.samples_per_s:.1f} samples/s", flush=True)
    table = report(results)
    print(table)
    if args.write_docs:
        write_section("vs_lerobot", f"python benchmarks/vs_lerobot.py {args.config} --repeats {args.repeats}", table)


SIZES = (
    *("llm_width", "llm_mlp_dim", "llm_depth", "expert_width", "expert_mlp_dim", "head_dim", "num_kv_heads"),
    *("vision_width", "vision_mlp_dim", "vision_depth", "vision_heads", "vision_patch_size", "image_resolution"),
    *("vocab_size", "chunk_size", "n_action_steps", "max_action_dim", "max_state_dim", "tokenizer"),
    "critic_llm_depth",
)

if __name__ == "__main__":
    if sys.argv[1:2] == ["--stock"]:
        train_stock(sys.argv[2:])
    else:
        main()
