"""Checkpoints in LeRobot's layout, written aside, verified and renamed, and everything an exact resume needs.

``checkpoints/005000/{pretrained_model,training_state,manifest.json}`` and the link ``checkpoints/last``; a crash at
any instant leaves the previous checkpoint whole.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lerobot.common.train_utils import load_training_step, save_training_step
from lerobot.configs.train import TrainPipelineConfig
from lerobot.optim.optimizers import load_optimizer_state_dict, save_optimizer_state
from lerobot.optim.schedulers import load_scheduler_state
from lerobot.utils.constants import (
    CHECKPOINTS_DIR,
    LAST_CHECKPOINT_LINK,
    OPTIMIZER_PARAM_GROUPS,
    OPTIMIZER_STATE,
    PRETRAINED_MODEL_DIR,
    RNG_STATE,
    SCHEDULER_STATE,
    TRAINING_STATE_DIR,
    TRAINING_STEP,
)
from lerobot.utils.io_utils import write_json
from lerobot.utils.random_utils import load_rng_state
from lerobot.utils.utils import flatten_dict
from safetensors.torch import load_file, save_file

from ..cards.text import CARD
from ..distributed.fsdp import optimizer_shards
from ..errors import typed_line
from ..processor_pi05_rl import Processors
from ..recap import RecapAlgorithm
from ..runtime.files import damages, flush, give_name, write_manifest
from ..stored.files import CheckpointError
from ..training.metrics import MetricsWindow
from .critic_provenance import CRITIC_DATA
from .snapshot import Snapshot

logger = logging.getLogger(__name__)

RECAP_STATE = "recap_state.safetensors"  # the advantage windows
METRICS_STATE = "metrics_state.json"  # sums of the log window that the checkpoint falls into
DATA_STATE = "data_state.json"  # which data the order of samples refers to
PARTIAL, GONE = ".partial", ".gone"  # hidden folders: not yet a checkpoint, no longer one
CONFIGURED = ("initial_lr", "betas", "eps", "weight_decay")  # of an optimizer's group: the configuration's, not state


def write_files(
    snapshot: Snapshot,
    final: Path,
    *,
    config: TrainPipelineConfig,
    policy: Any,
    processors: Processors,
    data_state: dict[str, Any],
    critic_data: dict[str, Any] | None = None,
    num_processes: int = 1,
    card: str | None = None,
) -> None:
    """Write ``snapshot`` under the hidden name of ``final``. Of the other arguments only what is constant during a run
    is read.

    Args:
        config: for its train_config.json.
        data_state: which data the run learns from (resume.py).
        critic_data: which episodes the critic has seen (critic_data.py); None: no critic was trained.
        card: the text of its README.md.

    Raises:
        OSError, SafetensorError: it cannot be written. What was written is left under its hidden name.
    """
    partial = hidden(final, PARTIAL)
    if partial.exists():
        shutil.rmtree(partial)
    pretrained, state = partial / PRETRAINED_MODEL_DIR, partial / TRAINING_STATE_DIR
    state.mkdir(parents=True)
    policy.save_pretrained(pretrained, state_dict=snapshot.model)
    config.save_pretrained(pretrained)
    for processor in processors:
        processor.save_pretrained(pretrained)
    if critic_data is not None:
        (pretrained / CRITIC_DATA).write_text(json.dumps(critic_data))
    if card is not None:  # PEFT has written one of its own
        (pretrained / CARD).write_text(card, encoding="utf-8")
    save_training_step(snapshot.step, state, num_processes=num_processes, batch_size=config.batch_size)
    save_optimizer_state(None, state, optim_state_dict=snapshot.optimizer)
    write_json(snapshot.scheduler, state / SCHEDULER_STATE)
    save_file(flatten_dict(snapshot.rng), state / RNG_STATE)
    save_file(snapshot.recap, state / RECAP_STATE)
    (state / METRICS_STATE).write_text(json.dumps(snapshot.metrics))
    (state / DATA_STATE).write_text(json.dumps(data_state))


def finish_checkpoint(final: Path) -> None:
    """Read back what :func:`write_files` wrote for ``final``, give it its name and point ``last`` at it.

    Raises:
        CheckpointError: it does not read back as it was written.
        OSError: the disk fails. What was written is left under its hidden name.
    """
    partial = hidden(final, PARTIAL)
    write_manifest(partial, free={CARD})
    flush(partial, forget=True)  # so that it is read back from the disk
    found = damages(partial)
    if found:
        raise CheckpointError(f"the disk does not give back what was written to {final}: {found[0]}")
    if final.exists():  # a resumed run reached a step that was saved before
        remove_checkpoint(final)
    give_name(partial, final)
    link_last(final)


def link_last(checkpoint: Path) -> None:
    """Point ``checkpoints/last`` at ``checkpoint``, replacing the link in one step."""
    link = checkpoint.parent / LAST_CHECKPOINT_LINK
    fresh = hidden(link, PARTIAL)
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(checkpoint.name)
    give_name(fresh, link)


def last_checkpoint(run_dir: Path) -> Path | None:
    """The directory that ``checkpoints/last`` names; None if the run has saved nothing yet.

    Raises:
        CheckpointError: the link points at nothing.
    """
    link = run_dir / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK
    if not link.is_symlink() and not link.exists():
        return None
    if not has_parts(link):
        raise CheckpointError(
            f"{link} points at {os.readlink(link) if link.is_symlink() else link}, which is not a whole checkpoint; "
            "point it at another folder of checkpoints/"
        )
    return link.resolve()


def has_parts(checkpoint: Path) -> bool:
    """Whether both folders of a checkpoint are there."""
    return (checkpoint / PRETRAINED_MODEL_DIR).is_dir() and (checkpoint / TRAINING_STATE_DIR).is_dir()


def checkpoints_of(run_dir: Path) -> list[Path]:
    """Every finished checkpoint, oldest step first."""
    directory = run_dir / CHECKPOINTS_DIR
    found = [path for path in directory.iterdir() if path.name.isdigit()] if directory.is_dir() else []
    return sorted(found, key=lambda path: int(path.name))


def load_training_state(checkpoint: Path, algorithm: RecapAlgorithm) -> dict[str, Any]:
    """Restore step, optimizer, schedule, advantage windows and random state; returns the metrics state. Learning rates
    and the optimizer's other settings are the configuration's.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    state = checkpoint / TRAINING_STATE_DIR
    settings = optimizer_settings(algorithm.optimizer)
    metrics = MetricsWindow()
    algorithm.optimization_step = _restore(state, TRAINING_STEP, _training_step)
    _restore(state, OPTIMIZER_STATE, partial(load_optimizer, algorithm.optimizer))
    _restore(state, SCHEDULER_STATE, partial(load_scheduler_state, algorithm.scheduler))
    _restore(state, RECAP_STATE, lambda folder: algorithm.load_state_dict(load_file(folder / RECAP_STATE)))
    _restore(
        state, METRICS_STATE, lambda folder: metrics.load_state_dict(json.loads((folder / METRICS_STATE).read_text()))
    )
    _restore(state, RNG_STATE, load_rng_state)
    apply_settings(algorithm.optimizer, algorithm.scheduler, settings)
    return metrics.state_dict()


