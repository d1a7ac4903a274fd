"""Every key of the configuration is read, refused, or answered with one warning that says what to use."""

import ast
import enum
import json
import types
import typing
from pathlib import Path

import lerobot
import pytest
import write_configuration
from commands import REPOSITORY
from tiny import write_config

import lerobot_policy_pi05_rl
from lerobot_policy_pi05_rl.config.earlier_keys import ALIASES
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.keys import ACTOR_SIZES, CRITIC_SIZES, KEYS, entry
from lerobot_policy_pi05_rl.config.leaves import leaves
from lerobot_policy_pi05_rl.config.train import ConfigError, PI05RLTrainConfig
from lerobot_policy_pi05_rl.online.config import OnlineTrainConfig
from lerobot_policy_pi05_rl.options import INHERITED, READ, REFUSED, WARNED

LEAVES = {leaf.name: leaf for leaf in leaves(PI05RLTrainConfig)}
OURS, STOCK = Path(lerobot_policy_pi05_rl.__file__).parent, Path(lerobot.__file__).parent
# Modules that name keys without acting on them.
LISTS = ("config_keys.py", "earlier_keys.py", "resume.py", "demo", "plan")
# What of LeRobot is handed the configuration, or a part of it, and reads it.
STOCK_READERS = (
    *(
        "policies/pi05/modeling_pi05.py",
        "policies/pi05/configuration_pi05.py",
        "policies/rtc/modeling_rtc.py",
        "policies/pretrained.py",
    ),
    *("common/wandb_utils.py", "transforms/transforms.py", "configs/video.py", "datasets/video_utils.py"),
)
# Read as a whole: the section, or all its fields by name.
WHOLE = {"env": "env", "peft": "asdict(peft)", "policy.normalization_mapping": "make_default_policy_processor_steps"}


def other(leaf) -> object:
    """A value of the type that is not the default."""
    special = {
        "mixer": "offline",
        "dataset.repo_type": "bucket",
        "dataset.depth_output_unit": "m",
        "policy.tags": ["robot"],
        "policy.paligemma_variant": "gemma_300m",
        "policy.action_expert_variant": "gemma_2b",
        "policy.pi05_checkpoint": "x",
        "optimizer": {"type": "adamw", "lr": 1e-9},
        "scheduler": {"type": "diffuser"},
        "algorithm": {"type": "sac", "critic_lr": 1.0},
        "reward_model": {"type": "classifier"},
        "eval.n_episodes": 7,
        "eval.batch_size": 3,
    }
    if leaf.name in special:
        return special[leaf.name]
    options = typing.get_args(leaf.type) if isinstance(leaf.type, types.UnionType) else (leaf.type,)
    kind = options[0]
    if kind is bool:
        return leaf.default is not True
    if kind in (int, float):
        return 1 if leaf.default is None else leaf.default + 1
    if kind in (str, Path):
        return "other"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(member.name for member in kind if member != leaf.default)
    return ["other"] if typing.get_origin(kind) in (list, tuple) else {"other": 1}


def with_key(tmp_path: Path, name: str, value: object, kind=PI05RLTrainConfig):
    """The validated configuration in which the key has this value."""
    changes = {name.replace(".", "__"): value, "dataset__eval_split": 0.1, "output_dir": str(tmp_path / "online")}
    if name.startswith("eval."):
        changes.setdefault("eval__recording", name == "eval.recording_repo_id")
    cfg = load_config(write_config(tmp_path / "c.json", tmp_path / "data", tmp_path / "run", **changes), kind=kind)
    cfg.validate()
    return cfg


def limited(option) -> bool:
    return bool(option.choices) or option.least is not None or option.above is not None


def messages(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("lerobot_policy_pi05_rl")]


def test_no_key_is_missing_from_the_table_and_none_is_too_many():
    missing = [name for name in LEAVES if entry(name) is None]
    assert missing == [], "say beside it, by options.option, who reads it and what a resume makes of another value"
    known = {*LEAVES, "policy.type"}
    assert [key for key in KEYS if not any(name == key or name.startswith(f"{key}.") for name in known)] == []


def test_only_of_lerobots_fields_something_is_said_elsewhere():
    assert [name for name, option in INHERITED.items() if KEYS[name] is not option] == []


@pytest.mark.parametrize("name", [name for name, leaf in LEAVES.items() if limited(leaf.option)])
def test_a_value_outside_of_what_is_said_is_an_error_that_names_the_key(tmp_path, name):
    option = LEAVES[name].option
    value = "other" if option.choices else option.least - 1 if option.above is None else option.above
    changed = {"task": value} if isinstance(LEAVES[name].default, dict) else value
    last = name.rpartition(".")[2]  # LeRobot itself refuses a chunk shorter than the steps of it that are executed
    with pytest.raises(ConfigError, match=rf"{last}(\['task'\])? (must be|\({value}\))"):
        with_key(tmp_path, name, changed, OnlineTrainConfig)


def test_the_page_of_all_keys_is_up_to_date():
    page = REPOSITORY / "docs" / "configuration.md"
    assert page.read_text() == write_configuration.page(), "make configuration"


