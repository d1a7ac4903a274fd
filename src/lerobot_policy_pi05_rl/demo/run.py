"""The demo: simulator → dataset → cloning, and RL with one command → closed-loop comparison → report.

    pi05-rl demo [--output outputs/demo] [--config configs/demo.json] …

As people work: both policies start from the same pretrained one (``pretrained/``, made by ``pretrain.py``) and take
as many steps on the same recording. One clones it. The other is what ``pi05-rl offline`` makes of it: critics learn,
label the recording, and the policy trains under those labels. Both meet the same start states. Each stage is skipped
when its result is already there, so an interrupted demo goes on where it stopped.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..command.run import run_as_script
from ..config.file import load_config
from ..errors import UserError
from ..report.build import main as write_report
from .evaluate import ClosedLoopResult, summarize
from .intervals import throughput_ratio
from .pretrain import PRETRAINED
from .record import record_dataset

logger = logging.getLogger(__name__)

LABELS = {"bc": "behaviour cloning", "recap": "RECAP (this project)"}
REPO_ID = "local/panda_pick_cube"
CRITIC_STEPS = 600  # of the critics alone, before the labels
CLEARLY = 1.0  # the ratio's interval must lie above
POLL_S = 2.0
REPORT_S = 30.0


def main(argv: list[str]) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="pi05-rl demo", description="simulator → dataset → RL → comparison")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--config", type=Path, default=Path("configs/demo.json"), help="what both policies train with")
    parser.add_argument("--episodes", type=int, default=120, help="demonstrations to record")
    parser.add_argument("--start", type=Path, default=PRETRAINED, help="the policy that both start from")
    parser.add_argument("--steps", type=int, help="optimization steps of each policy (default: those left)")
    parser.add_argument("--critic-steps", type=int, default=CRITIC_STEPS, help="of RECAP's critics, before its policy")
    parser.add_argument("--eval-episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of recording, training and evaluation")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    critics, last = args.critic_steps, load_config(args.config).policy.offline_steps
    steps = args.steps or last - critics
    args.output.mkdir(parents=True, exist_ok=True)

    try:
        dataset = record_dataset(args.output / "dataset", REPO_ID, args.episodes, args.seed)
    except (FileExistsError, ValueError) as error:
        raise UserError(str(error)) from error
    runs = {
        "bc": (steps, ["--policy.policy_extraction=none"]),
        "recap": (critics + steps, [f"--policy.critic_warmup_steps={critics}"]),
    }
    train(args, dataset, runs)
    results = evaluate_policies(args, {name: name for name in LABELS})
    results_file = args.output / "results.json"
    results_file.write_text(json.dumps(results, indent=1) + "\n")
    picture = draw_comparison(results, args.output / "results.png")
    print_table(results, LABELS)
    page = args.output / "report.html"
    write_report([str(args.output / "recap"), "--output", str(page)])
    print(verdict(results, page))
    seconds = time.perf_counter() - start
    logger.info("[DEMO] Wrote %s, %s and %s; %.0f s in all", results_file, picture, page, seconds)
    return 0


def train(args: argparse.Namespace, dataset: Path, runs: dict[str, tuple[int, list[str]]]) -> None:
    """Train each run with ``pi05-rl offline`` in a process of its own, side by side, unless it is there.

    Args:
        runs: name → its last step, and overrides of the configuration.
    """
    commands = {}
    for name, (steps, overrides) in runs.items():
        run_dir = args.output / name
        if saved_step(run_dir) >= steps:
            logger.info("[DEMO] Found the trained %s in %s", name, run_dir)
            continue
        commands[name] = [
            *(sys.executable, "-m", "lerobot_policy_pi05_rl.offline_learner", str(args.config)),
            *(f"--dataset.repo_id={REPO_ID}", f"--dataset.root={dataset}", f"--output_dir_offline={run_dir}"),
            *(f"--policy.offline_steps={steps}", f"--policy.pi05_checkpoint={args.start}", f"--seed={args.seed}"),
            *(f"--resume={str(run_dir.exists()).lower()}", *overrides),
        ]

    def progress(name: str) -> str:
        return f"{last_step(args.output / name)}/{runs[name][0]} steps"

    run_side_by_side("Training", commands, args.output, progress=progress)


def verdict(results: dict[str, ClosedLoopResult], page: Path) -> str:
    """How many times as many successes per 1000 steps as cloning, and what to read where that is not clear."""
    ours, theirs = results["recap"], results["bc"]
    ratio, low, high = throughput_ratio(ours["success"], ours["steps"], theirs["success"], theirs["steps"])
    text = f"RECAP / cloning, successes per 1000 steps: {ratio:.2f} [{low:.2f}, {high:.2f}]"
    if low > CLEARLY:
        return text
    return (
        f"{text}. The gain is not clear: one recording and one training say little more. Read in {page} whether the "
        "critic tells successes from failures (AUC, calibration) and what its tags call good (moments); then "
        "docs/troubleshooting.md"
    )


def evaluate_policies(args: argparse.Namespace, runs: dict[str, str]) -> dict[str, ClosedLoopResult]:
    """Closed-loop results of the policies (name → run) on the same start states."""
    commands, files = {}, {}
    for name, run in runs.items():
        policy = checkpoint_path(args.output, run)
        step = saved_step(args.output / run)
        files[name] = args.output / f"eval_{run}_{step}_{args.eval_episodes}.json"
        if not files[name].is_file():
            commands[name] = [
                *(sys.executable, "-m", "lerobot_policy_pi05_rl.demo.evaluate", str(policy)),
                *("--episodes", str(args.eval_episodes), "--seed", str(10_000 * (args.seed + 1))),
                *("--output", str(files[name])),
            ]
    run_side_by_side(
        "Evaluation",
        commands,
        args.output,
        progress=lambda name: last_line(args.output, f"evaluation_{name}", "[EVAL]"),
    )
    stored = {name: json.loads(file.read_text()) for name, file in files.items()}
    return {name: {"success": data["success"], "steps": data["steps"]} for name, data in stored.items()}


def run_side_by_side(
    stage: str, commands: dict[str, list[str]], output: Path, *, progress: Callable[[str], str]
) -> None:
    """Run the commands at once, one thread each, their output in ``<output>/<stage>_<name>.log``.

    Raises:
        UserError: one of them failed; the others are ended.
    """
    environment = single_thread_environment()
    logs = {name: output / f"{stage.lower()}_{name}.log" for name in commands}
    processes = {}
    for name, command in commands.items():
        with logs[name].open("w") as log:
            processes[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if processes:
        logger.info("[DEMO] %s of %s; logs: %s", stage, ", ".join(commands), ", ".join(map(str, logs.values())))
    reported = time.perf_counter()
    try:
        while any(process.poll() is None for process in processes.values()):
            for name, process in processes.items():
                if process.poll():
                    tail = " | ".join(logs[name].read_text().splitlines()[-3:])
                    raise UserError(f"{stage} of {name} failed with exit code {process.returncode}: {tail}")
            if time.perf_counter() - reported > REPORT_S:
                reported = time.perf_counter()
                logger.info("[DEMO] %s: %s", stage, "; ".join(f"{name} {progress(name)}" for name in processes))
            time.sleep(POLL_S)
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.terminate()
                process.wait()
    failed = [name for name, process in processes.items() if process.returncode]
    if failed:
        tail = " | ".join(logs[failed[0]].read_text().splitlines()[-3:])
        raise UserError(f"{stage} of {failed[0]} failed: {tail}")


def single_thread_environment() -> dict[str, str]:
    """Of processes that run side by side and write to log files."""
    gl = os.environ.get("MUJOCO_GL", "egl")
    return {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "MUJOCO_GL": gl}


def checkpoint_path(output: Path, name: str) -> Path:
    """The newest checkpoint of a variant, as LeRobot's tools want it."""
    return output / name / "checkpoints" / "last" / "pretrained_model"


