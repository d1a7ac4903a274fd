"""Recorded demonstrations, read back with LeRobot."""

import json

import numpy as np
import pytest

pytest.importorskip("gym_hil")

from lerobot.datasets.lerobot_dataset import LeRobotDataset
from PIL import Image

from lerobot_policy_pi05_rl.demo import record
from lerobot_policy_pi05_rl.demo.operators import STYLES
from lerobot_policy_pi05_rl.demo.record import MIXED_QUALITY_MIX, operator_order, record_dataset
from lerobot_policy_pi05_rl.demo.simulator import PandaPickCubeSimulator

REPO_ID = "local/test_demo"
MIX = {"fast": 2.0, "misses": 1.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return record_dataset(tmp_path_factory.mktemp("demo") / "set", REPO_ID, episodes=3, seed=7, mix=MIX)


@pytest.fixture(scope="module")
def columns(root):
    table = LeRobotDataset(REPO_ID, root=root).hf_dataset.with_format("numpy")
    return {key: np.asarray(table[key]) for key in table.column_names}


def test_labels_are_true_on_last_frames_only_and_success_on_successes_only(root, columns):
    operators = json.loads((root / "demo_recipe.json").read_text())["operators"]
    assert sorted(operators) == ["fast", "fast", "misses"]
    for episode, name in enumerate(operators):
        rows = columns["episode_index"] == episode
        done, success = columns["next.done"][rows], columns["next.success"][rows]
        reward = columns["next.reward"][rows]
        assert done[-1] and not done[:-1].any()
        assert not success[:-1].any() and success[-1] == (name == "fast")
        np.testing.assert_array_equal(reward, success.astype(np.float32))
        assert rows.sum() == 40 if name == "misses" else rows.sum() < 20


def test_frames_pair_an_action_with_what_was_seen_before_it(root, columns):
    """Replaying the recorded actions from the recorded start reproduces the recorded states."""
    rows = np.flatnonzero(columns["episode_index"] == 0)
    env = PandaPickCubeSimulator()
    try:
        rng = np.random.default_rng([7, 0])
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        for row in rows:
            np.testing.assert_array_equal(columns["observation.state"][row], observation["agent_pos"])
            observation, *_ = env.step(columns["action"][row])
    finally:
        env.close()


def test_video_shows_what_the_simulator_drew(root):
    item = LeRobotDataset(REPO_ID, root=root)[0]
    assert item["task"] == "Pick up the cube and lift it."
    env = PandaPickCubeSimulator()
    try:
        observation, _ = env.reset(seed=int(np.random.default_rng([7, 0]).integers(2**31)))
    finally:
        env.close()
    for camera, drawn in observation["pixels"].items():
        stored = item[f"observation.images.{camera}"].numpy().transpose(1, 2, 0) * 255
        error = np.abs(stored - drawn).mean()
        other = np.abs(stored - drawn[:, ::-1]).mean()
        assert error < 6.0 < other


def test_second_call_keeps_the_recording_and_other_settings_are_refused(root):
    before = (root / "meta" / "info.json").stat().st_mtime_ns
    assert record_dataset(root, REPO_ID, episodes=3, seed=7, mix=MIX) == root
    assert (root / "meta" / "info.json").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match=r"other settings.*seed"):
        record_dataset(root, REPO_ID, episodes=3, seed=8, mix=MIX)


