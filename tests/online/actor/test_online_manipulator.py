"""Real robots behind LeRobot's pipelines, with devices that only look like some."""

import json
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from actors import environment_of
from commands import REPOSITORY
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.motors import motors_bus
from lerobot.motors.feetech import feetech
from lerobot.teleoperators.utils import TeleopEvents
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.online.actor import manipulator
from lerobot_policy_pi05_rl.online.actor.leader import LeaderWithKeys
from lerobot_policy_pi05_rl.online.actor.manipulator import HardwareError
from lerobot_policy_pi05_rl.online.actor.safety import UnsafeActionError
from lerobot_policy_pi05_rl.online.config import OnlineTrainConfig

SO101 = REPOSITORY / "configs" / "so101.json"
MOTORS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
JOINTS = [f"{motor}.pos" for motor in MOTORS]
FEATURES = {
    "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 48, 64)),
    "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 48, 64)),
    OBS_STATE: PolicyFeature(FeatureType.STATE, (6,)),
    ACTION: PolicyFeature(FeatureType.ACTION, (6,)),
}


class FakeFollower:
    """Is where it is sent, at once."""

    def __init__(self):
        self.bus, self.cameras = SimpleNamespace(motors=dict.fromkeys(MOTORS)), {"front": None, "wrist": None}
        self.position, self.is_connected, self.sent = dict.fromkeys(JOINTS, 0.0), False, []

    def connect(self):
        self.is_connected = True

    def disconnect(self):
        self.is_connected = False

    def get_observation(self):
        return {**self.position, **{name: np.full((48, 64, 3), 100, np.uint8) for name in self.cameras}}

    def send_action(self, action):
        self.sent.append([float(action[joint]) for joint in JOINTS])
        self.position = {joint: float(action[joint]) for joint in JOINTS}


class FakeLeader:
    """A leader arm with motors; its joints come in another order than the follower's."""

    action_features = feedback_features = dict.fromkeys(reversed(JOINTS), float)

    def __init__(self, fails=False):
        self.position, self.is_connected, self.torque, self._fails = dict.fromkeys(JOINTS, 0.0), False, False, fails

    def connect(self):
        if self._fails:
            raise ConnectionError("no such\n port")
        self.is_connected = True

    def disconnect(self):
        self.is_connected = False

    def get_action(self):
        return dict(reversed(self.position.items()))

    def send_feedback(self, feedback):
        assert self.torque
        self.position = dict(feedback)

    def enable_torque(self):
        self.torque = True

    def disable_torque(self):
        self.torque = False


def so101(tmp_path, **actor):
    """The configuration in the repository, with another actor."""
    raw = json.loads(SO101.read_text())
    raw["policy"] |= {"actor_device": "cpu", "learner_device": None, "pi05_checkpoint": None}
    raw["env"]["processor"]["reset"]["reset_time_s"] = 0.0
    raw["env"]["processor"]["reset"]["control_time_s"] = 0.5
    raw["actor"] = {"action_clamp_limits": {joint: [-100, 100] for joint in JOINTS}, **actor}
    path = tmp_path / "so101.json"
    path.write_text(json.dumps(raw))
    return load_config(path, kind=OnlineTrainConfig)


@pytest.fixture
def arms(monkeypatch):
    """Fake arms instead of those of the configuration."""
    made = SimpleNamespace(follower=FakeFollower(), leader=FakeLeader(), keys=[])
    monkeypatch.setattr(manipulator, "make_robot_from_config", lambda config: made.follower)
    monkeypatch.setattr(manipulator, "make_teleoperator_from_config", lambda config: made.leader)
    no_keys = SimpleNamespace(stop=lambda: None)
    monkeypatch.setattr(LeaderWithKeys.__init__, "__defaults__", (lambda press, controls_help: no_keys,))
    monkeypatch.setattr("lerobot.common.control_utils.time.sleep", lambda seconds: None)
    return made


