"""A leader arm as LeRobot's human-in-the-loop steps want a teleoperator: joints as an array, events from keys."""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from lerobot.common.control_utils import teleop_smooth_move_to, teleop_supports_feedback
from lerobot.teleoperators.utils import TeleopEvents
from lerobot.utils.keyboard_input import create_key_listener

from ...config.train import ConfigError

logger = logging.getLogger(__name__)

KEYS = "space: take over or let go, s: success, q or esc: failure, r: record again"


class LeaderWithKeys:
    """Wraps a teleoperator whose action is joint positions and that has no events of its own.

    While the policy acts, a leader with motors follows the follower, so that whoever takes over finds it where the
    robot is; on take-over its motors let go.

    Args:
        leader: LeRobot's teleoperator.
        joints: the follower's joints ("shoulder_pan.pos"), in its order.
        listen: starts a key listener; LeRobot's unless a test gives another.

    Raises:
        ConfigError: the leader lacks a joint.
    """

    def __init__(self, leader: Any, joints: list[str], listen: Callable[..., Any] = create_key_listener):
        missing = [joint for joint in joints if joint not in leader.action_features]
        if missing:
            raise ConfigError(f"env.teleop has no joint {', '.join(missing)}, which env.robot has; use its own leader")
        self._leader, self._joints, self._listen = leader, joints, listen
        self._follows = teleop_supports_feedback(leader)
        self._listener: Any = None
        self._wanted = self._acting = False  # whether a person shall act; whether the leader is let go for it
        self._pressed: deque[TeleopEvents] = deque()  # by the listener's thread

    @property
    def is_connected(self) -> bool:
        """Whether the arm is."""
        return self._leader.is_connected

    def connect(self) -> None:
        """Open the arm, then listen to the keyboard."""
        self._leader.connect()
        self._listener = self._listen(self.press, controls_help=KEYS)

    def press(self, key: str) -> None:
        """A key was pressed; called by the listener's thread, which never touches the arm."""
        match key.lower():
            case "space" | " ":
                self._wanted = not self._wanted
            case "s":
                self._pressed.append(TeleopEvents.SUCCESS)
            case "q" | "esc":
                self._pressed.append(TeleopEvents.TERMINATE_EPISODE)
            case "r":
                self._pressed.extend((TeleopEvents.TERMINATE_EPISODE, TeleopEvents.RERECORD_EPISODE))

    def get_action(self) -> np.ndarray:
        """(A,) float32 joint positions in the follower's order."""
        action = self._leader.get_action()
        return np.array([action[joint] for joint in self._joints], dtype=np.float32)

    def get_teleop_events(self) -> dict[TeleopEvents, bool]:
        """What was asked for since the last call; that a person acts lasts until space is pressed again."""
        if self._wanted != self._acting:
            self._acting = self._wanted
            if self._follows:
                (self._leader.disable_torque if self._acting else self._leader.enable_torque)()
            logger.info("[ACTOR] %s", "A person acts" if self._acting else "The policy acts")
        once = {self._pressed.popleft() for _ in range(len(self._pressed))}
        names = (TeleopEvents.TERMINATE_EPISODE, TeleopEvents.SUCCESS, TeleopEvents.RERECORD_EPISODE)
        return {TeleopEvents.IS_INTERVENTION: self._acting, **{name: name in once for name in names}}

    def start_episode(self, positions: dict[str, float]) -> None:
        """The policy acts first; the leader moves slowly to where the follower is."""
        self._wanted = self._acting = False
        self._pressed.clear()
        if self._follows:
            teleop_smooth_move_to(self._leader, {joint: positions[joint] for joint in self._joints})

    def follow(self, positions: dict[str, float]) -> None:
        """The follower is here now; nothing happens while a person acts."""
        if self._follows and not self._acting:
            self._leader.send_feedback({joint: positions[joint] for joint in self._joints})

    def disconnect(self) -> None:
        """Let go of keyboard and arm."""
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        if self._leader.is_connected:
            if self._follows:
                self._leader.disable_torque()
            self._leader.disconnect()
