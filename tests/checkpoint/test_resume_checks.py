"""What a resume checks: a whole checkpoint, the same data, what differs in the settings; and metrics to the line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from recordings import MIXED_EPISODES, make_dataset
from safetensors.torch import load_file
from tiny import write_config

from lerobot_policy_pi05_rl import offline_learner
from lerobot_policy_pi05_rl.checkpoint.resume import (
    Change,
    checkpoint_to_resume,
    compare_configs,
    data_differences,
    differences,
)
from lerobot_policy_pi05_rl.checkpoint.write import checkpoints_of, prune
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError, PI05RLTrainConfig
from lerobot_policy_pi05_rl.data.sources import DatasetError
from lerobot_policy_pi05_rl.model.weights import CheckpointError
from lerobot_policy_pi05_rl.offline_learner import train_offline
from lerobot_policy_pi05_rl.runtime.files import MANIFEST
from lerobot_policy_pi05_rl.training.metrics import drop_lines_after, wandb_run_id

OPTIMIZER = "training_state/optimizer_state.safetensors"
STEPS = {"policy__offline_steps": 6, "save_freq": 2, "policy__critic_warmup_steps": 2}


def run(path, *overrides) -> Path:
    return train_offline(load_config(path, [f"--{override}" for override in overrides]))


@pytest.fixture(scope="module")
def finished(mixed_dataset, tmp_path_factory) -> Path:
    """A run of six steps with three checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    run(write_config(folder / "c.json", mixed_dataset, folder / "run", **STEPS))
    return folder / "run"


@pytest.fixture
def resumable(finished, mixed_dataset, tmp_path):
    """A copy of it in ``tmp_path/run`` and its configuration."""
    shutil.copytree(finished, tmp_path / "run", symlinks=True)

    def config(dataset=mixed_dataset, **changes) -> Path:
        return write_config(tmp_path / "c.json", dataset, tmp_path / "run", **{**STEPS, "resume": True, **changes})

    return config


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-200] ^= 4
    path.write_bytes(content)


def steps(run_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


# ── The checkpoint ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_checkpoint_is_named_with_its_file_and_the_newest_whole_one_is_offered(tmp_path, resumable):
    checkpoints = tmp_path / "run" / "checkpoints"
    flip(checkpoints / "000006" / OPTIMIZER)
    (checkpoints / "000004" / OPTIMIZER).unlink()
    with pytest.raises(CheckpointError) as caught:
        run(resumable())
    message = str(caught.value)
    assert f"{checkpoints / '000006'} is damaged: {OPTIMIZER} has other contents" in message
    assert message.count("--resume_from=2") == 1
    resumed = run(resumable(), "resume_from=2")  # and what it says to do works, once
    assert resumed.name == "000006"
    assert json.loads((resumed / "pretrained_model" / "train_config.json").read_text())["resume_from"] is None
    assert checkpoint_to_resume(tmp_path / "run").name == "000006"


def test_nothing_is_offered_where_no_older_one_is_whole(tmp_path, resumable):
    for step in ("000002", "000004", "000006"):
        flip(tmp_path / "run" / "checkpoints" / step / OPTIMIZER)
    with pytest.raises(CheckpointError, match="No checkpoint before it is whole: start anew"):
        run(resumable())


def test_a_checkpoint_of_a_version_without_manifest_loads(tmp_path, resumable):
    checkpoint = tmp_path / "run" / "checkpoints" / "000006"
    (checkpoint / MANIFEST).unlink()
    (checkpoint / "training_state" / "data_state.json").unlink()
    assert run(resumable(), "policy.offline_steps=7").name == "000007"


@pytest.mark.parametrize("name", ["4", "000004", "path", "relative"])
def test_resume_from_takes_a_step_or_a_path(tmp_path, finished, name, monkeypatch):
    monkeypatch.chdir(finished)
    names = {"path": str(finished / "checkpoints" / "000004"), "relative": "checkpoints/000004"}
    config = write_config(tmp_path / "c.json", tmp_path, finished)
    cfg = load_config(config, ["--resume=true", f"--resume_from={names.get(name, name)}"])
    cfg.validate()
    assert checkpoint_to_resume(finished, cfg.resume_from) == (finished / "checkpoints" / "000004").resolve()


@pytest.mark.parametrize("wrong", ["5", "last_week", "/tmp"])
def test_resume_from_names_a_checkpoint_of_this_run_or_is_refused(finished, wrong):
    with pytest.raises(ConfigError, match=r"000002, 000004, 000006.*policy\.pi05_checkpoint"):
        checkpoint_to_resume(finished, wrong)


def test_resume_from_without_resume_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="set resume=true"):
        load_config(write_config(tmp_path / "c.json", tmp_path, tmp_path / "run", resume_from=2)).validate()


