"""Limits of the configuration that would cut the recorded actions are said, with numbers."""

import json
import logging

import numpy as np
import pytest
from commands import REPOSITORY
from recordings import make_dataset
from tiny import write_config

from lerobot_policy_pi05_rl.config.actor import ActorConfig
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.action_limits import clipping_texts, clipping_texts_of_statistics
from lerobot_policy_pi05_rl.offline_learner import train_offline

NAMES = ["pan", "roll"]


def test_the_share_and_the_range_of_what_a_limit_cuts():
    actions = np.stack([np.linspace(-50, 50, 101), np.linspace(-103, 132, 101)], axis=1)
    actor = ActorConfig(action_clamp_limits={"pan": [-100, 100], "roll": [-100, 100]})
    share = np.mean(np.abs(actions[:, 1]) > 100)
    (text,) = clipping_texts(actor, NAMES, actions, np.array([0]))
    assert f"cuts {share:.1%} of the recorded actions of roll: they run from -103 to 132" in text
    assert "from -100 to 100" in text
    assert clipping_texts(ActorConfig(action_clamp_limits={"roll": [-103, 132]}), NAMES, actions, np.array([0])) == []


def test_a_step_is_one_within_an_episode():
    actions = np.array([[0.0], [1.0], [2.0], [50.0], [51.0], [53.0]])  # two episodes; the jump between them is none
    actor = ActorConfig(max_action_step={"pan": 1.5})
    (text,) = clipping_texts(actor, ["pan"], actions, np.array([0, 3]))
    assert "max_action_step cuts 25.0% of the recorded steps of pan: they are up to 2 " in text
    assert clipping_texts(ActorConfig(max_action_step={"pan": 2.0}), ["pan"], actions, np.array([0, 3])) == []


@pytest.mark.parametrize("keys", [("q01", "q99"), ("min", "max")])
def test_a_checkpoints_statistics_against_the_limits(keys):
    stats = dict(zip(keys, (np.array([-50.0, -103.0]), np.array([50.0, 132.0])), strict=True))
    actor = ActorConfig(action_clamp_limits={"pan": [-100, 100], "roll": [-100, 100]})
    (text,) = clipping_texts_of_statistics(actor, NAMES, stats)
    assert f"of roll: the recorded actions run from -103 ({keys[0]}) to 132 ({keys[1]})" in text
    assert (
        clipping_texts_of_statistics(actor, NAMES, None)
        == clipping_texts_of_statistics(ActorConfig(), NAMES, stats)
        == []
    )


def test_the_offline_run_says_it_at_its_start(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    episodes = [{"length": 6, "success": number % 2 == 0} for number in range(4)]
    make_dataset(tmp_path / "data", episodes)  # the action's first dimension counts from 0 to 5
    path = write_config(tmp_path / "run.json", tmp_path / "data", tmp_path / "run")
    limits = {"action_clamp_limits": {"0": [0, 4]}, "max_action_step": {"0": 1.5}}
    cfg = load_config(path, ["--policy.offline_steps=2"])
    cfg.actor = ActorConfig(**limits)
    train_offline(cfg)
    assert (
        "[OFFLINE LEARNER] actor.action_clamp_limits cuts 16.7% of the recorded actions of 0: they run from 0 to 5"
        in (caplog.text)
    )
    assert "max_action_step" not in caplog.text


def test_the_so101_configuration_leaves_room_for_degrees():
    """LeRobot records the arm's joints in degrees (use_degrees is its default), within half a turn; the gripper in
    percent."""
    from lerobot.robots.so_follower import SOFollowerRobotConfig

    raw = json.loads((REPOSITORY / "configs" / "so101.json").read_text())
    assert SOFollowerRobotConfig(port="").use_degrees and "use_degrees" not in raw["env"]["robot"]
    limits = raw["actor"]["action_clamp_limits"]
    for name, (least, greatest) in limits.items():
        assert (least, greatest) == (0, 100) if name == "gripper.pos" else least <= -103 and greatest >= 132
