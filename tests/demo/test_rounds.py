"""The simulator behind LeRobot's robot and teleoperator, and a round recorded with them by `lerobot-rollout`."""

from dataclasses import dataclass

import draccus
import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.robots import RobotConfig, make_robot_from_config
from lerobot.teleoperators import TeleoperatorConfig, make_teleoperator_from_config
from lerobot.utils.errors import DeviceNotConnectedError
from lerobot.utils.feature_utils import hw_to_dataset_features
from tiny import write_config

pytest.importorskip("gym_hil")


import rounds
from panda_sim.config_sim_robot import PandaSimOperatorConfig
from panda_sim.sim_robot import ACTION_KEYS, STATE_KEYS

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.demo.operators import ScriptedOperator
from lerobot_policy_pi05_rl.demo.record import record_dataset
from lerobot_policy_pi05_rl.demo.simulator import PandaPickCubeSimulator
from lerobot_policy_pi05_rl.labels import command as label_command
from lerobot_policy_pi05_rl.offline_learner import train_offline


@dataclass
class Devices:
    """The part of `lerobot-rollout`'s configuration that is under test."""

    robot: RobotConfig | None = None
    teleop: TeleoperatorConfig | None = None


def made(*arguments: str):
    """A device by LeRobot's own parser and factory."""
    devices = draccus.parse(Devices, args=list(arguments))
    return make_teleoperator_from_config(devices.teleop) if devices.teleop else make_robot_from_config(devices.robot)


@pytest.fixture
def robot():
    device = made("--robot.type=panda_sim", "--robot.seed=3")
    device.connect()
    yield device
    if device.is_connected:
        device.disconnect()


@pytest.fixture
def operator():
    device = made("--teleop.type=panda_sim_operator", "--teleop.seed=0")
    device.connect()
    return device


def action_of(values) -> dict[str, float]:
    return dict(zip(ACTION_KEYS, values, strict=True))


def test_what_lerobot_rollout_records_is_what_the_demos_dataset_holds(robot, tmp_path):
    root = record_dataset(tmp_path / "set", "local/test_demo", episodes=1)
    features = LeRobotDataset("local/test_demo", root=root).meta.features
    recorded = {
        **hw_to_dataset_features(robot.observation_features, "observation"),
        **hw_to_dataset_features(robot.action_features, "action"),
    }
    assert set(recorded) == {key for key in features if key.startswith(("observation", "action"))}
    for key, feature in recorded.items():
        assert (feature["dtype"], tuple(feature["shape"])) == (features[key]["dtype"], tuple(features[key]["shape"]))
        if "images" not in key:  # LeRobot records what ends in .pos or .vel, nothing else
            assert [name.rsplit(".", 1)[0] for name in feature["names"]] == features[key]["names"]
            assert all(name.endswith((".pos", ".vel")) for name in feature["names"])


def test_the_robot_sees_and_does_what_the_simulator_sees_and_does(robot):
    reference = PandaPickCubeSimulator()
    try:
        expected, _ = reference.reset(seed=3)
        for values in ((0.3, -0.2, -0.5, 1.0), (-0.1, 0.4, 0.2, -1.0)):
            seen = robot.get_observation()
            assert [seen[key] for key in STATE_KEYS] == expected["agent_pos"].tolist()
            for camera, picture in expected["pixels"].items():
                np.testing.assert_array_equal(seen[camera], picture)
            robot.send_action(action_of(values))
            expected, *_ = reference.step(np.array(values))
        assert [robot.get_observation()[key] for key in STATE_KEYS] == expected["agent_pos"].tolist()
    finally:
        reference.close()


def test_the_operator_lifts_the_cube_through_the_robot_which_then_stands_still(robot, operator, caplog):
    with caplog.at_level("INFO"):
        for _ in range(40):
            robot.send_action(operator.get_action())
    assert robot.lifted
    assert robot.steps < 20
    assert f"{rounds.LIFTED} after {robot.steps} steps" in caplog.text
    assert robot.simulator.cube_position[2] > 0.1