def test_recipe_names_the_frame_of_the_recovery_and_no_column_does(tmp_path):
    kwargs = {"episodes": 2, "seed": 3, "mix": {"recovers": 1.0, "fast": 1.0}, "image_size": 16}
    root = record_dataset(tmp_path / "set", REPO_ID, **kwargs)
    recipe = json.loads((root / "demo_recipe.json").read_text())
    starts = dict(zip(recipe["operators"], recipe["recovery_start"], strict=True))
    table = LeRobotDataset(REPO_ID, root=root).hf_dataset.with_format("numpy")
    rows = np.asarray(table["episode_index"]) == recipe["operators"].index("recovers")
    command = np.asarray(table["action"])[rows, 3]
    turn = starts["recovers"]
    assert starts["fast"] is None and command[turn - 1] == 1.0 and command[turn] == -1.0
    assert np.asarray(table["next.success"])[rows][-1]
    expected = {"observation.state", "action", "next.reward", "next.success", "next.done"}
    bookkeeping = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
    assert set(table.column_names) == expected | bookkeeping

    del recipe["recovery_start"]  # a recording from before there was such an entry is still found
    (root / "demo_recipe.json").write_text(json.dumps(recipe))
    assert record_dataset(root, REPO_ID, **kwargs) == root


@pytest.mark.parametrize(
    ("options", "mix"),
    [
        ([], {"fast": 1 / 3, "slow": 1 / 3, "misses": 1 / 3}),
        (["--mix=recovers"], {"fast": 1 / 4, "slow": 1 / 4, "misses": 1 / 4, "recovers": 1 / 4}),
        (["--mix=recovers", "--slow=0"], {"fast": 1 / 4, "slow": 0, "misses": 1 / 4, "recovers": 1 / 4}),
        (["--recovers=1"], {"fast": 1 / 3, "slow": 1 / 3, "misses": 1 / 3, "recovers": 1}),
    ],
)
def test_command_line_selects_the_mix(options, mix, monkeypatch):
    calls = []
    monkeypatch.setattr(record, "record_dataset", lambda *args: calls.append(args))
    record.main(["--root=nowhere", *options])
    assert calls[0][4] == mix


def test_mixed_quality_has_each_operator_equally_often():
    order = operator_order(120, MIXED_QUALITY_MIX, seed=0)
    assert {name: order.count(name) for name in set(order)} == dict.fromkeys(STYLES, 30)


def test_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="not a demo recording"):
        record_dataset(tmp_path, REPO_ID, episodes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_interrupted_recording_is_replaced(tmp_path, monkeypatch):
    root = tmp_path / "set"

    def power_cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LeRobotDataset, "save_episode", power_cut)
        with pytest.raises(KeyboardInterrupt):
            record_dataset(root, REPO_ID, episodes=1, mix={"fast": 1.0}, image_size=16)
    assert not root.exists() and (tmp_path / "set.partial").exists()
    record_dataset(root, REPO_ID, episodes=1, mix={"fast": 1.0}, image_size=16)
    assert LeRobotDataset(REPO_ID, root=root).num_episodes == 1
    assert not (tmp_path / "set.partial").exists()


def test_operator_order_follows_shares_and_seed():
    order = operator_order(12, {"fast": 1, "slow": 1, "misses": 2}, seed=0)
    assert [order.count(name) for name in ("fast", "slow", "misses")] == [3, 3, 6]
    assert order == operator_order(12, {"fast": 1, "slow": 1, "misses": 2}, seed=0)
    assert order != operator_order(12, {"fast": 1, "slow": 1, "misses": 2}, seed=1)
    assert order != sorted(order)
    assert len(operator_order(7, {"fast": 1 / 3, "slow": 1 / 3, "misses": 1 / 3}, seed=0)) == 7


@pytest.mark.parametrize("mix", [{"clumsy": 1.0}, {"fast": -1.0, "slow": 2.0}, {"fast": 0.0}, {}])
def test_unusable_mix_is_refused(mix):
    with pytest.raises(ValueError, match="shares"):
        operator_order(3, mix, seed=0)


def test_contact_sheet_has_a_row_per_operator(root, tmp_path):
    from contact_sheet import write_contact_sheet

    sheet = np.asarray(Image.open(write_contact_sheet(root, tmp_path / "sheet.png", columns=3, zoom=1)))
    title = 22
    assert sheet.shape == (2 * (title + 2 * 64), 3 * 64, 3)
    assert len(np.unique(sheet[title : title + 64].reshape(-1, 3), axis=0)) > 100  # a picture, not a blank
