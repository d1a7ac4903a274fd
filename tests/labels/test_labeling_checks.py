"""A labeling and the outcomes it was made under: enough by itself, refused under others, derived anew as advised."""

import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import MIXED_EPISODES, make_dataset, make_labeling, with_column
from tiny import write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.data.dataset import open_offline_data, open_sources
from lerobot_policy_pi05_rl.data.labeling import read_labeling
from lerobot_policy_pi05_rl.data.labeling_checks import derive_command
from lerobot_policy_pi05_rl.data.sources import DatasetError
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.labels import command as label_command
from lerobot_policy_pi05_rl.labels.options import LabelOptions, check_options

TRUTH = ["success", "failure", "success", "failure"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "bare"
    make_dataset(root, [{"length": episode["length"]} for episode in MIXED_EPISODES], columns=())
    return root


@pytest.fixture
def world(bare, tmp_path):
    """A dataset whose outcomes a CSV says, and a labeling "mine" made under it; (config file, CSV)."""
    root = Path(shutil.copytree(bare, tmp_path / "data"))
    csv = write_outcomes(tmp_path / "said.csv", TRUTH)
    path = write_config(tmp_path / "run.json", root, tmp_path / "run", dataset__labeling="mine")
    meta = {"horizon": 0.3, "smoothing_share": 0.1, "positive_fraction": {"pick the cube": 0.25}}
    make_labeling(
        load_config(path, [f"--reward.outcome_file={csv}"]), "mine", lambda count: np.arange(count) < 5, **meta
    )
    return path, csv


def write_outcomes(path: Path, outcomes: list[str | None]) -> Path:
    rows = [f"{episode},{outcome}" for episode, outcome in enumerate(outcomes) if outcome]
    path.write_text("\n".join(["episode_index,outcome", *rows]))
    return path


def outcomes(path, *overrides: str) -> list[str]:
    return [episode.outcome.value for episode in open_offline_data(load_config(path, list(overrides))).labels.episodes]


def labeling(path: Path):
    return read_labeling(path.parent / "data.labels" / "mine.parquet")


@pytest.mark.parametrize("said", [None, TRUTH, [None, "failure", None, None]])
def test_a_labeling_that_fits_is_enough_by_itself(world, said):
    path, csv = world
    overrides = [] if said is None else [f"--reward.outcome_file={write_outcomes(csv, said)}"]
    assert outcomes(path, *overrides) == TRUTH
    assert outcomes(path, *overrides, "--reward.unlabelled=failure") == TRUTH  # only for those that nothing tells of


def test_a_labeling_made_under_other_outcomes_is_refused_and_the_advice_works(world, capsys):
    path, csv = world
    write_outcomes(csv, ["success", "success", "failure", "failure"])
    given = f"--reward.outcome_file={csv}"
    with pytest.raises(DatasetError) as error:
        outcomes(path, given)
    text = str(error.value)
    assert "2 episode(s), 1 (failure there, success here), 2 (success there, failure here)" in text
    command = text.split("no network: ")[1]
    options = "--baseline all --smoothing 0.1 --horizon 0.3 --positive-fraction 0.25"
    assert command == f"pi05-rl label CONFIG --from mine --name mine {options} {given}"
    verb, arguments = "pi05-rl label CONFIG ", shlex.split(command)
    assert command.startswith(verb)
    assert label_command.main([str(path), *arguments[3:]]) == 0
    assert outcomes(path, given) == ["success", "success", "failure", "failure"]
    derived = labeling(path)
    assert derived.meta["horizon"] == 0.3 and set(derived.meta["positive_fraction"].values()) == {0.25}
    np.testing.assert_allclose(derived.columns["return"][[0, 8, 9, 20]], [-8 / 24, 0, -11 / 24, 0])


def test_columns_that_say_otherwise_are_outcomes_too(bare, tmp_path):
    root = Path(shutil.copytree(bare, tmp_path / "data"))
    lengths = [episode["length"] for episode in MIXED_EPISODES]

    def say(*successes: bool | None) -> None:
        with_column(root, "success", np.repeat(np.array(successes, dtype=object), lengths), "bool", pa.bool_())

    say(True, False, True, False)
    path = write_config(tmp_path / "run.json", root, tmp_path / "run", dataset__labeling="mine")
    make_labeling(load_config(path), "mine", lambda count: np.arange(count) < 5)
    say(True, None, None, False)
    assert outcomes(path) == TRUTH
    say(True, True, None, False)
    with pytest.raises(DatasetError, match=r"1 episode.s., 1 \(failure there, success here\)"):
        outcomes(path)


def test_outcomes_set_by_hand_beside_the_dataset_are_named(world):
    path, csv = world
    write_outcomes(path.parent / "data.labels" / "outcomes.csv", TRUTH)
    write_outcomes(csv, ["failure", "failure", "success", "failure"])
    with pytest.raises(DatasetError, match=r"episode.s., 0 \(success there, failure here\).*--from mine --name mine"):
        outcomes(path, f"--reward.outcome_file={csv}")
    assert outcomes(path) == TRUTH


def test_deriving_another_labeling_needs_no_outcomes_either(world):
    path, _ = world
    assert label_command.main([str(path), "--from", "mine", "--name", "second", "--n-step", "3"]) == 0
    table = pq.read_table(path.parent / "data.labels" / "second.parquet").to_pandas()
    assert table.groupby("episode_index")["outcome"].first().tolist() == TRUTH


def test_a_labeling_of_other_tasks_is_said(world, caplog):
    path, _ = world
    outcomes(path, "--policy.task=tidy")
    assert "was made under other tasks on 38 frames" in caplog.text
    caplog.clear()
    assert label_command.main([str(path), "--from", "mine", "--name", "mine", "--policy.task=tidy"]) == 0
    caplog.clear()
    outcomes(path, "--policy.task=tidy")
    assert "other tasks" not in caplog.text


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"n_step": 4, "trace": None}, "--n-step 4"),
        ({"n_step": None, "trace": None}, "--n-step none"),
        ({"n_step": None, "trace": {"a": 0.9, "b": 0.9}}, "--gae-lambda 0.9"),
        ({"n_step": {"a": 4, "b": 4}, "trace": None, "smoothing_share": None}, "--smoothing 0 --n-step 4"),
        (
            {"baseline": "success", "n_step": {"a": 4, "b": 9}, "horizon": 0.2, "smoothing_share": 0.1},
            "--smoothing 0.1 --horizon 0.2",
        ),
    ],
)
def test_the_command_keeps_the_labelings_advantage_estimator(meta, words):
    baseline = f"--baseline {meta.get('baseline', 'all')}"
    assert derive_command(meta, "x", None) == f"pi05-rl label CONFIG --from x --name x {baseline} {words}"