def test_so101_builds_up_to_its_hardware(tmp_path, monkeypatch):
    for module in (motors_bus, feetech):
        monkeypatch.setattr(module, "require_package", lambda *args, **kwargs: None)
    monkeypatch.setattr(feetech, "scs", mock.MagicMock(PortHandler=FakePort))
    monkeypatch.setattr(motors_bus, "serial", SimpleNamespace(SerialException=OSError))
    with pytest.raises(HardwareError, match=r"env\.robot at /dev/ttyACM0 cannot be opened") as error:
        environment_of(so101(tmp_path), FEATURES, JOINTS)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"and shoulder_pan\.pos, .* has none"):
        environment_of(so101(tmp_path, action_clamp_limits=None), FEATURES, JOINTS)
    with pytest.raises(ConfigError, match=r"the dataset's actions are gripper\.pos"):
        environment_of(so101(tmp_path), FEATURES, list(reversed(JOINTS)))


class FakePort:
    """A serial port that is not there."""

    def __init__(self, name):
        self.name, self.is_open = name, False

    def setPacketTimeout(self, *args):  # noqa: N802 - the SDK's
        pass

    def openPort(self):  # noqa: N802 - the SDK's
        raise FileNotFoundError(self.name)


def test_a_person_takes_over_with_the_leader(tmp_path, arms):
    cfg = so101(tmp_path, max_action_step=dict.fromkeys(JOINTS, 10.0))
    env = environment_of(cfg, FEATURES, JOINTS)
    assert env.real_robot and not env.reports_success and env.fps == 30
    observation = env.reset(0)
    assert observation["observation.images.front"].shape == (48, 64, 3)
    assert (observation["observation.images.front"] == 100).all() and observation[OBS_STATE].tolist() == [0] * 6
    assert arms.leader.torque
    step = env.step(np.full(6, 50, np.float32))
    assert step.executed.tolist() == [10] * 6 == arms.follower.sent[-1]  # one step from where it was
    assert not step.intervention and list(arms.leader.position.values()) == [10] * 6  # the leader follows
    env._teleop.press("space")
    arms.leader.position = dict(zip(JOINTS, [12, 13, 14, 15, 16, 90], strict=True))
    step = env.step(np.full(6, -50, np.float32))
    assert step.intervention and not arms.leader.torque
    assert step.executed.tolist() == [12, 13, 14, 15, 16, 20] == arms.follower.sent[-1]
    assert arms.leader.position["gripper.pos"] == 90  # nobody pulls at it
    env._teleop.press("space")
    step = env.step(np.full(6, 14, np.float32))
    assert not step.intervention and arms.leader.torque and not step.terminated
    env._teleop.press("s")
    step = env.step(np.full(6, 14, np.float32))
    assert step.success and step.terminated and step.reward == 1
    with pytest.raises(UnsafeActionError):
        env.step(np.full(6, np.nan, np.float32))
    env.close()
    assert not arms.follower.is_connected and not arms.leader.is_connected


@pytest.mark.parametrize(
    ("key", "terminated", "rerecord"), [("q", True, False), ("esc", True, False), ("r", True, True)]
)
def test_keys_end_an_episode(tmp_path, arms, key, terminated, rerecord):
    env = environment_of(so101(tmp_path), FEATURES, JOINTS)
    env.reset(0)
    env._teleop.press(key)
    step = env.step(np.zeros(6, np.float32))
    assert (step.terminated, step.rerecord, step.success) == (terminated, rerecord, False)
    env.reset(0)
    assert not env.step(np.zeros(6, np.float32)).terminated  # a key counts once
    for _ in range(15):
        step = env.step(np.zeros(6, np.float32))
    assert step.truncated and not step.terminated  # control_time_s
    env.close()


def test_what_was_opened_is_closed_when_the_rest_cannot_be(tmp_path, arms):
    arms.leader = FakeLeader(fails=True)
    with pytest.raises(HardwareError, match=r"env\.teleop at /dev/ttyACM1 cannot be opened: no such port"):
        environment_of(so101(tmp_path), FEATURES, JOINTS)
    assert not arms.follower.is_connected


def test_a_leader_of_other_joints_is_refused(tmp_path, arms):
    with pytest.raises(ConfigError, match=r"no joint shoulder_pan\.pos"):
        LeaderWithKeys(SimpleNamespace(action_features={"gripper.pos": float}), JOINTS)
    events = LeaderWithKeys(FakeLeader(), JOINTS).get_teleop_events()
    assert not any(events.values()) and TeleopEvents.IS_INTERVENTION in events
    assert torch.is_tensor(torch.as_tensor(LeaderWithKeys(FakeLeader(), JOINTS).get_action()))
