"""Data that are not what their metadata say: one error that names the place, before anything is written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import (
    DAMAGES,
    change_column,
    change_info,
    change_table,
    data_file,
    empty_episode,
    episodes_file,
    lose_episode,
    lose_rows,
    set_entry,
    set_values,
)
from lerobot.datasets.language import (
    language_events_column_feature,
    language_feature_info,
    language_persistent_column_feature,
)
from recordings import MIXED_EPISODES, make_dataset
from tiny import CAMERAS, write_config

from lerobot_policy_pi05_rl import cli
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.dataset import open_offline_data
from lerobot_policy_pi05_rl.data.sources import DatasetError
from lerobot_policy_pi05_rl.returns import Outcome

LENGTHS = [episode["length"] for episode in MIXED_EPISODES]
pytestmark = pytest.mark.usefixtures("logging_as_before")


@pytest.fixture
def damaged(mixed_dataset, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(mixed_dataset, tmp_path / "damaged"))


@pytest.fixture
def opened(tmp_path):
    """Opens a dataset, with changes to the configuration."""

    def run(root: Path, **changes):
        return open_offline_data(load_config(write_config(tmp_path / "run.json", root, tmp_path / "run", **changes)))

    return run


def error_of(run) -> str:
    with pytest.raises(DatasetError) as error:
        run()
    message = str(error.value)
    assert "\n" not in message
    assert "huggingface.co" not in message
    return message


@pytest.mark.parametrize(("damage", "said"), [case[1:] for case in DAMAGES], ids=[case[0] for case in DAMAGES])
def test_a_damaged_dataset_is_one_error_that_names_the_place(damaged, opened, damage, said):
    damage(damaged)
    assert re.search(said, error_of(lambda: opened(damaged)))


def test_the_command_line_says_it_in_one_line_and_writes_nothing(damaged, tmp_path, capsys):
    lose_rows(damaged, 34, 38)
    path = write_config(tmp_path / "run.json", damaged, tmp_path / "run")
    with pytest.raises(SystemExit) as exit_:
        cli.main(["offline", str(path)])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("pi05-rl: error: dataset test/tiny: episode 3 has 6 rows in ")
    assert not (tmp_path / "run").exists()


def test_a_damaged_additional_dataset_is_named(mixed_dataset, damaged, opened):
    lose_rows(damaged, 34, 38)
    message = error_of(lambda: opened(mixed_dataset, dataset__additional_offline_dataset_paths=[str(damaged)]))
    assert message.startswith(f"dataset {damaged}: episode 3 has 6 rows")


def test_what_the_metadata_say_is_compared_only_of_the_episodes_that_are_used(damaged, opened):
    lose_rows(damaged, 34, 38)
    data = opened(damaged, dataset__episodes=[0, 1, 2])
    assert [episode.length for episode in data.labels.episodes] == LENGTHS[:3]


# ── What can be read, although LeRobot cannot ────────────────────────────────────────────────────────────────────


def states_of(root: Path) -> np.ndarray:
    return np.stack(pq.read_table(data_file(root), columns=["observation.state"]).column(0).to_pylist())


def test_a_gap_in_the_episode_indices_is_read_by_keys(mixed_dataset, damaged, opened):
    lose_episode(damaged, 1)
    data = opened(damaged)
    assert [episode.index for episode in data.labels.episodes] == [0, 2, 3]
    assert [episode.outcome for episode in data.labels.episodes] == [Outcome.SUCCESS, Outcome.SUCCESS, Outcome.FAILURE]
    whole = opened(mixed_dataset)
    for number, same in ((8, 8), (9, 21), (25, 37)):  # rows 9 to 20 were the lost episode's
        assert all(bool((data.train[(0, number)][key] == whole.train[(0, same)][key]).all()) for key in CAMERAS)
        np.testing.assert_array_equal(data.train[(0, number)]["action"], whole.train[(0, same)]["action"])


def test_an_empty_episode_is_left_out_and_refused_where_it_is_asked_for(damaged, opened):
    empty_episode(damaged)
    assert [episode.index for episode in opened(damaged).labels.episodes] == [0, 1, 2, 3]
    assert "names episode 4, which is empty" in error_of(lambda: opened(damaged, dataset__episodes=[0, 4]))


def test_the_rows_are_those_of_the_episodes_asked_for(mixed_dataset, opened):
    data = opened(mixed_dataset, dataset__episodes=[3, 1])
    assert [episode.index for episode in data.labels.episodes] == [1, 3]
    expected = np.r_[states_of(mixed_dataset)[9:21], states_of(mixed_dataset)[28:]]
    np.testing.assert_array_equal(data.sources[0].recorded("observation.state"), expected.astype(np.float32))
    whole = opened(mixed_dataset)
    assert bool((data.train[(0, 12)][CAMERAS[0]] == whole.train[(0, 28)][CAMERAS[0]]).all())


@pytest.mark.parametrize(
    ("episodes", "said"),
    [([0, 7], "names episode 7, but .* has 4"), ([], "empty list")],
)
def test_episodes_that_cannot_be_meant_are_refused(mixed_dataset, opened, episodes, said):
    assert re.search(said, error_of(lambda: opened(mixed_dataset, dataset__episodes=episodes)))


TASK_TABLES = {
    "reversed": lambda texts: pd.DataFrame({"task_index": [1, 0]}, index=pd.Index(texts[::-1], name="task")),
    "columns": lambda texts: pd.DataFrame({"task": texts, "task_index": [0, 1]}),
    "unnamed index": lambda texts: pd.DataFrame({"task_index": [0, 1]}, index=texts),
    "another column": lambda texts: pd.DataFrame({"note": [5, 6], "task_index": [0, 1], "task": texts}),
    "categories": lambda texts: pd.DataFrame({"task": pd.Categorical(texts), "task_index": [0, 1]}),
}


@pytest.mark.parametrize("layout", TASK_TABLES)
def test_tasks_are_read_by_their_keys(tmp_path, opened, layout):
    root, texts = tmp_path / "two", ["pick the cube", "push the cube"]
    make_dataset(root, [{"length": 4, "success": True, "task": text} for text in texts])
    TASK_TABLES[layout](texts).to_parquet(root / "meta" / "tasks.parquet")
    data = opened(root)
    assert [data.labels.tasks[episode.task] for episode in data.labels.episodes] == texts


def test_tasks_with_a_gap_in_their_indices(damaged, opened):
    set_values(damaged, "task_index", list(range(38)), 4)
    pd.DataFrame({"task_index": [4]}, index=pd.Index(["lift"], name="task")).to_parquet(damaged / "meta/tasks.parquet")
    assert opened(damaged).labels.tasks == ["lift"]


def test_episode_metadata_in_another_order_are_the_same(mixed_dataset, damaged, opened):
    change_table(episodes_file(damaged), lambda table: table.take(pa.array([2, 0, 3, 1])))
    np.testing.assert_array_equal(
        opened(damaged).train[(0, 30)]["action"], opened(mixed_dataset).train[(0, 30)]["action"]
    )


ENCODINGS = {
    "lists": lambda values: pa.array(values.tolist()),
    "large lists": lambda values: pa.array(values.tolist(), type=pa.large_list(pa.float32())),
    "doubles": lambda values: pa.array(values.tolist(), type=pa.list_(pa.float64())),
    "halves": lambda values: pa.array(list(values.astype(np.float16)), type=pa.list_(pa.float16(), 4)),
    "extension": lambda values: pa.ExtensionArray.from_storage(
        datasets.features.features.Array2DExtensionType((2, 2), "float32"),
        pa.array(values.reshape(-1, 2, 2).tolist(), type=pa.list_(pa.list_(pa.float32()))),
    ),
    "nested": lambda values: pa.array(values.reshape(-1, 2, 2).tolist()),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_column_is_what_it_declares_whatever_its_encoding(damaged, opened, encoding):
    values = np.round(states_of(damaged) * 8).astype(np.float32) / 8  # exact in half precision, too
    change_column(damaged, "observation.state", lambda _: ENCODINGS[encoding](values))
    state = opened(damaged).sources[0].recorded("observation.state")
    assert state.dtype == np.float32
    np.testing.assert_array_equal(state, values)


def test_whole_numbers_and_dictionaries_are_read(damaged, opened):
    change_column(damaged, "action", lambda c: pa.array([[1, 2, row] for row in range(len(c))]))
    change_column(damaged, "index", lambda c: c.cast(pa.float64()).dictionary_encode())
    change_column(damaged, "next.success", lambda c: c.cast(pa.int8()))
    data = opened(damaged)
    np.testing.assert_array_equal(data.sources[0].recorded("action")[:, 2], np.arange(38, dtype=np.float32))
    assert [episode.outcome is Outcome.SUCCESS for episode in data.labels.episodes] == [True, False, True, False]


def test_an_action_of_one_number_stays_a_column(damaged, opened):
    change_column(damaged, "action", lambda c: pa.array(np.arange(len(c), dtype=np.float32)))
    change_info(damaged, lambda info: info["features"]["action"].update(shape=[1], names=None))
    data = opened(damaged)
    assert data.sources[0].recorded("action").shape == (38, 1)
    assert data.train[(0, 3)]["action"][:2].tolist() == [[3.0], [4.0]]


def add_language(root: Path) -> None:
    row = {
        "role": "assistant",
        "content": "x",
        "style": "subtask",
        "timestamp": 0.0,
        "camera": None,
        "tool_calls": None,
    }
    kinds = {
        "language_persistent": language_persistent_column_feature(),
        "language_events": language_events_column_feature(),
    }
    columns = {"language_persistent": [[row]] * 38, "language_events": [[]] * 38}
    added = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).data.table

    def longer(table: pa.Table) -> pa.Table:
        for key in columns:
            table = table.append_column(key, added.column(key))
        return table.replace_schema_metadata(None)

    change_table(data_file(root), longer)
    change_info(
        root,
        lambda info: info["features"].update({k: {**f, "shape": [1]} for k, f in language_feature_info().items()}),
    )


UNNEEDED = {
    "language": add_language,
    "language without a shape": lambda root: (
        add_language(root),
        change_info(root, lambda info: [info["features"][key].pop("shape") for key in language_feature_info()]),
    ),
    "undeclared": lambda root: change_table(
        data_file(root), lambda table: table.append_column("note", pa.array(["x"] * 38)).replace_schema_metadata(None)
    ),
    "declared and absent": lambda root: change_info(
        root,
        lambda info: info["features"].update({"observation.force": {"dtype": "float32", "shape": [6], "names": None}}),
    ),
    "of another type": lambda root: (
        change_table(
            data_file(root),
            lambda table: table.append_column("effort", pa.array([["a"]] * 38)).replace_schema_metadata(None),
        ),
        change_info(root, lambda info: info["features"].update({"effort": {"dtype": "float32", "shape": [3]}})),
    ),
    "no statistics": lambda root: (root / "meta" / "stats.json").unlink(),
}


@pytest.mark.parametrize("case", UNNEEDED)
def test_what_is_not_needed_is_left_alone(mixed_dataset, damaged, opened, case):
    UNNEEDED[case](damaged)
    sample, expected = opened(damaged).train[(0, 10)], opened(mixed_dataset).train[(0, 10)]
    assert all(bool((sample[key] == expected[key]).all()) for key in (*CAMERAS, "action", "observation.state"))


# ── NaN and infinity ─────────────────────────────────────────────────────────────────────────────────────────────


def test_episodes_with_bad_values_are_dropped_as_if_they_were_not_asked_for(mixed_dataset, damaged, opened, caplog):
    set_entry(damaged, "observation.state", 12, 2, float("nan"))
    set_entry(damaged, "action", 29, 0, float("inf"))
    message = error_of(lambda: opened(damaged))
    assert "without the 2 of 4 episode(s) (1, 3): --dataset.bad_values=drop_episode" in message
    with caplog.at_level("WARNING"):
        data = opened(damaged, dataset__bad_values="drop_episode")
    assert sum("episode(s) 1, 3 are dropped" in record.message for record in caplog.records) == 1
    asked = opened(mixed_dataset, dataset__episodes=[0, 2])
    assert [episode.index for episode in data.labels.episodes] == [0, 2]
    assert len(data.train) == len(asked.train) == 16
    for number in (0, 8, 9, 15):
        one, other = data.train[(0, number)], asked.train[(0, number)]
        assert all(bool((one[key] == other[key]).all()) for key in (*CAMERAS, "action", "observation.state", "return"))
    for key in ("observation.state", "action"):
        for name, value in asked.stats[key].items():
            np.testing.assert_array_equal(np.asarray(data.stats[key][name]), np.asarray(value))


def test_dropping_all_episodes_is_refused(damaged, opened):
    for row in (0, 9, 21, 28):
        set_entry(damaged, "action", row, 0, float("nan"))
    assert "no episode is left" in error_of(lambda: opened(damaged, dataset__bad_values="drop_episode"))


# ── Outcomes need neither videos nor statistics ──────────────────────────────────────────────────────────────────


def test_outcomes_are_listed_and_set_without_videos_and_statistics(tmp_path, capsys):
    root = tmp_path / "videos"
    make_dataset(root, [{"length": 4}, {"length": 4}], columns=(), video=True)
    shutil.rmtree(root / "videos")
    (root / "meta" / "stats.json").unlink()
    path = write_config(tmp_path / "run.json", root, tmp_path / "run")
    for arguments in (["--list-unlabelled"], ["--success=0", "--failure=1"]):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["label", str(path), *arguments])
        assert exit_.value.code == 0
    assert "2 of 2 episodes have no outcome: 0-1" in capsys.readouterr().out
    assert (tmp_path / "videos.labels" / "outcomes.csv").read_text().split() == [
        "episode_index,outcome",
        "0,success",
        "1,failure",
    ]
    changes = {"reward__outcome_file": str(tmp_path / "videos.labels" / "outcomes.csv")}
    with pytest.raises(SystemExit) as exit_:
        cli.main(["offline", str(write_config(tmp_path / "run.json", root, tmp_path / "run", **changes))])
    assert exit_.value.code == 2
    assert re.search(r"videos/observation\.images\.\w+/chunk-000/file-000\.mp4 is missing", capsys.readouterr().err)


# ── Times ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shift", [0.004, 0.04, 0.7])
def test_timestamps_off_the_videos_grid_are_told_with_a_tolerance_that_reads_the_right_pictures(
    tmp_path, opened, shift
):
    root = tmp_path / "videos"
    make_dataset(root, MIXED_EPISODES[:2], video=True)
    right = opened(root)
    expected = [right.train[(0, number)][CAMERAS[0]] for number in (8, 9, 20)]
    change_column(root, "timestamp", lambda c: pa.array(np.asarray(c) + np.float32(shift), type=pa.float32()))
    message = error_of(lambda: opened(root))
    tolerance = float(re.search(r"--tolerance_s=([\d.e-]+) reads it", message)[1])
    assert shift < tolerance < shift * 1.02 + 2e-5
    data = opened(root, tolerance_s=tolerance)
    for number, picture in zip((8, 9, 20), expected, strict=True):
        assert bool((data.train[(0, number)][CAMERAS[0]] == picture).all())
    change_column(root, "timestamp", lambda c: pa.array([np.nan] * len(c), type=pa.float32()))
    assert "has the timestamp nan" in error_of(lambda: opened(root))


def test_the_hubs_tool_takes_the_command_of_a_missing_file(damaged, opened):
    data_file(damaged).unlink()
    command = re.search(r"(hf download [^)]*)\)", error_of(lambda: opened(damaged)))[1].split()
    run = subprocess.run(
        [Path(sys.executable).with_name("hf"), *command[1:], "--help"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert command[2:] == ["test/tiny", "--repo-type", "dataset", "--local-dir", str(damaged)]
