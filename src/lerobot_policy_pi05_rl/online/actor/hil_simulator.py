"""``env.name=gym_hil``: gym-hil's tasks (https://github.com/huggingface/gym-hil), made by LeRobot's own
``make_robot_env``, and what the two of them leave open: a screen, a gamepad, the seed, a correction that has ended."""

import logging
import os
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from lerobot.configs import PolicyFeature
from lerobot.envs import HILSerlRobotEnvConfig
from lerobot.envs.configs import HILSerlProcessorConfig
from lerobot.processor import TransitionKey, create_transition
from lerobot.teleoperators.utils import TeleopEvents
from lerobot.utils.constants import ACTION

from ...config.train import ConfigError
from ...errors import one_line
from .environment import HardwareError, to_observation

logger = logging.getLogger(__name__)

ACTIONS = ["delta_x", "delta_y", "delta_z", "gripper"]  # as LeRobot's recording of gym-hil calls them
INSTALL = "gym-hil is missing; to install it: pip install 'lerobot[hilserl]'"


def make_simulator(env_cfg: HILSerlRobotEnvConfig) -> "SeededReset":
    """One of gym-hil's tasks.

    Raises:
        ConfigError: there is no such task, or an option does not go with gym-hil.
        HardwareError: gym-hil is not installed, or the screen, keyboard or gamepad which the task wants is missing.
    """
    for key in ("robot", "teleop"):
        if getattr(env_cfg, key) is not None:
            raise ConfigError(f"env.{key} does not go with env.name=gym_hil, which has its own; set it to null")
    if ignored := ignored_options(env_cfg.processor):
        logger.warning("[ACTOR] LeRobot gives gym-hil's observations as they are; without effect: %s", ignored)
    spec = _spec(env_cfg.task)
    if spec.kwargs.get("use_viewer") and not _screen_opens():
        raise HardwareError(
            f"env.task={env_cfg.task} opens a window for the person at its keyboard or gamepad, and there is no "
            f"screen; {env_cfg.task.replace('Gamepad', '').replace('Keyboard', '')} runs without one"
        )
    from lerobot.rl.gym_manipulator import make_robot_env

    try:
        env, _ = make_robot_env(env_cfg)
    except Exception as error:  # of MuJoCo, OpenGL, pynput or pygame: anything
        raise HardwareError(f"env.task={env_cfg.task} of gym-hil cannot be made: {one_line(error)}") from error
    try:
        _check_controller(env, env_cfg)
    except (ConfigError, HardwareError):
        env.close()
        raise
    return SeededReset(env)


def _spec(task: str | None) -> gym.envs.registration.EnvSpec:
    """Gymnasium's entry of a task that LeRobot can make.

    Raises:
        ConfigError: there is none.
        HardwareError: gym-hil is not installed.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")  # read when MuJoCo is imported; its default wants a screen
    try:
        import gym_hil  # noqa: F401 - registers the tasks
    except ImportError as error:
        raise HardwareError(INSTALL if error.name == "gym_hil" else f"gym-hil cannot be imported: {error}") from error
    known = playable_tasks()
    if task not in known:
        raise ConfigError(f"env.task={task} is none of gym-hil's tasks with four actions: {', '.join(known)}")
    return gym.spec(f"gym_hil/{task}")


def playable_tasks() -> list[str]:
    """Of gym-hil's tasks those with its wrappers; the others do not take the options which LeRobot gives them."""
    made = "gym_hil.wrappers.factory:make_env"
    specs = [spec for spec in gym.registry.values() if spec.namespace == "gym_hil" and spec.entry_point == made]
    return sorted(spec.id.removeprefix("gym_hil/") for spec in specs)


def _screen_opens() -> bool:
    """Whether a window could be opened; asked beforehand, as MuJoCo's viewer ends the whole process without one."""
    import glfw

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(glfw.init())


def _check_controller(env: gym.Env, env_cfg: HILSerlRobotEnvConfig) -> None:
    """What a task needs with which a person can take over; the others need not wait for one between episodes.

    Raises:
        ConfigError: gym-hil would take the last of a person's three numbers for the gripper.
        HardwareError: there is no gamepad.
    """
    if not env.has_wrapper_attr("controller"):
        env.set_wrapper_attr("delay_seconds", 0.0, force=False)
        return
    gripper = env_cfg.processor.gripper
    if gripper is not None and not gripper.use_gripper:
        raise ConfigError("env.processor.gripper.use_gripper=false: gym-hil's actions always move the gripper")
    if not env.get_wrapper_attr("controller").running:
        raise HardwareError(f"env.task={env_cfg.task} needs a gamepad, and none is connected")


def ignored_options(processor: HILSerlProcessorConfig) -> str:
    """The options of ``env.processor`` that are set and that LeRobot's pipeline for gym-hil does not read."""
    names = ("observation", "image_preprocessing", "inverse_kinematics", "reward_classifier")
    return ", ".join(f"env.processor.{name}" for name in names if getattr(processor, name) is not None)


def check_fits(
    env: gym.Env,
    pipeline: Any,
    features: dict[str, PolicyFeature],
    action_names: list[str],
    rename_map: dict[str, str] | None = None,
) -> None:
    """Refuse a policy that reads or does something else, before the first episode.

    Args:
        pipeline: LeRobot's environment processor.
        action_names: the dataset's, or numbers.
        rename_map: the observations' names → the policy's.

    Raises:
        ConfigError: a feature is missing or of another shape, or the actions are others.
    """
    width, wanted = env.action_space.shape[0], features[ACTION].shape[0]
    if wanted != width or (action_names != ACTIONS and set(action_names) == set(ACTIONS)):
        theirs = ", ".join(action_names)
        raise ConfigError(f"gym-hil has the {width} actions {', '.join(ACTIONS)}, but the policy {wanted}: {theirs}")
    seen = pipeline(create_transition(observation=blank(env.observation_space), info={}, complementary_data={}))
    to_observation(seen[TransitionKey.OBSERVATION], features, rename_map)


def blank(space: spaces.Space) -> Any:
    """Zeros of a space of boxes."""
    if isinstance(space, spaces.Dict):
        return {key: blank(part) for key, part in space.items()}
    return np.zeros(space.shape, space.dtype)


def forget_correction(info: dict) -> None:
    """Before a step, drop that a person acted in the last one.

    LeRobot's pipeline would execute the person's last action once more, in place of the policy's: it learns from
    gym-hil that a person acts when the step is over, and looks before the next one.
    """
    info.pop(TeleopEvents.IS_INTERVENTION, None)


class SeededReset(gym.Wrapper):
    """Seeds the next reset, which LeRobot's ``reset_and_build_transition`` does not."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.next_seed: int | None = None  # of the next reset, once

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        seed, self.next_seed = self.next_seed if seed is None else seed, None
        if seed is not None:
            np.random.seed(seed)  # gym-hil draws where things lie from NumPy's own generator
        return self.env.reset(seed=seed, options=options)
