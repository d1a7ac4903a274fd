"""Processors and training state of a checkpoint: whole and of this policy, or an error that names the file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_algorithm, tiny_config, write_config

from lerobot_policy_pi05_rl.checkpoint.write import load_training_state
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.offline_learner import train_offline
from lerobot_policy_pi05_rl.processor_pi05_rl import build_tasks_tokenizer, make_pi05_rl_pre_post_processors
from lerobot_policy_pi05_rl.stored.files import CheckpointError, stored_config
from lerobot_policy_pi05_rl.training.build import load_processors

PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
NORMALIZER = "policy_preprocessor_step_3_normalizer_processor.safetensors"
UNNORMALIZER = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
TOKENIZER = "policy_preprocessor_step_5_pi05_rl_tokenizer.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The processors of a tiny policy."""
    widths = {"observation.state": 4, "action": 3}
    stats = {key: {"q01": torch.zeros(n), "q99": torch.ones(n)} for key, n in widths.items()}
    tokenizer = build_tasks_tokenizer(["pick the cube"])
    for pipeline in make_pi05_rl_pre_post_processors(tiny_config(), stats, tokenizer=tokenizer):
        pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def complaint(folder: Path, **overrides) -> str:
    with pytest.raises(CheckpointError) as error:
        load_processors(tiny_config(**overrides), folder)
    assert str(folder) in str(error.value)
    return str(error.value)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit_steps(folder: Path, change) -> None:
    content = json.loads((folder / PRE).read_text())
    change(content["steps"])
    (folder / PRE).write_text(json.dumps(content))


def test_whole_processors_load(folder):
    preprocess, postprocess = load_processors(tiny_config(), folder)
    batch = {"observation.state": torch.full((1, 4), 0.5), "task": ["pick the cube"]}
    assert torch.equal(preprocess(batch)["observation.state"], torch.zeros(1, 4))
    assert torch.equal(postprocess(torch.zeros(1, 3)), torch.full((1, 3), 0.5))


@pytest.mark.parametrize("name", [PRE, POST, NORMALIZER, UNNORMALIZER, TOKENIZER])
@pytest.mark.parametrize("damage", [cut, Path.unlink], ids=["truncated", "missing"])
def test_a_damaged_file_is_named(folder, name, damage):
    damage(folder / name)
    assert name in complaint(folder)


@pytest.mark.parametrize("name", ["q01", "q99"])
@pytest.mark.parametrize(("state", "what"), [(NORMALIZER, "observation.state"), (UNNORMALIZER, "action")])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(9), "has 9 dimensions"),
        (torch.tensor([0.0, torch.nan, 1, 1]), "is nan in dimension 1"),
        (torch.tensor([0.0, 1, torch.inf, 1]), "is inf in dimension 2"),
        (None, "which QUANTILES reads"),
    ],
)
def test_statistics_that_do_not_fit_are_named(folder, name, state, what, value, words):
    key = f"{what}.{name}"
    if value is not None and len(value) == 4:
        value = value[: 4 if what == "observation.state" else 3].clone()
    edit(folder / state, lambda tensors: tensors.pop(key) if value is None else tensors.update({key: value}))
    said = complaint(folder)
    assert words in said and name in said and what in said


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.update(tokenizer_json=torch.zeros(9, dtype=torch.uint8)),
        lambda tensors: tensors.pop("pad_token_id"),
        lambda tensors: tensors.update(pad_token_id=torch.tensor([99999])),
        lambda tensors: tensors.update(pad_token_id=torch.tensor([1, 2])),
    ],
)
def test_a_tokenizer_that_is_none_is_refused(folder, change):
    edit(folder / TOKENIZER, change)
    assert "missing or damaged" in complaint(folder)


def test_a_tokenizer_of_another_vocabulary_is_refused(folder):
    assert "tokens, policy.vocab_size is 100" in complaint(folder, vocab_size=100)


@pytest.mark.parametrize(("step", "kind"), [(3, "NormalizerProcessorStep"), (5, "TokenizePromptStep")])
def test_a_step_that_is_missing_is_named(folder, step, kind):
    edit_steps(folder, lambda steps: steps.pop(step))
    assert f"{PRE} has not exactly one {kind}" in complaint(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"steps": 3}', '{"steps": [3]}', "pi05_rl_tokenizer {"])
@pytest.mark.parametrize("name", [PRE, POST])
def test_what_is_no_pipeline_is_named(folder, name, text):
    (folder / name).write_text(text)
    assert name in complaint(folder)


def test_a_setting_that_no_batch_could_be_processed_with_is_refused(folder):
    def change(steps):
        steps[3]["config"]["eps"] = "1e-08"

    edit_steps(folder, change)
    assert "missing or damaged" in complaint(folder)


def test_a_run_from_the_weights_alone_writes_processors_anew(folder, tmp_path, mixed_dataset, tiny_policy):
    """What the messages above advise."""
    tiny_policy.save_pretrained(folder)
    changes = {"policy__pi05_checkpoint": str(folder), "policy__offline_steps": 1}
    config = write_config(tmp_path / "run.json", mixed_dataset, tmp_path / "run", **changes)
    cut(folder / NORMALIZER)
    with pytest.raises(CheckpointError, match=NORMALIZER):
        train_offline(load_config(config))
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    for file in folder.glob("policy_*processor*"):
        file.unlink()
    checkpoint = train_offline(load_config(config))
    load_processors(stored_config(checkpoint / "pretrained_model"), checkpoint / "pretrained_model")


STATE = {
    "training_step.json": ['{"step": "many"}', '{"step": -1}', "[]", "{"],
    "metrics_state.json": ["[]", '{"sums": {"a": 1}, "counts": {}}', '{"sums": {"a": "x"}, "counts": {"a": 1}}', ""],
    "scheduler_state.json": ["{}", "[]", "{"],
    "optimizer_param_groups.json": ["[]", "{", '[{"lr": 1}]'],
    "optimizer_state.safetensors": [""],
    "recap_state.safetensors": [""],
    "rng_state.safetensors": [""],
}


@pytest.fixture(scope="module")
def training_state(tmp_path_factory, mixed_dataset) -> Path:
    """The checkpoint of a run of one step."""
    folder = tmp_path_factory.mktemp("state")
    path = write_config(folder / "run.json", mixed_dataset, folder / "run", policy__offline_steps=1)
    return train_offline(load_config(path))


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in STATE.items() for text in (None, *texts)])
def test_a_damaged_training_state_names_its_file(tmp_path, training_state, name, text):
    shutil.copytree(training_state, tmp_path / "000001")
    file = tmp_path / "000001" / "training_state" / name
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(CheckpointError, match=name) as error:
        load_training_state(tmp_path / "000001", make_algorithm(steps=1, advantage_window=4096))
    assert str(tmp_path / "000001") in str(error.value) and "\n" not in str(error.value)


def test_advantage_windows_of_other_tasks_are_refused(tmp_path, training_state):
    shutil.copytree(training_state, tmp_path / "000001")
    edit(
        tmp_path / "000001" / "training_state" / "recap_state.safetensors",
        lambda tensors: tensors.update(advantage_window=torch.zeros(1, 1)),
    )
    with pytest.raises(CheckpointError, match=r"advantage_window is \(1, 1\), here \(1, 4096\)"):
        load_training_state(tmp_path / "000001", make_algorithm(steps=1, advantage_window=4096))


def test_the_whole_training_state_loads(training_state):
    algorithm = make_algorithm(steps=1, advantage_window=4096)
    load_training_state(training_state, algorithm)
    assert algorithm.optimization_step == 1
