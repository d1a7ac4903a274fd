"""The pick simulator behind LeRobot's `Robot` and a scripted operator behind its `Teleoperator`.

With them `lerobot-rollout` records in the simulator what it would record on a real arm. As there, nothing resets the
scene within a session: connecting starts at a new start state, and the cube that is lifted ends the attempt.
"""

import logging
from typing import Any

import numpy as np
from lerobot.robots.robot import Robot
from lerobot.teleoperators.teleoperator import Teleoperator
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected
from lerobot.utils.errors import DeviceNotConnectedError

from lerobot_policy_pi05_rl.demo.constants import ACTION_NAMES, CAMERA_NAMES, CONTROL_HZ, STATE_NAMES
from lerobot_policy_pi05_rl.demo.env_config import PANDA, SimulatorFactory
from lerobot_policy_pi05_rl.demo.operators import STYLES, ScriptedOperator

from .config_sim_robot import PandaSimConfig, PandaSimOperatorConfig

logger = logging.getLogger(__name__)

# `lerobot-rollout` records and sends only what ends in .pos or .vel (rollout/context.py). A step is a velocity: so
# far per control step; the gripper's command is a position.
ACTION_KEYS = tuple(f"{name}.vel" if name.startswith("delta_") else f"{name}.pos" for name in ACTION_NAMES)
STATE_KEYS = tuple(f"{name}.pos" for name in STATE_NAMES)

# How the log tells whoever watches how the attempt goes.
LIFTED = "[DEMO] The cube is lifted"
NOT_LIFTED = "[DEMO] The cube is not lifted"  # once per simulated second

_RESTS_M = 0.005  # a cube that is no higher than this above its start lies on the floor

_connected: "PandaSim | None" = None  # the arm of this process, which its operator watches


class PandaSim(Robot):
    """A Panda arm in the pick simulator; one control step per action.

    Observation: `STATE_KEYS`, floats (metres; the opening from 0 closed to 1 open), and the cameras `front` and
    `wrist`, uint8 (image_size, image_size, 3). Action: `ACTION_KEYS`, floats in [-1, 1], see
    `PandaPickCubeSimulator`.

    Attributes:
        steps: control steps since the start state.
        lifted: whether the cube was lifted; the arm then stands still.
    """

    config_class = PandaSimConfig
    name = "panda_sim"

    def __init__(self, config: PandaSimConfig) -> None:
        self.config = config
        self.simulator: Any = None
        self.steps = 0
        self.lifted = False
        self._observation: dict[str, Any] = {}
        self._last_action: np.ndarray | None = None
        self._resting_z = 0.0
        super().__init__(config)

    @property
    def observation_features(self) -> dict[str, type | tuple[int, int, int]]:
        """LeRobot's: `float`, or the shape of a picture."""
        size = self.config.image_size
        return {**dict.fromkeys(STATE_KEYS, float), **dict.fromkeys(CAMERA_NAMES, (size, size, 3))}

    @property
    def action_features(self) -> dict[str, type]:
        """LeRobot's: `float` each."""
        return dict.fromkeys(ACTION_KEYS, float)

    @property
    def cameras(self) -> dict[str, str]:
        """The cameras' names; LeRobot counts them to know how many threads write pictures."""
        return {name: name for name in CAMERA_NAMES}

    @property
    def is_connected(self) -> bool:
        return self.simulator is not None

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        """Build the simulator and go to a start state.

        Raises:
            ImportError: gym-hil or MuJoCo is missing, with the command that installs them.
            DeviceAlreadyConnectedError: it is connected.
        """
        global _connected
        self.simulator = SimulatorFactory(
            PANDA, {"image_size": self.config.image_size, "cube_jitter": self.config.cube_jitter}
        )()
        self._observation, _ = self.simulator.reset(seed=self.config.seed)
        self._resting_z = self.simulator.cube_position[2]
        self.steps, self.lifted, self._last_action = 0, False, None
        _connected = self

    @property
    def cube_rests(self) -> bool:
        """Whether the cube lies on the floor."""
        return bool(self.simulator.cube_position[2] < self._resting_z + _RESTS_M)

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        """Nothing to calibrate."""

    def configure(self) -> None:
        """Nothing to configure."""

    @check_if_not_connected
    def get_observation(self) -> dict[str, Any]:
        """What is seen now."""
        state = self._observation["agent_pos"].tolist()
        return {**dict(zip(STATE_KEYS, state, strict=True)), **self._observation["pixels"]}

    @check_if_not_connected
    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        """Do one control step.

        Raises:
            ValueError: the keys are not `ACTION_KEYS`, or a value is not finite.
        """
        if set(action) != set(ACTION_KEYS):
            raise ValueError(f"panda_sim's action has {', '.join(ACTION_KEYS)}; got {', '.join(action)}")
        values = np.array([action[key] for key in ACTION_KEYS], dtype=np.float64)
        if self.lifted or self._is_hold(values):
            return action
        self._last_action = values
        self._observation, _, self.lifted, _, _ = self.simulator.step(values)
        self.steps += 1
        if self.lifted:
            logger.info("%s after %d steps", LIFTED, self.steps)
        elif self.steps % CONTROL_HZ == 0:
            logger.info("%s after %d steps", NOT_LIFTED, self.steps)
        return action

    def _is_hold(self, values: np.ndarray) -> bool:
        """Whether LeRobot means that the arm shall wait.

        Its DAgger strategy holds a paused robot by sending the last action again and again (rollout/strategies/
        dagger.py), which moves on where an action is a step. A policy and an operator with noise repeat no action to
        the last digit unless every component is at its limit.
        """
        return self._last_action is not None and np.array_equal(values, self._last_action)

    def disconnect(self) -> None:
        """Close the simulator."""
        global _connected
        if _connected is self:
            _connected = None
        self.simulator.close()
        self.simulator = None


