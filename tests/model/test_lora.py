"""LoRA on the actor beside a critic that trains in full: what moves, what is stored, and who loads it."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from double import assert_same, in_double
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import PeftConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy as lerobot_make_policy
from runs import metrics, step_back
from safetensors.torch import load_file, save_file
from tiny import batches, make_batch, randomised, tiny_config, write_config

from lerobot_policy_pi05_rl.checkpoint.critic_provenance import critic_fingerprint
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.data.labeling import read_labeling
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.labels.command import main as label
from lerobot_policy_pi05_rl.model.lora import Adapter, add_adapter, check_targets, untouched_modules
from lerobot_policy_pi05_rl.model.weights import CRITIC_PREFIX, CheckpointError
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.offline_learner import train_offline
from lerobot_policy_pi05_rl.recap import RecapAlgorithm, RecapConfig

SUPPORT = (-1.0, 0.0)
TAG_TRAINED = "advantage_embedding.modules_to_save.default.weight"
EXPERT = "model.paligemma_with_expert.gemma_expert.model.layers.0.self_attn"
VISION = "model.paligemma_with_expert.paligemma.model.vision_tower.encoder.layers.0.self_attn.q_proj"


def run(path, **overrides) -> Path:
    return train_offline(load_config(path, [f"--{k}={v}" for k, v in overrides.items()]))


def model(checkpoint: Path) -> Path:
    return checkpoint / "pretrained_model"


@pytest.fixture(scope="module")
def base(tmp_path_factory, mixed_dataset) -> Path:
    """A checkpoint of ours that was trained whole, with a critic."""
    folder = tmp_path_factory.mktemp("base")
    return model(run(write_config(folder / "c.json", mixed_dataset, folder / "run", policy__offline_steps=2)))


def lora_config(tmp_path: Path, dataset: Path, base: Path, name: str = "lora", **changes) -> Path:
    values = {"policy__pi05_checkpoint": str(base), "peft": {"r": 4}, **changes}
    return write_config(tmp_path / f"{name}.json", dataset, tmp_path / name, **values)


def peft_form(
    folder: Path, base: Path | None, *, adapted: str = EXPERT + ".q_proj", critic: dict | None = None
) -> Path:
    """The files of a checkpoint in PEFT form, written by hand."""
    folder.mkdir()
    where = None if base is None else str(base)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": where}))
    tensors = {f"base_model.model.{adapted}.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}
    save_file(tensors, folder / "adapter_model.safetensors")
    if critic is not None:
        save_file(critic, folder / "critic.safetensors")
    return folder


def make_adapted(targets: str | None, **overrides) -> RecapAlgorithm:
    """The update around a tiny randomised policy whose actor has an adapter."""
    torch.manual_seed(0)
    config = tiny_config(advantage_window=4, actor_lr=1e-3, critic_lr=1e-3, **overrides)
    policy = randomised(PI05RLPolicy(config))
    add_adapter(policy, PeftConfig(r=4, target_modules=targets), "org/base")
    return RecapAlgorithm(policy, RecapConfig(policy_config=config, seed=3, total_steps=10), tasks=["pick the cube"])


@pytest.fixture
def whole(tmp_path, tiny_policy) -> Path:
    tiny_policy.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def other_critic() -> dict[str, torch.Tensor]:
    torch.manual_seed(9)
    policy = randomised(PI05RLPolicy(tiny_config()))
    return {k: v.clone() for k, v in policy.state_dict().items() if k.startswith(CRITIC_PREFIX)}


def test_an_adapters_base_gets_the_adapters_critic(tmp_path, whole):
    """As LeRobot's make_policy asks for it, with the adapter's configuration."""
    critic = other_critic()
    config = tiny_config(use_peft=True, pretrained_path=peft_form(tmp_path / "lora", whole, critic=critic))
    loaded = PI05RLPolicy.from_pretrained(whole, config=config).train().state_dict()
    stored = load_file(whole / "model.safetensors")
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(tensor, {**stored, **critic}[name]) for name, tensor in loaded.items())
    config.pretrained_path = peft_form(tmp_path / "same_critic", whole)
    loaded = PI05RLPolicy.from_pretrained(whole, config=config).train().state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in loaded.items())


def test_no_critic_is_made_up_for_an_adapter_without_one(tmp_path):
    PI05RLPolicy(tiny_config(), load_critic=False).save_pretrained(tmp_path / "actor")
    config = tiny_config(use_peft=True, pretrained_path=peft_form(tmp_path / "lora", tmp_path / "actor"))
    assert PI05RLPolicy.from_pretrained(tmp_path / "actor", config=config).train().model.critic is None


def test_the_fingerprint_is_of_the_critic_and_of_what_it_reads(tmp_path, whole):
    fingerprint = critic_fingerprint(whole, SUPPORT)
    assert critic_fingerprint(peft_form(tmp_path / "expert", whole), SUPPORT) == fingerprint
    others = (
        peft_form(tmp_path / "vision", whole, adapted=VISION),
        peft_form(tmp_path / "critic", whole, critic=other_critic()),
    )
    assert len({fingerprint, *(critic_fingerprint(path, SUPPORT) for path in others)}) == 3


def test_a_base_that_has_moved_is_named_with_the_adapter(tmp_path, whole):
    lora = peft_form(tmp_path / "lora", whole, critic=other_critic())
    whole.rename(tmp_path / "elsewhere")
    config = tiny_config(use_peft=True, pretrained_path=lora)
    for path in (lora, whole):  # by us, and by LeRobot's make_policy
        with pytest.raises(CheckpointError, match=r"adapter alone.*base_model_name_or_path") as caught:
            PI05RLPolicy.from_pretrained(path, config=config)
        assert str(whole) in str(caught.value) and str(lora) in str(caught.value)
    with pytest.raises(CheckpointError, match="adapter alone"):
        PI05RLPolicy.from_pretrained(peft_form(tmp_path / "none", None), config=tiny_config())


def test_a_damaged_checkpoint_in_peft_form_is_named(tmp_path, whole):
    lora = peft_form(tmp_path / "lora", whole, critic=other_critic())
    (lora / "critic.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(CheckpointError, match=r"critic.safetensors is damaged"):
        critic_fingerprint(lora, SUPPORT)
    (lora / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config.json is damaged"):
        PI05RLPolicy.from_pretrained(lora, config=tiny_config())


@pytest.mark.parametrize("separate", [True, False])
def test_no_adapter_touches_the_critic_or_what_never_trains(separate):
    policy = PI05RLPolicy(tiny_config(use_separate_critic=separate, freeze_vision_encoder=True))
    untouched = {name for name, _ in policy.named_modules() if re.fullmatch(untouched_modules(policy), name)}
    critic = {name for name, _ in policy.named_modules() if name.startswith("model.critic")}
    vision = {name for name, _ in policy.named_modules() if "vision_tower" in name}
    last = "model.paligemma_with_expert.paligemma.model.language_model.layers.2"
    assert critic and vision and critic | vision < untouched
    assert {f"{last}.self_attn.q_proj", f"{last}.mlp.up_proj"} < untouched
    assert not {f"{last}.self_attn.k_proj", f"{last}.self_attn", f"{EXPERT}.q_proj", "model"} & untouched


@pytest.mark.parametrize(
    ("targets", "saved", "message"),
    [
        (["q_proj", "v_porj"], None, "'v_porj'; did you mean v_proj"),
        (r".*\.q_porj", None, "matches the whole name of no part"),
        ("q_proj", None, "matches the whole name of no part"),
        ("(", None, "no regular expression"),
        (r"model\.critic\..*", None, "matches the whole name of no part"),
        (["q_proj"], ["critic"], "no part of the actor that trains is called 'critic'"),
        (["q_proj"], ["mlp"], "would take in the critic"),
    ],
)
def test_a_module_that_is_not_the_actors_is_refused(tiny_policy, targets, saved, message):
    with pytest.raises(UserError, match=message):
        check_targets(tiny_policy, targets, saved)


@pytest.mark.parametrize(
    "targets", [["q_proj", "action_in_proj"], r".*\.vision_tower\..*\.q_proj", "all-linear", None]
)
def test_what_peft_understands_is_accepted(tiny_policy, targets):
    check_targets(tiny_policy, targets, ["action_out_proj"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy__pi05_checkpoint": None}, "policy.pi05_checkpoint is null"),
        ({"peft": {"method_type": "MISS"}}, "must be LORA"),
        ({"peft": {"init_type": "pissa"}}, "change the base's weights"),
        ({"peft": {"r": 0}}, "peft.r must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config(lora_config(tmp_path, tmp_path, tmp_path, **changes)).validate()


def test_the_command_line_names_targets_as_lerobot_train_does(tmp_path):
    path = write_config(tmp_path / "c.json", tmp_path, tmp_path / "run")
    pattern = r".*\.(language_model|gemma_expert)\..*\.(q|v)_proj"
    cfg = load_config(path, ["--peft.method_type=LORA", "--peft.r=8", f"--peft.target_modules={pattern}"])
    assert (cfg.peft.r, cfg.peft.target_modules) == (8, pattern)
    assert load_config(path, ["--peft.target_modules=[q_proj,v_proj]"]).peft.target_modules == ["q_proj", "v_proj"]
    with pytest.raises(ConfigError, match=r"unknown key peft.lora_r"):
        load_config(path, ["--peft.lora_r=8"])


def test_beside_the_adapters_own_parameters_only_the_critic_trains():
    """Whatever PEFT has chosen; here two projections stand for it."""
    torch.manual_seed(0)
    policy = randomised(PI05RLPolicy(tiny_config(advantage_window=4, actor_lr=1e-3, critic_lr=1e-3)))
    chosen = [*policy.model.action_in_proj.parameters(), *policy.model.action_out_proj.parameters()]
    names = frozenset(name for name, parameter in policy.named_parameters() if any(parameter is p for p in chosen))
    policy.adapter = Adapter(None, names, owns_critic=True)
    config = RecapConfig(policy_config=policy.config, seed=3, total_steps=10)
    algorithm = RecapAlgorithm(policy, config, tasks=["pick the cube"])
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    algorithm.update(batches())
    trained = {id(p) for p in (*chosen, *policy.model.critic.parameters())}
    assert changed(before, policy.state_dict()) == {n for n, p in policy.named_parameters() if id(p) in trained}
    assert {id(p) for p in algorithm.optimizer.state} == trained
    assert all(p.grad is None and not p.requires_grad for p in policy.parameters() if id(p) not in trained)


# What follows trains, with PEFT.


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize(
    "targets", [None, "all-linear", r".*\.(language_model|vision_tower|gemma_expert)\..*\.(q|v)_proj"]
)
def test_adapter_and_critic_move_and_nothing_else_does(separate, targets):
    algorithm = make_adapted(targets, use_separate_critic=separate)
    policy = algorithm.policy
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    stream = batches()
    for _ in range(2):  # the first leaves the A halves where they are: the B halves start at zero
        algorithm.update(stream)
    moved = changed(before, policy.state_dict())
    adapter = {name for name in before if "lora_" in name or name.endswith(TAG_TRAINED)}
    critic = {name for name, _ in policy.named_parameters() if name.startswith(CRITIC_PREFIX)}
    assert adapter and not {name for name in adapter if name.startswith(CRITIC_PREFIX)}
    assert moved == adapter | critic
    trained = {id(p) for name, p in policy.named_parameters() if name in adapter | critic}
    assert {id(p) for p in algorithm.optimizer.state} == trained
    assert {id(p) for group in algorithm.optimizer.param_groups for p in group["params"]} == trained
    assert all(p.grad is None and not p.requires_grad for p in policy.parameters() if id(p) not in trained)


def test_a_module_trained_in_full_is_stored_and_loads(tmp_path, mixed_dataset, base):
    peft = {"r": 4, "target_modules": ["q_proj"], "full_training_modules": ["action_in_proj"]}
    checkpoint = model(run(lora_config(tmp_path, mixed_dataset, base, peft=peft)))
    stored = load_file(checkpoint / "adapter_model.safetensors")
    weight = stored["base_model.model.model.action_in_proj.weight"]
    assert not torch.equal(weight, load_file(base / "model.safetensors")["model.action_in_proj.weight"])
    assert torch.equal(PI05RLPolicy.from_pretrained(checkpoint).model.action_in_proj.weight, weight)


def test_the_checkpoint_stores_adapter_and_critic_once_and_no_base(tmp_path, mixed_dataset, base):
    checkpoint = model(run(lora_config(tmp_path, mixed_dataset, base)))
    assert {p.name for p in checkpoint.iterdir() if "processor" not in p.name} == {
        "README.md",
        "config.json",
        "train_config.json",
        "critic_data.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "critic.safetensors",
    }
    settings = json.loads((checkpoint / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base.resolve())
    assert settings["r"] == 4 and json.loads((checkpoint / "config.json").read_text())["use_peft"] is True
    adapter, critic = (load_file(checkpoint / f"{name}.safetensors") for name in ("adapter_model", "critic"))
    assert all("lora_" in name or name.endswith("advantage_embedding.weight") for name in adapter)
    whole = load_file(base / "model.safetensors")
    assert critic.keys() == {name for name in whole if name.startswith(CRITIC_PREFIX)}
    assert changed({name: whole[name] for name in critic}, critic)
    tensors = sum(tensor.nbytes for tensor in [*adapter.values(), *critic.values()])
    on_disk = sum((checkpoint / f"{name}.safetensors").stat().st_size for name in ("adapter_model", "critic"))
    assert tensors <= on_disk < tensors + 100_000  # the headers


def test_a_frozen_critic_of_the_base_is_not_stored_again(tmp_path, mixed_dataset, base):
    checkpoint = model(run(lora_config(tmp_path, mixed_dataset, base, policy__policy_extraction="none")))
    assert not (checkpoint / "critic.safetensors").exists()
    loaded, whole = PI05RLPolicy.from_pretrained(checkpoint).state_dict(), load_file(base / "model.safetensors")
    critic = [name for name in whole if name.startswith(CRITIC_PREFIX)]
    assert critic and all(torch.equal(loaded[name], whole[name]) for name in critic)


def test_no_tensor_is_in_memory_twice():
    algorithm = make_adapted(None)
    state = algorithm.policy.state_dict()
    held = {tensor.data_ptr(): tensor.nbytes for tensor in state.values()}
    named = {k.replace(".base_layer", "").replace(".original_module", ""): v for k, v in state.items()}
    named = {k: v for k, v in named.items() if "lora_" not in k and not k.endswith(TAG_TRAINED)}
    assert named.keys() == PI05RLPolicy(algorithm.policy.config).state_dict().keys()
    adapter = sum(v.nbytes for k, v in state.items() if "lora_" in k or k.endswith(TAG_TRAINED))
    assert sum(held.values()) == sum(tensor.nbytes for tensor in named.values()) + adapter


@pytest.mark.parametrize(
    "changes", [{}, {"policy__critic_target": "td", "policy__n_step": 3}, {"save_in_background": True}]
)
def test_stop_and_resume_equal_never_stopping(tmp_path, mixed_dataset, base, changes):
    options = {"policy__offline_steps": 8, "save_freq": 4, "policy__policy_update_freq": 2, **changes}
    whole = run(lora_config(tmp_path, mixed_dataset, base, "a", **options))
    config = lora_config(tmp_path, mixed_dataset, base, "b", **options)
    run(config)
    step_back(tmp_path / "b", "000004")
    torch.manual_seed(12345)  # a new process has another random state
    resumed = run(config, resume="true")
    files = (
        "pretrained_model/adapter_model.safetensors",
        "pretrained_model/critic.safetensors",
        "training_state/optimizer_state.safetensors",
    )
    for name in files:
        first, second = load_file(whole / name), load_file(resumed / name)
        assert first.keys() == second.keys() and not changed(first, second), name
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_lerobots_factory_loads_adapter_and_critic(tmp_path, mixed_dataset, base):
    path = model(run(lora_config(tmp_path, mixed_dataset, base)))
    config = PreTrainedConfig.from_pretrained(path)
    config.pretrained_path = path
    meta = LeRobotDatasetMetadata("test/tiny", root=mixed_dataset)
    stock = lerobot_make_policy(config, ds_meta=meta).train()
    adapter, critic = (load_file(path / f"{name}.safetensors") for name in ("adapter_model", "critic"))
    state = stock.state_dict()
    loaded = {k.replace(".modules_to_save", "").replace(".default", ""): tensor for k, tensor in state.items()}
    assert not changed(adapter, loaded)
    assert not changed(critic, {name.removeprefix("base_model.model."): v for name, v in loaded.items()})
    merged = PI05RLPolicy.from_pretrained(path)
    assert isinstance(merged, PI05RLPolicy) and not any("lora_" in name for name in merged.state_dict())
    with in_double():
        beside, merged = lerobot_make_policy(config, ds_meta=meta).eval(), PI05RLPolicy.from_pretrained(path)
        batch, noise = make_batch(), torch.randn(6, 6, 8)
        actions = [policy.predict_action_chunk(batch, noise=noise) for policy in (beside, merged)]
        assert_same(*actions)
        plain = PI05RLPolicy.from_pretrained(base).predict_action_chunk(batch, noise=noise)
    assert (actions[0] - plain).abs().max() > 1e-5


def test_another_run_goes_on_from_an_adapter(tmp_path, mixed_dataset, base):
    first = model(run(lora_config(tmp_path, mixed_dataset, base, "first")))
    still = {"policy__actor_lr": 1e-12, "policy__critic_lr": 1e-12, "policy__optimizer_weight_decay": 0.0}
    second = model(run(lora_config(tmp_path, mixed_dataset, first, "second", policy__offline_steps=1, **still)))
    assert json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base.resolve())
    for name in ("adapter_model.safetensors", "critic.safetensors"):
        before, after = load_file(first / name), load_file(second / name)
        assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)
    whole_run = lora_config(tmp_path, mixed_dataset, first, "third", peft=None, policy__offline_steps=1, **still)
    third = model(run(whole_run))
    merged, after = PI05RLPolicy.from_pretrained(first).state_dict(), load_file(third / "model.safetensors")
    assert merged.keys() == after.keys() and not (third / "adapter_config.json").exists()
    assert all(torch.allclose(merged[key], after[key], atol=1e-6) for key in merged)


def test_the_critic_beside_an_adapter_labels(tmp_path, mixed_dataset, base):
    dataset = tmp_path / "data"
    shutil.copytree(mixed_dataset, dataset)
    run(lora_config(tmp_path, dataset, base, "lora"))
    assert label([str(tmp_path / "lora"), "--name", "by_lora"]) == 0
    meta = read_labeling(dataset.with_name("data.labels") / "by_lora.parquet").meta
    path = model(tmp_path / "lora" / "checkpoints" / "last").resolve()
    assert meta["critic"]["fingerprint"] == critic_fingerprint(path, SUPPORT)
    assert meta["critic"]["fingerprint"] != critic_fingerprint(base, SUPPORT)


def test_a_run_is_resumed_with_its_own_settings(tmp_path, mixed_dataset, base):
    config = lora_config(tmp_path, mixed_dataset, base)
    run(config)
    with pytest.raises(UserError, match=r"cannot go on with peft\.r: 4 → 8"):
        run(config, resume="true", **{"peft.r": 8})
    lora_config(tmp_path, mixed_dataset, base, peft=None)
    with pytest.raises(ConfigError, match="holds an adapter, but the configuration asks for no peft"):
        run(config, resume="true")


def test_an_adapter_of_other_targets_is_refused(tmp_path, mixed_dataset, base):
    checkpoint = model(run(lora_config(tmp_path, mixed_dataset, base)))
    file = checkpoint / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="1 tensors are missing or unexpected"):
        PI05RLPolicy.from_pretrained(checkpoint)
