"""What columns say of episodes and frames: outcomes, corrections, rewards, tasks. Unknown is unknown."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import MIXED_EPISODES, make_dataset, with_column
from tiny import write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.dataset import OfflineData, open_offline_data
from lerobot_policy_pi05_rl.data.flags import CUT, NO, UNKNOWN, YES, number_column, parse_flags
from lerobot_policy_pi05_rl.data.sources import DatasetError

NAN, INF = float("nan"), float("inf")
LENGTHS = [episode["length"] for episode in MIXED_EPISODES]
ENDS = np.cumsum(LENGTHS)
TRUTH = ["success", "failure", "success", "failure"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Four episodes without any label."""
    root = tmp_path_factory.mktemp("data") / "bare"
    make_dataset(root, [{"length": length} for length in LENGTHS], columns=())
    return root


@pytest.fixture
def dataset(bare, tmp_path):
    """A copy of its own."""
    return Path(shutil.copytree(bare, tmp_path / "data"))


@pytest.fixture
def open_data(tmp_path):
    def open_(root, **changes) -> OfflineData:
        return open_offline_data(load_config(write_config(tmp_path / "run.json", root, tmp_path / "run", **changes)))

    return open_


def outcomes(data: OfflineData) -> list[str]:
    return [episode.outcome.value for episode in data.labels.episodes]


def warnings(caplog) -> list[str]:
    ours = [record for record in caplog.records if record.name == "lerobot_policy_pi05_rl.data.outcomes"]
    return [record.message for record in ours if record.levelno >= logging.WARNING]


def at_the_end(values: list, other) -> list:
    """(episodes,) values → (frames,): each on its episode's last frame, ``other`` before."""
    return [value for value, length in zip(values, LENGTHS, strict=True) for value in [other] * (length - 1) + [value]]


def throughout(values: list) -> list:
    return [value for value, length in zip(values, LENGTHS, strict=True) for _ in range(length)]


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        (np.array([True, False]), [YES, NO]),
        (np.array([1, 0, -1, 2, 100]), [YES, NO, UNKNOWN, UNKNOWN, UNKNOWN]),
        (np.array([1.0, 0.0, NAN, INF, 0.5, -1.0]), [YES, NO] + [UNKNOWN] * 4),
        (np.array([True, None, False, np.True_, [1], [False], [1, 1], np.array([0.0])], dtype=object),
         [YES, UNKNOWN, NO, YES, YES, NO, UNKNOWN, NO]),
        (np.array(["success", " Failure ", "", "unknown", "True", "no", "truncated", "1", b"0"], dtype=object),
         [YES, NO, UNKNOWN, UNKNOWN, YES, NO, CUT, YES, NO]),
    ],
)  # fmt: skip
def test_a_flag_is_a_clear_yes_or_no_or_unknown(values, flags):
    assert parse_flags(values).tolist() == flags


KINDS = {
    "bool": ("bool", pa.bool_(), True, False, None),
    "float": ("float32", pa.float32(), 1.0, 0.0, NAN),
    "float, null": ("float32", pa.float32(), 1.0, 0.0, None),
    "int, -1": ("int64", pa.int64(), 1, 0, -1),
    "int, null": ("int64", pa.int64(), 1, 0, None),
    "int, 2": ("int64", pa.int64(), 1, 0, 2),
    "text": ("string", pa.string(), "success", "failure", ""),
    "text, word": ("string", pa.string(), "Success", "failure", "unknown"),
    "text, null": ("string", pa.string(), "true", "false", None),
}