def _restore[T](folder: Path, name: str, load: Callable[[Path], T]) -> T:
    """``load`` a file of the training state in ``folder``."""
    try:
        return load(folder)
    except Exception as error:  # whatever a damaged file raises, the user must learn which file it was
        beside = f" (with {OPTIMIZER_PARAM_GROUPS})" if name == OPTIMIZER_STATE else ""
        raise CheckpointError(
            f"{folder / name}{beside} is missing, damaged or of another configuration ("
            f"{typed_line(error)}). Set resume_from to another checkpoint"
        ) from error


def _training_step(folder: Path) -> int:
    step = load_training_step(folder)
    if not isinstance(step, int) or step < 0:
        raise ValueError(f"the step is {step!r}")
    return step


def load_optimizer(optimizer: torch.optim.Optimizer, directory: Path) -> None:
    """LeRobot's ``load_optimizer_state``, of which a sharded optimizer takes its part."""
    optimizer.load_state_dict(optimizer_shards(load_optimizer_state_dict(directory), optimizer))


def optimizer_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Per group what the configuration says, which a loaded state would replace."""
    return [{name: group[name] for name in CONFIGURED} for group in optimizer.param_groups]


def apply_settings(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LambdaLR, settings: list[dict[str, Any]]
) -> None:
    """Put :func:`optimizer_settings` back, and the learning rates where the schedule of this configuration has them at
    the scheduler's step; the same settings change no bit."""
    scheduler.base_lrs = [group["initial_lr"] for group in settings]
    rates = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, setting, rate in zip(optimizer.param_groups, settings, rates, strict=True):
        group.update(setting, lr=rate)
    scheduler._last_lr = rates


def prune(newest: Path, keep_last: int | None) -> None:
    """Remove the oldest checkpoints beyond ``keep_last``. Steps after ``newest`` are of a course that was left
    (``resume_from``): they neither count nor go."""
    checkpoints = [path for path in checkpoints_of(newest.parent.parent) if int(path.name) <= int(newest.name)]
    for old in checkpoints[:-keep_last] if keep_last else ():
        remove_checkpoint(old)


def remove_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint; at no instant is there half of one under its name."""
    gone = hidden(checkpoint, GONE)
    if gone.exists():
        shutil.rmtree(gone)
    checkpoint.rename(gone)
    shutil.rmtree(gone)


def remove_leftovers(run_dir: Path) -> None:
    """Delete what a killed run was writing or deleting."""
    directory = run_dir / CHECKPOINTS_DIR
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.name.startswith(".") and path.name.endswith((PARTIAL, GONE)):
            logger.info("Removing %s, left by a run that was killed", path)
            path.unlink() if path.is_symlink() else shutil.rmtree(path)


def hidden(path: Path, suffix: str) -> Path:
    """The name beside ``path`` that nobody takes for a checkpoint."""
    return path.with_name(f".{path.name}{suffix}")
