"""The Meta-World tasks: simulator, operators, recording, LeRobot environment and evaluation."""

import json
import sys
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("metaworld")

from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs import env_to_policy_features, make_env, make_env_config, preprocess_observation
from metaworld_tasks import evaluate as evaluate_command
from metaworld_tasks import record
from metaworld_tasks.env_config import SIMULATOR, MetaWorldTasksEnv
from metaworld_tasks.evaluate import evaluate_tasks, summarize_tasks
from metaworld_tasks.operators import SPEEDS, MetaWorldOperator
from metaworld_tasks.record import record_tasks
from metaworld_tasks.simulator import MetaWorldSimulator
from metaworld_tasks.tasks import TASKS, split_evenly

from lerobot_policy_pi05_rl.demo import evaluate
from lerobot_policy_pi05_rl.demo.env_config import PandaPickCubeEnv
from lerobot_policy_pi05_rl.demo.evaluate import summarize, wilson_interval
from lerobot_policy_pi05_rl.demo.record import MIXED_QUALITY_MIX

REPO_ID = "local/test_tasks"
SEEDS = range(3)


def run_episode(env: MetaWorldSimulator, name: str, seed: int) -> tuple[bool, int]:
    """Success and number of steps."""
    env.reset(seed=seed)
    operator = MetaWorldOperator(env.name, name, np.random.default_rng(seed))
    for steps in range(1, 1000):
        _, reward, terminated, truncated, info = env.step(operator.act_in(env))
        assert reward == float(info["is_success"]) and terminated == info["is_success"]
        if terminated or truncated:
            return terminated, steps
    raise AssertionError("no end")


@pytest.fixture(scope="module")
def outcomes():
    result = {}
    for task in TASKS:
        env = MetaWorldSimulator(task, image_size=8)  # the operators do not look at the pictures
        result[task] = {name: [run_episode(env, name, seed) for seed in SEEDS] for name in SPEEDS}
        env.close()
    return result


@pytest.mark.parametrize("task", TASKS)
def test_fast_and_slow_succeed_and_misses_does_not(outcomes, task):
    success = {name: [won for won, _ in runs] for name, runs in outcomes[task].items()}
    steps = {name: [n for _, n in runs] for name, runs in outcomes[task].items()}
    assert all(success["fast"]) and all(success["slow"]) and not any(success["misses"])
    assert all(slow > 2.2 * fast for slow, fast in zip(steps["slow"], steps["fast"], strict=True))
    assert max(steps["slow"]) < TASKS[task].max_episode_steps  # succeeds before the truncation, not at it
    assert set(steps["misses"]) == {TASKS[task].max_episode_steps}


def test_tasks_have_different_lengths(outcomes):
    fast = sorted(np.mean([n for _, n in runs["fast"]]) for runs in outcomes.values())
    assert fast[-1] > 3 * fast[0]
    assert all(longer > 1.2 * shorter for shorter, longer in pairwise(fast))


@pytest.mark.parametrize("task", TASKS)
def test_seed_decides_the_start_state_and_the_pictures_show_it(task):
    env = MetaWorldSimulator(task, image_size=64)
    try:
        first, _ = env.reset(seed=3)
        place = env.full_state[4:7]
        for _ in range(12):
            env.step(np.array([0.0, 1.0, -0.2, 1.0]))
        other, _ = env.reset(seed=4)
        assert not np.allclose(env.full_state[4:7], place, atol=1e-3)
        changed = np.abs(other["pixels"]["front"].astype(int) - first["pixels"]["front"]).max(axis=-1) > 20
        assert changed.sum() > 15
        again, _ = env.reset(seed=3)
        np.testing.assert_array_equal(env.full_state[4:7], place)
        np.testing.assert_array_equal(again["agent_pos"], first["agent_pos"])
        for camera in ("front", "wrist"):
            np.testing.assert_array_equal(again["pixels"][camera], first["pixels"][camera])
    finally:
        env.close()