@pytest.mark.parametrize("column", ["next.success", "success", "outcome"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_episode_whose_outcome_is_unknown_is_unlabelled(dataset, open_data, column, kind, caplog):
    dtype, arrow, yes, no, unknown = KINDS[kind]
    with_column(dataset, column, throughout([yes, unknown, no, unknown]), dtype, arrow)
    with pytest.raises(DatasetError, match=r"2 of 4 episodes have no outcome \(test/tiny#1, test/tiny#3\)"):
        open_data(dataset)
    assert f"{column} is neither yes nor no" in caplog.text
    assert "on 22 frames of 2 episodes" in caplog.text
    for default in ("success", "failure"):
        assert outcomes(open_data(dataset, reward__unlabelled=default)) == ["success", default, "failure", default]


@pytest.mark.parametrize("kind", KINDS)
def test_an_outcome_said_on_the_last_frame_alone_is_the_episodes(dataset, open_data, kind):
    dtype, arrow, yes, no, unknown = KINDS[kind]
    with_column(dataset, "success", at_the_end([yes, no, yes, no], unknown), dtype, arrow)
    assert outcomes(open_data(dataset)) == TRUTH


@pytest.mark.parametrize("kind", KINDS)
def test_an_episode_that_is_known_until_its_end_alone_is_unlabelled(dataset, open_data, kind):
    """Every success is false before its end, too."""
    dtype, arrow, yes, no, unknown = KINDS[kind]
    with_column(dataset, "success", at_the_end([yes, unknown, yes, no], no), dtype, arrow)
    with pytest.raises(DatasetError, match=r"1 of 4 episodes have no outcome \(test/tiny#1\)") as error:
        open_data(dataset)
    assert "pi05-rl label CONFIG --success" in str(error.value)


def test_each_episode_goes_to_the_next_source_by_itself(dataset, open_data, tmp_path):
    with_column(dataset, "next.success", throughout([True, None, None, None]), "bool", pa.bool_())
    with_column(dataset, "success", throughout([0.0, 0.0, NAN, NAN]), "float32", pa.float32())
    with_column(dataset, "next.reward", at_the_end([0.0, 1.0, 1.0, NAN], 0.0), "float32", pa.float32())
    with_column(dataset, "next.truncated", at_the_end([None, None, None, True], None), "bool", pa.bool_())
    assert outcomes(open_data(dataset)) == ["success", "failure", "success", "truncated"]
    (tmp_path / "csv").write_text("episode_index,outcome\n1,success\n")
    given = open_data(dataset, reward__outcome_file=str(tmp_path / "csv"))
    assert outcomes(given) == ["success", "success", "success", "truncated"]


def test_a_number_is_one_or_nan():
    values = np.array([0.5, None, [2], INF, "high"], dtype=object)
    source = SimpleNamespace(name="x", columns={"next.reward": values}, ends=np.array([5]))
    np.testing.assert_array_equal(number_column(source, "next.reward"), [0.5, NAN, 2.0, INF, NAN])


def test_an_unknown_time_limit_is_none(dataset, open_data):
    with_column(dataset, "success", throughout([1.0, NAN, 0.0, NAN]), "float32", pa.float32())
    with_column(dataset, "truncated", at_the_end([NAN] * 4, NAN), "float32", pa.float32())
    with pytest.raises(DatasetError, match="2 of 4 episodes have no outcome"):
        open_data(dataset)


def test_a_text_says_truncated(dataset, open_data):
    with_column(dataset, "outcome", throughout(["success", "failure", "truncated", "timeout"]), "string", pa.string())
    assert outcomes(open_data(dataset)) == ["success", "failure", "truncated", "truncated"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_intervention_is_no_correction_and_is_said(mixed_dataset, tmp_path, open_data, kind, caplog):
    dtype, arrow, yes, no, unknown = KINDS[kind]
    root = Path(shutil.copytree(mixed_dataset, tmp_path / "data"))
    with_column(root, "is_intervention", throughout([unknown, yes, no, unknown]), dtype, arrow)
    corrected = open_data(root).labels.interventions[0]
    assert corrected.dtype == bool
    assert corrected.tolist() == throughout([False, True, False, False])
    said = [record.message for record in caplog.records if "is_intervention" in record.message]
    assert len(said) == 1
    assert "on 19 frames of 2 episodes" in said[0]


@pytest.mark.parametrize("reward", [NAN, INF, -INF, None])
def test_a_reward_that_is_no_number_is_named_where_returns_sum_it(mixed_dataset, tmp_path, open_data, reward):
    root = Path(shutil.copytree(mixed_dataset, tmp_path / "data"))
    rewards = [0.0] * int(ENDS[-1])
    rewards[9 + 5] = reward
    with_column(root, "next.reward", rewards, "float32", pa.float32())
    with pytest.raises(DatasetError, match=r"test/tiny: next\.reward is .* in frame 5 of episode 1.*steps_to_success"):
        open_data(root, reward__source="dataset")
    data = open_data(root)  # the advice
    assert outcomes(data) == TRUTH
    assert not np.isnan(data.labels.returns[0]).any()


@pytest.mark.parametrize("last", [NAN, INF, None])
def test_a_last_reward_that_is_no_number_says_nothing(dataset, open_data, last):
    with_column(dataset, "next.reward", at_the_end([1.0, last, 1.0, 1.0], 0.0), "float32", pa.float32())
    with pytest.raises(DatasetError, match=r"1 of 4 episodes have no outcome \(test/tiny#1\)"):
        open_data(dataset)


def test_outcomes_that_are_all_alike_are_said_with_their_column_and_what_contradicts_them(dataset, open_data, caplog):
    with_column(dataset, "next.success", [False] * int(ENDS[-1]), "bool", pa.bool_())
    with_column(dataset, "next.reward", at_the_end([0.9, 0.95, 0.0, 0.9], 0.1), "float32", pa.float32())
    open_data(dataset)
    (said,) = warnings(caplog)
    assert "all 4 episodes are a failure, by next.success" in said
    assert "the last next.reward is above 0 in 3 of them (from 0.9 to 0.95)" in said
    assert "pi05-rl label CONFIG --success" in said


def test_outcomes_that_differ_are_not_warned_of(mixed_dataset, open_data, caplog):
    caplog.set_level(logging.INFO)
    open_data(mixed_dataset)
    assert not warnings(caplog)
    assert "2 failure (next.success), 2 success (next.success)" in caplog.text


# ── Tasks ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def changing(tmp_path_factory):
    """Episodes 0 and 1: four frames "pick", then "place"; episode 2: "place" alone; 3 and 4: "sort" alone."""
    root = tmp_path_factory.mktemp("data") / "changing"
    episodes = [(9, True), (12, False), (7, True), (5, True), (20, False)]
    tasks = [["pick"] * 4 + ["place"] * 5, ["pick"] * 4 + ["place"] * 8, ["place"] * 7, ["sort"] * 5, ["sort"] * 20]
    make_dataset(root, [{"length": n, "success": s, "task": t[0]} for (n, s), t in zip(episodes, tasks, strict=True)])
    texts = [str(task) for task in pq.read_table(root / "meta" / "tasks.parquet").to_pandas().index]
    every = [texts.index(task) for of_episode in tasks for task in of_episode]
    with_column(root, "task_index", every, "int64", pa.int64())
    return root, [task for of_episode in tasks for task in of_episode]


def test_every_frame_has_its_own_task(changing, open_data):
    root, tasks = changing
    data = open_data(root)
    assert data.labels.tasks == ["pick", "place", "sort"]
    samples = [data.train[(0, number)] for number in range(len(data.train))]
    assert [sample["task"] for sample in samples] == tasks
    assert [int(sample["task_index"]) for sample in samples] == [data.labels.tasks.index(task) for task in tasks]


def test_tasks_that_follow_each_other_share_the_unit_of_their_returns(changing, open_data):
    """G = −(remaining + failed · L) / 2L with the longest episode L of all episodes that either occurs in."""
    data = open_data(changing[0])
    assert data.labels.task_lengths.tolist() == [12, 12, 20]
    expected = [-np.arange(8, -1, -1) / 24, -(np.arange(11, -1, -1) + 12) / 24, -np.arange(6, -1, -1) / 24]
    expected += [-np.arange(4, -1, -1) / 40, -(np.arange(19, -1, -1) + 20) / 40]
    np.testing.assert_allclose(data.labels.returns[0], np.concatenate(expected), atol=1e-6)


def test_the_configured_task_is_every_frames(changing, open_data):
    data = open_data(changing[0], policy__task="tidy")
    assert {data.train[(0, number)]["task"] for number in range(len(data.train))} == {"tidy"}
    assert data.labels.task_lengths.tolist() == [20]
