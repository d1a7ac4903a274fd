"""gym-hil's real simulator behind LeRobot's pipelines; only the keyboard is not real."""

import logging
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from actors import environment_of
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import HILSerlRobotEnvConfig
from lerobot.envs.configs import (
    GripperConfig,
    HILSerlProcessorConfig,
    ImagePreprocessingConfig,
    ResetConfig,
)
from lerobot.rl import gym_manipulator  # noqa: F401 - before the keyboard is replaced, which it looks for
from lerobot.teleoperators.so_leader import SO101LeaderConfig
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_policy_pi05_rl.config.actor import ActorConfig
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.online.actor import hil_simulator
from lerobot_policy_pi05_rl.online.actor.environment import HardwareError
from lerobot_policy_pi05_rl.online.actor.hil_simulator import ACTIONS, SeededReset, ignored_options

pytest.importorskip("gym_hil")

CAMERAS = ("observation.images.front", "observation.images.wrist")
TASK = "PandaPickCube-v0"
WITH_KEYS = "PandaPickCubeKeysWithoutWindow-v0"
KEYS = SimpleNamespace(**{name: name for name in ("up", "down", "left", "right", "shift", "shift_r", "ctrl_r")})
vars(KEYS).update({name: name for name in ("ctrl_l", "enter", "esc", "space", "r")})


def features(side=128, state=18, actions=4):
    """What a policy of a dataset that LeRobot recorded in gym-hil reads and does."""
    return {
        **{camera: PolicyFeature(FeatureType.VISUAL, (3, side, side)) for camera in CAMERAS},
        OBS_STATE: PolicyFeature(FeatureType.STATE, (state,)),
        ACTION: PolicyFeature(FeatureType.ACTION, (actions,)),
    }


def config(task=TASK, control_time_s=15.0, actor=None, **processor):
    """As LeRobot's guide to gym-hil has it, in the part of the configuration that an environment reads."""
    options = {"gripper": GripperConfig(True, -0.02), "reset": ResetConfig(control_time_s=control_time_s), **processor}
    env = HILSerlRobotEnvConfig(task=task, fps=10, name="gym_hil", processor=HILSerlProcessorConfig(**options))
    return SimpleNamespace(env=env, actor=ActorConfig(**(actor or {})), rename_map={})


def make(cfg, wanted=None, names=ACTIONS):
    env = environment_of(cfg, wanted or features(), names)
    env._env.unwrapped.model.light_castshadow[:] = False  # MuJoCo draws shadows slowly without a graphics card
    env._env.set_wrapper_attr("delay_seconds", 0.0)
    return env


@pytest.fixture
def keyboard(monkeypatch):
    """Presses and releases keys of gym-hil's own keyboard controller, in its own environment without the window."""
    made = SimpleNamespace()

    class Listener:
        def __init__(self, on_press, on_release):
            made.press, made.release = on_press, on_release

        def start(self):
            pass

        def is_alive(self):
            return False

    device = SimpleNamespace(Key=KEYS, Listener=Listener)
    monkeypatch.setitem(sys.modules, "pynput", SimpleNamespace(keyboard=device))
    kwargs = {"env_id": "gym_hil/PandaPickCubeBase-v0", "use_inputs_control": True}
    gym.register(f"gym_hil/{WITH_KEYS}", "gym_hil.wrappers.factory:make_env", max_episode_steps=100, kwargs=kwargs)
    yield made
    del gym.registry[f"gym_hil/{WITH_KEYS}"]


def test_an_episode_of_a_policy_alone():
    env = make(config(control_time_s=0.6, actor={"action_clamp_limits": {"delta_x": [-0.5, 0.5]}}))
    assert (env.fps, env.reports_success, env.real_robot, env.action_names) == (10, True, False, ACTIONS)
    observation = env.reset(3)
    assert {key: value.shape for key, value in observation.items()} == {
        **{camera: (128, 128, 3) for camera in CAMERAS},
        OBS_STATE: (18,),
    }
    assert all(observation[camera].dtype == np.uint8 and observation[camera].std() > 0 for camera in CAMERAS)
    heights, steps = [observation[OBS_STATE][-1]], []
    while not steps or not (steps[-1].truncated or steps[-1].terminated):
        steps.append(env.step(np.array([2, 0, -1, 0], np.float32)))
        heights.append(steps[-1].observation[OBS_STATE][-1])
    assert heights == sorted(heights, reverse=True) and heights[-1] < heights[0] - 0.02  # metres, downwards
    assert all(step.executed.tolist() == [0.5, 0, -1, 0] for step in steps)
    assert steps[-1].truncated and not any(step.terminated or step.success or step.intervention for step in steps)
    assert len(steps) == 5  # control_time_s; LeRobot's time limit counts the reset, too
    again = env.reset(3)
    np.testing.assert_array_equal(again[OBS_STATE], observation[OBS_STATE])
    env.close()


