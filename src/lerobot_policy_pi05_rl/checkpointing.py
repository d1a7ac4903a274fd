"""Checkpoints in LeRobot's layout, written aside and renamed, and everything an exact resume needs.

``checkpoints/005000/{pretrained_model,training_state}`` and the link ``checkpoints/last``; a crash at any instant
leaves the previous checkpoint whole.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from lerobot.common.train_utils import get_step_checkpoint_dir, load_training_step, save_training_step
from lerobot.optim.optimizers import load_optimizer_state, save_optimizer_state
from lerobot.optim.schedulers import load_scheduler_state, save_scheduler_state
from lerobot.utils.constants import (
    CHECKPOINTS_DIR,
    LAST_CHECKPOINT_LINK,
    PRETRAINED_MODEL_DIR,
    TRAINING_STATE_DIR,
)
from lerobot.utils.random_utils import load_rng_state, save_rng_state
from safetensors.torch import load_file, save_file

from .critic_data import CRITIC_DATA
from .recap import RecapAlgorithm
from .weights import CheckpointError

logger = logging.getLogger(__name__)

RECAP_STATE = "recap_state.safetensors"  # the advantage windows
METRICS_STATE = "metrics_state.json"  # sums of the log window that the checkpoint falls into


def save_checkpoint(
    run_dir: Path,
    *,
    cfg: Any,
    algorithm: RecapAlgorithm,
    processors: tuple[Any, Any],
    metrics_state: dict[str, Any],
    total_steps: int,
    keep_last: int | None,
    critic_data: dict[str, Any] | None = None,
) -> Path:
    """Write the checkpoint of the algorithm's current step, point ``last`` at it, drop the oldest ones.

    Args:
        critic_data: which episodes the critic has seen (critic_data.py); None: no critic was trained.

    Returns:
        The checkpoint's directory.
    """
    final = get_step_checkpoint_dir(run_dir, total_steps, algorithm.optimization_step)
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pretrained, state = partial / PRETRAINED_MODEL_DIR, partial / TRAINING_STATE_DIR
    state.mkdir(parents=True)
    algorithm.policy.save_pretrained(pretrained)
    cfg.save_pretrained(pretrained)
    for processor in processors:
        processor.save_pretrained(pretrained)
    if critic_data is not None:
        (pretrained / CRITIC_DATA).write_text(json.dumps(critic_data))
    save_training_step(algorithm.optimization_step, state, num_processes=1, batch_size=cfg.batch_size)
    save_rng_state(state)
    save_optimizer_state(algorithm.optimizer, state)
    save_scheduler_state(algorithm.scheduler, state)
    save_file(algorithm.state_dict(), state / RECAP_STATE)
    (state / METRICS_STATE).write_text(json.dumps(metrics_state))
    _flush(partial)
    if final.exists():  # a resumed run reached a step that was saved before
        shutil.rmtree(final)
    partial.rename(final)
    _flush(final.parent, recursive=False)
    link_last(final)
    _prune(final.parent, keep_last)
    return final


def link_last(checkpoint: Path) -> None:
    """Point ``checkpoints/last`` at ``checkpoint``, replacing the link in one step."""
    link = checkpoint.parent / LAST_CHECKPOINT_LINK
    fresh = link.with_name(f".{LAST_CHECKPOINT_LINK}.partial")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(checkpoint.name)
    fresh.replace(link)
    _flush(link.parent, recursive=False)


def last_checkpoint(run_dir: Path) -> Path | None:
    """The directory that ``checkpoints/last`` names; None if the run has saved nothing yet.

    Raises:
        CheckpointError: the link points at nothing.
    """
    link = run_dir / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK
    if not link.is_symlink() and not link.exists():
        return None
    if not (link / PRETRAINED_MODEL_DIR).is_dir() or not (link / TRAINING_STATE_DIR).is_dir():
        raise CheckpointError(
            f"{link} points at {os.readlink(link) if link.is_symlink() else link}, which is not a whole checkpoint; "
            "point it at another folder of checkpoints/"
        )
    return link.resolve()


def load_training_state(checkpoint: Path, algorithm: RecapAlgorithm) -> dict[str, Any]:
    """Restore step, optimizer, schedule, advantage windows and random state; returns the metrics state.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    state = checkpoint / TRAINING_STATE_DIR
    try:
        algorithm.optimization_step = load_training_step(state)
        load_optimizer_state(algorithm.optimizer, state)
        load_scheduler_state(algorithm.scheduler, state)
        algorithm.load_state_dict(load_file(state / RECAP_STATE))
        metrics_state = json.loads((state / METRICS_STATE).read_text())
        load_rng_state(state)
    except Exception as error:  # whatever a damaged file raises, the user must learn which checkpoint it was
        raise CheckpointError(
            f"the training state in {state} is incomplete or does not fit this configuration ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}). Point checkpoints/last at another checkpoint"
        ) from error
    return metrics_state


def _prune(directory: Path, keep_last: int | None) -> None:
    checkpoints = sorted((path for path in directory.iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
    for old in checkpoints[:-keep_last] if keep_last else ():
        shutil.rmtree(old)


def _flush(path: Path, *, recursive: bool = True) -> None:
    """fsync a directory and, if asked, all below it, so that the rename never precedes the bytes."""
    paths = [path, *(path.rglob("*") if recursive else ())]
    for entry in paths:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
