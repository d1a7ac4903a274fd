"""The policy that the demo starts from: cloned from a broad recording of the same simulator, and small enough to ship.

    python -m lerobot_policy_pi05_rl.demo.pretrain --output outputs/pretrain

Broad: all operators, as many episodes of each; a cube that lies three times as far from its place; another seed than
any that the demo and the benchmarks record with. What people have is such a policy, of a larger size. It is written in
bf16, with its processors and without a training state, to ``--destination``.
"""

import argparse
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from safetensors.torch import load_file, save_file

from ..checkpoint.write import last_checkpoint
from ..command.run import run_as_script
from ..runtime.files import replacing
from .record import MIXED_QUALITY_MIX, record_dataset

logger = logging.getLogger(__name__)

PRETRAINED = Path(__file__).with_name("pretrained")
CUBE_JITTER_M = 0.03  # the demo's episodes have 0.01
SEED = 900
WEIGHTS = "model.safetensors"


def record_broad(root: Path, repo_id: str, episodes: int) -> Path:
    """The broad recording of the pick task."""
    return record_dataset(root, repo_id, episodes, SEED, MIXED_QUALITY_MIX, cube_jitter=CUBE_JITTER_M)


def main(
    argv: list[str],
    *,
    record: Callable[[Path, str, int], Path] = record_broad,
    repo_id: str = "local/panda_pick_cube_broad",
) -> int:
    """Record, clone, export; returns the exit code. A benchmark with tasks of its own says how they are recorded."""
    parser = argparse.ArgumentParser(prog="pi05-rl pretrain", description="the policy that the demo starts from")
    parser.add_argument("--output", type=Path, default=Path("outputs/pretrain"))
    parser.add_argument("--config", type=Path, default=Path("configs/demo.json"))
    parser.add_argument("--destination", type=Path, default=PRETRAINED)
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--override", action="append", default=[], metavar="--KEY=VALUE", help="of the configuration")
    args = parser.parse_args(argv)
    dataset = record(args.output / "dataset", repo_id, args.episodes)
    run = args.output / "run"
    command = [
        *(sys.executable, "-m", "lerobot_policy_pi05_rl.offline_learner", str(args.config), "--resume=true"),
        *(f"--dataset.repo_id={repo_id}", f"--dataset.root={dataset}", f"--output_dir_offline={run}"),
        *(f"--policy.offline_steps={args.steps}", "--policy.policy_extraction=none", f"--seed={SEED}"),
        *("--policy.pi05_checkpoint=null", "--policy.actor_lr=1e-3", "--policy.scheduler_decay_lr=2.5e-6"),
        *args.override,
    ]
    subprocess.run(command, check=True)
    checkpoint = last_checkpoint(run)
    assert checkpoint is not None  # the command has succeeded
    export(checkpoint / PRETRAINED_MODEL_DIR, args.destination)
    return 0


def export(checkpoint: Path, destination: Path) -> None:
    """Copy what LeRobot loads of a checkpoint, the weights in bf16 and without the run's own configuration."""
    if destination.exists():
        shutil.rmtree(destination)
    with replacing(destination, destination.with_name(f".{destination.name}.new")) as aside:
        shutil.copytree(checkpoint, aside, ignore=shutil.ignore_patterns("train_config.json", WEIGHTS))
        save_file({key: tensor.bfloat16() for key, tensor in load_file(checkpoint / WEIGHTS).items()}, aside / WEIGHTS)
    size = sum(file.stat().st_size for file in destination.iterdir())
    logger.info("[DEMO] Wrote %s, %.2f MB", destination, size / 1e6)


if __name__ == "__main__":
    run_as_script("pretrain", main)
