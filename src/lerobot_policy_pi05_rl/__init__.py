"""π0.5 with offline and online reinforcement learning (RECAP), as a plugin for stock LeRobot.

LeRobot imports this package at start-up (``register_third_party_plugins``), and that registers the policy and what
else there is (:mod:`.plugin`). Under the console script alone, whose module ``pi05_rl`` is then loaded before this
package, registration waits until a command needs LeRobot: help and a misspelt key are answered without torch.

:mod:`.api` has what the verbs of the command line do, to be called from Python.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import api
    from .configuration_pi05_rl import PI05RLConfig
    from .demo.env_config import PandaPickCubeEnv
    from .processor_pi05_rl import make_pi05_rl_pre_post_processors

if "pi05_rl" not in sys.modules:
    from . import plugin as plugin

__all__ = [
    "PI05RLConfig",
    "PandaPickCubeEnv",
    "api",
    "make_pi05_rl_pre_post_processors",
]
_MODULES = {
    "PI05RLConfig": "configuration_pi05_rl",
    "PandaPickCubeEnv": "demo.env_config",
    "make_pi05_rl_pre_post_processors": "processor_pi05_rl",
}


def __getattr__(name: str) -> Any:
    """A public name, loaded when it is asked for."""
    if name == "api":
        return importlib.import_module(".api", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
