"""The Meta-World tasks as a LeRobot environment: `lerobot-eval --env.type=metaworld_tasks`.

Importing this module registers the environment type and needs neither MuJoCo nor Meta-World.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from gymnasium.vector import VectorEnv
from lerobot.configs import PolicyFeature
from lerobot.envs.configs import EnvConfig

from lerobot_policy_pi05_rl.demo.constants import CONTROL_HZ, IMAGE_SIZE
from lerobot_policy_pi05_rl.demo.env_config import SimulatorFactory, demo_features, vectorize

from .tasks import TASKS

SIMULATOR = "metaworld_tasks.simulator.MetaWorldSimulator"


@EnvConfig.register_subclass("metaworld_tasks")
@dataclass
class MetaWorldTasksEnv(EnvConfig):
    """Configuration of the Meta-World tasks.

    Attributes:
        task: names from `tasks.TASKS`, separated by commas; None for all of them.
        fps: control steps per second; the simulator has only this rate.
        image_size: height and width of both pictures, pixels.
        episode_length: control steps until truncation; each task's own number if None.
        freeze_finished: as in `PandaPickCubeEnv`.
        features: keys as LeRobot's `rollout` and its recording of evaluations look them up.
        features_map: from those keys to the policy's.
    """

    task: str | None = None
    fps: int = CONTROL_HZ
    image_size: int = IMAGE_SIZE
    episode_length: int | None = None
    freeze_finished: bool = False
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fps != CONTROL_HZ:
            raise ValueError(f"metaworld_tasks runs at {CONTROL_HZ} steps per second, got fps={self.fps}.")
        unknown = sorted(set(self.task_names) - set(TASKS))
        if unknown:
            raise ValueError(f"metaworld_tasks has the tasks {', '.join(TASKS)}; got {', '.join(unknown)}.")
        self.features, self.features_map = demo_features(self.image_size)

    @property
    def task_names(self) -> list[str]:
        """Names of the chosen tasks."""
        return list(TASKS) if self.task is None else self.task.split(",")

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Arguments of the simulator's constructor, the task aside."""
        return {"image_size": self.image_size, "max_episode_steps": self.episode_length}

    def of_each_task(self) -> dict[str, "MetaWorldTasksEnv"]:
        """This configuration restricted to one task, by the task's name."""
        return {name: replace(self, task=name) for name in self.task_names}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, VectorEnv]]:
        """Build `{task name: {0: vector environment}}`, in this process or one process each.

        Raises:
            ImportError: when Meta-World or MuJoCo is missing (or, in worker processes, fails to import).
        """
        envs = {}
        for name in self.task_names:
            factory = SimulatorFactory(SIMULATOR, {"task": name, **self.gym_kwargs}, self.freeze_finished)
            envs[name] = {0: vectorize(factory, n_envs, use_async_envs)}
        return envs
