"""An offline run that labels its own data: critics, labels, policy, and a stop in each of them."""

import json
import os
import shutil
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recordings import make_dataset
from runs import run, step_back
from safetensors.torch import load_file
from tiny import write_config

from lerobot_policy_pi05_rl import offline_learner
from lerobot_policy_pi05_rl.checkpoint.critic_provenance import critic_fingerprint
from lerobot_policy_pi05_rl.cli import main as cli
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.data.labeling import read_labeling
from lerobot_policy_pi05_rl.errors import INTERRUPTED
from lerobot_policy_pi05_rl.labels import own_run, values
from lerobot_policy_pi05_rl.labels.command import main as label
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.offline_learner import main as offline
from lerobot_policy_pi05_rl.report.build import report

EPISODES = [{"length": 9 + k % 3, "success": k % 2 == 0} for k in range(8)]
FRAMES = sum(episode["length"] for episode in EPISODES)
CRITICS, STEPS = 4, 10
CHANGES = {
    "policy__critic_warmup_steps": CRITICS,
    "policy__offline_steps": STEPS,
    "policy__critic_folds": 2,
    "policy__advantage_positive_weight": 3.0,
    "dataset__eval_split": 0.25,
    "save_freq": 2,
    "log_freq": 2,
}
MODEL = Path("pretrained_model/model.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phases") / "data"
    make_dataset(folder, EPISODES, columns=("next.success",))
    return folder


@pytest.fixture(scope="module")
def whole(data) -> Path:
    """A run that nobody stopped."""
    run(config(data.parent / "whole", data))
    return data.parent / "whole" / "run"


def config(folder: Path, data: Path, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    return write_config(folder / "c.json", data, folder / "run", **{**CHANGES, **changes})


@pytest.fixture
def stopped(whole, data, tmp_path):
    """Gives the run as it was behind a step, with its labels or without, and the configuration that resumes it."""

    def at(step: int, *, labels: bool) -> tuple[Path, Path]:
        shutil.copytree(whole, tmp_path / "a" / "run", symlinks=True)
        step_back(tmp_path / "a" / "run", f"{step:06d}")
        if not labels:
            shutil.rmtree(tmp_path / "a" / "run" / "labels")
        return tmp_path / "a" / "run", config(tmp_path / "a", data, resume=True)

    return at


def weights(run_dir: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / f"{step:06d}" / MODEL)


def labels_of(run_dir: Path) -> tuple[pd.DataFrame, dict]:
    (path,) = (run_dir / "labels").glob("*.parquet")
    labeling = read_labeling(path)
    return pd.DataFrame(labeling.columns), labeling.meta


def same_end(first: Path, second: Path) -> None:
    """Weights, optimizer, labels and numbers of two runs are equal to the bit."""
    for name in (MODEL, Path("training_state/optimizer_state.safetensors")):
        one, two = (load_file(folder / "checkpoints" / f"{STEPS:06d}" / name) for folder in (first, second))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), name
    pd.testing.assert_frame_equal(labels_of(first)[0], labels_of(second)[0])
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (first, second)]
    shared = [[(line["step"], line.get("loss_actor"), line.get("loss_critic")) for line in file] for file in lines]
    assert shared[0] == shared[1]


def count_frames(monkeypatch) -> list[int]:
    """Frames of each batch that the critics are asked about."""
    predict, sizes = PI05RLPolicy.predict_label_values, []

    def counted(self, batch):
        found = predict(self, batch)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(PI05RLPolicy, "predict_label_values", counted)
    return sizes


def test_the_actor_waits_for_the_labels_and_learns_under_them(whole):
    before, labelled, end = weights(whole, 2), weights(whole, CRITICS), weights(whole)
    critic = {key for key in before if key.startswith("model.critic.")}
    assert all(torch.equal(before[key], labelled[key]) for key in before.keys() - critic)
    assert any(not torch.equal(before[key], labelled[key]) for key in critic)
    for group in (critic, end.keys() - critic):  # both learn on
        assert any(not torch.equal(labelled[key], end[key]) for key in group)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    training = {line["step"]: line for line in lines if "loss_critic" in line}
    assert sorted(training) == [2, 4, 6, 8, 10]
    assert all(("loss_actor" in line) == (step > CRITICS) for step, line in training.items())


