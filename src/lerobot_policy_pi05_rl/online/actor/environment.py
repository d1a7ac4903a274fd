"""What an actor acts in: any environment that LeRobot knows, one at a time, seen through the policy's features."""

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import OBS_STATE

from ...config.train import ConfigError
from ...data.alignment import own_names, renamed
from ...data.compatibility import EMPTY_CAMERA
from ...errors import UserError

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
    reports_success: bool  # the environment itself says whether an episode succeeded

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
