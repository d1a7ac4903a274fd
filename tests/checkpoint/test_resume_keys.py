"""What a resume says of a changed key is what the key does: refused, takes effect, or leaves the weights alone."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from recordings import make_dataset
from safetensors.torch import load_file
from tiny import write_config

from lerobot_policy_pi05_rl.checkpoint.resume import Change, compare_configs
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.keys import KEYS, entry, on_resume
from lerobot_policy_pi05_rl.config.leaves import leaves
from lerobot_policy_pi05_rl.config.train import ConfigError, PI05RLTrainConfig
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.labels.command import main as label
from lerobot_policy_pi05_rl.offline_learner import train_offline
from lerobot_policy_pi05_rl.online.config import OnlineTrainConfig
from lerobot_policy_pi05_rl.options import DATA, FILLED, LEARNING, NOTE, ONLINE, OTHER_RUN, READ, START
from lerobot_policy_pi05_rl.training.start import find_checkpoint

NAMES = [leaf.name for leaf in leaves(PI05RLTrainConfig)]
# Enough for windows of advantages to fill; labels that are made once are not made again by a run that goes on.
STEPS = {"policy__offline_steps": 24, "save_freq": 12, "policy__advantage_labels": "running"}
# What the run is that goes on with another value, where the usual one would not show it.
RUNS = {
    "usual": {},
    "weighted": {"policy__policy_extraction": "weighted"},
    "td": {"policy__critic_target": "td", "policy__n_step": 2},
    "rewards": {"reward__source": "dataset", "policy__terminal_failure_reward": -1.0},
    "preset": {"policy__actor_lr": None, "policy__optimizer_lr": 1e-3},
    "augmented": {"dataset__image_transforms": {"enable": True}},
    "bare": {"reward__unlabelled": "success"},
    "before_labels": {
        **{"policy__advantage_labels": "once", "policy__critic_warmup_steps": 14},
        # Which every advantage moves, not those alone that cross a threshold; so many tell their deviation.
        **{"policy__policy_extraction": "weighted", "policy__advantage_window": 16},
    },
    "all_once": {"policy__advantage_positive_weight": 1.0},  # no frame is drawn more often
}
# Key → (run, other value), for every key that changes what is learnt.
TAKE_EFFECT = {
    "seed": ("usual", 8),
    "batch_size": ("usual", 2),
    "dataset.image_transforms.enable": ("usual", True),
    "dataset.image_transforms.max_num_transforms": ("augmented", 1),
    "dataset.image_transforms.random_order": ("augmented", True),
    "dataset.image_transforms.tfs": ("augmented", {"x": {"type": "RandomAffine", "kwargs": {"degrees": [9, 90]}}}),
    "dataset.labeling": ("all_once", "first"),
    "reward.source": ("usual", "dataset"),
    "reward.outcome_file": ("usual", "{root}/outcomes.csv"),
    "reward.unlabelled": ("bare", "failure"),
    "policy.time_sampling_beta_alpha": ("usual", 3.0),
    "policy.time_sampling_beta_beta": ("usual", 3.0),
    "policy.time_sampling_scale": ("usual", 0.5),
    "policy.time_sampling_offset": ("usual", 0.01),
    "policy.min_period": ("usual", 0.1),
    "policy.max_period": ("usual", 2.0),
    "policy.actor_lr": ("usual", 1e-2),
    "policy.critic_lr": ("usual", 1e-2),
    "policy.grad_clip_norm": ("usual", 1e-3),
    "policy.optimizer_lr": ("preset", 1e-2),
    "policy.optimizer_betas": ("usual", [0.5, 0.6]),
    "policy.optimizer_eps": ("usual", 1e-2),
    "policy.optimizer_weight_decay": ("usual", 0.9),
    "policy.optimizer_grad_clip_norm": ("usual", 1e-3),
    "policy.scheduler_warmup_steps": ("usual", 20_000),
    "policy.scheduler_decay_steps": ("usual", 5),
    "policy.scheduler_decay_lr": ("usual", 2e-5),
    "policy.policy_update_freq": ("usual", 2),
    "policy.critic_warmup_steps": ("usual", 20),
    "policy.utd_ratio": ("usual", 2),
    "policy.gradient_accumulation_steps": ("usual", 2),
    "policy.value_support_min": ("usual", -2.0),
    "policy.value_support_max": ("usual", 1.0),
    "policy.hl_gauss_sigma_ratio": ("usual", 0.0),
    "policy.n_step": ("td", 1),
    "policy.critic_target_update_weight": ("td", 0.5),
    "policy.discount": ("rewards", 0.5),
    "policy.terminal_failure_reward": ("rewards", -0.5),
    "policy.awr_temperature": ("weighted", 0.1),
    "policy.awr_max_weight": ("weighted", 0.5),
    "policy.advantage_n_step": ("usual", 1),
    "policy.advantage_baseline": ("before_labels", "all"),
    "policy.advantage_horizon": ("before_labels", 1.0),
    "policy.advantage_smoothing": ("before_labels", 0.0),
    "policy.advantage_positive_fraction": ("usual", 1.0),
    "policy.advantage_positive_fraction_per_task": ("usual", {"pick the cube": 1.0}),
    "policy.advantage_dropout": ("usual", 1.0),
    "policy.advantage_positive_weight": ("usual", 7.0),
    "policy.policy_extraction": ("usual", "weighted"),
    "policy.offline_steps": ("usual", 25),
}
# Those that another test shows, and why this one cannot.
ELSEWHERE = {
    "policy.dtype": "computes in bf16 on a GPU alone",
    "policy.critic_early_stop": "needs held-out episodes; tested below",
    "policy.reward_normalization_constant": "needs rewards other than zero; tests/test_returns.py",
    "dataset.weights": "needs two datasets; tests/data/test_mixture.py",
    "dataset.episodes": "other frames; refused below",
    "dataset.bad_values": "needs bad values, and drops episodes; tests/data/test_opening.py",
    "dataset.eval_split": "other frames; refused below",
    "policy.offline_buffer_capacity": "other frames; refused below",
    "policy.filter_by": "another critic or other frames; refused below",
    "rename_map": "other cameras; refused below",
}
NO_EFFECT = {
    "job_name": "other",
    "log_freq": 2,
    "save_freq": 1,
    "offline_save_freq": 3,
    "save_in_background": True,
    "keep_last_checkpoints": 1,
    "cudnn_deterministic": True,
    "tolerance_s": 1e-2,
    "eval_steps": 2,
    "max_eval_samples": 3,
    "env": {"type": "panda_pick_cube"},
    "online_ratio": 0.3,
    "dataset.repo_id": "other/name",
    "dataset.root": "{root}/moved",
    "dataset.frame_cache": "{root}/frames",
    "dataset.video_backend": "pyav",
    "dataset.resample_actions": True,
    "policy.n_action_steps": 2,
    "policy.num_inference_steps": 3,
    "policy.inference_advantage": "none",
    "policy.guidance_scale": 2.0,
    "policy.rtc_config": {"execution_horizon": 3},
    "policy.gradient_checkpointing": True,
    "policy.pi05_checkpoint": "/gone",
    "policy.online_steps": 7,
    "actor.spool_gb": 3.0,
    "replay.max_episode_mb": 3.0,
    "wandb.project": "other",
}
OTHER_DATA = {
    "dataset.episodes": [0, 1, 2],
    "dataset.eval_split": 0.5,
    "policy.offline_buffer_capacity": 9,
    "policy.policy_extraction": "filtered",
    "rename_map": {"observation.images.front": "observation.images.other"},
}


def name_actions(dataset: Path) -> list[str]:
    """Give the dataset's actions names."""
    file = dataset / "meta" / "info.json"
    info = json.loads(file.read_text())
    action = info["features"]["action"]
    action["names"] = [f"joint_{number}.pos" for number in range(action["shape"][0])]
    file.write_text(json.dumps(info))
    return action["names"]