def test_full_action_asks_for_five_centimetres_and_gripper_follows_its_command():
    env = MetaWorldSimulator("press_button", image_size=8, max_episode_steps=20)
    try:
        env.reset(seed=0)
        before = env.gripper_position
        for _ in range(4):
            closed = env.step(np.array([1.0, 0.0, 0.0, 1.0]))[0]["agent_pos"][3]
        for _ in range(3):
            env.step(np.array([0.0, 0.0, 0.0, 1.0]))
        np.testing.assert_allclose(env.gripper_position - before, [0.2, 0.0, 0.0], atol=0.02)
        for _ in range(6):
            opened = env.step(np.array([0.0, 0.0, 0.0, -1.0]))[0]["agent_pos"][3]
        assert closed < 0.5 < opened
        with pytest.raises(ValueError, match="finite numbers"):
            env.step(np.zeros(3))
    finally:
        env.close()


@pytest.mark.parametrize("wrong", [{"task": "fold"}, {"task": "open_drawer", "image_size": 4}])
def test_simulator_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=r"Unknown task|image_size"):
        MetaWorldSimulator(**wrong)


def test_unknown_operator_is_named_in_the_error():
    with pytest.raises(ValueError, match=r"'clumsy'.*fast"):
        MetaWorldOperator("open_drawer", "clumsy", np.random.default_rng(0))


def test_recording_holds_all_tasks_in_the_pick_demos_columns(tmp_path):
    root = record_tasks(tmp_path / "set", REPO_ID, episodes=4, seed=1, mix={"fast": 1.0})
    recipe = json.loads((root / "demo_recipe.json").read_text())
    assert sorted(recipe["tasks"]) == sorted(TASKS)
    dataset = LeRobotDataset(REPO_ID, root=root)
    columns = {key: np.asarray(dataset.hf_dataset.with_format("numpy")[key]) for key in ("next.done", "next.success")}
    assert columns["next.done"].sum() == columns["next.success"].sum() == 4
    command = dataset.meta.stats["action"]  # two tasks keep the gripper open, two closed
    assert command["q01"][3] == pytest.approx(-1.0, abs=0.01) and command["q99"][3] == pytest.approx(1.0, abs=0.01)
    for episode, task in enumerate(recipe["tasks"]):
        item = dataset[dataset.meta.episodes[episode]["dataset_to_index"] - 1]
        assert item["task"] == TASKS[task].instruction and bool(item["next.success"])
        assert item["observation.state"].shape == item["action"].shape == (4,)
        assert all(item[f"observation.images.{camera}"].shape == (3, 64, 64) for camera in ("front", "wrist"))
    assert record_tasks(root, REPO_ID, episodes=4, seed=1, mix={"fast": 1.0}) == root
    with pytest.raises(FileExistsError, match=r"other settings.*seed"):
        record_tasks(root, REPO_ID, episodes=4, seed=2, mix={"fast": 1.0})


