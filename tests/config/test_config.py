"""Configurations: what is read, what is refused, and whether the refusal names the key."""

import json
import logging
from pathlib import Path

import pytest
import yaml
from commands import REPOSITORY
from lerobot.configs import NormalizationMode
from lerobot.envs import EnvConfig
from tiny import TINY_SIZES, tiny_config, write_config

from lerobot_policy_pi05_rl.config.arguments import split_config_path
from lerobot_policy_pi05_rl.config.file import load_config, parse_overrides
from lerobot_policy_pi05_rl.config.keys import KEYS
from lerobot_policy_pi05_rl.config.train import ConfigError, PI05RLTrainConfig


@pytest.fixture
def config(tmp_path):
    """Loads a small configuration with dotted ``changes`` in the file and ``overrides`` on the command line."""

    def load(changes: dict | None = None, *overrides: str) -> PI05RLTrainConfig:
        path = write_config(tmp_path / "run.json", tmp_path / "data", tmp_path / "run")
        raw = json.loads(path.read_text())
        for key, value in (changes or {}).items():
            *parents, last = key.split(".")
            node = raw
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        path.write_text(json.dumps(raw))
        return load_config(path, list(overrides))

    return load


def test_json_and_yaml_give_the_same_configuration(tmp_path, config):
    from_json = config()
    raw = json.loads((tmp_path / "run.json").read_text())
    text = yaml.safe_dump(raw).replace("actor_lr: 0.001", "actor_lr: 1e-3")  # which YAML 1.1 reads as a string
    assert "1e-3" in text
    (tmp_path / "run.yaml").write_text(text)
    from_yaml = load_config(tmp_path / "run.yaml")
    assert from_yaml == from_json
    assert (from_json.policy.llm_width, from_json.policy.actor_lr, from_json.seed) == (64, 1e-3, 7)
    assert from_json.policy.type == "pi05_rl"  # the file does not say so
    assert from_json.run_dir == tmp_path / "run"


def test_overrides_win_over_the_file_in_both_spellings(config):
    cfg = config(
        {"policy.critic_lr": 1.0, "policy.offline_buffer_capacity": 5},
        "--policy.offline_steps=20",
        "--batch_size",
        "3",
        "--policy.actor_lr=1e-4",
        "--policy.critic_lr",
        "2E-4",
        "--policy.value_support_min",
        "-2",
        "--policy.image_resolution=[64, 64]",
        "--dataset.additional_offline_dataset_paths=[a, b/c]",
        "--policy.offline_buffer_capacity=null",
        "--wandb.enable",
        "--resume=true",
        "--policy.task=lift: [it",
    )
    policy = cfg.policy
    assert (policy.offline_steps, cfg.batch_size, policy.actor_lr, policy.critic_lr) == (20, 3, 1e-4, 2e-4)
    assert (policy.value_support_min, policy.image_resolution) == (-2.0, (64, 64))
    assert cfg.dataset.additional_offline_dataset_paths == ["a", "b/c"]
    assert policy.offline_buffer_capacity is None
    assert cfg.wandb.enable and cfg.resume
    assert policy.task == "lift: [it"


def test_the_alias_of_the_output_directory_works_in_the_file_and_wins_as_an_override(tmp_path, config):
    path = write_config(tmp_path / "a.json", tmp_path / "data", tmp_path / "run")
    raw = json.loads(path.read_text())
    raw["offline_output_dir"] = raw.pop("output_dir_offline")
    path.write_text(json.dumps(raw))
    assert load_config(path).run_dir == tmp_path / "run"
    assert config(None, "--offline_output_dir=/elsewhere").run_dir == Path("/elsewhere")


