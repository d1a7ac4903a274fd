"""``env.type=gym_manipulator``: a real robot with its teleoperator, or gym-hil, through LeRobot's own pipelines."""

import logging
from contextlib import ExitStack
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch
from lerobot.configs import PolicyFeature
from lerobot.envs import HILSerlRobotEnvConfig
from lerobot.processor import TransitionKey, create_transition
from lerobot.robots import make_robot_from_config
from lerobot.teleoperators import make_teleoperator_from_config
from lerobot.teleoperators.utils import TeleopEvents

from ...config.actor import ActorConfig
from ...config.train import ConfigError
from ...errors import UserError, one_line
from .environment import HardwareError, Observation, Step, to_observation
from .hil_simulator import SeededReset, check_fits, forget_correction, make_simulator
from .leader import LeaderWithKeys
from .safety import ActionLimits, UnsafeActionError, check_limits
from .success import parse_success

logger = logging.getLogger(__name__)


class LimitedTargets(gym.Wrapper):
    """Clamps the joint targets on their last step to the robot, whoever decided them.

    Args:
        env: LeRobot's ``RobotEnv``.
        limits: of its joints.
    """

    def __init__(self, env: gym.Env, limits: ActionLimits):
        super().__init__(env)
        self._limits = limits
        self.executed: np.ndarray | None = None  # (J,) float32, of the last step

    @property
    def robot(self) -> Any:
        """LeRobot's robot; its processors ask for it."""
        return self.env.unwrapped.robot

    def get_raw_joint_positions(self) -> dict[str, float]:
        """Joint → position, as last read."""
        return self.env.unwrapped.get_raw_joint_positions()

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**kwargs)
        positions = self.get_raw_joint_positions()
        self.executed = np.array([positions[name] for name in self._limits.names], dtype=np.float32)
        return result

    def observe(self) -> dict[str, Any]:
        """What the robot sees and where it is now, as after a reset; nothing moves."""
        return self.env.unwrapped._get_observation()

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        targets = torch.as_tensor(action).detach().cpu().numpy()
        self.executed = self._limits.apply(targets, self.executed)
        return self.env.step(self.executed)


def make_manipulator(
    env_cfg: HILSerlRobotEnvConfig,
    actor: ActorConfig,
    features: dict[str, PolicyFeature],
    action_names: list[str],
    rename_map: dict[str, str],
) -> "ManipulatorEnvironment":
    """Check the limits, then open the hardware (or gym-hil's simulator).

    Raises:
        ConfigError: robot or teleoperator is missing, or a limit is.
        HardwareError: something cannot be opened; what was opened is closed again.
    """
    if env_cfg.name == "gym_hil":
        return _make_simulator(env_cfg, actor, features, action_names, rename_map)
    from lerobot.rl.gym_manipulator import RobotEnv, make_processors

    for key in ("robot", "teleop"):
        if getattr(env_cfg, key) is None:
            raise ConfigError(f"env.{key} is missing: a real robot needs one")
    robot = _opened("env.robot", env_cfg.robot, lambda: make_robot_from_config(env_cfg.robot))
    joints = [f"{motor}.pos" for motor in robot.bus.motors]
    limits = ActionLimits.of(actor, joints)
    check_limits(actor, limits, getattr(env_cfg.robot, "max_relative_target", None))
    teleop = _opened("env.teleop", env_cfg.teleop, lambda: make_teleoperator_from_config(env_cfg.teleop))
    if not hasattr(teleop, "get_teleop_events"):
        if env_cfg.processor.inverse_kinematics is not None:
            raise ConfigError(
                "env.processor.inverse_kinematics moves the gripper, but env.teleop is a leader of joints"
            )
        teleop = LeaderWithKeys(teleop, joints)
    if env_cfg.processor.inverse_kinematics is None:
        action_names = _joint_actions(action_names, joints)
    with ExitStack() as undo:
        _opened("env.robot", env_cfg.robot, robot.connect)
        undo.callback(_close_quietly, robot)
        _opened("env.teleop", env_cfg.teleop, teleop.connect)
        undo.callback(_close_quietly, teleop)
        options = env_cfg.processor
        env = RobotEnv(
            robot=robot,
            use_gripper=options.gripper is None or options.gripper.use_gripper,
            display_cameras=options.observation is not None and options.observation.display_cameras,
            reset_pose=None if options.reset is None else options.reset.fixed_reset_joint_positions,
            reset_time_s=5.0 if options.reset is None else options.reset.reset_time_s,
        )
        env = LimitedTargets(env, limits)
        pipelines = make_processors(env, teleop, env_cfg)
        made = ManipulatorEnvironment(env, teleop, pipelines, env_cfg, features, action_names, rename_map=rename_map)
        undo.pop_all()
        return made


def _joint_actions(action_names: list[str], joints: list[str]) -> list[str]:
    """The joints as names of the policy's actions, if they can be.

    Raises:
        ConfigError: there are more or fewer, or the same ones in another order.
    """
    if len(action_names) != len(joints):
        raise ConfigError(f"the policy has {len(action_names)} actions, but env.robot the joints {', '.join(joints)}")
    if action_names != joints and set(action_names) == set(joints):
        raise ConfigError(f"the dataset's actions are {', '.join(action_names)}, but env.robot's {', '.join(joints)}")
    return joints