def test_every_task_has_as_many_episodes_of_each_operator(tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr(record, "record_episodes", lambda root, recipe, plan, simulation: plans.append(plan))
    record.main([f"--root={tmp_path}", "--episodes=24"])
    assert {pair: plans[0].count(pair) for pair in plans[0]} == {(t, name): 2 for t in TASKS for name in SPEEDS}
    assert plans[0] != sorted(plans[0])
    with pytest.raises(ValueError, match="shares"):
        record_tasks(tmp_path, REPO_ID, episodes=8, mix=MIXED_QUALITY_MIX)


def test_lerobot_builds_every_task_with_the_features_it_declares():
    cfg = make_env_config("metaworld_tasks", image_size=32)
    assert isinstance(cfg, MetaWorldTasksEnv)
    envs = make_env(cfg, n_envs=2)
    try:
        assert list(envs) == list(TASKS)
        declared = env_to_policy_features(cfg)
        for name, of_task in envs.items():
            raw, _ = of_task[0].reset(seed=[1, 2])
            seen = preprocess_observation(raw)
            assert set(declared) == set(seen) | {"action"}
            assert all(tuple(seen[key].shape) == (2, *declared[key].shape) for key in seen)
            assert of_task[0].call("task_description") == (TASKS[name].instruction,) * 2
            assert of_task[0].call("_max_episode_steps") == (TASKS[name].max_episode_steps,) * 2
            assert of_task[0].metadata["render_fps"] == cfg.fps
    finally:
        for of_task in envs.values():
            of_task[0].close()


def test_policy_sees_what_the_pick_demo_shows():
    pick, tasks = env_to_policy_features(PandaPickCubeEnv()), env_to_policy_features(MetaWorldTasksEnv())
    assert pick == tasks


@pytest.mark.parametrize("setting", [{"fps": 30}, {"task": "open_drawer,fold"}])
def test_configuration_rejects_what_the_simulator_cannot_do(setting):
    with pytest.raises(ValueError, match="metaworld_tasks"):
        MetaWorldTasksEnv(**setting)


def test_missing_simulator_names_the_command_that_installs_it(monkeypatch):
    from lerobot_policy_pi05_rl.demo.env_config import SimulatorFactory

    monkeypatch.delitem(sys.modules, "metaworld_tasks.simulator")
    for name in [name for name in sys.modules if name.startswith("metaworld.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(ImportError, match=r"pip install 'lerobot_policy_pi05_rl\[demo\]'"):
        SimulatorFactory(SIMULATOR, {"task": "open_drawer"})()


def test_evaluation_spreads_the_episodes_over_the_tasks(checkpoint, monkeypatch):
    seeds, rollout = [], evaluate.rollout

    def spying(**kwargs):
        seeds.append(kwargs["seeds"])
        return rollout(**kwargs)

    monkeypatch.setattr(evaluate, "rollout", spying)
    env_cfg = MetaWorldTasksEnv(image_size=32, episode_length=3, task="start_coffee,open_drawer")
    result = evaluate_tasks(checkpoint, 5, seed=20, n_envs=2, env_cfg=env_cfg)
    assert seeds == [[20, 21], [22], [23, 24]]
    assert result["task"] == ["start_coffee"] * 3 + ["open_drawer"] * 2
    assert result["steps"] == [3] * 5
    with pytest.raises(ValueError, match="each of 2 tasks"):
        evaluate_tasks(checkpoint, 1, seed=20, env_cfg=env_cfg)


def test_command_line_evaluates_the_tasks(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_command, "MetaWorldTasksEnv", ShortTasks)
    output = tmp_path / "tasks.json"
    evaluate_command.main([str(checkpoint), "--episodes=4", f"--output={output}"])
    report = json.loads(output.read_text())
    assert report["task"] == list(TASKS) and report["steps"] == [2] * 4
    assert report["tasks"]["open_drawer"]["episodes"] == 1 and report["episodes"] == 4


class ShortTasks(MetaWorldTasksEnv):
    """All tasks, two steps each."""

    def __init__(self, image_size: int = 32, episode_length: int = 2, **kwargs) -> None:
        super().__init__(image_size=image_size, episode_length=episode_length, **kwargs)


def test_summary_is_pooled_and_per_task():
    result = {"success": [True, False, True], "steps": [10, 40, 30], "task": ["a", "b", "a"]}
    summary = summarize_tasks(result)
    assert summary["successes_per_1000_steps"] == pytest.approx(25.0)
    assert summary["tasks"]["a"]["successes_per_1000_steps"] == pytest.approx(50.0)
    assert summary["tasks"]["b"]["success_rate_interval_95"] == pytest.approx(wilson_interval(0, 1))
    assert "tasks" not in summarize({"success": [True], "steps": [3]})


def test_split_evenly():
    assert split_evenly(10, 4) == [3, 3, 2, 2]
    with pytest.raises(ValueError, match="at least one"):
        split_evenly(3, 4)
