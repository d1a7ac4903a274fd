"""The demo simulator as a LeRobot environment: `lerobot-eval --env.type=panda_pick_cube`.

Importing this module registers the environment type and needs neither MuJoCo nor gym-hil.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from .constants import (
    ACTION_NAMES,
    CAMERA_NAMES,
    CONTROL_HZ,
    CUBE_JITTER_M,
    IMAGE_SIZE,
    MAX_EPISODE_STEPS,
    STATE_NAMES,
    TASK,
)

_NO_SIMULATOR = (
    "The demo needs gym-hil, Meta-World and MuJoCo; to install them: pip install 'lerobot_policy_pi05_rl[demo]'"
)
PANDA = "lerobot_policy_pi05_rl.demo.simulator.PandaPickCubeSimulator"
_SIMULATOR_PACKAGES = ("gym_hil", "metaworld", "mujoco")
_NO_OPENGL = (
    "If MuJoCo found no OpenGL: apt-get install libegl1 libopengl0 libgl1-mesa-dri "
    "(or install libosmesa6 and set MUJOCO_GL=osmesa)."
)


@dataclass(frozen=True)
class SimulatorFactory:
    """Callable that builds one simulator; picklable, so that it also works in a fresh worker process.

    LeRobot's default passes a closure around `gym.make`; a spawned worker has not imported the plugin and
    would not find the environment's name in the registry.

    Attributes:
        name: full name of the simulator's class.
        settings: of its constructor.
        freeze_finished: whether a finished episode repeats its last transition, see `PandaPickCubeEnv`.
    """

    name: str
    settings: dict[str, Any]
    freeze_finished: bool = False

    def __call__(self) -> gym.Env:
        """Import and build the simulator.

        Raises:
            ImportError: when the simulator's packages are missing, with the command that installs them.
        """
        os.environ.setdefault("MUJOCO_GL", "egl")  # before anything imports MuJoCo
        module, _, cls = self.name.rpartition(".")
        try:
            env: gym.Env = getattr(importlib.import_module(module), cls)(**self.settings)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] not in _SIMULATOR_PACKAGES:
                raise
            raise ImportError(_NO_SIMULATOR) from error
        except (AttributeError, ImportError, RuntimeError) as error:
            # What MuJoCo and PyOpenGL raise without an OpenGL library; their messages do not say so.
            error.add_note(_NO_OPENGL)
            raise
        if self.freeze_finished:
            from lerobot.envs.utils import FreezeAfterEpisodeEnd

            env = FreezeAfterEpisodeEnd(env)
        return env


def vectorize(factory: Callable[[], gym.Env], n_envs: int, use_async_envs: bool) -> VectorEnv:
    """`n_envs` simulators as one environment, in this process or one process each."""
    factories, mode = [factory] * n_envs, AutoresetMode.SAME_STEP
    if use_async_envs and n_envs > 1:
        # A forked child of a process that holds an OpenGL context or threads may hang; a fresh one not.
        return AsyncVectorEnv(factories, autoreset_mode=mode, context="forkserver")
    return SyncVectorEnv(factories, autoreset_mode=mode)


def demo_features(image_size: int) -> tuple[dict[str, PolicyFeature], dict[str, str]]:
    """An `EnvConfig`'s `features` and `features_map` for the demo's observations and actions."""
    # The pictures carry the policy's names here, not "pixels/front": `lerobot-eval --eval.recording=true`
    # makes them dataset features, and those may not contain a slash.
    cameras = [f"{OBS_IMAGES}.{name}" for name in CAMERA_NAMES]
    features = {
        ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(len(ACTION_NAMES),)),
        "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(len(STATE_NAMES),)),
        **{key: PolicyFeature(type=FeatureType.VISUAL, shape=(image_size, image_size, 3)) for key in cameras},
    }
    return features, {ACTION: ACTION, "agent_pos": OBS_STATE, **{key: key for key in cameras}}


@EnvConfig.register_subclass("panda_pick_cube")
@dataclass
class PandaPickCubeEnv(EnvConfig):
    """Configuration of the demo environment.

    Attributes:
        fps: control steps per second; the simulator has only this rate.
        image_size: height and width of both pictures, pixels.
        episode_length: control steps until truncation.
        cube_jitter: half width of the uniform jitter of the cube's x and y, metres.
        freeze_finished: a finished environment of a batch repeats its last transition until the next
            `rollout` instead of simulating an episode nobody counts. Only LeRobot's `rollout` may then
            reset the environment (it passes the option that thaws it), hence off by default.
        features: keys as LeRobot's `rollout` and its recording of evaluations look them up.
        features_map: from those keys to the policy's.
    """

    task: str | None = TASK
    fps: int = CONTROL_HZ
    image_size: int = IMAGE_SIZE
    episode_length: int = MAX_EPISODE_STEPS
    cube_jitter: float = CUBE_JITTER_M
    freeze_finished: bool = False
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fps != CONTROL_HZ:
            raise ValueError(f"panda_pick_cube runs at {CONTROL_HZ} steps per second, got fps={self.fps}.")
        if self.task != TASK:
            raise ValueError(f"panda_pick_cube has one task, {TASK!r}, got {self.task!r}.")
        self.features, self.features_map = demo_features(self.image_size)

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Arguments of the simulator's constructor."""
        return {
            "image_size": self.image_size,
            "max_episode_steps": self.episode_length,
            "cube_jitter": self.cube_jitter,
        }

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, VectorEnv]]:
        """Build `{"panda_pick_cube": {0: vector environment}}`, in this process or one process each.

        Raises:
            ImportError: when gym-hil or MuJoCo is missing (or, in worker processes, fails to import).
        """
        factory = SimulatorFactory(PANDA, self.gym_kwargs, self.freeze_finished)
        return {self.type: {0: vectorize(factory, n_envs, use_async_envs)}}
