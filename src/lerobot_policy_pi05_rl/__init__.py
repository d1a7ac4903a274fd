"""π0.5 with offline and online reinforcement learning (RECAP), as a plugin for stock LeRobot.

LeRobot imports this package at start-up (``register_third_party_plugins``), which registers the policy
``pi05_rl``, the demo's environments ``panda_pick_cube`` and ``metaworld_tasks``, its robot ``panda_sim`` with the
teleoperator ``panda_sim_operator``, and the processor steps that saved checkpoints name.
"""

from .configuration_pi05_rl import PI05RLConfig
from .demo.config_sim_robot import PandaSimConfig, PandaSimOperatorConfig
from .demo.env_config import PandaPickCubeEnv
from .demo.metaworld_env_config import MetaWorldTasksEnv
from .processor_pi05_rl import make_pi05_rl_pre_post_processors

__all__ = [
    "MetaWorldTasksEnv",
    "PI05RLConfig",
    "PandaPickCubeEnv",
    "PandaSimConfig",
    "PandaSimOperatorConfig",
    "make_pi05_rl_pre_post_processors",
]