def test_without_an_offline_output_directory_the_general_one_is_used(config):
    cfg = config({"output_dir_offline": None, "output_dir": "/general"})
    cfg.validate()
    assert cfg.run_dir == Path("/general")
    with pytest.raises(ConfigError, match="output_dir_offline"):
        _ = config({"output_dir_offline": None}).run_dir


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("output_dir_ofline", "output_dir_offline"),
        ("offline_output_dirs", "offline_output_dir"),
        ("policy.ofline_steps", "policy.offline_steps"),
        ("policy.actor_learner_config.learner_prt", "policy.actor_learner_config.learner_port"),
        ("dataset.rot", "dataset.root"),
        ("dataset.additional_dataset_paths", "dataset.additional_offline_dataset_paths"),
        ("dataset.image_transforms.enabel", "dataset.image_transforms.enable"),
        ("wandb.projct", "wandb.project"),
        ("reward.sorce", "reward.source"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(config, key, nearest):
    message = f"unknown key {key}; did you mean {nearest}?"
    for arguments in [({key: 1},), (None, f"--{key}=1"), (None, f"--{key}", "1")]:
        with pytest.raises(ConfigError) as error:
            config(*arguments)
        assert message in str(error.value)


def test_every_unknown_key_is_named_and_none_is_guessed_from_nothing(config):
    with pytest.raises(ConfigError, match=r"unknown key policy\.qqq; unknown key policy\.zzz$"):
        config({"policy.qqq": 1, "policy.zzz": 2})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", "many"),
        ("batch_size", 1.5),
        ("batch_size", 0),
        ("batch_size", None),
        ("seed", None),
        ("seed", -1),
        ("num_workers", -1),
        ("keep_last_checkpoints", 0),
        ("save_checkpoint", "perhaps"),
        ("dataset.video_backend", "ffmpeg"),
        ("output_dir_offline", 5),
        ("reward", None),
        ("wandb", 5),
        ("dataset", 5),
        ("dataset", {}),
        ("dataset", None),
        ("dataset.repo_id", None),
        ("dataset.eval_split", 1.5),
        ("dataset.streaming", True),
        ("reward.source", "sparse"),
        ("reward.unlabelled", "maybe"),
        ("policy", 5),
        ("policy.type", "act"),
        ("policy.type", "no_such_policy"),
        ("policy.offline_steps", "many"),
        ("policy.offline_steps", 0),
        ("policy.offline_steps", None),
        ("policy.offline_steps", {"x": 1}),
        ("policy.utd_ratio", 0),
        ("policy.offline_buffer_capacity", 0),
        ("policy.advantage_window", 0),
        ("policy.num_value_bins", 1),
        ("policy.actor_lr", "fast"),
        ("policy.inference_advantage", "high"),
        ("policy.inference_advantage", None),
        ("policy.policy_extraction", "awr"),
        ("policy.critic_target", "sarsa"),
        ("policy.filter_by", "luck"),
        ("policy.n_step", 0),
        ("policy.advantage_n_step", 0),
        ("policy.critic_folds", 0),
        ("policy.guidance_scale", -0.5),
        ("policy.guidance_scale", "much"),
        ("policy.critic_early_stop", 0),
        ("policy.critic_early_stop", 3),  # nothing is held out
        ("policy.awr_temperature", 0.0),
        ("policy.awr_max_weight", -1.0),
        ("policy.critic_target_update_weight", 1.5),
        ("policy.advantage_positive_fraction", -0.1),
        ("policy.advantage_positive_fraction_per_task", {"pick": 1.5}),
        ("policy.advantage_positive_fraction_per_task", 0.5),
        ("policy.hl_gauss_sigma_ratio", -1.0),
        ("policy.train_critic", False),
        ("policy.advantage_dropout", 1.5),
        ("policy.discount", 1.01),
        ("policy.reward_normalization_constant", 0.0),
        ("policy.learner_device", "abacus"),
        ("policy.critic_llm_depth", 4),
        ("policy.train_language_from_layer", 4),
        ("policy.image_resolution", [33, 32]),
        ("policy.value_support_min", 0.0),
        ("policy.normalization_mapping", {"ACTION": "bad"}),
        ("policy.concurrency.actor", None),
        ("env", {"type": "no_such_env"}),
    ],
)
def test_an_impossible_value_is_a_one_line_error_that_names_its_key(config, key, value):
    with pytest.raises(ConfigError) as error:
        config({key: value}).validate()
    message = str(error.value)
    assert all(part in message for part in key.split("."))
    assert "\n" not in message


