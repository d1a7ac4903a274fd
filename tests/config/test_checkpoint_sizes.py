"""Sizes of a checkpoint: inherited where the configuration leaves them out, an error where it states others."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from tiny import TINY_SIZES, write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError, PI05RLTrainConfig
from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.labels.command import load_label_config
from lerobot_policy_pi05_rl.labels.command import main as label
from lerobot_policy_pi05_rl.offline_learner import train_offline
from lerobot_policy_pi05_rl.online.config import OnlineTrainConfig

CRITIC = ("critic_llm_depth", "critic_folds", "critic_image_pooling", "num_value_queries")


def without_sizes(path: Path, *names: str) -> Path:
    """The configuration with these sizes left out; all of them if none is named."""
    raw = json.loads(path.read_text())
    raw["policy"] = {key: value for key, value in raw["policy"].items() if key not in (names or TINY_SIZES)}
    path.write_text(json.dumps(raw))
    return path


@pytest.fixture(scope="module")
def critics(mixed_dataset, tmp_path_factory) -> Path:
    """A run of critics with one layer and two folds, where the file says two layers."""
    folder = tmp_path_factory.mktemp("critics")
    path = write_config(folder / "c.json", mixed_dataset, folder / "run", policy__offline_steps=2)
    flags = ["--policy.critic_llm_depth=1", "--policy.critic_folds=2", "--policy.critic_warmup_steps=2"]
    flags += ["--policy.advantage_labels=running"]
    train_offline(load_config(path, flags))
    return folder / "run"


@pytest.fixture
def from_critics(critics, mixed_dataset, tmp_path):
    """A configuration that starts from them."""

    def config(**changes) -> Path:
        checkpoint = str(critics / "checkpoints" / "last" / "pretrained_model")
        changes = {"policy__pi05_checkpoint": checkpoint, "policy__offline_steps": 2, **changes}
        return write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", **changes)

    return config


def test_critics_first_then_the_policy(critics, from_critics):
    """The three commands of the README."""
    assert label([str(critics), "--name", "first", "--horizon", "0.5"]) == 0
    path = without_sizes(from_critics(), *CRITIC)
    checkpoint = train_offline(load_config(path, ["--dataset.labeling=first", "--policy.advantage_positive_weight=2"]))
    stored = json.loads((checkpoint / "pretrained_model" / "config.json").read_text())
    assert (stored["critic_llm_depth"], stored["critic_folds"]) == (1, 2)


@pytest.mark.parametrize("kind", [PI05RLTrainConfig, OnlineTrainConfig])
def test_sizes_that_are_left_out_are_the_checkpoints_and_a_flag_that_says_so_too_is_right(from_critics, kind):
    path = without_sizes(from_critics())
    for flags in ([], ["--policy.critic_llm_depth=1"]):
        policy = load_config(path, flags, kind).policy
        assert {name: getattr(policy, name) for name in ("critic_llm_depth", "critic_folds", "llm_width")} == {
            "critic_llm_depth": 1,
            "critic_folds": 2,
            "llm_width": TINY_SIZES["llm_width"],
        }


@pytest.mark.parametrize("kind", [PI05RLTrainConfig, OnlineTrainConfig])
@pytest.mark.parametrize("flags", [[], ["--policy.critic_llm_depth=2"]])
def test_another_size_is_one_error_with_both_values_and_its_advice_works(from_critics, kind, flags):
    path = from_critics(policy__llm_mlp_dim=64)
    with pytest.raises(ConfigError) as caught:
        load_config(path, flags, kind)
    message = str(caught.value)
    where = "on the command line" if flags else "in c.json"
    assert f"policy.critic_llm_depth is 2 {where}, but 1 there" in message
    assert "policy.llm_mlp_dim is 64 in c.json, but 128 there" in message and "\n" not in message
    advice = shlex.split(message.partition("or set ")[2])
    assert load_config(path, [*flags, *advice], kind).policy.critic_llm_depth == 1


def test_a_label_configuration_inherits_as_well(from_critics):
    cfg, _ = load_label_config([str(without_sizes(from_critics()))])
    assert cfg.policy.critic_llm_depth == 1
    with pytest.raises(ConfigError, match=r"policy\.critic_llm_depth is 2 in c\.json, but 1 there"):
        load_label_config([str(from_critics())])


def test_a_checkpoint_without_a_critic_leaves_the_critics_sizes_open(mixed_dataset, tmp_path):
    path = write_config(tmp_path / "a.json", mixed_dataset, tmp_path / "a", policy__offline_steps=1)
    checkpoint = train_offline(load_config(path, ["--policy.policy_extraction=none"])) / "pretrained_model"
    path = write_config(tmp_path / "b.json", mixed_dataset, tmp_path / "b", policy__offline_steps=1)
    flags = [f"--policy.pi05_checkpoint={checkpoint}", "--policy.critic_llm_depth=1"]
    assert train_offline(load_config(path, flags)).is_dir()


def test_a_run_that_goes_on_has_its_own_sizes_whatever_became_of_its_start(from_critics, critics, tmp_path):
    path = without_sizes(from_critics())
    train_offline(load_config(path))
    flags = ["--resume=true", f"--policy.pi05_checkpoint={tmp_path}/gone", "--policy.offline_steps=3"]
    assert train_offline(load_config(path, flags)).name == "000003"
    with pytest.raises(ConfigError, match=r"cannot go on with policy\.critic_llm_depth: 1 → 2"):
        train_offline(load_config(path, [*flags, "--policy.critic_llm_depth=2"]))


@pytest.mark.parametrize("text", ["{", "[]", "\x00", '{"llm_width": {'])
def test_a_damaged_configuration_of_a_checkpoint_is_named(tmp_path, text):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text(text)
    path = write_config(
        tmp_path / "c.json", tmp_path, tmp_path / "run", policy__pi05_checkpoint=str(tmp_path / "checkpoint")
    )
    with pytest.raises(ConfigError, match=r"checkpoint/config\.json is unreadable"):
        load_config(path)


def test_sizes_of_a_repository_on_the_hub_are_inherited_as_well(tmp_path, monkeypatch, critics):
    """From the ordinary Hub cache; one that cannot be reached leaves them open, which loading it then reports."""
    snapshot = tmp_path / "cache" / "models--someone--critics" / "snapshots" / "abc"
    shutil.copytree(critics / "checkpoints" / "last" / "pretrained_model", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    path = write_config(tmp_path / "c.json", tmp_path, tmp_path / "run", policy__pi05_checkpoint="someone/critics")
    with pytest.raises(ConfigError, match=r"policy\.critic_llm_depth is 2 in c\.json, but 1 there"):
        load_config(path)
    assert load_config(without_sizes(path)).policy.critic_llm_depth == 1
    default = PI05RLConfig().critic_llm_depth
    assert load_config(path, ["--policy.pi05_checkpoint=someone/else"]).policy.critic_llm_depth == default
