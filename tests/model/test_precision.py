"""What does not train is held in bf16 where the network computes in bf16, and nothing else changes."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from lerobot.configs.default import PeftConfig
from lerobot.policies import make_policy
from runs import run, step_back
from safetensors.torch import load_file
from tiny import encode_prefix, make_batch, randomised, tiny_config, write_config

from lerobot_policy_pi05_rl.data.batch import POSITION
from lerobot_policy_pi05_rl.model.lora import add_adapter
from lerobot_policy_pi05_rl.model.precision import cast_by_autocast
from lerobot_policy_pi05_rl.model.trainable import pushed_tensors, select_trainable
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.noise import sample_noise
from lerobot_policy_pi05_rl.online.actor.setup import build_policy
from lerobot_policy_pi05_rl.online.transport.weights import frozen_fingerprint
from lerobot_policy_pi05_rl.stored.files import CheckpointError

BF16, FP32 = torch.bfloat16, torch.float32
BOTH_TOWERS = r".*\.(language_model|gemma_expert)\..*\.(q|k|v|o)_proj"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A checkpoint with fp32 weights that bf16 cannot hold."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start")
    randomised(PI05RLPolicy(tiny_config())).save_pretrained(folder)
    return folder


def load(start, purpose=None, **settings) -> PI05RLPolicy:
    config = tiny_config(dtype=settings.pop("dtype", "bfloat16"), **settings)
    return PI05RLPolicy.from_pretrained(start, config=config, purpose=purpose, load_critic=True)


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ({}, ["language_model.layers.2.mlp.", "language_model.layers.2.self_attn.q_proj"]),
        ({"freeze_vision_encoder": True}, ["vision_tower"]),
        ({"train_expert_only": True}, ["vision_tower", "multi_modal_projector", "language_model"]),
        ({"train_language_from_layer": 1}, ["embed_tokens", "language_model.layers.0."]),
    ],
)
def test_the_matrices_that_do_not_train_are_bf16_and_all_that_trains_is_fp32(start, settings, frozen):
    policy = load(start, "train", **settings)
    groups = select_trainable(policy)
    assert {parameter.dtype for group in groups.values() for parameter in group} == {FP32}
    matrices = cast_by_autocast(policy)
    assert all((matrices[name].dtype == BF16) != matrices[name].requires_grad for name in matrices)
    for part in frozen:
        assert any(part in name and weight.dtype == BF16 for name, weight in matrices.items()), part
    others = {name: p for name, p in policy.named_parameters() if name not in matrices}
    assert {parameter.dtype for parameter in others.values()} == {FP32}
    assert not any(parameter.is_meta for parameter in policy.parameters())


def test_nothing_is_bf16_where_the_network_computes_in_fp32_or_nobody_said_what_it_is_for(start):
    for policy in (load(start, "act", dtype="float32"), load(start)):
        assert {parameter.dtype for parameter in policy.parameters()} == {FP32}


def loss_and_gradients(policy: PI05RLPolicy) -> dict[str, torch.Tensor]:
    from lerobot_policy_pi05_rl.losses import RecapLosses
    from lerobot_policy_pi05_rl.thresholds import AdvantageThresholds

    select_trainable(policy)
    losses, batch = RecapLosses(policy.train(), AdvantageThresholds([0.5], window=4)), make_batch()
    with policy.autocast():
        cache = encode_prefix(policy, batch)
        loss, _ = losses.actor_loss(cache, None, batch, sample_noise(0, batch[POSITION], policy.config))
    loss.backward()
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def test_a_frozen_vision_tower_in_bf16_gives_the_same_loss_and_gradients_bit_for_bit(start):
    found, expected = (
        loss_and_gradients(load(start, purpose, freeze_vision_encoder=True)) for purpose in ("train", None)
    )
    assert found.keys() == expected.keys() and len(found) > 50
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_a_table_of_tokens_in_bf16_is_the_only_rounding(start):
    """Its products with the tower's scale are rounded to bf16: of 2^-8 each."""
    found, expected = (load(start, purpose, train_expert_only=True) for purpose in ("train", None))
    towers = [policy.model.paligemma_with_expert for policy in (found, expected)]
    tokens = torch.arange(2, 300)[None]
    embedded, exact = (tower.embed_language_tokens(tokens).float() for tower in towers)
    assert ((embedded - exact).abs() <= exact.abs() * 2**-7).all() and not torch.equal(embedded, exact)
    towers[1].paligemma.model.language_model.embed_tokens.weight.data.copy_(
        towers[0].paligemma.model.language_model.embed_tokens.weight
    )
    batch = make_batch(size=3)
    noise = torch.randn(3, 6, 8)
    chunks = [policy.predict_action_chunk(batch, noise=noise) for policy in (found, expected)]
    torch.testing.assert_close(*chunks, rtol=0, atol=0.05)


