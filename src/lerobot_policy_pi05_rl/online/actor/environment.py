"""What an actor acts in: any environment that LeRobot knows, one at a time, seen through the policy's features."""

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import HILSerlRobotEnvConfig
from lerobot.envs.factory import make_env, make_env_pre_post_processors
from lerobot.envs.utils import NEW_ROLLOUT_OPTION, close_envs, preprocess_observation
from lerobot.utils.constants import ACTION, OBS_STATE

from ...config.train import ConfigError
from ...data.alignment import own_names, renamed
from ...data.compatibility import EMPTY_CAMERA
from ...errors import UserError
from ..config import OnlineTrainConfig
from .safety import ActionLimits
from .success import SuccessReader

logger = logging.getLogger(__name__)

type Observation = dict[str, np.ndarray]  # policy's key → (H, W, 3) uint8 of a camera, (S,) float32 of the state


class HardwareError(UserError):
    """A robot, teleoperator, camera or simulator that cannot be opened."""


@dataclass(frozen=True)
class Step:
    """What one control step led to."""

    observation: Observation
    executed: np.ndarray  # (A,) float32: the action that was executed, in the policy's action space
    reward: float
    terminated: bool
    truncated: bool  # its time was up
    success: bool | None  # None: the environment does not say
    intervention: bool = False  # a person acted
    rerecord: bool = False  # a person wants the episode forgotten


class ActorEnvironment(Protocol):
    """One environment, simulated or real. A real robot's also has ``observe() -> Observation``: what is seen now,
    between a reset and the first step."""

    fps: float
    task: str
    action_names: list[str]
    real_robot: bool
    judges: bool  # the environment itself says whether an episode succeeded

    def reset(self, seed: int) -> Observation:
        """Start an episode."""
        ...

    def step(self, action: np.ndarray) -> Step:
        """Execute (A,) float32, or what a person or the limits make of it.

        Raises:
            UnsafeActionError: the action is not finite; nothing was executed.
        """
        ...

    def close(self) -> None:
        """Let go of simulator or hardware."""
        ...


def make_environment(
    cfg: OnlineTrainConfig, features: dict[str, PolicyFeature], action_names: list[str]
) -> ActorEnvironment:
    """The configuration's environment, with the limits of its actions inside.

    Args:
        features: the policy's inputs and its action, by the policy's keys.
        action_names: of the policy's actions, as the dataset has them; empty: it has none.

    Raises:
        UserError: there is no such environment, it lacks a limit, or its hardware cannot be opened.
    """
    if cfg.env is None:
        raise ConfigError("env is missing: what shall the actor act in? Set env.type")
    width = features[ACTION].shape[0]
    if action_names and len(action_names) != width:
        raise ConfigError(f"the learner names {len(action_names)} actions, but its policy has {width}")
    names = action_names or [str(index) for index in range(width)]
    if isinstance(cfg.env, HILSerlRobotEnvConfig):
        from .manipulator import make_manipulator

        return make_manipulator(cfg, features, names)
    return RegisteredEnvironment(cfg, features, names)


