"""``pi05-rl plan``: counts against formulas and against torch's own, memory by storage, what the command prints."""

import contextlib
import json
import subprocess
import sys

import pytest
import torch
from commands import REPOSITORY
from lerobot.configs.default import PeftConfig
from tiny import batches, make_algorithm, tiny_config, write_config
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

from lerobot_policy_pi05_rl import cli
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.model.cache import Block
from lerobot_policy_pi05_rl.model.lora import add_adapter, stored_state
from lerobot_policy_pi05_rl.model.network import PI05RLPytorch
from lerobot_policy_pi05_rl.model.precision import cast_by_autocast, names_in_bf16, place
from lerobot_policy_pi05_rl.model.trainable import pushed_tensors, select_trainable
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.online.transport.weights import pack_weights, unpack_weights
from lerobot_policy_pi05_rl.plan.command import plan as api_plan
from lerobot_policy_pi05_rl.plan.compute import checkpoint_bytes, parameters_by_part, pushed_bytes
from lerobot_policy_pi05_rl.plan.flops import ATTENTION, total, training_step_flops
from lerobot_policy_pi05_rl.plan.memory import LiveBytes, training_step_memory
from lerobot_policy_pi05_rl.plan.meta_modes import FusedAttention, MetaAutocast
from lerobot_policy_pi05_rl.plan.meta_step import Shape, build
from lerobot_policy_pi05_rl.plan.setup import make_setup


def count(batch_size: int = 1, **overrides) -> dict:
    return training_step_flops(build(tiny_config(**overrides)), Shape(batch_size, text_tokens=12))


@pytest.mark.parametrize(
    "overrides",
    [
        {"policy_extraction": "none"},
        {"use_separate_critic": False},
        {},
        {"critic_image_pooling": 1},
        {"critic_llm_depth": 1},
    ],
)
def test_every_step_costs_the_least_that_the_formula_says_attention_included(overrides):
    from minimum_flops import minimum_flops

    counted = count(**overrides)
    assert total(counted) == minimum_flops(tiny_config(**overrides), cameras=2, text=12)


def test_flops_are_linear_in_the_batch_and_backward_is_twice_forward():
    one, four = count(1), count(4)
    assert total(four) == 4 * total(one)
    for part in ("image projection", ATTENTION):
        assert one[part]["backward"] == 2 * one[part]["forward"]


@pytest.mark.parametrize("extraction", ["conditioning", "none"])
def test_a_dataset_that_is_not_there_is_taken_to_fit_the_policy(tmp_path, extraction):
    config = write_config(tmp_path / "c.json", tmp_path / "none", tmp_path / "run", policy__max_action_dim=4)
    setup = make_setup(load_config(config, [f"--policy.policy_extraction={extraction}"]))
    assert setup.config.policy.action_feature.shape == (4,)
    assert setup.config.policy.robot_state_feature.shape == (6,)
    assert api_plan(load_config(config)).assumptions


def test_checkpointed_layers_are_counted_again():
    plain, again = count(), count(gradient_checkpointing=True)
    assert again[ATTENTION]["backward"] == plain[ATTENTION]["backward"] + plain[ATTENTION]["forward"]
    assert again[ATTENTION]["forward"] == plain[ATTENTION]["forward"]
    assert total(plain, "backward") + total(plain, "forward") > total(again, "backward") > total(plain, "backward")


def test_frozen_parts_have_neither_gradients_nor_optimizer_state_and_no_backward():
    model = build(tiny_config(freeze_vision_encoder=True))
    parameters, memory = parameters_by_part(model), training_step_memory(model, Shape(2, 12))
    assert parameters["vision tower"]["trainable"] == 0 < parameters["vision tower"]["frozen"]
    trainable = sum(kinds["trainable"] for kinds in parameters.values())
    frozen = sum(kinds["frozen"] for kinds in parameters.values())
    assert (memory.gradients, memory.optimizer) == (4 * trainable, 8 * trainable)
    assert 0 <= memory.weights - 4 * (trainable + frozen) < 50_000, "buffers beside the parameters"
    assert training_step_flops(model, Shape(2, 12))["vision tower"]["backward"] == 0


