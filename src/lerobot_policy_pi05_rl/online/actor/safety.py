"""What an actor never does: leave the limits of its actions, or act on an observation that is too old."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...config.actor import ActorConfig
from ...config.train import ConfigError


class UnsafeActionError(Exception):
    """An action with NaN or infinity; nothing of it may be executed."""


@dataclass(frozen=True)
class ActionLimits:
    """Limits of each of A action dimensions, in the action's own units; infinite where there are none."""

    names: tuple[str, ...]
    least: np.ndarray  # (A,) float32
    greatest: np.ndarray  # (A,) float32
    step: np.ndarray  # (A,) float32: largest change from one control step to the next

    @classmethod
    def of(cls, actor: ActorConfig, names: Sequence[str]) -> "ActionLimits":
        """The configuration's limits, in the order of ``names``.

        Raises:
            ConfigError: it limits a name that is not among them.
        """
        clamps = actor.action_clamp_limits or {}
        for key, table in (("action_clamp_limits", clamps), ("max_action_step", actor.max_action_step)):
            check_names(f"actor.{key}", table, names)
        free = (-np.inf, np.inf)
        bounds = np.array([clamps.get(name, free) for name in names], dtype=np.float32).reshape(-1, 2)
        step = np.array([actor.max_action_step.get(name, np.inf) for name in names], dtype=np.float32)
        return cls(tuple(names), bounds[:, 0], bounds[:, 1], step)

    def apply(self, action: np.ndarray, last: np.ndarray | None) -> np.ndarray:
        """(A,) float32: the action clamped to its limits, then to at most one step from ``last``.

        Args:
            last: (A,) what was executed before; None: nothing was, so no step is limited.

        Raises:
            UnsafeActionError: the action is not finite.
        """
        action = np.asarray(action, dtype=np.float32)
        if action.shape != self.least.shape or not np.isfinite(action).all():
            raise UnsafeActionError(f"expected {self.least.shape} finite numbers as an action, got {action}")
        action = np.clip(action, self.least, self.greatest)
        if last is not None:
            action = np.clip(action, last - self.step, last + self.step)
        return action.astype(np.float32)

    def unlimited(self, *, steps_limited_elsewhere: bool = False) -> list[str]:
        """Names without both a clamp and a largest step."""
        clamped = np.isfinite(self.least) & np.isfinite(self.greatest)
        stepped = np.isfinite(self.step) | steps_limited_elsewhere
        return [name for name, fine in zip(self.names, clamped & stepped, strict=True) if not fine]


def check_names(key: str, given: Sequence[str] | dict, known: Sequence[str]) -> None:
    """Refuse names that no action has.

    Raises:
        ConfigError: with the names there are.
    """
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(f"{key}: no action is called {', '.join(unknown)}; there are {', '.join(known)}")


def check_limits(actor: ActorConfig, limits: ActionLimits, max_relative_target: object = None) -> None:
    """Refuse a real robot that could be sent anywhere, before it is switched on.

    Args:
        max_relative_target: of the robot's own configuration, which counts as a largest step: one number, or one per
            motor.

    Raises:
        ConfigError: an action lacks a limit and ``actor.allow_unlimited_actions`` is false.
    """
    if actor.allow_unlimited_actions:
        return
    unlimited = limits.unlimited(steps_limited_elsewhere=isinstance(max_relative_target, int | float))
    if isinstance(max_relative_target, dict):
        stepped = {f"{motor.removesuffix('.pos')}.pos" for motor in max_relative_target}
        clamped = limits.unlimited(steps_limited_elsewhere=True)
        unlimited = [name for name in unlimited if name in clamped or name not in stepped]
    if unlimited:
        raise ConfigError(
            f"a real robot needs limits of every action, and {', '.join(unlimited)} has none; set "
            "actor.action_clamp_limits and actor.max_action_step (or env.robot.max_relative_target), or "
            "actor.allow_unlimited_actions=true"
        )


def hold_action(names: Sequence[str], hold: dict[str, float], last: np.ndarray) -> np.ndarray:
    """(A,) float32: what is executed while there is no action: ``hold``'s values, and ``last``'s of the others.

    Args:
        last: (A,) what was executed before.
    """
    action = np.array(last, dtype=np.float32)
    for index, name in enumerate(names):
        action[index] = hold.get(name, action[index])
    return action


class StalenessCheck:
    """Which observations are stale, so that nothing may act on them.

    Args:
        limit_s: the age, in seconds, above which an observation is stale.
        check_pictures: whether a camera whose pictures have not changed at all for ``limit_s`` is stale, too. Two
            pictures of a real camera always differ; a simulator that stands still draws the same one.
    """

    def __init__(self, limit_s: float, check_pictures: bool):
        self.limit_s, self._check_pictures = limit_s, check_pictures
        self._pictures: dict[str, np.ndarray] = {}
        self._changed: dict[str, float] = {}

    def reset(self) -> None:
        """Forget the pictures, at the start of an episode."""
        self._pictures, self._changed = {}, {}

    def update(self, observation: dict[str, np.ndarray], now: float) -> str | None:
        """Note a new observation at ``now`` (seconds); returns which camera has frozen, if one has."""
        if not self._check_pictures:
            return None
        for name, picture in observation.items():
            if picture.ndim != 3:
                continue
            if name not in self._pictures or not np.array_equal(self._pictures[name], picture):
                self._pictures[name], self._changed[name] = picture, now
            elif now - self._changed[name] > self.limit_s:
                return f"the pictures of {name} have not changed for {now - self._changed[name]:.1f} s"
        return None

    def too_old(self, age_s: float) -> str | None:
        """Why an observation of this age is refused, or None."""
        return f"the observation is {age_s:.1f} s old" if age_s > self.limit_s else None
