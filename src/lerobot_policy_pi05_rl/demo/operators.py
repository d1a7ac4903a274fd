"""Scripted operators: phase controllers that read the cube's true position.

They give a demonstration set with something to learn from it: `fast` and `slow` both succeed, but `slow` needs
about three times as many steps; `misses` closes the gripper beside the cube; `recovers` does so too, but then comes
back and succeeds, so that its episodes hold bad and good behaviour, as teleoperated ones do.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .constants import MAX_STEP_M

if TYPE_CHECKING:
    from .simulator import PandaPickCubeSimulator

_HOVER_Z_M = 0.075  # above the cube (4 cm high) with the finger tips clear of it
_LIFT_Z_M = 0.20  # success needs the cube 10 cm up, i.e. the gripper at 0.12
_NOTICED_Z_M = 0.15  # the height at which `recovers` sees that it lifts nothing
_REACHED_M = 0.010
_CLOSE_STEPS = 3
_OPEN, _CLOSED = -1.0, 1.0
# The arm covers roughly half of a commanded step within a control period (it is a spring-damper), so asking
# for twice the distance reaches a target sooner; the clip at the operator's speed bounds it.
_GAIN = 2.0


@dataclass(frozen=True)
class OperatorStyle:
    """How an operator moves.

    Attributes:
        speed: largest action component per axis; 1.0 asks for 5 cm steps.
        miss: lower and upper distance between the aimed-at place and the cube, metres; None aims at the cube.
        recovers: after the miss, once the empty gripper is lifted, try again at the cube itself.
        noise: standard deviation of the Gaussian noise on the three motion components of the action.
    """

    speed: float
    miss: tuple[float, float] | None = None
    recovers: bool = False
    noise: float = 0.06


STYLES: dict[str, OperatorStyle] = {
    "fast": OperatorStyle(speed=1.0),
    "slow": OperatorStyle(speed=0.25),
    "misses": OperatorStyle(speed=1.0, miss=(0.04, 0.07)),
    "recovers": OperatorStyle(speed=1.0, miss=(0.04, 0.07), recovers=True),
}


class ScriptedOperator:
    """Moves above its target, down, closes, lifts. One instance drives one episode.

    Deterministic in the positions it is given and the generator, which it draws the miss direction and the
    action noise from.

    Attributes:
        phase: "above", "down", "close" or "lift".
        recovery_start: index of the first action (from 0) of the second attempt; None before or without one.
    """

    def __init__(self, name: str, rng: np.random.Generator) -> None:
        """
        Raises:
            ValueError: for a name that is not in `STYLES`.
        """
        if name not in STYLES:
            raise ValueError(f"Unknown operator {name!r}; known: {sorted(STYLES)}.")
        self.style = STYLES[name]
        self.phase = "above"
        self.recovery_start: int | None = None
        self._rng = rng
        self._actions = 0
        self._closing_steps = 0
        self._target_xy: np.ndarray | None = None

    def act(self, gripper: np.ndarray, cube: np.ndarray) -> np.ndarray:
        """Next action.

        Args:
            gripper: gripper position (3,), metres.
            cube: cube position (3,), metres; counts where an attempt starts, i.e. on the first call and on that of the
                recovery (the miss may have pushed the cube).

        Returns:
            Action, float32 (4,), in [-1, 1]; see `PandaPickCubeSimulator`.
        """
        if self._target_xy is None:
            self._target_xy = cube[:2] + self._aiming_error()
            self._grasp_z = float(cube[2])
        elif self._is_empty_lift(float(gripper[2])):
            self._target_xy = cube[:2].copy()
            self.phase, self._closing_steps = "above", 0
            self.recovery_start = self._actions
        self._actions += 1
        target = np.array([*self._target_xy, self._height()])
        self._advance(target - gripper)
        target[2] = self._height()
        motion = np.clip(_GAIN * (target - gripper) / MAX_STEP_M, -self.style.speed, self.style.speed)
        motion += self._rng.normal(0.0, self.style.noise, size=3)
        command = _CLOSED if self.phase in ("close", "lift") else _OPEN
        return np.clip([*motion, command], -1.0, 1.0).astype(np.float32)

    def act_in(self, env: "PandaPickCubeSimulator") -> np.ndarray:
        """Next action in the simulator's present state, float32 (4,)."""
        return self.act(env.gripper_position, env.cube_position)

    def _aiming_error(self) -> np.ndarray:
        """Offset of the aimed-at place from the cube (2,), metres."""
        if self.style.miss is None:
            return np.zeros(2)
        angle = self._rng.uniform(0.0, 2.0 * np.pi)
        return self._rng.uniform(*self.style.miss) * np.array([np.cos(angle), np.sin(angle)])

    def _is_empty_lift(self, gripper_z: float) -> bool:
        """Whether to turn back to the cube now: a first attempt that missed is lifted far enough."""
        first_attempt = self.style.recovers and self.recovery_start is None
        return first_attempt and self.phase == "lift" and gripper_z >= _NOTICED_Z_M

    def _height(self) -> float:
        """Height to move to in the present phase, metres."""
        heights = {"above": _HOVER_Z_M, "down": self._grasp_z, "close": self._grasp_z, "lift": _LIFT_Z_M}
        return heights[self.phase]

    def _advance(self, error: np.ndarray) -> None:
        """Go to the next phase when the present one is done; `error` is target minus gripper (3,)."""
        if self.phase == "above" and np.linalg.norm(error) < _REACHED_M:
            self.phase = "down"
        elif self.phase == "down" and np.linalg.norm(error) < _REACHED_M:
            self.phase = "close"
        elif self.phase == "close":
            self._closing_steps += 1
            if self._closing_steps >= _CLOSE_STEPS:
                self.phase = "lift"
