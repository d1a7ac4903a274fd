"""The Python API: configurations built in code, results returned, the caller's configuration left alone; and the
examples."""

import copy
import json
import runpy
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
from commands import REPOSITORY
from recordings import make_dataset
from tiny import TINY_SIZES, write_config

import lerobot_policy_pi05_rl
from lerobot_policy_pi05_rl import api
from lerobot_policy_pi05_rl.data.labeling import SCHEMA
from lerobot_policy_pi05_rl.plan.command import main as plan_main

EXAMPLES = REPOSITORY / "examples"
EPISODES = 4
FRAMES = 9 + 12 + 7 + 10  # of mixed_dataset


def make_config(dataset: Path, run: Path) -> api.TrainConfig:
    """As :func:`conftest.write_config`, built in code."""
    return api.TrainConfig(
        dataset=api.DatasetConfig(repo_id="test/tiny", root=str(dataset), eval_split=0.0),
        policy=api.PolicyConfig(
            **{**TINY_SIZES, "image_resolution": (32, 32)},
            device="cpu",
            tokenizer="tasks",
            tokenizer_max_length=48,
            offline_steps=2,
            actor_lr=1e-3,
            critic_lr=1e-3,
        ),
        output_dir_offline=run,
        seed=7,
        num_workers=0,
        batch_size=4,
        log_freq=1,
        save_freq=100,
    )


@pytest.fixture(scope="module")
def trained(mixed_dataset, tmp_path_factory) -> api.TrainConfig:
    """The configuration of a run that is there."""
    folder = tmp_path_factory.mktemp("api")  # with its own dataset: labelings lie beside it
    config = make_config(Path(shutil.copytree(mixed_dataset, folder / "data")), folder / "run")
    before = copy.deepcopy(config)
    checkpoint = api.train_offline(config)
    assert checkpoint == config.output_dir_offline / "checkpoints" / "000002"
    assert (checkpoint / "pretrained_model" / "model.safetensors").is_file()
    assert config == before
    return config


def test_a_configuration_built_in_code_is_the_one_that_a_file_says(tmp_path, mixed_dataset):
    path = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", policy__offline_steps=2)
    assert make_config(mixed_dataset, tmp_path / "run") == api.load_config(path)


def test_labels_come_back_as_a_data_frame(trained):
    before = copy.deepcopy(trained)
    labelled = api.label(trained, name="first", baseline="all", n_step="none", smoothing=0, positive_fraction=0.5)
    frames = labelled.frames()
    assert (labelled.name, list(labelled.thresholds)) == ("first", ["pick the cube"])
    assert set(frames.columns) == {*SCHEMA, "dataset"} and len(frames) == FRAMES
    assert frames["episode_index"].nunique() == EPISODES
    advantage, threshold = frames["advantage"], labelled.thresholds["pick the cube"]
    pd.testing.assert_series_equal(frames["positive"], advantage > threshold, check_names=False)
    assert abs(frames["positive"].mean() - 0.5) < 0.05
    pd.testing.assert_series_equal(
        advantage, (frames["return"] - frames["value"]).astype("float32"), check_names=False, atol=1e-6
    )
    again = api.label(trained, name="second", values_from="first", gae_lambda=0.5)
    pd.testing.assert_series_equal(again.frames()["value"], frames["value"])
    assert trained == before
    page = api.report(trained.output_dir_offline, labels=["first", "second"])
    assert page == trained.output_dir_offline / "report.html" and "second" in page.read_text()


def test_outcomes_are_set_by_episode_numbers(tmp_path):
    make_dataset(tmp_path / "data", [{"length": 3}] * EPISODES, columns=())
    config = make_config(tmp_path / "data", tmp_path / "run")
    assert api.label(config, success=[3, 0, 1], failure=[2]) is None  # there is no critic yet
    outcomes = pd.read_csv(tmp_path / "data.labels" / "outcomes.csv")
    assert outcomes["outcome"].tolist() == ["success", "success", "failure", "success"]


def test_the_plan_is_the_one_that_the_command_prints(tmp_path, mixed_dataset, capsys):
    path = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", policy__offline_steps=2)
    plan_main([str(path), "--json", "--text", "12"])
    counted = api.plan(make_config(mixed_dataset, tmp_path / "run"), text_tokens=12)
    assert json.loads(json.dumps(asdict(counted))) == json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda config: api.label(config, n_step=0), "at least 1"),
        (lambda config: api.label(config, horizon=0.1, gae_lambda=0.5), "exclude each other"),
        (lambda config: api.label(config, name="a b"), "not a file's name"),
        (lambda config: api.plan(config, efficiency=2.0), "at most 1"),
        (lambda config: api.report("/nowhere"), "is not a folder"),
        (lambda config: api.train_offline(config), "already exists"),
    ],
)
def test_bad_input_is_one_kind_of_error(trained, call, complaint):
    with pytest.raises(api.UserError, match=complaint):
        call(trained)


def test_the_package_has_no_other_names():
    with pytest.raises(AttributeError, match="nothing"):
        lerobot_policy_pi05_rl.nothing  # noqa: B018


@pytest.fixture
def run_example(monkeypatch, capfd, logging_as_before):
    """Runs an example in this process and returns what it printed."""

    def run(name: str, *arguments: object) -> str:
        path = EXAMPLES / name
        assert len(path.read_text().splitlines()) <= 40
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capfd.readouterr()
        runpy.run_path(str(path), run_name="__main__")
        return capfd.readouterr().out

    return run


def test_the_example_that_labels(trained, run_example):
    printed = run_example("label_and_look.py", trained.output_dir_offline)
    assert "Positive share by quarter" in printed and "success" in printed and "failure" in printed
    assert (Path(trained.output_dir_offline) / "report.html").is_file()


def test_the_example_that_trains_and_evaluates(tmp_path, run_example):
    pytest.importorskip("gym_hil")
    from lerobot_policy_pi05_rl.demo.record import record_dataset

    dataset = record_dataset(tmp_path / "set", "local/panda_pick_cube", episodes=4, seed=7)
    sizes = ["--steps", 2, "--episodes", 1]
    printed = run_example("train_and_evaluate.py", dataset, tmp_path / "run", *sizes)
    assert "A step needs 0." in printed and "Success rate: " in printed
    assert (tmp_path / "run" / "checkpoints" / "last" / "pretrained_model" / "config.json").is_file()