def adapted(start, **peft) -> PI05RLPolicy:
    settings = PeftConfig(r=4, target_modules=BOTH_TOWERS, **peft)
    full = settings.full_training_modules or ()
    policy = PI05RLPolicy.from_pretrained(
        start, config=tiny_config(dtype="bfloat16"), purpose="adapt", full_training_modules=full
    )
    add_adapter(policy, settings, start)
    return policy


@pytest.mark.parametrize("full", [None, ["action_out_proj"], ["multi_modal_projector"]])
def test_beside_an_adapter_the_base_is_bf16_and_what_trains_in_full_is_the_checkpoints_own(start, full):
    policy, stored = adapted(start, full_training_modules=full), load_file(start / "model.safetensors")
    groups = select_trainable(policy)
    assert {parameter.dtype for group in groups.values() for parameter in group} == {FP32}
    bases = {name: p for name, p in policy.named_parameters() if name.endswith("base_layer.weight")}
    assert len(bases) == 22 and {parameter.dtype for parameter in bases.values()} == {BF16}
    for part in full or ():
        (trained,) = (p for name, p in policy.named_parameters() if f"{part}.modules_to_save" in name and p.ndim > 1)
        (original,) = (value for name, value in stored.items() if part in name and value.ndim > 1)
        assert trained.requires_grad and torch.equal(trained, original)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loaded_weights_lie_as_torch_would_lay_them(start, dtype):
    """Where memory begins decides on some processors how a product of matrices rounds: a run that goes on must not
    differ from one that nobody stopped."""
    policy = load(start, "train", dtype=dtype, train_expert_only=True)

    alignment = 64  # of every tensor that torch allocates on the CPU
    assert [name for name, p in policy.named_parameters() if p.data_ptr() % alignment] == []


def test_a_trained_adapter_comes_back_on_a_bf16_base_as_it_was(start, tmp_path):
    policy = randomised(adapted(start))
    policy.save_pretrained(tmp_path / "adapter")
    again = PI05RLPolicy.from_pretrained(
        tmp_path / "adapter", config=tiny_config(dtype="bfloat16"), keep_adapter=True, purpose="adapt"
    )
    ours, theirs = ({n: p for n, p in x.named_parameters() if "lora_" in n} for x in (policy, again))
    assert ours.keys() == theirs.keys() and len(ours) == 44
    assert all(torch.equal(ours[name], theirs[name]) and theirs[name].dtype == FP32 for name in ours)


@pytest.mark.parametrize("kind", ["frozen", "adapter"])
def test_a_run_in_bf16_resumes_bit_for_bit_and_stock_lerobot_loads_it(start, tmp_path, mixed_dataset, kind):
    changes = {"policy__dtype": "bfloat16", "policy__pi05_checkpoint": str(start), "save_freq": 2}
    changes |= (
        {"policy__train_expert_only": True} if kind == "frozen" else {"peft": {"r": 4, "target_modules": BOTH_TOWERS}}
    )
    file = "model.safetensors" if kind == "frozen" else "adapter_model.safetensors"
    path = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", **changes)
    last = run(path) / "pretrained_model"
    whole = load_file(last / file)
    assert {tensor.dtype for tensor in whole.values()} == ({FP32, BF16} if kind == "frozen" else {FP32})
    step_back(tmp_path / "run", "000002")
    resumed = load_file(run(path, resume="true") / "pretrained_model" / file)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    loaded = PI05RLPolicy.from_pretrained(last)
    assert loaded.predict_action_chunk(make_batch(size=2)).isfinite().all()