def run(path: Path, *flags: str) -> Path:
    return train_offline(load_config(path, [f"--{flag}" for flag in flags]))


@pytest.fixture(scope="module")
def started(mixed_dataset, tmp_path_factory):
    """Gives a run of this kind, once, with a checkpoint at step 12, and its configuration's changes."""
    made: dict[str, tuple[Path, dict]] = {}
    folder = tmp_path_factory.mktemp("started")

    def start(kind: str = "usual", **more) -> tuple[Path, dict]:
        if kind not in made:
            data = folder / kind / "data"
            if kind == "bare":
                make_dataset(data, [{"length": 6}, {"length": 4}, {"length": 5}], columns=())
            else:
                shutil.copytree(mixed_dataset, data)
                name_actions(data)
            changes = {**STEPS, **RUNS.get(kind, {}), **more}
            run(write_config(folder / kind / "c.json", data, folder / kind / "run", **changes))
            made[kind] = folder / kind, changes
        return made[kind]

    return start


def go_on(started, tmp_path: Path, kind: str, name: str | None = None, value: object = None) -> tuple:
    """Final weights of a run that goes on from step 12, with this key at this value if one is named."""
    folder, changes = started(kind)
    run_dir = tmp_path / f"run_{name}"
    shutil.copytree(folder / "run", run_dir, symlinks=True)
    text = json.dumps(value).replace("{root}", str(folder))
    changed = {} if name is None else {name.replace(".", "__"): json.loads(text)}
    path = write_config(tmp_path / "c.json", folder / "data", run_dir, **{**changes, **changed})
    last = run(path, "resume=true", "resume_from=12")
    return load_file(last / "pretrained_model" / "model.safetensors"), last


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def said(caplog, name: str) -> set[str]:
    """The levels at which a changed setting of this name was told of."""
    lines = [record for record in caplog.records if "ettings" in record.getMessage()]
    return {
        record.levelname for record in lines if f"{name}: " in record.getMessage() or f"{name}." in record.getMessage()
    }