def test_another_critic_of_the_same_run_and_step_gets_a_name_of_its_own(world):
    """Two runs of one name, or one in the other's folder: neither replaces the other's labeling."""
    sources, _ = open_sources(load_config(world[0]))
    for fingerprint, name in (("none", "mine"), ("0123456789ab", "mine-01234567")):
        critic = SimpleNamespace(default_name="mine", fingerprint=fingerprint)
        assert label_command.free_name(sources, critic) == name


def test_a_labeling_of_an_earlier_version_is_read_and_derives_what_its_values_can_say(world):
    """It kept the critic's value alone; the baseline of a success needs more than that."""
    path, csv = world
    file = path.parent / "data.labels" / "mine.parquet"
    table = pq.read_table(file)
    pq.write_table(table.drop_columns("success_value"), file)
    assert np.isnan(labeling(path).columns["success_value"]).all() and outcomes(path) == TRUTH
    arguments = [str(path), "--from", "mine", "--name", "derived", f"--reward.outcome_file={csv}"]
    with pytest.raises(UserError, match="kept the critic's value alone: give --baseline all, or label"):
        label_command.main(arguments)
    assert label_command.main([*arguments, "--baseline", "all"]) == 0


def test_rewards_of_the_dataset_know_no_success(world):
    path, _ = world
    for arguments, key in ((["--baseline", "success"], "--baseline"), ([], "policy.advantage_baseline")):
        asked = [] if arguments else ["--policy.advantage_baseline=success"]
        rest = ["--from", "mine", "--name", "x", "--reward.source=dataset", *arguments, *asked]
        with pytest.raises(ConfigError, match=rf"{key} is success, but returns of reward.source=dataset"):
            label_command.main([str(path), *rest])


def test_an_unknown_baseline_is_refused_from_code_as_from_the_command_line():
    with pytest.raises(ConfigError, match="--baseline must be one of success, all; got 'luck'"):
        check_options(LabelOptions(baseline="luck"))