def test_files_that_cannot_be_read_are_named(tmp_path):
    texts = {"open.json": "{", "list.json": "[1]", "empty.yaml": "", "open.yaml": "a: [1"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name in [*texts, "bytes.json", "missing.json", "."]:
        with pytest.raises(ConfigError) as error:
            load_config(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


def test_exactly_one_configuration_file_is_given():
    assert split_config_path(["a.json", "--seed=1"]) == ("a.json", ["--seed=1"])
    assert split_config_path(["--seed=1", "--config_path", "a.json"]) == ("a.json", ["--seed=1"])
    for arguments in [[], ["--seed=1"], ["a.json", "--config_path=b.json"]]:
        with pytest.raises(ConfigError, match="one configuration file"):
            split_config_path(arguments)
    with pytest.raises(ConfigError, match=r"'b\.json'"):
        parse_overrides(split_config_path(["a.json", "b.json"])[1])


def test_an_argument_that_is_no_override_is_refused(config):
    with pytest.raises(ConfigError, match=r"'policy\.offline_steps=3'"):
        config(None, "policy.offline_steps=3")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("pick: the cube", "pick: the cube"),
        ("no", "no"),
        ("true", True),
        ("null", None),
        ("1e-4", 1e-4),
        ("{ACTION: MIN_MAX}", {"ACTION": "MIN_MAX"}),
        ("[1, 2]", [1, 2]),
        ("[1", "[1"),
        ("a=b", "a=b"),
    ],
)
def test_an_overrides_text_is_read_as_yaml_unless_it_is_prose(text, value):
    assert parse_overrides([f"--key={text}"]) == parse_overrides(["--key", text]) == [("key", value)]


def test_keys_of_earlier_learners_are_accepted_and_those_without_effect_warn_once(config, caplog):
    legacy = {
        "advantage_scaling": 1.0,
        "storage_device": "cpu",
        "async_prefetch": False,
        "concurrency.actor": "processes",
    }
    online = {
        "use_separate_critic": True,
        "actor_learner_config": {"learner_host": "10.0.0.1", "learner_port": 5},
        "online_steps": 5,
        "online_buffer_capacity": 6,
        "learner_device": "cpu",
        "actor_device": "cpu",
    }
    cfg = config({f"policy.{key}": value for key, value in (legacy | online).items()})
    with caplog.at_level(logging.WARNING):
        cfg.validate()
    for key in legacy:
        advice = KEYS[f"policy.{key}"].advice
        assert sum(f"policy.{key} " in message and advice in message for message in caplog.messages) == 1
    assert sum(record.name.startswith("lerobot_policy_pi05_rl") for record in caplog.records) == len(legacy)
    policy = cfg.policy
    assert (policy.actor_learner_config.learner_host, policy.concurrency.actor) == ("10.0.0.1", "processes")
    assert (policy.online_steps, policy.learner_device) == (5, "cpu")


@pytest.mark.parametrize(
    ("value", "name"),
    [(1.0, "positive"), (0.5, "positive"), (0, "none"), ("1.0", "positive"), ("None", "none")],
)
def test_the_inference_advantage_may_be_a_number(config, value, name):
    assert config({"policy.inference_advantage": value}).policy.inference_advantage == name


@pytest.mark.parametrize("value", [-1.0, "negative"])
def test_a_tag_that_nobody_learns_cannot_be_asked_for(config, value):
    with pytest.raises(ConfigError, match="positive actions alone have a tag: set it to positive or none"):
        config({"policy.inference_advantage": value})


def test_the_two_runs_never_share_a_directory(tmp_path, config):
    with pytest.raises(ConfigError, match="output_dir_offline and output_dir"):
        config({"output_dir": str(tmp_path / "x" / ".." / "run")}).validate()
    config({"output_dir": str(tmp_path / "other")}).validate()


def test_sizes_left_out_are_those_of_the_local_checkpoint(tmp_path, config):
    tiny_config().save_pretrained(tmp_path / "checkpoint")
    path = tmp_path / "small.json"
    policy = {"pi05_checkpoint": str(tmp_path / "checkpoint"), "chunk_size": 7, "device": "cpu"}
    path.write_text(json.dumps({"dataset": {"repo_id": "a/b"}, "policy": policy}))
    cfg = load_config(path).policy
    sizes = {**TINY_SIZES, "chunk_size": 7, "image_resolution": (32, 32)}  # no tensor's shape: what the file says wins
    assert {name: getattr(cfg, name) for name in sizes} == sizes
    assert Path(cfg.pretrained_path) == tmp_path / "checkpoint"


@pytest.mark.parametrize("name", ["gym_manipulator", "panda_pick_cube"])
def test_an_environment_section_is_accepted(config, name):
    env = config({"env": {"type": name}}).env
    assert isinstance(env, EnvConfig) and env.type == name


