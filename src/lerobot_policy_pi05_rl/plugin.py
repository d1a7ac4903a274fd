"""Imports what registers itself with LeRobot: the policy ``pi05_rl``, the demo's environment ``panda_pick_cube``, the
processor steps that saved checkpoints name."""

from . import configuration_pi05_rl as configuration_pi05_rl
from . import processor_pi05_rl as processor_pi05_rl
from .demo import env_config as env_config