def test_going_back_leaves_later_checkpoints_until_they_are_reached_and_last_follows(tmp_path, resumable, monkeypatch):
    """A run killed on its new course must go on with that one."""
    checkpoints, seen = tmp_path / "run" / "checkpoints", []
    before = (checkpoints / "000006" / OPTIMIZER).read_bytes()

    def killed(*args, **kwargs):
        seen.append((checkpoints / "last").resolve().name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(offline_learner, "train", killed)
        run(resumable(), "resume_from=2")
    assert seen == ["000002"] and steps(tmp_path / "run") == [1, 2]
    assert (checkpoints / "000006" / OPTIMIZER).read_bytes() == before
    assert checkpoint_to_resume(tmp_path / "run").name == "000002"
    run(resumable(), "policy.critic_lr=2e-3")
    assert (checkpoints / "000006" / OPTIMIZER).read_bytes() != before
    assert (checkpoints / "last").resolve().name == "000006" and steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6]


def test_pruning_neither_counts_nor_takes_checkpoints_of_a_course_that_was_left(tmp_path):
    for step in (2, 4, 5, 6, 8):
        (tmp_path / "checkpoints" / f"{step:06d}").mkdir(parents=True)
    prune(tmp_path / "checkpoints" / "000005", 2)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["000004", "000005", "000006", "000008"]


# ── The configuration ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_configuration_says_nothing(resumable, caplog):
    with caplog.at_level("INFO"):
        run(resumable())
    assert "settings" not in caplog.text


def test_what_changes_the_learning_is_one_warning_and_the_rest_is_a_note(resumable, caplog):
    with caplog.at_level("INFO"):
        run(
            resumable(log_freq=2, policy__guidance_scale=2.0, batch_size=2, seed=8),
            "policy.offline_steps=7",
        )
    lines = [record for record in caplog.records if "settings" in record.getMessage().lower()]
    (warning,) = [record.getMessage() for record in lines if record.levelname == "WARNING"]
    (note,) = [record.getMessage() for record in lines if record.levelname == "INFO"]
    for change in ("batch_size: 4 → 2", "seed: 7 → 8", "policy.offline_steps: 6 → 7", "schedule of the new length"):
        assert change in warning and change not in note
    assert "log_freq: 1 → 2" in note and "policy.guidance_scale: 5.0 → 2.0" in note
    assert "log_freq" not in warning and "guidance" not in warning


def test_a_changed_learning_rate_and_length_take_effect(tmp_path, resumable):
    """The stored optimizer state carries the old ones."""
    fresh = {"policy__actor_lr": 5e-4, "policy__offline_steps": 8, "policy__optimizer_weight_decay": 0.25}
    run(resumable(**fresh))
    groups = json.loads((tmp_path / "run/checkpoints/last/training_state/optimizer_param_groups.json").read_text())
    assert groups[0]["initial_lr"] == 5e-4 and {group["weight_decay"] for group in groups} == {0.25}
    rates = [json.loads(line)["lr_actor"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    other = write_config(
        tmp_path / "o.json",
        json.loads((tmp_path / "c.json").read_text())["dataset"]["root"],
        tmp_path / "o",
        **STEPS | fresh,
    )
    run(other)
    whole = [json.loads(line)["lr_actor"] for line in (tmp_path / "o/metrics.jsonl").read_text().splitlines()]
    assert rates[6:] == whole[6:] and rates[:6] != whole[:6]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("policy__critic_folds", 2),
        ("policy__llm_depth", 2),
        ("policy__chunk_size", 5),
        ("policy__critic_target", "td"),
        ("policy__policy_extraction", "none"),
        ("policy__freeze_vision_encoder", True),
    ],
)
def test_another_network_is_refused_by_the_name_of_the_key(tmp_path, resumable, key, value):
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=rf"000006 cannot go on with {key.replace('__', '.')}: .* → "):
        run(resumable(**{key: value}))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_differences_are_those_of_keys_that_both_versions_know():
    old = {"a": 1, "gone": 2, "node": {"b": 1, "c": {"d": [1]}}, "x_per_task": {"t": 0.1}, "peft": None}
    new = {"a": 1, "added": 2, "node": {"b": 2, "c": {"d": [2]}}, "x_per_task": {"u": 0.1}, "peft": {"r": 4}}
    assert differences(old, new) == [
        Change("node.b", 1, 2),
        Change("node.c.d", [1], [2]),
        Change("peft", None, {"r": 4}),
        Change("x_per_task", {"t": 0.1}, {"u": 0.1}),
    ]


