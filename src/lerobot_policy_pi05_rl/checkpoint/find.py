"""Which checkpoint a run goes on from, and what stands in the way of a fresh one."""

import logging
from collections.abc import Callable
from pathlib import Path

from ..config.train import ConfigError, PI05RLTrainConfig
from .resume import check_config, checkpoint_to_resume

logger = logging.getLogger(__name__)


def check_empty(cfg: PI05RLTrainConfig) -> None:
    """A fresh offline run has its directory to itself.

    Raises:
        ConfigError: something is there.
    """
    if cfg.run_dir.exists() and any(cfg.run_dir.iterdir()):
        raise ConfigError(
            f"the output directory {cfg.run_dir} already exists. Set resume=true to go on with its run, or choose "
            "another output_dir_offline"
        )


def find_checkpoint(
    cfg: PI05RLTrainConfig, check_unused: Callable[[PI05RLTrainConfig], None] = check_empty
) -> Path | None:
    """The checkpoint to resume from, or None for a fresh run.

    Args:
        check_unused: raises where a fresh run would write into another one.

    Raises:
        ConfigError: the output directory holds another run and ``resume`` is false, or the configuration is of another
            run than the checkpoint.
        CheckpointError: the checkpoint is damaged.
    """
    if cfg.run_dir.exists() and not cfg.run_dir.is_dir():
        raise ConfigError(f"the output directory {cfg.run_dir} is a file")
    if not cfg.resume:
        check_unused(cfg)
        return None
    checkpoint = checkpoint_to_resume(cfg.run_dir, cfg.resume_from)
    if checkpoint is None:
        logger.info("%s resume=true, but %s has no checkpoint: starting a fresh run", cfg.tag, cfg.run_dir)
    else:
        check_config(checkpoint, cfg)
    return checkpoint