def test_the_saved_configuration_loads_again_unchanged(tmp_path, config):
    cfg = config({"env": {"type": "panda_pick_cube"}, "policy.task": "lift", "policy.actor_lr": None})
    cfg.validate()
    cfg.save_pretrained(tmp_path / "saved")
    assert load_config(tmp_path / "saved" / "train_config.json").to_dict() == cfg.to_dict()


@pytest.mark.parametrize("pose", [None, [0.0, 0.195, -2.43]])
def test_a_robots_reset_is_written_into_a_checkpoint(tmp_path, config, pose):
    env = {"type": "gym_manipulator", "processor": {"reset": {"fixed_reset_joint_positions": pose}}}
    config({"env": env}).save_pretrained(tmp_path / "saved")
    again = load_config(tmp_path / "saved" / "train_config.json")
    assert again.env.processor.reset.fixed_reset_joint_positions == pose


@pytest.mark.parametrize("name", ["demo", "gym_hil", "so101"])
def test_the_configurations_here_are_written_and_read_again(tmp_path, name):
    here = ["--policy.device=cpu", *(f"--policy.{key}=null" for key in ("learner_device", "actor_device"))]
    path = REPOSITORY / "configs" / f"{name}.json"
    cfg = load_config(path, [*here, "--policy.pi05_checkpoint=null"])
    cfg.save_pretrained(tmp_path)
    assert load_config(tmp_path / "train_config.json").to_dict() == cfg.to_dict()


def test_defaults_are_stock_pi05_at_full_size(tmp_path):
    (tmp_path / "least.json").write_text(json.dumps({"dataset": {"repo_id": "a/b"}, "policy": {"device": "cpu"}}))
    policy = load_config(tmp_path / "least.json").policy
    assert (policy.llm_width, policy.llm_depth, policy.expert_width, policy.vision_depth) == (2048, 18, 1024, 27)
    assert (policy.resolved_actor_lr, policy.resolved_grad_clip_norm) == (2.5e-5, 1.0)
    scheduler = load_config(tmp_path / "least.json", ["--policy.actor_lr=1e-4"]).policy.get_scheduler_preset()
    assert (scheduler.peak_lr, scheduler.decay_lr) == pytest.approx((1e-4, 0.0))


@pytest.mark.parametrize("mode", ["MIN_MAX", "QUANTILE10", "MEAN_STD", "IDENTITY"])
def test_a_normalisation_given_for_one_kind_of_feature_leaves_the_others_as_they_are(config, mode):
    mapping = config({}, f"--policy.normalization_mapping.STATE={mode}").policy.normalization_mapping
    own = tiny_config().normalization_mapping
    assert mapping == {**own, "STATE": NormalizationMode(mode)} and own["ACTION"] is NormalizationMode.QUANTILES
    assert (
        config({"policy.normalization_mapping": {"ACTION": mode}}).policy.normalization_mapping["STATE"]
        == own["STATE"]
    )


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"STAT": "MIN_MAX"}, r"policy\.normalization_mapping has no key 'STAT'; it has VISUAL, STATE, ACTION"),
        ({"STATE": "MINMAX"}, r"normalization_mapping\.STATE must be one of MIN_MAX, MEAN_STD, .*; got 'MINMAX'"),
        ({"STATE": None}, r"normalization_mapping\.STATE must be one of .*; got None"),
        ({"STATE": ["MIN_MAX"]}, r"normalization_mapping\.STATE must be one of"),
        ("MIN_MAX", r"policy\.normalization_mapping must say a mode for each kind of feature; got 'MIN_MAX'"),
    ],
)
def test_a_normalisation_that_does_not_exist_is_named(config, given, complaint):
    with pytest.raises(ConfigError, match=complaint):
        config({"policy.normalization_mapping": given})


@pytest.mark.parametrize("own", ["learner_device", "actor_device"])
def test_each_machine_needs_its_own_device_only(config, own):
    """One file serves two machines: what the other one computes on is not looked for here."""
    other = {"learner_device": "actor_device", "actor_device": "learner_device"}[own]
    keys = {f"policy.{own}": "cpu", f"policy.{other}": "abacus", "output_dir": "online"}
    config(keys).validate(own)
    with pytest.raises(ConfigError, match=rf"policy\.{other} is 'abacus', .*--policy\.{other}=cpu"):
        config(keys).validate(other)
    config({**keys, f"policy.{own}": "abacus"}).validate(device_key=None)  # plan, cache: nothing is computed
