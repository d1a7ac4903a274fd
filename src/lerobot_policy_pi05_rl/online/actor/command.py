"""``pi05-rl actor CONFIG``, also ``python -m lerobot_policy_pi05_rl.online.actor CONFIG``."""

from ...config.arguments import split_config_path
from ...config.file import load_config
from ..config import OnlineTrainConfig
from .actor import run_actor

UNLIMITED = "--allow_unlimited_actions"


def main(arguments: list[str]) -> int:
    """Run the verb; returns the exit code.

    Raises:
        UserError: bad input.
    """
    path, overrides = split_config_path([argument for argument in arguments if argument != UNLIMITED], "actor")
    overrides += ["--actor.allow_unlimited_actions=true"] if UNLIMITED in arguments else []
    run_actor(load_config(path, overrides, OnlineTrainConfig))
    return 0
