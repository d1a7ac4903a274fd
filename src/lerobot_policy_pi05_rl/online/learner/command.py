"""``pi05-rl learner CONFIG``, also ``python -m lerobot_policy_pi05_rl.online.learner CONFIG``."""

import logging

from ...config.arguments import split_config_path
from ...config.file import load_config
from ..config import OnlineTrainConfig
from .learner import train_online


def main(arguments: list[str]) -> int:
    """Run the verb; returns the exit code.

    Raises:
        UserError: bad input.
    """
    path, overrides = split_config_path(arguments, "learner")
    checkpoint = train_online(load_config(path, overrides, OnlineTrainConfig))
    logging.getLogger(__name__).info("[LEARNER] Done: %s", checkpoint)
    return 0
