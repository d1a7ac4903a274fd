"""The environment that a configuration names."""

from lerobot.configs import PolicyFeature
from lerobot.envs import HILSerlRobotEnvConfig
from lerobot.utils.constants import ACTION

from ...config.train import ConfigError
from ..config import OnlineTrainConfig
from .environment import ActorEnvironment
from .registered import RegisteredEnvironment


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
        from .manipulator import make_manipulator  # with all of LeRobot's robots, which a simulator does not need

        return make_manipulator(cfg, features, names)
    return RegisteredEnvironment(cfg, features, names)