def test_every_key_that_changes_what_is_learnt_is_shown_to():
    learning = {name for name in NAMES if on_resume(name) in (LEARNING, DATA) and KEYS[entry(name)].readers != ONLINE}
    assert learning == TAKE_EFFECT.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("kind", [PI05RLTrainConfig, OnlineTrainConfig])
@pytest.mark.parametrize("name", [name for name in NAMES if KEYS[entry(name)].status == READ])
def test_every_key_is_sorted_by_what_it_means_for_this_kind_of_run(name, kind):
    def nested(value: object) -> dict:
        node: object = value
        for part in reversed(name.split(".")):
            node = {part: node}
        return {"policy": {}} | node

    old, new = (
        ("conditioning", "weighted") if name == "policy.policy_extraction" else ("old", "new")
    )  # known ones alone
    changes = compare_configs(nested(old), nested(new), kind.reads.fget(None))
    meaning = on_resume(name)
    read = KEYS[entry(name)].readers in kind.reads.fget(None)
    expected = {
        OTHER_RUN: "impossible",
        FILLED: "impossible",
        LEARNING: "learning" if read else "harmless",
        DATA: "learning" if read else "harmless",
        NOTE: "harmless",
        START: "without_effect",
    }.get(meaning)
    for group, found in changes._asdict().items():
        assert found == ([Change(name, old, new)] if group == expected else []), group


OTHERS = {
    "policy.image_resolution": [64, 64],
    "policy.vision_patch_size": 8,
    "policy.vision_width": 64,
    "policy.vision_heads": 2,
    "policy.expert_width": 64,
    "policy.head_dim": 16,
    "policy.use_separate_critic": False,
    "policy.critic_target": "td",
    "policy.train_critic": False,
    "policy.advantage_labels": "once",
    "policy.tokenizer": "other",
    "policy.normalization_mapping": {"STATE": "MIN_MAX"},
    "policy.relative_exclude_joints": [],
    "policy.action_feature_names": ["x", "y", "z"],
    "policy.input_features": {"observation.state": {"type": "STATE", "shape": [9]}},
    "policy.output_features": {"action": {"type": "ACTION", "shape": [9]}},
    "policy.task": "another",
    "policy.chunk_size": 4,
    "policy.critic_image_pooling": 1,
    "policy.critic_llm_depth": 1,
    "dataset.statistics": "own",
}


@pytest.mark.parametrize(
    "name", [name for name in NAMES if on_resume(name) in (OTHER_RUN, FILLED) and "peft" not in name]
)
def test_another_run_is_refused_before_anything_is_opened(started, tmp_path, name):
    folder, changes = started("usual")
    leaf = next(leaf for leaf in leaves(PI05RLTrainConfig) if leaf.name == name)
    flip = not leaf.default if isinstance(leaf.default, bool) else None
    path = write_config(tmp_path / "c.json", folder / "nowhere", folder / "run", **{**changes, "resume": True})
    base = json.loads(path.read_text())["policy"].get(name.removeprefix("policy."), leaf.default)
    value = OTHERS.get(name, flip if flip is not None else base + 1 if isinstance(base, int) else None)
    extra = ["--dataset.labeling=first"] if name == "policy.train_critic" else []
    cfg = load_config(path, [f"--{name}={json.dumps(value)}", *extra])
    with pytest.raises(ConfigError, match=rf"000024 cannot go on with .*{name}"):
        find_checkpoint(cfg)


