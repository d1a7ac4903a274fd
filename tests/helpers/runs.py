"""Offline runs: started, taken back, and what they logged."""

import json
import shutil

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.offline_learner import train_offline

TIMES = {"samples_per_s", "data_time", "update_time"}


def run(path, **overrides):
    return train_offline(load_config(path, [f"--{k}={v}" for k, v in overrides.items()]))


def step_back(run_dir, checkpoint: str) -> None:
    """Take the run back to what it was after ``checkpoint``: later lines are lost work that a resume repeats."""
    checkpoints = run_dir / "checkpoints"
    for later in [path for path in checkpoints.iterdir() if path.name.isdigit() and path.name > checkpoint]:
        shutil.rmtree(later)
    (checkpoints / "last").unlink()
    (checkpoints / "last").symlink_to(checkpoint)


def metrics(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