def test_an_action_sent_again_is_a_pause(robot):
    """LeRobot's DAgger strategy repeats the last action while it waits for the person."""
    action = action_of((0.5, 0.0, -0.5, -1.0))
    robot.send_action(action)
    paused = robot.get_observation()
    for _ in range(5):
        robot.send_action(dict(action))
    assert robot.steps == 1
    assert [robot.get_observation()[key] for key in STATE_KEYS] == [paused[key] for key in STATE_KEYS]
    robot.send_action({**action, ACTION_KEYS[0]: 0.4})
    assert robot.steps == 2


def test_each_correction_starts_above_the_cube(robot, operator):
    robot.send_action(operator.get_action())
    first = operator._operator
    while first.phase == "above":
        robot.send_action(operator.get_action())
    assert operator._operator is first
    robot.send_action(action_of((0.0, 0.9, 0.8, -1.0)))  # the policy again
    robot.send_action(operator.get_action())
    assert operator._operator is not first
    assert operator._operator.phase == "above"


def test_a_correction_lets_go_of_a_cube_that_is_held_and_then_lifts_it(robot, operator):
    demonstrator = ScriptedOperator("fast", np.random.default_rng(1))
    while robot.cube_rests:
        robot.send_action(action_of(demonstrator.act_in(robot.simulator).tolist()))
    assert demonstrator.phase == "lift" and not robot.lifted
    assert operator.get_action()[ACTION_KEYS[3]] == -1.0
    for _ in range(30):
        robot.send_action(operator.get_action())
    assert robot.lifted


def test_wrong_use_is_refused(robot, operator):
    with pytest.raises(ValueError, match=r"panda_sim's action has delta_x\.vel, .*; got gripper_x\.pos"):
        robot.send_action({"gripper_x.pos": 0.0})
    with pytest.raises(ValueError, match="finite"):
        robot.send_action(action_of((float("nan"), 0.0, 0.0, 0.0)))
    robot.disconnect()
    with pytest.raises(DeviceNotConnectedError):
        robot.get_observation()
    with pytest.raises(DeviceNotConnectedError, match="no panda_sim is connected"):
        operator.get_action()
    with pytest.raises(ValueError, match="style must be one of"):
        PandaSimOperatorConfig(style="lazy")
    with pytest.raises(draccus.ParsingError):
        made("--teleop.type=panda_sim_operator", "--teleop.style=lazy")


def test_a_start_state_without_a_seed_is_a_new_one():
    positions = []
    for _ in range(2):
        device = made("--robot.type=panda_sim")
        device.connect()
        positions.append(device.simulator.cube_position)
        device.disconnect()
    assert not np.array_equal(*positions)


@pytest.mark.slow  # starts lerobot-rollout twice
def test_a_round_is_recorded_by_lerobot_rollout_labelled_and_trained_on(checkpoint, tmp_path):
    done = rounds.record_round(str(checkpoint), tmp_path / "round", 2, 0, 10, ["--robot.image_size=32"])
    assert done == [rounds.Attempt(lifted=True, corrected=True), rounds.Attempt(lifted=False, corrected=False)]
    table = LeRobotDataset("local/rollout_round", root=tmp_path / "round", video_backend="pyav").hf_dataset
    episode, person = (np.asarray(table.with_format("numpy")[key]) for key in ("episode_index", "intervention"))
    first = person[episode == 0]
    assert 10 <= first.argmax() < len(first) - 5  # the policy's actions first, then the person's until the end
    assert first[first.argmax() :].all()
    assert not person[episode == 1].any()

    demo = record_dataset(tmp_path / "demo", "test/tiny", episodes=2, image_size=32)
    config = str(write_config(tmp_path / "c.json", demo, tmp_path / "run"))
    both = f'--dataset.additional_offline_dataset_paths=["{tmp_path}/round"]'
    assert label_command.main([config, both, "--of", f"{tmp_path}/round", "--success=0", "--failure=1"]) == 0
    labels = f"--reward.outcome_file={tmp_path}/demo.labels/outcomes.csv"
    train_offline(load_config(config, [both, labels]))
    assert (tmp_path / "run" / "checkpoints" / "last" / "pretrained_model" / "model.safetensors").is_file()