@pytest.mark.parametrize("settings", [{}, {"train_expert_only": True}])
def test_an_actor_holds_every_matrix_in_bf16_and_has_the_learners_frozen_weights(start, settings):
    config = tiny_config(dtype="bfloat16", pi05_checkpoint=str(start), **settings)
    learner = PI05RLPolicy.from_pretrained(start, config=config, purpose="train")
    select_trainable(learner)
    actor = build_policy(config, None)
    assert {weight.dtype for weight in cast_by_autocast(actor).values()} == {BF16} and actor.model.critic is None
    pushed = set(pushed_tensors(learner))
    assert frozen_fingerprint(actor, pushed) == frozen_fingerprint(learner, pushed) != ""


# LeRobot's tools do not say whether the policy that they load will train.


RECORDED = {"action": {"dtype": "float32", "shape": (3,), "names": None}}


def by_tool(start, **settings) -> PI05RLPolicy:
    config = tiny_config(dtype="bfloat16", **settings)
    config.pretrained_path = start
    return make_policy(config, ds_meta=SimpleNamespace(features=RECORDED, stats=None))


def all_of(policy: PI05RLPolicy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def assert_complete(policy: PI05RLPolicy, start) -> None:
    """Every tensor is the checkpoint's bit for bit, the critic's among them."""
    found, stored = all_of(policy), load_file(start / "model.safetensors")
    assert found.keys() == stored.keys() and any(name.startswith("model.critic") for name in found)
    assert [name for name in found if not torch.equal(found[name], stored[name])] == []


def test_a_policy_that_a_tool_loads_acts_in_bf16_without_a_critic_as_an_actor_does(start):
    policy, actor = by_tool(start), load(start, "act")
    assert policy.model.critic is None and not policy.training
    held = {name: parameter.dtype for name, parameter in policy.named_parameters()}
    assert held == {n: p.dtype for n, p in actor.named_parameters() if not n.startswith("model.critic")}
    assert list(held.values()).count(BF16) > 20
    batch, noise = make_batch(size=3), torch.randn(3, 6, 8)
    chunks = [each.predict_action_chunk(batch, noise=noise) for each in (policy, actor)]
    assert torch.equal(*chunks)


@pytest.mark.parametrize(
    "begin",
    [
        lambda policy: policy.train(),
        lambda policy: policy.get_optim_params(),
        lambda policy: policy.predict_values(make_batch(size=2)),
        lambda policy: policy.wrap_with_peft(peft_cli_overrides={"r": 4}).unload(),
    ],
    ids=["train", "optimizer", "values", "peft"],
)
def test_once_it_trains_or_values_all_of_the_checkpoint_is_there(start, begin):
    policy = by_tool(start)
    policy.config.pretrained_path = start
    parameters = dict(policy.named_parameters())
    begin(policy)
    assert_complete(policy, start)
    now = dict(policy.named_parameters())
    same = [name for name, parameter in parameters.items() if now[name] is parameter]  # an optimizer may hold them
    assert set(parameters) - set(same) <= {"model.advantage_embedding.weight"}  # of which PEFT trains a copy
    policy.train().eval()
    assert_complete(policy, start)


def test_saving_it_loses_nothing(start, tmp_path):
    by_tool(start).save_pretrained(tmp_path)
    found, stored = (load_file(folder / "model.safetensors") for folder in (tmp_path, start))
    assert found.keys() == stored.keys() and all(torch.equal(found[name], stored[name]) for name in found)


def test_weights_that_were_changed_meanwhile_stay_changed(start):
    policy = by_tool(start)
    weight = policy.model.language_model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight.add_(1)
    changed = weight.float()
    policy.train()
    assert weight.dtype == FP32 and torch.equal(weight, changed)


def test_files_that_are_gone_when_it_is_to_train_are_an_error_and_it_goes_on_acting(start, tmp_path):
    copied = shutil.copytree(start, tmp_path / "copy")
    policy = by_tool(copied)
    shutil.rmtree(copied)
    with pytest.raises(CheckpointError, match="No such file"):
        policy.train()
    assert torch.isfinite(policy.predict_action_chunk(make_batch(size=1))).all()