class PandaSimOperator(Teleoperator):
    """The scripted operator, who reads the true positions in the simulator of the arm in this process.

    Every correction starts anew: when the arm moved without the operator, it lets go of the cube if it holds it, and
    begins above the cube again.
    """

    config_class = PandaSimOperatorConfig
    name = "panda_sim_operator"

    def __init__(self, config: PandaSimOperatorConfig) -> None:
        self.config = config
        self._rng: np.random.Generator | None = None
        self._operator: ScriptedOperator | None = None
        self._steps = -1  # of the arm, when the operator's last action has been done
        super().__init__(config)

    @property
    def action_features(self) -> dict[str, type]:
        """LeRobot's: `float` each."""
        return dict.fromkeys(ACTION_KEYS, float)

    @property
    def feedback_features(self) -> dict[str, type]:
        """None: nobody moves the operator."""
        return {}

    @property
    def is_connected(self) -> bool:
        return self._rng is not None

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        """Ready to correct."""
        self._rng = np.random.default_rng(self.config.seed)

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        """Nothing to calibrate."""

    def configure(self) -> None:
        """Nothing to configure."""

    @check_if_not_connected
    def get_action(self) -> dict[str, float]:
        """The operator's action in the arm's present state.

        Raises:
            DeviceNotConnectedError: no `panda_sim` is connected in this process.
        """
        if _connected is None:
            raise DeviceNotConnectedError("no panda_sim is connected here; panda_sim_operator drives nothing else")
        if _connected.steps != self._steps:
            self._operator = None
        self._steps = _connected.steps + 1
        if self._operator is None and _connected.cube_rests:
            self._operator = ScriptedOperator(self.config.style, self._rng)
        if self._operator is None:  # the cube's place is read once, so it must lie there first
            motion = self._rng.normal(0.0, STYLES[self.config.style].noise, size=3)
            values = [*motion.tolist(), -1.0]
        else:
            values = self._operator.act_in(_connected.simulator).tolist()
        return dict(zip(ACTION_KEYS, values, strict=True))

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        """Nobody moves the operator.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("panda_sim_operator takes no feedback")

    def disconnect(self) -> None:
        """Done correcting."""
        self._rng = self._operator = None
