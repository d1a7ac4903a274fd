"""The online demo: from the demo's offline checkpoint, a learner and one actor on loopback, against one from scratch.

    pi05-rl demo-online [--output outputs/demo] [--config configs/demo.json] … [--key=value …]

Both learners have the same offline data, environment and optimization steps; one starts from the pretrained policy and
critic, the other from random weights. Keys of the configuration go to both and to their actors. All policies meet the
same start states. Each stage is skipped when its result is already there. The offline demo comes first where it has
not been run.
"""

import argparse
import json
import logging
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from ..command.run import run_as_script
from ..config.file import load_config
from ..errors import UserError
from .evaluate import summarize
from .run import (
    REPO_ID,
    checkpoint_path,
    evaluate_policies,
    last_line,
    print_table,
    saved_step,
    single_thread_environment,
)
from .run import main as run_demo

logger = logging.getLogger(__name__)

LABELS = {"before": "offline checkpoint", "online": "after online RL", "scratch": "online RL from scratch"}
RUNS = {"before": "recap", "online": "online", "scratch": "scratch"}
# There is no critic yet that could label the data: the critic of the moment labels each batch, as far ahead as the
# labels of the other run look, a quarter of the longest episode.
FROM_SCRATCH = ("--policy.pi05_checkpoint=null", "--policy.advantage_labels=running", "--policy.advantage_n_step=10")
FINE_TUNING_LR = "2e-4"  # of the actor, from the pretrained policy; from scratch it is the configuration's
POLL_S = 1.0
REPORT_S = 30.0
ENDING_S = 90.0


def make_parser() -> argparse.ArgumentParser:
    """The options that ``pi05-rl demo-online --help`` names; overrides of the configuration stand among them."""
    parser = argparse.ArgumentParser(prog="pi05-rl demo-online", add_help=False, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--config", type=Path, default=Path("configs/demo.json"))
    parser.add_argument("--steps", type=int, help="optimization steps (default: the configuration's online_steps)")
    parser.add_argument("--eval-episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: list[str]) -> int:
    """Run the online demo; returns the exit code."""
    args, keys = make_parser().parse_known_args(argv)
    began = time.perf_counter()
    configured = load_config(args.config, keys).policy.online_steps  # a wrong key is told before anything runs
    steps = args.steps or configured
    pretrained = checkpoint_path(args.output, "recap")
    if not pretrained.is_dir():
        logger.info("[DEMO] No offline checkpoint in %s: the offline demo comes first", pretrained)
        run_demo(["--output", str(args.output), "--config", str(args.config), "--seed", str(args.seed)])
        began = time.perf_counter()
    fine = [f"--policy.pi05_checkpoint={pretrained}", f"--policy.actor_lr={FINE_TUNING_LR}"]
    train_with_actor(args, "online", steps, [*fine, *keys])
    train_with_actor(args, "scratch", steps, [*FROM_SCRATCH, *keys])
    results = evaluate_policies(args, RUNS)
    file = args.output / "results_online.json"
    file.write_text(json.dumps({name: summarize(result) for name, result in results.items()}, indent=1) + "\n")
    print_table(results, LABELS)
    for name in ("online", "scratch"):
        totals = last_line(args.output, f"learner_{name}", "[LEARNER]", about="episodes received")
        logger.info("[DEMO] %s: %s", LABELS[name], totals)
    logger.info("[DEMO] Wrote %s; %.0f s in all", file, time.perf_counter() - began)
    return 0


def train_with_actor(args: argparse.Namespace, name: str, steps: int, overrides: list[str]) -> None:
    """One learner and one actor, until the learner has made its steps."""
    run_dir = args.output / name
    if saved_step(run_dir) >= steps:
        logger.info("[DEMO] Found the online run %s", run_dir)
        return
    common = [
        *(str(args.config), f"--dataset.repo_id={REPO_ID}", f"--dataset.root={args.output / 'dataset'}"),
        *(f"--output_dir={run_dir}", f"--policy.online_steps={steps}", f"--seed={args.seed}"),
        f"--policy.actor_learner_config.learner_port={free_port()}",
        *overrides,
    ]
    learner = [*common, f"--resume={str((run_dir / 'checkpoints').exists()).lower()}", f"--save_freq={steps}"]
    commands = {"learner": learner, "actor": common}
    environment = single_thread_environment()
    processes = {}
    logger.info("[DEMO] Online RL, %s; logs: %s", LABELS[name], args.output / f"{{learner,actor}}_{name}.log")
    try:
        for role, command in commands.items():
            module = f"lerobot_policy_pi05_rl.online.{role}"
            with (args.output / f"{role}_{name}.log").open("w") as log:
                processes[role] = subprocess.Popen(
                    [sys.executable, "-m", module, *command], stdout=log, stderr=subprocess.STDOUT, env=environment
                )
        follow(args, name, processes)
    finally:
        for process in processes.values():
            stop(process)
    if processes["learner"].returncode:
        tail = (args.output / f"learner_{name}.log").read_text().splitlines()[-3:]
        raise UserError(f"the learner of {name} failed: {' | '.join(tail)}")


def follow(args: argparse.Namespace, name: str, processes: dict[str, subprocess.Popen]) -> None:
    """Until the learner ends. The actor ends with it, and may be gone a little earlier: the learner has told it that
    all steps are made, and is still writing.

    Raises:
        UserError: the actor failed, or ended while the learner goes on.
    """
    told, alone_since = time.perf_counter(), None
    while processes["learner"].poll() is None:
        code = processes["actor"].poll()
        if code is not None and alone_since is None:
            alone_since = time.perf_counter()
        if code or (alone_since is not None and time.perf_counter() - alone_since > ENDING_S):
            tail = (args.output / f"actor_{name}.log").read_text().splitlines()[-3:]
            raise UserError(f"the actor of {name} ended before its learner: {' | '.join(tail)}")
        if time.perf_counter() - told > REPORT_S:
            told = time.perf_counter()
            logger.info("[DEMO] %s: %s", name, last_line(args.output, f"learner_{name}", "[LEARNER]"))
        time.sleep(POLL_S)


def stop(process: subprocess.Popen) -> None:
    """Ask a process to end; an actor ends its episode first."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    run_as_script("demo-online", main)
