"""Operators for the Meta-World tasks, made from Meta-World's scripted policies.

`fast` and `slow` succeed, `slow` in about three times as many steps; `misses` does the motion beside the object.
"""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from .tasks import TASKS

if TYPE_CHECKING:
    from .simulator import MetaWorldSimulator

SPEEDS = {"fast": 1.0, "slow": 0.3, "misses": 1.0}
_NOISE = 0.06  # standard deviation of the noise on the three motion components, times the speed
_OBJECT = (slice(4, 7), slice(22, 25))  # the object's position in both halves of the policies' input


class MetaWorldOperator:
    """Drives one episode of one task.

    Deterministic in the states it meets and the generator, which it draws the aiming error and the action noise
    from.

    Attributes:
        recovery_start: always None; here no operator recovers from a miss.
    """

    recovery_start: int | None = None

    def __init__(self, task: str, name: str, rng: np.random.Generator) -> None:
        """Choose task and operator.

        Raises:
            ImportError: when Meta-World is missing.
            ValueError: for an unknown task or operator.
        """
        if task not in TASKS or name not in SPEEDS:
            raise ValueError(f"Unknown {task=} or operator {name!r}; known: {sorted(TASKS)}, {sorted(SPEEDS)}.")
        from metaworld import policies

        self._task = TASKS[task]
        self._policy = getattr(policies, self._task.policy)()
        self._speed = SPEEDS[name]
        self._rng = rng
        self._error = self._aiming_error() if name == "misses" else np.zeros(3)

    def _aiming_error(self) -> np.ndarray:
        """What is added to the object's position (3,), metres."""
        low, high = np.transpose(self._task.miss)
        error = self._rng.uniform(low, high)
        error[0] *= self._rng.choice([-1.0, 1.0])
        return error

    def act_in(self, env: "MetaWorldSimulator") -> np.ndarray:
        """Next action, float32 (4,), in [-1, 1]; see `MetaWorldSimulator`."""
        state = env.full_state
        for place in _OBJECT:
            state[place] += self._error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the policies warn that large errors are clipped
            wanted = self._policy.get_action(state).astype(np.float64)
        motion = self._speed * np.clip(self._task.gain * wanted[:3], -1.0, 1.0)
        motion += self._rng.normal(0.0, _NOISE * self._speed, size=3)
        return np.clip([*motion, wanted[3]], -1.0, 1.0).astype(np.float32)