def test_the_cube_is_lifted():
    env = make(config())
    env.reset(0)
    joint = env._env.unwrapped.data.jnt("block")
    assert not env.step(np.array([0, 0, 0, 1], np.float32)).success
    joint.qpos[2] += 0.3  # it falls, but not all the way within one step
    step = env.step(np.array([0, 0, 0, 1], np.float32))
    assert step.success and step.terminated and step.reward == 1 and not step.truncated
    env.reset(0)
    joint.qpos[:2] = (0.9, 0.4)
    step = env.step(np.array([0, 0, 0, 1], np.float32))
    assert step.terminated and not step.success and step.reward == 0
    env.close()


def test_a_seed_places_the_boxes():
    env = make(config("PandaArrangeBoxes-v0"))
    data = env._env.unwrapped.data
    places = []
    for seed in (1, 2, 1):
        env.reset(seed)
        places.append(data.qpos.copy())
    np.testing.assert_array_equal(places[0], places[2])
    assert not np.array_equal(places[0], places[1])
    env.close()


def test_a_person_takes_over_by_keyboard(keyboard):
    env = make(config(WITH_KEYS))
    env.reset(0)
    policys = np.array([0.1, 0.2, 0.3, 1.0], np.float32)
    assert not env.step(policys).intervention
    for key in ("space", "up", "ctrl_l"):
        keyboard.press(key)
    step = env.step(policys)
    assert step.intervention and step.executed.tolist() == [1, 0, 0, 0]
    keyboard.release("up")
    keyboard.press("space")
    place = env._env.unwrapped.data.mocap_pos[0].copy()
    step = env.step(policys)
    assert not step.intervention and step.executed.tolist() == policys.tolist()
    moved = env._env.unwrapped.data.mocap_pos[0] - place
    np.testing.assert_allclose(moved, policys[:3] * 0.025, atol=1e-6)  # metres: what is stored was executed
    keyboard.press("enter")
    step = env.step(policys)
    assert step.success and step.terminated and step.reward == 1
    env.reset(1)
    keyboard.press("esc")
    step = env.step(policys)
    assert step.terminated and not step.success and not step.rerecord
    env.reset(2)
    env._env.get_wrapper_attr("controller").episode_end_status = "rerecord_episode"  # a gamepad's X
    step = env.step(policys)
    assert step.terminated and step.rerecord
    env.close()


def test_a_policy_of_another_dataset_is_refused_before_the_first_episode():
    for wanted, names, message in [
        (features(side=64), ACTIONS, r"observation\.images\.front is \(3, 128, 128\), but the policy reads"),
        (features(state=9), ACTIONS, r"observation\.state is \(18,\)"),
        (features(actions=3), ACTIONS[:3], "has the 4 actions .*, but the policy 3: delta_x"),
        (features(), ["gripper", *ACTIONS[:3]], "but the policy 4: gripper"),
        (
            {**features(), "observation.images.side": features()[CAMERAS[0]]},
            ACTIONS,
            r"reads observation\.images\.side",
        ),
    ]:
        with pytest.raises(ConfigError, match=message):
            environment_of(config(), wanted, names)


def test_what_gym_hil_lacks_is_said(monkeypatch, keyboard):
    with pytest.raises(ConfigError, match=r"env\.task=Nope-v0 is none of gym-hil's tasks .*PandaPickCube-v0"):
        make(config("Nope-v0"))
    with pytest.raises(ConfigError, match="PandaPickCubeBase-v0 is none"):  # takes none of LeRobot's options
        make(config("PandaPickCubeBase-v0"))
    with pytest.raises(ConfigError, match="use_gripper=false"):
        make(config(WITH_KEYS, gripper=GripperConfig(use_gripper=False)))
    cfg = config()
    cfg.env.teleop = SO101LeaderConfig(port="/dev/null")
    with pytest.raises(ConfigError, match=r"env\.teleop does not go with"):
        make(cfg)
    monkeypatch.setattr(hil_simulator, "_screen_opens", lambda: False)
    with pytest.raises(HardwareError, match="there is no screen; PandaPickCube-v0 runs without"):
        make(config("PandaPickCubeGamepad-v0"))
    monkeypatch.setitem(sys.modules, "gym_hil", None)
    with pytest.raises(HardwareError, match=r"gym-hil is missing; to install it: pip install"):
        make(config())


def test_a_missing_gamepad_is_said():
    env = SimpleNamespace(
        has_wrapper_attr=lambda name: True, get_wrapper_attr=lambda name: SimpleNamespace(running=False)
    )
    with pytest.raises(HardwareError, match="needs a gamepad, and none is connected"):
        hil_simulator._check_controller(env, config().env)


def test_options_without_effect_are_named(caplog):
    processor = HILSerlProcessorConfig(image_preprocessing=ImagePreprocessingConfig(resize_size=(64, 64)))
    assert ignored_options(processor) == "env.processor.image_preprocessing"
    assert ignored_options(HILSerlProcessorConfig()) == ""
    with caplog.at_level(logging.WARNING):
        make(config(image_preprocessing=processor.image_preprocessing)).close()
    assert "without effect: env.processor.image_preprocessing" in caplog.text


def test_a_seed_counts_for_one_reset():
    seeds = []

    class Env(gym.Env):
        def reset(self, seed=None, options=None):
            seeds.append(seed)
            return {}, {}

    env = SeededReset(Env())
    env.next_seed = 5
    env.reset()
    env.reset()
    env.reset(seed=7)
    assert seeds == [5, None, 7]
