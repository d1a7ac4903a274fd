"""What can be given as a configuration, and that nonsense of any kind is one clear error."""

import json
import os
import sys
from pathlib import Path

import pytest
from tiny import tiny_config, write_config

from lerobot_policy_pi05_rl.config import reading as config_reading
from lerobot_policy_pi05_rl.config.arguments import split_config_path
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.leaves import leaves
from lerobot_policy_pi05_rl.config.train import ConfigError, PI05RLTrainConfig

NAMES = [leaf.name for leaf in leaves(PI05RLTrainConfig)]
NONSENSE = [None, "nonsense", "", -1, 0, 1e300, True, [], [None], ["x"], [1, 2], {}, {"x": {"y": []}}, {"type": 5}]


@pytest.fixture
def stored(tmp_path) -> Path:
    """The folder of a run with one checkpoint, as far as configurations go."""
    cfg = load_config(write_config(tmp_path / "c.json", tmp_path / "data", tmp_path / "run", seed=77))
    folder = tmp_path / "run" / "checkpoints" / "000004" / "pretrained_model"
    folder.mkdir(parents=True)
    cfg.save_pretrained(folder)
    tiny_config().save_pretrained(folder)
    (tmp_path / "run" / "checkpoints" / "last").symlink_to("000004")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "inside",
    [
        "",
        "checkpoints/last",
        "checkpoints/000004/pretrained_model",
        "checkpoints/last/pretrained_model/train_config.json",
    ],
)
def test_a_checkpoints_folder_is_a_configuration(stored, inside):
    path, rest = split_config_path([f"--config_path={stored / inside}", "--policy.offline_steps=9"])
    cfg = load_config(path, rest)
    assert (cfg.seed, cfg.policy.offline_steps, cfg.run_dir) == (77, 9, stored)


def test_a_policys_own_configuration_is_told_from_a_runs_and_the_advice_works(stored):
    folder = stored / "checkpoints" / "000004" / "pretrained_model"
    with pytest.raises(ConfigError, match=r"config\.json is the configuration of a policy alone") as caught:
        load_config(folder / "config.json")
    assert load_config(str(caught.value).partition("give ")[2]).seed == 77
    (folder / "train_config.json").unlink()
    with pytest.raises(ConfigError, match=r"set policy\.pi05_checkpoint=") as caught:
        load_config(folder / "config.json")
    flag = str(caught.value).partition("set ")[2].removesuffix(" in one")
    (stored / "own.json").write_text('{"dataset": {"repo_id": "a/b"}}')
    assert load_config(stored / "own.json", [f"--{flag}"]).policy.llm_width == tiny_config().llm_width


def test_a_folder_of_something_else_says_what_to_give(tmp_path):
    with pytest.raises(ConfigError, match=r"folder without train_config\.json; give a configuration file"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.json", b"", "not readable as .json"),
        ("a.yaml", b"", "is empty"),
        ("a.yaml", b"# nothing but a comment\n", "is empty"),
        ("a.yaml", b"- a\n- b\n", "holds list, not a mapping"),
        ("a.json", b"null", "is empty"),
        ("a.json", b"3", "holds int, not a mapping"),
        ("a.yaml", b"just a word", "holds str, not a mapping"),
        ("a.json", b'{"seed": 1, "seed": 2}', "the key 'seed' is there twice"),
        ("a.json", b'{"policy": {"n_step": 1, "n_step": 2}}', "the key 'n_step' is there twice"),
        ("a.yaml", b"policy:\n  n_step: 1\n  n_step: 2\n", "the key 'n_step' is there twice"),
        ("a.json", b"\x89PNG\r\n\x1a\n\x00\xff", "not readable as .json"),
        ("a.yaml", b"\x89PNG\r\n\x1a\n\x00\xff", "not readable as .yaml"),
        ("a.yaml", b"a: \x00\x01", "not readable as .yaml"),
        ("a.json", b"[" * 100_000, "too deep"),
        ("a.yaml", b"[" * 3_000, "too deep"),
        ("a.yaml", b"1: 2\ndataset: {repo_id: a/b}", "the key 1 is not text"),
        ("a.yaml", b"dataset: {repo_id: a/b}\npolicy: {actor_lr: .nan}", r"policy\.actor_lr is nan"),
        ("a.json", b'{"dataset": {"repo_id": "a/b", "weights": [1, Infinity]}}', r"dataset\.weights\[1\] is inf"),
        ("a.yaml", b"a: &x [*x]", "contains itself"),
        ("a.yaml", b"? [1, 2]\n: 3\n", "not readable|is not text"),
    ],
)
def test_a_file_that_is_no_configuration_is_named_in_one_line(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_config(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    for name in ("a.json", "a.yaml"):
        (tmp_path / name).write_text('{"dataset": {"repo_id": "a/b"}, "seed": 5}', encoding="utf-8-sig")
        assert load_config(tmp_path / name).seed == 5


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("{}")

    def forbidden(*args, **kwargs):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(config_reading.Path, "read_text", forbidden)
    with pytest.raises(ConfigError, match=r"a\.json cannot be read: Permission denied"):
        load_config(tmp_path / "a.json")


@pytest.mark.parametrize("argument", ["--", "--=5", "--policy.=1", "--.seed=1", "--policy..n_step=1"])
def test_an_override_without_a_key_is_refused(tmp_path, argument):
    path = write_config(tmp_path / "c.json", tmp_path, tmp_path / "run")
    with pytest.raises(ConfigError, match="names no key"):
        load_config(path, [argument])


@pytest.mark.parametrize(
    "section", ["", "dataset", "policy", "reward", "actor", "replay", "wandb", "peft", "eval", "job"]
)
def test_nonsense_in_any_key_is_accepted_or_one_line_that_names_it(tmp_path, monkeypatch, section):
    """Wrong types, null, negative numbers, lists for scalars and sections for values; nothing else is ever raised."""
    names = [name for name in NAMES if (name.partition(".")[0] if "." in name else "") == section]
    assert names
    path = write_config(tmp_path / "c.json", tmp_path / "data", tmp_path / "run")
    usual = path.read_text()
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # LeRobot tries to load it for every configuration
    for name in [*names, *([section] if section else [])]:
        for value in NONSENSE:
            node = raw = json.loads(usual)
            *parents, last = name.split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
            path.write_text(json.dumps(raw))
            try:
                load_config(path).validate()
            except ConfigError as error:
                assert "\n" not in str(error), (name, value)
                words = [word for part in name.split(".") for word in (part, part.replace("_", " "))]
                assert any(word in str(error) for word in words), (name, value, str(error))
            except Exception as error:
                pytest.fail(f"{name}={json.dumps(value)}: {type(error).__name__}: {error}")