def saved_step(run_dir: Path) -> int:
    """The step of the newest checkpoint; 0 before the first."""
    link = run_dir / "checkpoints" / "last"
    return int(os.readlink(link)) if link.is_symlink() else 0


def last_step(run_dir: Path) -> int:
    """The last step in the run's metrics; 0 before the first."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def last_line(output: Path, log: str, marker: str, *, about: str = "") -> str:
    """What follows the marker in the last such line of a stage's log, of those that say something ``about``."""
    text = (output / f"{log}.log").read_text()
    lines = [line for line in text.splitlines() if marker in line and about in line]
    return lines[-1].split(marker)[-1].strip() if lines else "starting"


def print_table(results: dict[str, ClosedLoopResult], labels: dict[str, str]) -> None:
    """The comparison, with 95 % intervals; ``labels``: what a row is called."""
    episodes = len(next(iter(results.values()))["success"])
    table = Table(title=f"PandaPickCube, {episodes} episodes each, same start states, 95 % intervals")
    for column in ("policy", "success", "mean steps", "successes per 1000 steps"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, result in results.items():
        s = summarize(result)
        low, high = s["success_rate_interval_95"]
        low_1000, high_1000 = s["successes_per_1000_steps_interval_95"]
        table.add_row(
            labels[name],
            f"{s['success_rate']:.2f} [{low:.2f}, {high:.2f}]",
            f"{s['mean_steps']:.1f}",
            f"{s['successes_per_1000_steps']:.1f} [{low_1000:.1f}, {high_1000:.1f}]",
        )
    Console(width=100).print(table)


def draw_comparison(results: dict[str, ClosedLoopResult], path: Path) -> Path:
    """Success and successes per 1000 steps with their intervals, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (
        ("success_rate", "success rate"),
        ("successes_per_1000_steps", "successes per 1000 steps"),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(8, 3), layout="constrained")
    summaries = {name: summarize(result) for name, result in results.items()}
    for axis, (key, label) in zip(axes, panels, strict=True):
        values = [summaries[name][key] for name in results]
        intervals = [summaries[name][f"{key}_interval_95"] for name in results]
        errors = [
            [value - low for value, (low, _) in zip(values, intervals, strict=True)],
            [high - value for value, (_, high) in zip(values, intervals, strict=True)],
        ]
        bars = axis.barh([LABELS[name] for name in results], values, xerr=errors, color=["#9aa5b1", "#6baed6"])
        axis.bar_label(
            bars, [f"{value:.2f}" if value < 2 else f"{value:.1f}" for value in values], label_type="center"
        )
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_yticklabels([])
    episodes = len(next(iter(results.values()))["success"])
    figure.suptitle(f"PandaPickCube, {episodes} episodes each, bars: 95 % intervals", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


if __name__ == "__main__":
    run_as_script("demo", main)
