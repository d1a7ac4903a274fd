"""``pi05-rl cache CONFIG``: decode the frames that a configuration draws, into ``dataset.frame_cache``."""

import logging

from ..config.arguments import split_config_path
from ..config.file import load_config
from ..errors import ConfigError
from .dataset import open_caches, open_sources


def main(arguments: list[str]) -> int:
    """Run the verb; returns the exit code.

    Raises:
        UserError: bad input.
    """
    path, overrides = split_config_path(arguments, "cache")
    cfg = load_config(path, overrides)
    cfg.validate(device_key=None)
    if cfg.dataset.frame_cache is None:
        raise ConfigError("dataset.frame_cache is not set: the folder the frames go to, --dataset.frame_cache=DIR")
    try:
        open_caches(cfg, open_sources(cfg))
    except KeyboardInterrupt:
        logging.getLogger(__name__).warning("[FRAME CACHE] Stopped; the same command goes on from here")
        return 130
    return 0