@pytest.mark.parametrize("name", OTHER_DATA)
def test_other_data_is_refused_with_the_key_that_brought_it(started, tmp_path, caplog, name):
    with caplog.at_level("INFO"), pytest.raises(UserError) as caught:
        go_on(started, tmp_path, "usual", name, OTHER_DATA[name])
    assert name in str(caught.value) or (name == "rename_map" and "policy.input_features" in str(caught.value))
    assert said(caplog, name) == set(), "nothing takes effect that is then refused"


def test_a_weight_that_changes_the_draws_is_refused_and_not_said_to_take_effect(started, tmp_path, caplog):
    folder, _ = started("usual")
    assert label([str(folder / "run"), "--name", "first", "--horizon", "0.5"]) == 0
    started("labelled", dataset__labeling="first", dataset__root=str(folder / "data"))
    caplog.clear()
    with caplog.at_level("INFO"), pytest.raises(UserError, match=r"policy\.advantage_positive_weight: 50\.0 → 9\.0"):
        go_on(started, tmp_path, "labelled", "policy.advantage_positive_weight", 9.0)
    assert said(caplog, "policy.advantage_positive_weight") == set()


def test_the_same_command_says_nothing_where_actions_have_names(mixed_dataset, tmp_path, caplog):
    shutil.copytree(mixed_dataset, tmp_path / "data")
    names = name_actions(tmp_path / "data")
    path = write_config(tmp_path / "c.json", tmp_path / "data", tmp_path / "run", **STEPS)
    stored = json.loads((run(path) / "pretrained_model" / "train_config.json").read_text())["policy"]
    assert stored["action_feature_names"] == names
    with caplog.at_level("INFO"):
        run(path, "resume=true", "resume_from=12")
    assert "ettings" not in caplog.text


def test_the_critics_early_stop_is_switched_on_and_off_by_a_resume(mixed_dataset, tmp_path, caplog):
    """As the warning of an overfitting critic advises."""
    changes = {**STEPS, "dataset__eval_split": 0.4, "eval_steps": 1}
    path = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", **changes)
    run(path)
    flags = ("resume=true", "resume_from=12", "policy.offline_steps=30", "policy.critic_lr=0.5")
    with caplog.at_level("INFO"):
        stopped = run(path, *flags, "policy.critic_early_stop=1")
    assert "policy.critic_early_stop: null → 1" in caplog.text and "The critic stops at step" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        again = run(path, "resume=true", "policy.offline_steps=36", "policy.critic_lr=0.5")
    critics = [load_file(c / "pretrained_model" / "model.safetensors") for c in (stopped, again)]
    names = [name for name in critics[0] if name.startswith("model.critic.")]
    assert any(not torch.equal(critics[0][name], critics[1][name]) for name in names), "it learns again"


@pytest.fixture(scope="module")
def unchanged(started, tmp_path_factory):
    """The final weights of each kind of run that goes on as it was."""
    found: dict[str, dict] = {}

    def weights(kind: str) -> dict:
        if kind not in found:
            found[kind], _ = go_on(started, tmp_path_factory.mktemp(kind), kind)
        return found[kind]

    return weights


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKE_EFFECT)
def test_what_is_said_to_take_effect_does(started, unchanged, tmp_path, caplog, name):
    kind, value = TAKE_EFFECT[name]
    before, folder = unchanged(kind), started(kind)[0]
    if name == "reward.outcome_file":
        lines = [f"{number},{('failure', 'success')[number % 2]}" for number in range(6)]
        (folder / "outcomes.csv").write_text("\n".join(["episode_index,outcome", *lines[: _episodes(folder)]]) + "\n")
    if name == "dataset.labeling":
        label([str(folder / "run"), "--name", "first", "--horizon", "0.5"])
    with caplog.at_level("INFO"):
        after, _ = go_on(started, tmp_path, kind, name, value)
    assert said(caplog, name) == {"WARNING"}
    assert not same(before, after)


def _episodes(folder: Path) -> int:
    return json.loads((folder / "data" / "meta" / "info.json").read_text())["total_episodes"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_EFFECT)
def test_what_is_a_note_leaves_the_weights_alone(started, unchanged, tmp_path, caplog, name):
    before, folder = unchanged("usual"), started("usual")[0]
    shutil.copytree(folder / "data", folder / "moved", dirs_exist_ok=True)
    with caplog.at_level(logging.INFO):
        after, _ = go_on(started, tmp_path, "usual", name, NO_EFFECT[name])
    assert said(caplog, name) <= {"INFO"}
    assert same(before, after)