@pytest.mark.parametrize("kind", [PI05RLTrainConfig, OnlineTrainConfig])
def test_a_usual_configuration_is_not_warned_of(tmp_path, caplog, kind):
    with_key(tmp_path, "policy.critic_lr", 1e-4, kind)
    assert messages(caplog) == []


@pytest.mark.parametrize("name", ["demo", "gym_hil", "so101"])
def test_the_configurations_here_are_not_warned_of_and_leave_a_checkpoints_sizes_open(caplog, name):
    path = REPOSITORY / "configs" / f"{name}.json"
    cfg = load_config(path, ["--policy.device=cpu", "--policy.learner_device=null"])
    cfg.validate()
    assert messages(caplog) == []
    # What kind of critic it is may be said: at full size layers of its own would fill the card (docs/gpus.md).
    sizes = {*ACTOR_SIZES, *CRITIC_SIZES} - {"use_separate_critic", "critic_adapter_rank"}
    stated = json.loads(path.read_text())["policy"].keys() & sizes
    assert cfg.policy.pi05_checkpoint is None or not stated


@pytest.mark.parametrize("name", [name for name in LEAVES if KEYS[entry(name)].status == WARNED])
def test_a_key_without_effect_is_one_warning_that_says_what_to_use(tmp_path, caplog, name):
    with_key(tmp_path, name, other(LEAVES[name]))
    said = [message for message in messages(caplog) if name in message]
    assert len(said) == 1 and KEYS[entry(name)].advice in said[0]
    assert len(messages(caplog)) == 1 or name == "eval.recording_repo_id"


@pytest.mark.parametrize("name", [name for name in LEAVES if KEYS[entry(name)].status == REFUSED])
def test_a_key_that_cannot_be_honoured_is_an_error_that_names_it(tmp_path, name):
    with pytest.raises(ConfigError) as caught:
        with_key(tmp_path, name, other(LEAVES[name]))
    message = str(caught.value)
    assert all(part in message for part in name.split(".")) and "\n" not in message
    assert KEYS[entry(name)].advice in message or name == "dataset.repo_type"  # LeRobot's own words


def attributes(files) -> set[str]:
    """Names of all attributes that these modules look up, and texts by which they might."""
    names: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "getattr":
                names |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return names


@pytest.fixture(scope="module")
def looked_up() -> set[str]:
    ours = [f for f in OURS.rglob("*.py") if not any(part in LISTS for part in f.relative_to(OURS).parts)]
    return attributes([*ours, *(STOCK / name for name in STOCK_READERS)])


@pytest.mark.parametrize("name", [name for name in LEAVES if KEYS[entry(name)].status == READ])
def test_a_key_that_is_read_is_looked_up_somewhere(looked_up, name):
    section = next((node for node in WHOLE if name == node or name.startswith(f"{node}.")), None)
    if section is None:
        assert name.rpartition(".")[2] in looked_up
    else:
        assert any(WHOLE[section] in f.read_text() for f in OURS.rglob("*.py"))


@pytest.mark.parametrize("value", ["{root}/nowhere", "nobody/nothing"])
@pytest.mark.parametrize("alias", ["policy.path", "policy.pretrained_path"])
@pytest.mark.parametrize("on_command_line", [True, False])
def test_lerobots_names_of_the_weights_lead_to_the_checkpoint(tmp_path, caplog, alias, value, on_command_line):
    value = value.format(root=tmp_path)
    changes = {} if on_command_line else {alias.replace(".", "__"): value}
    path = write_config(tmp_path / "c.json", tmp_path / "data", tmp_path / "run", **changes)
    cfg = load_config(path, [f"--{alias}={value}"] if on_command_line else [])
    assert cfg.policy.pi05_checkpoint == value
    assert messages(caplog) == [f"{alias} is read as policy.pi05_checkpoint: {value}"]
    with pytest.raises(ConfigError, match=f"{alias} is .*policy.pi05_checkpoint is '/other'"):
        both = {alias.replace(".", "__"): value, "policy__pi05_checkpoint": "/other"}
        load_config(write_config(tmp_path / "b.json", tmp_path / "data", tmp_path / "run", **both))


def test_another_name_wins_over_the_file_on_the_command_line(tmp_path):
    path = write_config(tmp_path / "c.json", tmp_path, tmp_path / "run", policy__pi05_checkpoint="/old")
    assert load_config(path, ["--policy.path=/new"]).policy.pi05_checkpoint == "/new"
    assert {"policy.path", "policy.pretrained_path"} < ALIASES.keys()


def test_a_stored_configuration_loads_with_another_checkpoint_and_without_a_word(tmp_path, caplog):
    path = write_config(tmp_path / "c.json", tmp_path, tmp_path / "run", policy__pi05_checkpoint="/old")
    cfg = load_config(path)
    cfg.validate()
    cfg.save_pretrained(tmp_path / "stored")
    stored = tmp_path / "stored" / "train_config.json"
    assert json.loads(stored.read_text())["policy"]["pretrained_path"] == "/old"  # for LeRobot's tools
    again = load_config(stored, ["--policy.pi05_checkpoint=/new"])
    again.validate()
    assert (again.policy.pi05_checkpoint, str(again.policy.pretrained_path)) == ("/new", "/new")
    assert messages(caplog) == []