def test_each_frame_has_a_label_of_critics_that_have_not_seen_its_episode(whole):
    frames, meta = labels_of(whole)
    assert len(frames) == FRAMES
    checkpoint = whole / "checkpoints" / f"{CRITICS:06d}" / "pretrained_model"
    assert meta["critic"] == {"path": str(checkpoint), "fingerprint": critic_fingerprint(checkpoint, (-1.0, 0.0))}
    assert meta["horizon"] == 0.25 and meta["smoothing_share"] == 0.2 and meta["name"] == f"run-{CRITICS:06d}"
    folds = json.loads((checkpoint / "critic_data.json").read_text())["datasets"][0]["folds"]
    assert frames["fold"].tolist() == [folds[str(episode)] for episode in frames["episode_index"]]
    assert set(frames["fold"]) == {-1, 0, 1}
    assert not list(whole.glob("labels.partial"))


def test_they_are_those_that_the_label_command_makes(whole, data, capsys):
    assert label([str(whole), "--checkpoint", str(whole / "checkpoints" / f"{CRITICS:06d}"), "--name", "same"]) == 0
    frames, _ = labels_of(whole)
    other = read_labeling(data.with_name("data.labels") / "same.parquet").columns
    np.testing.assert_allclose(frames["value"], other["value"], atol=1e-6)
    assert frames["tag"].tolist() == other["tag"].tolist()


@pytest.mark.parametrize(
    ("step", "labels"),
    [(2, False), (CRITICS, False), (CRITICS, True), (6, True), (8, True), (2, True)],
    ids=["critics", "before labels", "after labels", "first policy step", "policy", "back to the critics"],
)
def test_a_run_that_goes_on_equals_one_that_nobody_stopped(whole, stopped, monkeypatch, step, labels):
    run_dir, path = stopped(step, labels=labels)
    sizes = count_frames(monkeypatch)
    run(path)
    same_end(whole, run_dir)
    assert sum(sizes) == (0 if labels else FRAMES), "labels of the same critics are not made again"


def test_a_signal_while_labelling_keeps_what_was_computed(whole, stopped, monkeypatch):
    run_dir, path = stopped(CRITICS, labels=False)
    predict, sizes = PI05RLPolicy.predict_label_values, count_frames(monkeypatch)

    def interrupted(self, batch):
        if len(sizes) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        sizes.append(len(found := predict(self, batch)))
        return found

    monkeypatch.setattr(PI05RLPolicy, "predict_label_values", interrupted)
    assert offline([str(path)]) == INTERRUPTED
    assert not (run_dir / "labels").exists() and 0 < sum(sizes) < FRAMES
    assert offline([str(path)]) == 0
    assert sum(sizes) == FRAMES, "no frame is labelled twice"
    same_end(whole, run_dir)


@pytest.mark.parametrize("between", ["label_run", "open_labelled"])
def test_a_signal_between_two_phases_is_not_lost(whole, stopped, monkeypatch, between):
    """It came where nothing had a handler: as KeyboardInterrupt, which a destructor swallows."""
    run_dir, path = stopped(CRITICS, labels=False)
    wanted = getattr(offline_learner, between)

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return wanted(*args)

    monkeypatch.setattr(offline_learner, between, interrupted)
    assert offline([str(path)]) == INTERRUPTED
    monkeypatch.undo()
    assert offline([str(path)]) == 0
    same_end(whole, run_dir)