def _make_simulator(
    env_cfg: HILSerlRobotEnvConfig,
    actor: ActorConfig,
    features: dict[str, PolicyFeature],
    action_names: list[str],
    rename_map: dict[str, str],
) -> "ManipulatorEnvironment":
    from lerobot.rl.gym_manipulator import make_processors

    limits = ActionLimits.of(actor, action_names)
    env = make_simulator(env_cfg)
    with ExitStack() as undo:
        undo.callback(env.close)
        pipelines = make_processors(env, None, env_cfg)
        check_fits(env, pipelines[0], features, action_names, rename_map)
        undo.pop_all()
    return ManipulatorEnvironment(env, None, pipelines, env_cfg, features, action_names, limits, rename_map)


class ManipulatorEnvironment:
    """A manipulator behind LeRobot's environment and action pipelines.

    Args:
        env: a :class:`LimitedTargets` around a real robot, or gym-hil's simulator (:class:`SeededReset`).
        teleop: with which a person takes over; None: the simulator has its own.
        pipelines: LeRobot's environment and action processors.
        limits: of the policy's actions, where ``env`` has none of its own.
        rename_map: the observations' names → the policy's.
    """

    def __init__(
        self,
        env: gym.Env,
        teleop: Any | None,
        pipelines: tuple[Any, Any],
        env_cfg: HILSerlRobotEnvConfig,
        features: dict[str, PolicyFeature],
        action_names: list[str],
        limits: ActionLimits | None = None,
        rename_map: dict[str, str] | None = None,
    ):
        self._names = rename_map
        self._env, self._teleop, (self._after, self._before) = env, teleop, pipelines
        self._features, self._limits = features, limits
        self.fps, self.task, self.action_names = float(env_cfg.fps), env_cfg.task or "", action_names
        self.real_robot = teleop is not None
        classifier = env_cfg.processor.reward_classifier
        classifies = classifier is not None and classifier.pretrained_path is not None
        self.reports_success = not self.real_robot or classifies
        self._stores_targets = self.real_robot and env_cfg.processor.inverse_kinematics is None
        self._classified = self.real_robot and self.reports_success
        self._transition: Any = None
        self._last: np.ndarray | None = None

    def reset(self, seed: int) -> Observation:
        from lerobot.rl.gym_manipulator import reset_and_build_transition

        if isinstance(self._env, SeededReset):
            self._env.next_seed = seed
        self._last = None
        self._transition = reset_and_build_transition(self._env, self._after, self._before)
        if isinstance(self._teleop, LeaderWithKeys):
            self._teleop.start_episode(self._env.get_raw_joint_positions())
        return self._observe()

    def observe(self) -> Observation:
        """What a real robot sees before its first step; LeRobot's pipeline begins its episode anew with it."""
        known = self._transition
        self._after.reset()  # it counts steps towards the time limit
        seen = create_transition(
            observation=self._env.observe(),
            info=known[TransitionKey.INFO],
            complementary_data=known[TransitionKey.COMPLEMENTARY_DATA],
        )
        self._transition = self._after(seen)
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        from lerobot.rl.gym_manipulator import step_env_and_process_transition

        if not np.isfinite(action).all():
            raise UnsafeActionError(f"expected finite numbers as an action, got {action}")
        if self._limits is not None:
            action = self._limits.apply(action, self._last)
        if not self.real_robot:
            forget_correction(self._transition[TransitionKey.INFO])
        self._transition = step_env_and_process_transition(
            self._env, self._transition, torch.from_numpy(np.array(action, np.float32)), self._after, self._before
        )
        transition, info = self._transition, self._transition[TransitionKey.INFO]
        if isinstance(self._teleop, LeaderWithKeys):
            self._teleop.follow(self._env.get_raw_joint_positions())
        reward, terminated = float(transition[TransitionKey.REWARD]), bool(transition[TransitionKey.DONE])
        # Of gym-hil "succeed" is what the simulator says, "next.success" what a person did.
        success = bool(parse_success(info).success)
        intervention = bool(info.get(TeleopEvents.IS_INTERVENTION))
        self._last = self._executed(action, intervention)
        return Step(
            observation=self._observe(),
            executed=self._last,
            reward=reward,
            terminated=terminated,
            truncated=bool(transition[TransitionKey.TRUNCATED]),
            success=success or (self._classified and reward > 0),
            intervention=intervention,
            rerecord=bool(info.get(TeleopEvents.RERECORD_EPISODE) or info.get("rerecord_episode")),
        )

    def _executed(self, action: np.ndarray, intervention: bool) -> np.ndarray:
        """What moved the robot, in the policy's action space: joint targets as they were sent, or, where a pipeline
        makes them of something else, what a person or the policy put into it."""
        if self._stores_targets:
            return self._env.executed.copy()
        if intervention or not self.real_robot:  # gym-hil says so at every step
            action = self._transition[TransitionKey.COMPLEMENTARY_DATA].get("teleop_action", action)
        return torch.as_tensor(action).detach().cpu().float().numpy().reshape(-1)

    def _observe(self) -> Observation:
        return to_observation(self._transition[TransitionKey.OBSERVATION], self._features, self._names)

    def close(self) -> None:
        try:
            self._env.close()
        finally:
            if self._teleop is not None:
                self._teleop.disconnect()


def _opened(key: str, config: Any, opens: Any) -> Any:
    """Whatever ``opens`` returns.

    Raises:
        HardwareError: it raised; every driver has exceptions of its own.
    """
    try:
        return opens()
    except UserError:
        raise
    except Exception as error:
        where = f" at {config.port}" if getattr(config, "port", None) else ""
        raise HardwareError(f"{key}{where} cannot be opened: {one_line(error)}") from error


def _close_quietly(device: Any) -> None:
    """Close what was opened before something else could not be, without hiding that error."""
    try:
        if device.is_connected:
            device.disconnect()
    except Exception as error:
        logger.warning("[ACTOR] %s cannot be closed: %s", device, error)
