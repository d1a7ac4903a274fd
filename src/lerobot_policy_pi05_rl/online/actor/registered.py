"""A simulator that LeRobot makes from ``env``."""

from typing import Any

import numpy as np
import torch
from lerobot.configs import PolicyFeature
from lerobot.envs import EnvConfig
from lerobot.envs.factory import make_env
from lerobot.envs.utils import NEW_ROLLOUT_OPTION, close_envs, preprocess_observation
from lerobot.utils.constants import ACTION

from ...config.actor import ActorConfig
from ...config.train import ConfigError
from ...data.batch import TASK
from ...errors import UserError, one_line
from .environment import Observation, Step, to_observation
from .safety import ActionLimits
from .success import SuccessReader


class RegisteredEnvironment:
    """A simulator that LeRobot makes from ``env``, driven as ``lerobot-eval`` drives it."""

    real_robot = False

    def __init__(
        self,
        env_cfg: EnvConfig,
        actor: ActorConfig,
        features: dict[str, PolicyFeature],
        action_names: list[str],
        rename_map: dict[str, str],
    ):
        self._features, self._limits = features, ActionLimits.of(actor, action_names)
        self.fps, self.action_names = float(env_cfg.fps), action_names
        self._success, self._names = SuccessReader(), rename_map
        try:
            suites = make_env(env_cfg, n_envs=1)
        except Exception as error:  # of other people's simulators: anything
            raise UserError(f"env.type={env_cfg.type} cannot be made: {one_line(error)}") from error
        made = [env for tasks in suites.values() for env in tasks.values()]
        if len(made) != 1:
            close_envs(suites)
            raise ConfigError(f"env is {len(made)} tasks; an actor acts in one, so name it in env.task")
        self._env, (self._before, self._after) = made[0], env_cfg.get_env_processors()
        self.task = self._describe_task() or env_cfg.task or ""
        self._last: np.ndarray | None = None

    @property
    def reports_success(self) -> bool:
        return self._success.reports_success

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
        batch = self._before({**preprocess_observation(raw), TASK: [self.task]})
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
