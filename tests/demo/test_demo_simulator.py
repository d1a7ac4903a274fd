"""The demo's simulator, alone and as a LeRobot environment."""

import sys

import numpy as np
import pytest

pytest.importorskip("gym_hil")

from lerobot.envs import env_to_policy_features, make_env, make_env_config, preprocess_observation

from lerobot_policy_pi05_rl.demo.env_config import PANDA, PandaPickCubeEnv, SimulatorFactory
from lerobot_policy_pi05_rl.demo.simulator import PandaPickCubeSimulator

HOLD_STILL = np.array([0.0, 0.0, 0.0, -1.0], dtype=np.float32)


@pytest.fixture
def env():
    env = PandaPickCubeSimulator(max_episode_steps=4)
    yield env
    env.close()


def test_seed_decides_the_start_state(env):
    first, _ = env.reset(seed=3)
    place = env.cube_position
    env.step(np.array([1.0, -1.0, 1.0, 1.0], dtype=np.float32))
    other, _ = env.reset(seed=4)
    assert not np.allclose(env.cube_position, place)
    assert (other["pixels"]["wrist"] != first["pixels"]["wrist"]).any()
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(env.cube_position, place)
    np.testing.assert_array_equal(again["agent_pos"], first["agent_pos"])
    for camera in ("front", "wrist"):
        np.testing.assert_array_equal(again["pixels"][camera], first["pixels"][camera])


def test_jitter_stays_within_its_bounds_and_uses_them(env):
    places = []
    for seed in range(30):
        env.reset(seed=seed)
        places.append(env.cube_position[:2] - (0.5, 0.0))
    assert np.abs(places).max() <= 0.01 + 1e-9
    assert np.ptp(places, axis=0).min() > 0.01


def test_observation_is_in_the_declared_space_and_shows_the_cube(env):
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    for picture in observation["pixels"].values():
        red, green, blue = picture.astype(int).transpose(2, 0, 1)
        cube = (red > 100) & (red > 2 * green) & (red > 2 * blue)
        assert cube.sum() >= 30
    assert env.render().shape == (64, 128, 3)


def test_action_moves_the_gripper_and_its_command_is_absolute(env):
    env.reset(seed=0)
    for axis in range(3):
        before = env.gripper_position
        action = HOLD_STILL.copy()
        action[axis] = 0.8
        observation, *_ = env.step(action)
        moved = env.gripper_position - before
        assert 0.01 < moved[axis] < 0.06
        np.testing.assert_allclose(observation["agent_pos"][:3], env.gripper_position, rtol=1e-6)
    env.reset(seed=0)
    for _ in range(3):
        observation, *_ = env.step(np.array([0.0, 0.0, 0.0, 1.0]))
    assert observation["agent_pos"][3] < 0.2
    env.reset(seed=0)
    for _ in range(3):
        observation, *_ = env.step(np.array([0.0, 0.0, 0.0, 0.0]))
    assert 0.3 < observation["agent_pos"][3] < 0.8


def test_truncates_without_success(env):
    env.reset(seed=0)
    ends = [env.step(HOLD_STILL)[1:] for _ in range(4)]
    assert [truncated for _, _, truncated, _ in ends] == [False, False, False, True]
    assert all(reward == 0.0 and not terminated for reward, terminated, _, _ in ends)
    assert ends[-1][3] == {"is_success": False, "succeed": False}


@pytest.mark.parametrize("action", [np.zeros(7), np.array([0.0, 0.0, np.nan, 0.0])])
def test_rejects_unusable_actions(env, action):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="finite numbers"):
        env.step(action)


def test_lerobot_builds_the_environment_with_the_features_it_declares():
    cfg = make_env_config("panda_pick_cube", image_size=32)
    assert isinstance(cfg, PandaPickCubeEnv)
    envs = make_env(cfg, n_envs=2)["panda_pick_cube"][0]
    try:
        raw, _ = envs.reset(seed=[1, 2])
        seen = preprocess_observation(raw)
        declared = env_to_policy_features(cfg)
        assert set(declared) == set(seen) | {"action"}
        assert all(tuple(seen[key].shape) == (2, *declared[key].shape) for key in seen)
        assert envs.call("_max_episode_steps") == (40, 40)
        assert envs.call("task_description") == (cfg.task, cfg.task)
        assert envs.metadata["render_fps"] == cfg.fps
    finally:
        envs.close()


@pytest.mark.slow  # every worker process imports PyTorch and LeRobot
def test_worker_processes_see_the_same_start_states():
    starts = []
    for use_async in (False, True):
        envs = make_env(PandaPickCubeEnv(image_size=16), n_envs=2, use_async_envs=use_async)
        try:
            starts.append(envs["panda_pick_cube"][0].reset(seed=[5, 6])[0])
        finally:
            envs["panda_pick_cube"][0].close()
    sync, in_processes = starts
    np.testing.assert_array_equal(sync["agent_pos"], in_processes["agent_pos"])
    np.testing.assert_array_equal(sync["pixels"]["wrist"], in_processes["pixels"]["wrist"])


@pytest.mark.parametrize("setting", [{"fps": 30}, {"task": "Fold the towel."}])
def test_configuration_rejects_what_the_simulator_cannot_do(setting):
    with pytest.raises(ValueError, match="panda_pick_cube"):
        PandaPickCubeEnv(**setting)


def test_missing_simulator_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "lerobot_policy_pi05_rl.demo.simulator")
    monkeypatch.setitem(sys.modules, "gym_hil", None)
    for name in [name for name in sys.modules if name.startswith("gym_hil.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"pip install 'lerobot_policy_pi05_rl\[demo\]'"):
        SimulatorFactory(PANDA, {})()