def test_live_bytes_follow_storages_from_creation_to_end():
    with LiveBytes([]) as live:
        first = torch.empty(100, device="meta")
        view = first[:10]
        second = first + 1
        assert live.now == 800
        del first
        assert live.now == 800, "a view keeps its storage"
        del view
        assert (live.now, live.peak) == (400, 800)
    assert second.shape == (100,)


def test_checkpointing_keeps_less_and_accumulation_keeps_gradients_beside_activations():
    shape = Shape(8, 12)
    plain = training_step_memory(build(tiny_config()), shape)
    checkpointed = training_step_memory(build(tiny_config(gradient_checkpointing=True)), shape)
    accumulated = training_step_memory(build(tiny_config(gradient_accumulation_steps=2)), shape)
    assert checkpointed.activations < plain.activations / 2
    assert accumulated.activations == plain.activations
    assert accumulated.peak >= plain.peak + 0.9 * plain.gradients


class _CudaAutocast:
    """torch's own CUDA autocast, which the ``torch.autocast`` of a machine without CUDA refuses to switch on."""

    def __enter__(self):
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.autocast_increment_nesting()

    def __exit__(self, *exc_info):
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


class _HalfAttention(TorchFunctionMode):
    """Attention's inputs in bf16, as autocast makes them in front of the public function."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") == "scaled_dot_product_attention":
            args = [tensor.to(torch.bfloat16) for tensor in args]
            if kwargs.get("attn_mask") is not None:
                kwargs = {**kwargs, "attn_mask": kwargs["attn_mask"].to(torch.bfloat16)}
        return func(*args, **(kwargs or {}))


def kept_for_backward(device: str, autocast) -> int:
    """Bytes that the forward of the network keeps, its parameters left out."""
    with torch.device("meta"):
        model = PI05RLPytorch(tiny_config()).train()
    with FakeTensorMode() if device == "cuda" else torch.device("meta"):
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(torch.empty(parameter.shape, device=device))
            for name, buffer in module._buffers.items():
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
        own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        images = [torch.empty(2, 3, 32, 32, device=device) for _ in range(2)]
        masks = [torch.empty(2, dtype=torch.bool, device=device) for _ in range(2)]
        tokens = torch.empty(2, 12, dtype=torch.long, device=device)
        actions, time = torch.empty(2, 6, 8, device=device), torch.empty(2, device=device)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with FusedAttention(), autocast[0], autocast[1], hooks:
            prefix = Block(*model.embed_prefix(images, masks, tokens, tokens > 0))
            cache = model.encode_prefix(prefix)
            logits = model.critic_logits(model.critic_features(prefix, cache))
            error = model.flow_matching_error(cache, actions, actions, time)
            loss = logits.log_softmax(dim=-1).sum() + error.mean()
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)


@pytest.mark.skipif(torch.version.cuda is None, reason="torch without CUDA has no CUDA autocast to compare with")
def test_autocast_on_the_meta_device_keeps_what_torchs_own_keeps_on_a_gpu():
    meta = kept_for_backward("meta", (MetaAutocast(), contextlib.nullcontext()))
    cuda = kept_for_backward("cuda", (_CudaAutocast(), _HalfAttention()))
    full = kept_for_backward("meta", (contextlib.nullcontext(), contextlib.nullcontext()))
    assert meta == pytest.approx(cuda, rel=0.01)
    assert abs(full - cuda) > 0.1 * cuda, "the comparison must be able to fail"


def test_the_checkpoints_size_is_that_of_what_a_checkpoint_holds():
    overrides = {"critic_target": "td", "n_step": 2, "critic_early_stop": 2}
    algorithm = make_algorithm(**overrides)
    size = sum(tensor.nbytes for tensor in algorithm.policy.state_dict().values())
    size += sum(tensor.nbytes for tensor in algorithm.state_dict().values())
    trained = make_algorithm()
    trained.update(batches())
    size += sum(tensor.nbytes for state in trained.optimizer.state.values() for tensor in state.values())
    assert checkpoint_bytes(build(tiny_config(**overrides))) == pytest.approx(size, rel=0.01)


def plan(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["plan", *map(str, arguments)])
    printed = capsys.readouterr()
    return exit_.value.code, printed.out, printed.err


@pytest.mark.parametrize("overrides", [{}, {"train_expert_only": True, "dtype": "bfloat16"}])
def test_what_is_pushed_is_counted(overrides):
    overrides["pi05_checkpoint"] = "somewhere"
    policy = make_algorithm(**{**overrides, "pi05_checkpoint": None}).policy
    policy.config.pi05_checkpoint = "somewhere"  # which has what does not train
    tensors = pushed_tensors(policy)
    dtype = getattr(torch, policy.config.dtype)
    sent = unpack_weights(pack_weights(tensors, dtype), {name: tensor.shape for name, tensor in tensors.items()})
    assert pushed_bytes(build(tiny_config(**overrides))) == sum(tensor.nbytes for tensor in sent.values()) > 0


def test_the_shipped_configuration_is_planned_without_its_dataset(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few_layers = [f"--policy.{name}=2" for name in ("llm_depth", "vision_depth")]
    filling = ["--policy.critic_llm_depth=1", "--policy.vocab_size=1600000"]  # a table that fills half a large card
    config = REPOSITORY / "configs" / "so101.json"
    code, out, _ = plan(capsys, config, "--json", "--policy.offline_steps=2500", *few_layers, *filling)
    assert code == 0
    result = json.loads(out)
    assert any("no dataset" in line for line in result["assumptions"])
    assert result["parameters"]["token embedding"] == {"trainable": 1600000 * 2048, "frozen": 0}
    assert result["samples_per_step"] == 32
    assert result["flops_per_step"] == total(result["flops_per_batch"])
    assert result["checkpoints_written"] == 3 and result["disk"] == 3 * result["checkpoint"]
    assert result["fits"] == {"12": False, "16": False, "24": False, "48": False, "80": True, "139": True}
    assert result["changes"]["--policy.train_expert_only=true"] < 24 * 2**30 < result["memory"]["peak"]
    assert result["with_checkpointing"]["activations"] < result["without_checkpointing"]["activations"]
    assert list(tmp_path.iterdir()) == []


def test_cameras_come_from_the_dataset_or_from_the_command_line(capsys, tmp_path, mixed_dataset):
    path = write_config(tmp_path / "run.json", mixed_dataset, tmp_path / "run")
    _, two, _ = plan(capsys, path, "--json")
    _, one, _ = plan(capsys, path, "--json", "--cameras", "1")
    vision = [json.loads(out)["flops_per_batch"]["vision tower"]["forward"] for out in (two, one)]
    assert vision[0] == 2 * vision[1]
    code, table, _ = plan(capsys, path)
    assert code == 0 and "vision tower" in table and "12 GiB" in table
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cameras", "0"], "--cameras must be at least 1"),
        (["--cameras", "two"], "--cameras"),
        (["--efficiency", "40"], "--efficiency must be above 0 and at most 1"),
        (["--policy.critic_llm_dept=3"], "did you mean policy.critic_llm_depth?"),
    ],
)
def test_bad_arguments_end_in_one_line(capsys, tmp_path, mixed_dataset, arguments, said):
    path = write_config(tmp_path / "run.json", mixed_dataset, tmp_path / "run")
    code, _, err = plan(capsys, path, *arguments)
    assert code == 2 and said in err.splitlines()[-1]


@pytest.mark.slow
def test_the_predicted_peak_is_within_15_percent_of_the_measured_one():
    lines = ["small", "small_checkpointing", "adapters", "lora_adapters", "fsdp"]
    command = [sys.executable, REPOSITORY / "benchmarks" / "memory.py", "--json", "--lines", *lines]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    rows = json.loads(printed.splitlines()[-1])
    assert len(rows) == len(lines)
    for row in rows:
        assert row["predicted"] == pytest.approx(row["measured"], rel=0.15), row


BOTH_TOWERS = r".*\.(language_model|gemma_expert)\..*\.(q|k|v|o)_proj"


@pytest.mark.parametrize("targets", [None, BOTH_TOWERS])
def test_an_adapter_is_counted_as_it_is_trained_stored_and_sent(targets):
    peft, config = PeftConfig(r=4, target_modules=targets), tiny_config(dtype="bfloat16", pi05_checkpoint="org/base")
    policy = PI05RLPolicy(config)
    for name in names_in_bf16(policy, "adapt"):
        place(policy, name, policy.get_parameter(name).detach().to(torch.bfloat16))
    add_adapter(policy, peft, "org/base")
    trainable = [parameter for group in select_trainable(policy).values() for parameter in group]
    model = build(config, peft)
    memory, shape = training_step_memory(model, Shape(2, 12)), Shape(2, 12)
    assert memory.weights == sum(t.nbytes for t in (*policy.parameters(), *policy.buffers())) + counters(model)
    assert memory.gradients == sum(parameter.nbytes for parameter in trainable)
    stored = sum(tensor.nbytes for tensor in stored_state(policy).values())
    assert checkpoint_bytes(model) == stored + 2 * memory.gradients
    sent = sum(tensor.numel() for tensor in pushed_tensors(policy).values())
    assert pushed_bytes(model) == 2 * sent > 0
    parts = parameters_by_part(model)
    assert parts["vision tower"]["trainable"] == 0 < parts["action expert"]["trainable"]
    assert (parts["language tower"]["trainable"] > 0) == (targets is not None)
    assert training_step_flops(model, shape)["vision tower"]["backward"] == 0


def counters(model) -> int:
    """Bytes of the losses' own buffers, beside the policy's."""
    own = {id(tensor) for tensor in (*model.policy.parameters(), *model.policy.buffers())}
    return sum(t.nbytes for t in (*model.losses.parameters(), *model.losses.buffers()) if id(t) not in own)


def test_weights_that_do_not_train_are_counted_in_bf16():
    full, half = (build(tiny_config(train_expert_only=True, dtype=kind)) for kind in ("float32", "bfloat16"))
    counted = [training_step_memory(model, Shape(2, 12)) for model in (full, half)]
    matrices = cast_by_autocast(full.policy)
    frozen = sum(4 * weight.numel() for weight in matrices.values() if not weight.requires_grad)
    assert counted[0].weights - counted[1].weights == frozen / 2 > 0.2 * counted[0].weights
    assert counted[0].gradients == counted[1].gradients


def test_the_changes_are_flags_that_plan_itself_takes(capsys, tmp_path):
    sizes = {"policy__vocab_size": 9_000_000, "policy__llm_width": 1024, "policy__pi05_checkpoint": "org/base"}
    sizes["policy__gradient_accumulation_steps"] = 2
    config = write_config(tmp_path / "c.json", tmp_path / "none", tmp_path / "run", batch_size=2, **sizes)
    planned = json.loads(plan(capsys, config, "--json")[1])
    changes = planned["changes"]
    assert max(changes.values()) < planned["memory"]["peak"], "what helps nothing is no suggestion"
    assert "--peft.method_type=LORA --peft.r=16" in changes and "--policy.train_expert_only=true" in changes
    assert "--batch_size=1 --policy.gradient_accumulation_steps=4" in changes
    for flags, peak in changes.items():
        code, out, _ = plan(capsys, config, "--json", *flags.split())
        assert code == 0 and json.loads(out)["memory"]["peak"] == peak, flags