def test_what_a_kill_leaves_of_the_values_is_used(whole, stopped, monkeypatch):
    """Torn rows, of several processes, whatever their number is now."""
    run_dir, path = stopped(CRITICS, labels=False)
    monkeypatch.setattr(values, "FLUSH_FRAMES", 8)
    monkeypatch.setattr(own_run, "write_labels", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(path)
    monkeypatch.undo()
    (file,) = (run_dir / "labels.partial").iterdir()
    body = file.read_bytes()
    header, row = body.index(b"\n") + 1, 8 + 4 * 2 * 2
    assert len(body) == header + FRAMES * row
    file.write_bytes(body[: header + 20 * row + 3])
    file.with_name(f"{file.name}.1").write_bytes(body[:header] + body[header + 40 * row : header + 48 * row + 5])
    sizes = count_frames(monkeypatch)
    run(path)
    assert sum(sizes) == FRAMES - 20 - 8
    same_end(whole, run_dir)


def test_critics_of_another_course_label_anew(stopped, monkeypatch):
    run_dir, path = stopped(2, labels=True)
    fingerprint = labels_of(run_dir)[1]["critic"]["fingerprint"]
    sizes = count_frames(monkeypatch)
    run(path, **{"policy.critic_lr": 0.01})
    assert sum(sizes) == FRAMES and labels_of(run_dir)[1]["critic"]["fingerprint"] != fingerprint


def test_other_settings_label_anew_where_the_run_goes_back_before_its_labels(stopped):
    run_dir, path = stopped(2, labels=True)
    before = labels_of(run_dir)[0]["advantage"]
    run(path, **{"policy.advantage_horizon": 1.0})
    after, meta = labels_of(run_dir)
    assert meta["horizon"] == 1.0 and not np.allclose(before, after["advantage"])


def test_labels_that_are_gone_are_an_error_behind_their_step(stopped):
    _, path = stopped(6, labels=False)
    with pytest.raises(ConfigError, match=r"step 6.*made at step 4 are gone.*resume_from"):
        run(path)


def test_other_settings_of_labels_that_are_made_are_an_error(stopped):
    _, path = stopped(6, labels=True)
    for name, value in (
        ("advantage_horizon", 0.5),
        ("advantage_smoothing", 0.5),
        ("advantage_positive_fraction", 0.6),
        ("advantage_n_step", 2),
    ):
        with pytest.raises(ConfigError, match=rf"{name}.*pi05-rl label CONFIG --from .*run --name NAME"):
            run(path, **{f"policy.{name}": value})


def test_a_longer_run_keeps_its_critics_steps(data, tmp_path):
    """Where they are a share of the run's length."""
    path = config(tmp_path / "a", data, policy__critic_warmup_steps=None)
    run(path)
    assert labels_of(tmp_path / "a" / "run")[1]["name"] == "run-000002"
    run(path, resume="true", **{"policy.offline_steps": 20})
    stored = json.loads((tmp_path / "a/run/checkpoints/last/pretrained_model/train_config.json").read_text())
    assert stored["policy"]["critic_warmup_steps"] == 2


def test_another_run_learns_from_a_runs_labels(whole, data, tmp_path):
    """A filter's rival, or RECAP again: the same tags, and no critics' phase."""
    path = config(tmp_path / "b", data, dataset__labeling=str(whole), policy__train_critic=False)
    run(path)
    assert not (tmp_path / "b" / "run" / "labels").exists()
    lines = [json.loads(line) for line in (tmp_path / "b" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all("loss_actor" in line for line in lines if "lr_actor" in line)


def test_two_datasets_of_the_same_frames_have_their_own_labels(data, tmp_path):
    """Which episodes succeeded may differ, and they lie in two places."""
    shutil.copytree(data, tmp_path / "copy")
    (tmp_path / "said.csv").write_text(f"episode_index,outcome,dataset\n0,failure,{tmp_path / 'copy'}\n")
    changes = {"dataset__additional_offline_dataset_paths": [str(tmp_path / "copy")]}
    path = config(tmp_path / "g", data, reward__outcome_file=str(tmp_path / "said.csv"), **changes)
    run(path)
    tables = [read_labeling(file) for file in sorted((tmp_path / "g" / "run" / "labels").glob("*.parquet"))]
    assert [table.columns["outcome"][0] for table in tables] == ["success", "failure"]


def test_a_labeling_is_derived_from_a_runs_labels(whole, data):
    assert label([str(whole), "--from", str(whole), "--name", "half", "--positive-fraction", "0.5"]) == 0
    derived = read_labeling(data.with_name("data.labels") / "half.parquet").columns
    frames, _ = labels_of(whole)
    assert np.array_equal(derived["value"], frames["value"])
    assert abs(derived["positive"].mean() - 0.5) < 0.02 < abs(frames["positive"].mean() - 0.5)


def test_a_run_that_never_labelled_this_data_says_what_it_has(whole, data, tmp_path):
    make_dataset(tmp_path / "other", EPISODES[:4], columns=("next.success",), seed=3)
    path = config(tmp_path / "b", tmp_path / "other", dataset__labeling=str(whole))
    with pytest.raises(ConfigError.__mro__[1], match=r"has labelled other data.*it has labelled test/tiny in .*data"):
        run(path)


def test_the_report_shows_the_runs_own_labels(whole):
    page = report(whole)
    assert page == whole / "report.html" and f"run-{CRITICS:06d}" in page.read_text()


def test_a_run_that_leaves_the_policy_no_step_is_an_error_unless_it_is_asked_for(data, tmp_path):
    path = config(tmp_path / "c", data, policy__critic_warmup_steps=STEPS)
    with pytest.raises(ConfigError, match=r"critic_warmup_steps \(10\) leaves none of policy\.offline_steps \(10\)"):
        run(path)
    assert not (tmp_path / "c" / "run").exists()
    run(path, **{"policy.advantage_labels": "running"})
    assert not (tmp_path / "c" / "run" / "labels").exists()


def test_critics_that_may_not_learn_cannot_label(data, tmp_path, capsys):
    path = config(tmp_path / "d", data, policy__critic_warmup_steps=0)
    with pytest.raises(SystemExit) as exit_:
        cli(["offline", str(path)])
    assert exit_.value.code == 2 and "advantage_labels=running" in capsys.readouterr().err


def test_a_run_without_checkpoints_labels_too(data, tmp_path):
    path = config(tmp_path / "e", data, save_checkpoint=False)
    run(path)
    assert labels_of(tmp_path / "e" / "run")[1]["critic"]["fingerprint"] == own_run.UNSAVED


def test_a_full_disk_is_one_line_and_the_run_goes_on(whole, stopped, monkeypatch, capsys):
    run_dir, path = stopped(CRITICS, labels=False)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(own_run, "write_labeling", full)
    with pytest.raises(SystemExit) as exit_:
        cli(["offline", str(path)])
    assert exit_.value.code == 2 and "No space left on device. Make room; --resume=true" in capsys.readouterr().err
    monkeypatch.undo()
    run(path)
    same_end(whole, run_dir)


def test_the_learning_rates_of_both_phases_are_whole_schedules(data, tmp_path):
    """Each begins at its peak (there is no warm-up in so short a run) and ends at its last rate."""
    path = config(tmp_path / "f", data, log_freq=1)
    cfg = load_config(path)
    run(path)
    lines = [json.loads(line) for line in (tmp_path / "f" / "run" / "metrics.jsonl").read_text().splitlines()]
    actor = {line["step"]: line["lr_actor"] for line in lines if "lr_actor" in line}
    peak, end = cfg.policy.resolved_actor_lr, cfg.policy.get_scheduler_preset().decay_lr
    assert actor[CRITICS] == pytest.approx(peak) and actor[STEPS] == pytest.approx(end)
    assert all(before >= after for before, after in pairwise(list(actor.values())[CRITICS - 1 :]))
