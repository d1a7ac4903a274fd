"""What the demo's simulators share: the check of an action, and the picture for videos."""

from collections.abc import Mapping

import numpy as np
from gymnasium import spaces

from .constants import CAMERA_NAMES


def clipped_action(action: np.ndarray, space: spaces.Box) -> np.ndarray:
    """The action as float64, each component within [-1, 1].

    Raises:
        ValueError: for an action of another shape than the space's, or one that is not finite.
    """
    action = np.asarray(action, dtype=np.float64)
    if action.shape != space.shape or not np.isfinite(action).all():
        raise ValueError(f"Expected {space.shape} finite numbers as action, got {action}.")
    return np.clip(action, -1.0, 1.0)


def side_by_side(pictures: Mapping[str, np.ndarray] | None) -> np.ndarray:
    """The cameras' pictures beside each other, uint8 (image_size, 2 * image_size, 3).

    Raises:
        RuntimeError: nothing was drawn yet.
    """
    if pictures is None:
        raise RuntimeError("Call reset() before render().")
    return np.concatenate([pictures[name] for name in CAMERA_NAMES], axis=1)
