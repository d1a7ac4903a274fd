"""Bad input to ``pi05-rl offline``: one line on stderr that names the offender, exit code 2, nothing written."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from recordings import make_dataset
from safetensors.torch import load_file, save_file
from tiny import write_config

from lerobot_policy_pi05_rl import cli
from lerobot_policy_pi05_rl.config.train import ConfigError

TENSOR = "model.action_in_proj.weight"


pytestmark = pytest.mark.usefixtures("logging_as_before")


@pytest.fixture
def refused(capsys):
    """Runs the command line, expects a refusal, and returns its one line."""

    def run(*arguments) -> str:
        with pytest.raises(SystemExit) as exit_:
            cli.main(["offline", *map(str, arguments)])
        assert exit_.value.code == 2
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        lines = printed.err.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("pi05-rl: error: "))
        assert len(lines) == start + 1, "the error is the last line, and one line"
        return lines[start]

    return run


@pytest.fixture(scope="module")
def finished_run(mixed_dataset, tmp_path_factory):
    """The directory of a run of two steps."""
    folder = tmp_path_factory.mktemp("finished")
    handlers = logging.getLogger().handlers[:]
    path = write_config(folder / "run.json", mixed_dataset, folder / "run", policy__offline_steps=2)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["offline", str(path)])
    logging.getLogger().handlers[:] = handlers
    assert exit_.value.code == 0
    return folder / "run"


@pytest.fixture
def resumable(finished_run, tmp_path):
    """A copy of that run and a configuration that resumes it for a third step."""
    shutil.copytree(finished_run, tmp_path / "run", symlinks=True)

    def config(dataset, **changes) -> Path:
        changes = {"policy__offline_steps": 3, "resume": True, **changes}
        return write_config(tmp_path / "resume.json", dataset, tmp_path / "run", **changes)

    return config


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# ── Configuration and data ───────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_dataset_is_named_and_no_folder_is_left_behind(tmp_path, refused):
    path = write_config(tmp_path / "run.json", tmp_path / "no" / "data", tmp_path / "run")
    assert str(tmp_path / "no" / "data") in refused(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run.json"]


def test_a_misspelt_key_is_named_with_the_nearest_one(mixed_dataset, tmp_path, refused):
    path = write_config(tmp_path / "run.json", mixed_dataset, tmp_path / "run")
    message = refused(path, "--policy.ofline_steps=3")
    assert "unknown key policy.ofline_steps; did you mean policy.offline_steps?" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--policy.offline_steps=many"], "policy.offline_steps"),
        (["--reward.source=sparse"], "reward.source"),
        (["--batch_size=null"], "batch_size"),
        (["--policy.learner_device=abacus"], "policy.learner_device"),
        (["--policy.actor_learner_config.push_dtype=half"], "policy.actor_learner_config.push_dtype"),
        (["--policy.head_dim=0"], "policy.head_dim"),
        (["--policy.head_dim=7"], "policy.head_dim is 7, but 2 must divide 7"),
        (["--policy.expert_width=33"], "policy.expert_width is 33, but 2 must divide 33"),
        (["--policy.num_kv_heads=3"], "policy.num_kv_heads is 3, but it must divide 8"),
        (["--policy.vision_width=30"], "policy.vision_width is 30, but policy.vision_heads (4) must divide 30"),
        (["offline_steps=3"], "offline_steps=3"),
        (["--config_path=second.json"], "one configuration file"),
    ],
)
def test_a_wrong_argument_is_named(mixed_dataset, tmp_path, refused, arguments, name):
    path = write_config(tmp_path / "run.json", mixed_dataset, tmp_path / "run")
    assert name in refused(path, *arguments)
    assert not (tmp_path / "run").exists()


def test_a_missing_or_unreadable_configuration_file_is_named(tmp_path, refused):
    assert "none.json does not exist" in refused(tmp_path / "none.json")
    (tmp_path / "bad.yaml").write_text("policy: [\n  a: b\n")
    assert "bad.yaml is not readable" in refused(tmp_path / "bad.yaml")


def test_unlabelled_episodes_are_named(tmp_path, refused):
    make_dataset(tmp_path / "data", [{"length": 3}, {"length": 3}], columns=())
    path = write_config(tmp_path / "run.json", tmp_path / "data", tmp_path / "run")
    message = refused(path)
    assert "test/tiny#0, test/tiny#1" in message
    assert "reward.unlabelled" in message
    assert not (tmp_path / "run").exists()


def test_a_fraction_for_a_task_the_data_does_not_have_is_named(mixed_dataset, tmp_path, refused):
    changes = {"policy__advantage_positive_fraction_per_task": {"pick the cub": 0.5}}
    message = refused(write_config(tmp_path / "run.json", mixed_dataset, tmp_path / "run", **changes))
    assert "policy.advantage_positive_fraction_per_task: no task 'pick the cub'" in message
    assert "'pick the cube'" in message
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_written_to(mixed_dataset, finished_run, tmp_path, refused):
    before = contents(finished_run)
    path = write_config(tmp_path / "run.json", mixed_dataset, finished_run)
    message = refused(path)
    assert str(finished_run) in message
    assert "resume=true" in message
    assert contents(finished_run) == before


def test_an_output_directory_that_cannot_be_one_is_named(mixed_dataset, tmp_path, refused):
    (tmp_path / "file").write_text("kept")
    for directory in (tmp_path / "file", tmp_path / "file" / "run"):
        for resume in (False, True):
            path = write_config(tmp_path / "run.json", mixed_dataset, directory, resume=resume)
            assert f"the output directory {directory} " in refused(path)
    assert (tmp_path / "file").read_text() == "kept"


# ── Checkpoint to start from ─────────────────────────────────────────────────────────────────────────────────────


def edit_tensors(change):
    def damage(checkpoint: Path) -> None:
        tensors = load_file(checkpoint / "model.safetensors")
        change(tensors)
        save_file(tensors, checkpoint / "model.safetensors")

    return damage


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda checkpoint: truncate(checkpoint / "model.safetensors"), "is damaged or truncated"),
        (lambda checkpoint: (checkpoint / "model.safetensors").write_bytes(b""), "is damaged or truncated"),
        (lambda checkpoint: (checkpoint / "model.safetensors").unlink(), "no model.safetensors"),
        (edit_tensors(lambda tensors: tensors.pop(TENSOR)), f"1 missing ({TENSOR})"),
        (edit_tensors(lambda tensors: tensors.update({"model.more": torch.zeros(2)})), "1 unexpected (model.more)"),
        (
            edit_tensors(lambda tensors: tensors.update({TENSOR: torch.zeros(3, 5)})),
            f"1 of another shape ({TENSOR}: (3, 5) in the file, (32, 8) here)",
        ),
        (lambda checkpoint: (checkpoint / "policy_preprocessor.json").write_text("pi05_rl_tokenizer {"), "processors"),
        (lambda checkpoint: truncate(next(checkpoint.glob("*pi05_rl_tokenizer.safetensors"))), "processors"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_no_run_begins(
    mixed_dataset, finished_run, tmp_path, refused, damage, complaint
):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(finished_run / "checkpoints" / "last" / "pretrained_model", checkpoint)
    damage(checkpoint)
    changes = {"policy__pi05_checkpoint": str(checkpoint)}
    path = write_config(tmp_path / "run.json", mixed_dataset, tmp_path / "run", **changes)
    message = refused(path)
    assert str(checkpoint) in message
    assert complaint in message
    assert not (tmp_path / "run").exists()


def test_a_missing_checkpoint_is_named_and_the_right_folder_suggested(mixed_dataset, finished_run, tmp_path, refused):
    def message(checkpoint):
        changes = {"policy__pi05_checkpoint": str(checkpoint)}
        return refused(write_config(tmp_path / "run.json", mixed_dataset, tmp_path / "run", **changes))

    assert f"{tmp_path}/none does not exist" in message(tmp_path / "none")
    assert "no/such is neither a local directory nor a reachable Hub repository" in message("no/such")
    step = finished_run / "checkpoints" / "000002"
    assert f"did you mean {step / 'pretrained_model'}?" in message(step)
    assert not (tmp_path / "run").exists()


# ── Resume ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_undamaged_run_does_resume(mixed_dataset, resumable, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["offline", str(resumable(mixed_dataset))])
    assert exit_.value.code == 0
    step = json.loads((tmp_path / "run/checkpoints/last/training_state/training_step.json").read_text())["step"]
    assert step == 3


TRAINING_STATE = (
    "data_state.json",
    "metrics_state.json",
    "optimizer_param_groups.json",
    "optimizer_state.safetensors",
    "recap_state.safetensors",
    "rng_state.safetensors",
    "scheduler_state.json",
    "training_step.json",
)


def test_the_list_of_state_files_is_complete(finished_run):
    folder = finished_run / "checkpoints" / "last" / "training_state"
    assert sorted(path.name for path in folder.iterdir()) == sorted(TRAINING_STATE)


@pytest.mark.parametrize("name", TRAINING_STATE)
@pytest.mark.parametrize("damage", [truncate, Path.unlink], ids=["truncated", "missing"])
def test_a_damaged_training_state_is_named_and_the_run_left_alone(
    mixed_dataset, resumable, tmp_path, refused, name, damage
):
    damage(tmp_path / "run" / "checkpoints" / "last" / "training_state" / name)
    before = contents(tmp_path / "run")
    message = refused(resumable(mixed_dataset))
    assert str(tmp_path / "run" / "checkpoints" / "000002") in message
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("pretrained_model/model.safetensors", truncate),
        ("pretrained_model/policy_preprocessor.json", truncate),
        ("pretrained_model/policy_postprocessor.json", Path.unlink),
        ("pretrained_model/policy_preprocessor_step_5_pi05_rl_tokenizer.safetensors", truncate),
        ("training_state", shutil.rmtree),
        ("", shutil.rmtree),
    ],
)
def test_a_damaged_checkpoint_to_resume_is_named_and_the_run_left_alone(
    mixed_dataset, resumable, tmp_path, refused, name, damage
):
    damage(tmp_path / "run" / "checkpoints" / "000002" / name)
    before = contents(tmp_path / "run")
    assert str(tmp_path / "run" / "checkpoints") in refused(resumable(mixed_dataset))
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("changes", [{"policy__llm_mlp_dim": 256}, {"policy__freeze_vision_encoder": True}])
def test_a_run_cannot_be_resumed_as_another_network(mixed_dataset, resumable, tmp_path, refused, changes):
    before = contents(tmp_path / "run")
    assert "000002" in refused(resumable(mixed_dataset, **changes))
    assert contents(tmp_path / "run") == before


# ── The command line itself ──────────────────────────────────────────────────────────────────────────────────────


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        cli.main(["offline", str(tmp_path / "none.json"), "--debug"])


def test_an_unknown_verb_is_refused_with_the_list_of_verbs(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["ofline", "run.json"])
    assert exit_.value.code == 2
    printed = capsys.readouterr().err
    assert "unknown verb 'ofline'" in printed
    assert all(verb in printed for verb in cli.VERBS)


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["-h"], 0), (["offline", "--help"], 0), ([], 2)])
def test_help_is_printed(capsys, arguments, code):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == code
    assert "pi05-rl offline CONFIG" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_video_is_named(tmp_path, refused, workers):
    root = tmp_path / "video"
    make_dataset(root, [{"length": 8, "success": True}, {"length": 8}], video=True)
    video = next(root.rglob("*front*/**/*.mp4"))
    video.write_bytes(video.read_bytes()[:400])
    config = write_config(
        tmp_path / "c.json", root, tmp_path / "run", num_workers=workers, dataloader_multiprocessing_context="fork"
    )
    line = refused(config, "--dataset.video_backend=pyav")
    assert str(video) in line and "test/tiny" in line


def test_a_task_too_long_for_the_prompt_stops_the_run_before_it_writes(tmp_path, mixed_dataset, refused):
    config = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", policy__tokenizer_max_length=12)
    assert "policy.tokenizer_max_length is 12" in refused(config)
    assert not (tmp_path / "run").exists()