class RegisteredEnvironment:
    """A simulator that LeRobot makes from ``env``, driven as ``lerobot-eval`` drives it."""

    real_robot = False

    def __init__(self, cfg: OnlineTrainConfig, features: dict[str, PolicyFeature], action_names: list[str]):
        self._features, self._limits = features, ActionLimits.of(cfg.actor, action_names)
        self.fps, self.action_names = float(cfg.env.fps), action_names
        self._success, self._names = SuccessReader(), cfg.rename_map
        try:
            suites = make_env(cfg.env, n_envs=1)
        except Exception as error:  # of other people's simulators: anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"env.type={cfg.env.type} cannot be made: {reason}") from error
        made = [env for tasks in suites.values() for env in tasks.values()]
        if len(made) != 1:
            close_envs(suites)
            raise ConfigError(f"env is {len(made)} tasks; an actor acts in one, so name it in env.task")
        self._env, (self._before, self._after) = made[0], make_env_pre_post_processors(cfg.env, cfg.policy)
        self.task = self._describe_task() or cfg.env.task or ""
        self._last: np.ndarray | None = None

    @property
    def judges(self) -> bool:
        return self._success.says

    def _describe_task(self) -> str:
        for attribute in ("task_description", "task"):
            try:
                return str(self._env.call(attribute)[0])
            except (AttributeError, NotImplementedError):
                continue
        return ""

    def reset(self, seed: int) -> Observation:
        self._last = None
        raw, _ = self._env.reset(seed=[seed], options={NEW_ROLLOUT_OPTION: True})
        return self._observe(raw)

    def step(self, action: np.ndarray) -> Step:
        wanted = self._limits.apply(action, self._last)
        sent = self._after({ACTION: torch.from_numpy(wanted)[None]})[ACTION].cpu().numpy()
        raw, reward, terminated, truncated, info = self._env.step(sent)
        # A vector environment starts anew by itself; what the last step said lies in final_info then.
        ends = {"reward": float(reward[0]), "terminated": bool(terminated[0]), "truncated": bool(truncated[0])}
        last_info = info.get("final_info", info)
        intervention = bool(_of_one(last_info, "is_intervention", False))
        executed = wanted
        if intervention:
            executed = np.asarray(_of_one(last_info, "teleop_action", wanted), dtype=np.float32)
        self._last = executed
        return Step(
            observation=self._observe(raw),
            executed=executed,
            success=self._success.read(info, **ends),
            intervention=intervention,
            **ends,
        )

    def _observe(self, raw: dict[str, Any]) -> Observation:
        batch = self._before({**preprocess_observation(raw), "task": [self.task]})
        return to_observation(batch, self._features, self._names)

    def close(self) -> None:
        self._env.close()


def _of_one(info: Any, key: str, default: Any) -> Any:
    """The value of ``key`` for the only environment of a vector environment."""
    if not isinstance(info, dict):  # Gymnasium below 1.0: one dict for each environment
        return (info[0] or {}).get(key, default)
    if key not in info or not np.all(info.get(f"_{key}", True)):
        return default
    value = info[key]
    return value[0] if np.ndim(value) else value


def to_observation(
    batch: dict[str, Any], features: dict[str, PolicyFeature], rename_map: dict[str, str] | None = None
) -> Observation:
    """LeRobot's batch of one, (1, 3, H, W) float of 0 to 1 and (1, S) float → what the policy's features are.

    Args:
        rename_map: the environment's names → the policy's, as for datasets.

    Raises:
        ConfigError: a feature is missing or of another shape, or two things would have one name.
    """
    observation: Observation = {}
    try:
        batch = renamed(batch, own_names(batch, rename_map or {}))
    except ValueError as error:
        raise ConfigError(f"the environment: {error}") from error
    for key, feature in features.items():
        if feature.type is FeatureType.ACTION or key.startswith(EMPTY_CAMERA):
            continue
        if key not in batch:
            known = ", ".join(sorted(name for name, value in batch.items() if isinstance(value, torch.Tensor)))
            raise ConfigError(
                f"the policy reads {key}, which the environment does not give; it gives {known}. If it only has "
                'another name, say so: rename_map={"<its name>": "<the policy\'s>"}'
            )
        value = batch[key].detach().cpu().squeeze(0)
        if tuple(value.shape) != tuple(feature.shape):
            raise ConfigError(
                f"the environment's {key} is {tuple(value.shape)}, but the policy reads {tuple(feature.shape)}; set "
                "the environment's sizes to the dataset's, or record the dataset in this environment"
            )
        if feature.type is FeatureType.VISUAL:
            pixels = (value.float() * 255).round().clamp(0, 255) if value.is_floating_point() else value
            observation[key] = pixels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        elif key == OBS_STATE:
            observation[key] = value.float().numpy()
    return observation
