"""What the demo's simulators share: the check of an action, spaces, observations and the picture for videos."""

from typing import Any

import numpy as np
from gymnasium import spaces

from .constants import ACTION_NAMES, CAMERA_NAMES, STATE_NAMES


def clipped_action(action: np.ndarray, space: spaces.Box) -> np.ndarray:
    """The action as float64, each component within [-1, 1].

    Raises:
        ValueError: for an action of another shape than the space's, or one that is not finite.
    """
    action = np.asarray(action, dtype=np.float64)
    if action.shape != space.shape or not np.isfinite(action).all():
        raise ValueError(f"Expected {space.shape} finite numbers as action, got {action}.")
    return np.clip(action, -1.0, 1.0)


class TwoCameras:
    """What a simulator of the demo takes and gives: four numbers, two pictures and the gripper."""

    def _set_spaces(self, image_size: int) -> None:
        """Before the first episode."""
        picture = spaces.Box(0, 255, (image_size, image_size, 3), dtype=np.uint8)
        self.observation_space = spaces.Dict(
            {
                "pixels": spaces.Dict(dict.fromkeys(CAMERA_NAMES, picture)),
                "agent_pos": spaces.Box(-np.inf, np.inf, (len(STATE_NAMES),), dtype=np.float32),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (len(ACTION_NAMES),), dtype=np.float32)
        self._steps = 0
        self._pictures: dict[str, np.ndarray] | None = None

    def _compute_observation(self) -> dict[str, Any]:
        """Draw both pictures and read the state."""
        cameras = {"front": self._front_camera, "wrist": self._wrist_camera}
        self._pictures = {name: self._draw(camera) for name, camera in cameras.items()}
        state = np.asarray([*self.gripper_position, self.gripper_opening], dtype=np.float32)
        return {"pixels": dict(self._pictures), "agent_pos": state}

    def render(self) -> np.ndarray:
        """Front and wrist picture side by side, uint8 (image_size, 2 * image_size, 3), for videos.

        Raises:
            RuntimeError: nothing was drawn yet.
        """
        if self._pictures is None:
            raise RuntimeError("Call reset() before render().")
        return np.concatenate([self._pictures[name] for name in CAMERA_NAMES], axis=1)
