"""``pi05-rl cache CONFIG``: decode the frames that a configuration draws, into ``dataset.frame_cache``."""

import logging

from ..config.arguments import split_config_path
from ..config.file import load_config
from ..config.resolve import resolved
from ..errors import INTERRUPTED, ConfigError
from .dataset import open_caches, open_sources
from .workers import Workers


def main(arguments: list[str]) -> int:
    """Run the verb; returns the exit code.

    Raises:
        UserError: bad input.
    """
    path, overrides = split_config_path(arguments, "cache")
    cfg = resolved(load_config(path, overrides), device_key=None)
    if cfg.dataset.frame_cache is None:
        raise ConfigError("dataset.frame_cache is not set: the folder the frames go to, --dataset.frame_cache=DIR")
    try:
        sources, policy = open_sources(cfg)
        workers = Workers(cfg.num_workers, cfg.prefetch_factor, cfg.dataloader_multiprocessing_context)
        open_caches(sources, policy, cfg.dataset.frame_cache, workers)
    except KeyboardInterrupt:
        logging.getLogger(__name__).warning("[FRAME CACHE] Stopped; the same command goes on from here")
        return INTERRUPTED
    return 0