def test_evaluations_matter_only_where_the_critic_stops_by_them():
    for patience, expected in ((None, "harmless"), (3, "learning")):
        old, new = ({"eval_steps": steps, "policy": {"critic_early_stop": patience}} for steps in (1, 2))
        changes = compare_configs(old, new, PI05RLTrainConfig.reads.fget(None))
        assert getattr(changes, expected) == [Change("eval_steps", 1, 2)] and sum(map(len, changes)) == 1


# ── The data ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_other_data_is_refused_and_data_that_has_moved_is_not(tmp_path, resumable, mixed_dataset):
    make_dataset(tmp_path / "other", MIXED_EPISODES, seed=1)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(DatasetError, match="has labelled other data than dataset test/tiny"):
        run(resumable(tmp_path / "other"), "policy.offline_steps=7")
    with pytest.raises(DatasetError, match=r"train episodes 4 then, 2 now.*dataset\.eval_split"):
        run(resumable(dataset__eval_split=0.5), "policy.offline_steps=7")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    shutil.copytree(mixed_dataset, tmp_path / "moved")
    assert run(resumable(tmp_path / "moved"), "policy.offline_steps=7").name == "000007"


def test_another_number_of_datasets_is_a_difference():
    one = {
        "datasets": [{"name": "a", "fingerprint": "x"}],
        "train_episodes": 1,
        "train_draws": 1,
        "held_out_frames": 0,
    }
    two = {**one, "datasets": one["datasets"] * 2}
    assert data_differences(one, two) == ["1 dataset(s) then, 2 now"] and data_differences(one, one) == []


# ── Metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lines_behind_the_checkpoint_and_torn_ones_go(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"step": 2, "eval/x": 1}\n{"step": 3}\n{"step": 4, "eval/x": 2}\n{"st\xff')
    (tmp_path / "metrics.partial").write_text("half a file, of a kill while this was rewritten")
    drop_lines_after(file, 2)
    assert file.read_text() == '{"step": 1}\n{"step": 2, "eval/x": 1}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_killed_before_its_first_checkpoint_leaves_no_line_behind(tmp_path, mixed_dataset):
    config = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", resume=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "old": 1}\n{"step": 2, "old": 1}\n{"ste')
    run(config)
    assert steps(tmp_path / "run") == [1, 2, 3, 4] and "old" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_wandb_goes_on_with_the_same_run(tmp_path, mixed_dataset, caplog):
    wandb = {"enable": True, "mode": "offline", "project": "test"}
    config = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", save_freq=2, wandb=wandb)
    checkpoint = run(config, "policy.offline_steps=2")
    stored = json.loads((checkpoint / "pretrained_model" / "train_config.json").read_text())["wandb"]["run_id"]
    assert wandb_run_id(tmp_path / "run") == stored
    with caplog.at_level("INFO"):
        run(config, "resume=true")
    assert f"W&B run {stored} goes on" in caplog.text
    shutil.rmtree(tmp_path / "run" / "wandb")  # as on another machine
    run(config, "resume=true", "policy.offline_steps=6")
    ids = {path.name.split("-")[-1] for path in (tmp_path / "run" / "wandb").glob("offline-run-*")}
    assert ids == {stored}


# ── What is drawn ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workers", [0, 1])
def test_augmented_pictures_and_the_random_state_are_those_of_a_run_that_never_stopped(
    tmp_path, mixed_dataset, workers
):
    options = {
        "dataset__image_transforms": {"enable": True},
        "num_workers": workers,
        "dataloader_multiprocessing_context": "fork",
        "save_freq": 2,
    }
    whole = run(write_config(tmp_path / "a.json", mixed_dataset, tmp_path / "a", **options))
    config = write_config(tmp_path / "b.json", mixed_dataset, tmp_path / "b", **options)
    run(config)
    torch.manual_seed(5)
    resumed = run(config, "resume=true", "resume_from=2")
    for name in ("pretrained_model/model.safetensors", "training_state/rng_state.safetensors"):
        first, second = load_file(whole / name), load_file(resumed / name)
        assert [key for key in first if not torch.equal(first[key], second[key])] == [], name
    plain = run(write_config(tmp_path / "p.json", mixed_dataset, tmp_path / "p"))
    first, second = (load_file(path / "pretrained_model" / "model.safetensors") for path in (whole, plain))
    assert any(not torch.equal(first[key], second[key]) for key in first)
