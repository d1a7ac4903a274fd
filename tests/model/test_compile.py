"""``policy.compile_model``: equal to eager, one graph of each kind whatever the depth and length, the same checkpoint.

Most tests use the backend that traces and differentiates a graph as any other does, then runs it eagerly: it is
compilation without the wait for a C++ compiler.

Compiled and eager code sum in other orders, in float32 and bf16 alike, so neither equals the other to a fixed number
of digits on every processor. What is asked is that the compiled step is no further from the step in float64 than a
few times eager's own rounding on the same machine.
"""

import copy
import json

import pytest
import torch
from double import in_double
from lerobot.configs.default import PeftConfig
from runs import metrics, run, step_back
from safetensors.torch import load_file
from tiny import make_batch, model_inputs, randomised, tiny_config, write_config
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_map

from lerobot_policy_pi05_rl import cli
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.model import compiling
from lerobot_policy_pi05_rl.model.lora import add_adapter
from lerobot_policy_pi05_rl.model.trainable import select_trainable
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.plan.flops import training_step_flops
from lerobot_policy_pi05_rl.plan.meta_step import Shape, build

KINDS = 4  # vision layer; language layer, the last or not; expert layer
ROUNDINGS = 4  # how much larger the largest rounding of one order of summation may be than another's
LORA = r".*\.(language_model|vision_tower)\..*\.(q|k|v)_proj"


@pytest.fixture
def without_inductor(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    compiling.compiled.cache_clear()
    yield
    compiling.compiled.cache_clear()


def graphs() -> int:
    """How many were compiled in this process."""
    return counters["stats"]["unique_graphs"]


def make_policy(*, lora: bool = False, **overrides) -> PI05RLPolicy:
    torch.manual_seed(0)
    policy = randomised(PI05RLPolicy(tiny_config(**overrides), load_critic=False)).train()
    select_trainable(policy)
    if lora:
        add_adapter(policy, PeftConfig(r=4, target_modules=LORA, init_type="gaussian"), "org/base")
        randomised(policy)
    return policy


def step(policy: PI05RLPolicy, inputs: dict, *, tagged: bool = True, bf16: bool = False) -> dict[str, torch.Tensor]:
    """The error (B, H, A) of one batch, as ``error``, and its mean's gradients by the parameters' names."""
    model = policy.model
    policy.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        cache = model.encode_prefix(
            model.embed_observation(*[inputs[key] for key in ("images", "img_masks", "tokens", "masks")])
        )
        tags = inputs["tags"] if tagged else None
        error = model.flow_matching_error(cache, inputs["actions"], inputs["noise"], inputs["time"], tags)
    error.mean().backward()
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    return {"error": error.detach(), **gradients}


def assert_equal_steps(
    compiled: PI05RLPolicy, eager: PI05RLPolicy, *, batch: int = 3, text: int = 12, **kind: bool
) -> None:
    """The same error, and gradients of the same parameters, but for the rounding of the machine's own."""
    inputs = model_inputs(batch=batch, text=text)
    found, reference = step(compiled, inputs, **kind), step(eager, inputs, **kind)
    with in_double():
        wide = tree_map(lambda value: value.double() if value.is_floating_point() else value, inputs)
        truth = step(copy.deepcopy(eager).double(), wide, **kind | {"bf16": False})
    assert found.keys() == reference.keys() == truth.keys()

    def largest_rounding(values: dict[str, torch.Tensor]) -> float:
        """As a share of each tensor's largest entry, or of 1e-2: the vision keys' bias has no true gradient."""
        scales = {name: max(float(true.abs().max()), 1e-2) for name, true in truth.items()}
        return max(float((values[name] - true).abs().max()) / scales[name] for name, true in truth.items())

    rounding = largest_rounding(reference)
    assert 0 < rounding < (5e-2 if kind.get("bf16") else 1e-5), "eager itself computes the step"
    assert largest_rounding(found) < ROUNDINGS * rounding


def test_inductors_losses_and_gradients_are_eagers_with_gradient_checkpointing_and_without():
    # Yes saves half a minute of asking a processor that has vector instructions; one that has none must be asked.
    known = True if torch.backends.cpu.get_cpu_capability() != "DEFAULT" else None
    with torch._inductor.config.patch({"cpp.vec_isa_ok": known}):
        policies = [make_policy(compile_model=True, gradient_checkpointing=on) for on in (False, True)]
        before = graphs()
        for policy in policies:
            assert_equal_steps(policy, make_policy(), tagged=False)
            assert graphs() - before == KINDS, "recomputing needs no other"


@pytest.mark.usefixtures("without_inductor")
def test_one_graph_of_each_kind_serves_every_layer_every_length_and_every_batch_size():
    policy, eager = make_policy(compile_model=True), make_policy()
    before = graphs()
    assert_equal_steps(policy, eager, batch=2, text=8)
    assert graphs() - before == KINDS
    for batch, text in ((2, 16), (5, 24), (3, 48), (4, 9)):
        assert_equal_steps(policy, eager, batch=batch, text=text)
    assert graphs() - before == KINDS
    deeper = {"llm_depth": 6, "vision_depth": 5}
    assert_equal_steps(make_policy(compile_model=True, **deeper), make_policy(**deeper))
    checkpointing = {"gradient_checkpointing": True}
    assert_equal_steps(make_policy(compile_model=True, **checkpointing), make_policy(**checkpointing), text=16)
    assert graphs() - before == KINDS


@pytest.mark.usefixtures("without_inductor")
@pytest.mark.parametrize(
    ("overrides", "bf16"),
    [
        ({"lora": True}, False),
        ({"freeze_vision_encoder": True, "train_language_from_layer": 2}, False),
        ({}, True),
    ],
    ids=["lora", "frozen", "bf16"],
)
def test_adapters_frozen_layers_and_bf16_learn_as_without_compilation(overrides, bf16):
    policy, eager = make_policy(compile_model=True, **overrides), make_policy(**overrides)
    assert_equal_steps(policy, eager, tagged=False, bf16=bf16)


@pytest.mark.usefixtures("without_inductor")
def test_a_compiled_checkpoint_has_the_same_tensors_and_samples_the_same_actions(tmp_path):
    policy, eager = make_policy(compile_model=True), make_policy()
    assert policy.state_dict().keys() == eager.state_dict().keys()
    policy.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["compile_model"] is True
    loaded, batch = PI05RLPolicy.from_pretrained(tmp_path, load_critic=False), make_batch(size=2)
    noise, before = torch.randn(2, 6, 8), graphs()
    sample = dict(noise=noise, num_steps=3)
    found, reference = (policy.predict_action_chunk(batch, **sample) for policy in (loaded, eager))
    with in_double():
        wide = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
        truth = copy.deepcopy(eager).double().predict_action_chunk(wide, noise=noise.double(), num_steps=3)
    assert (found - truth).abs().max() < ROUNDINGS * (reference - truth).abs().max() < 1e-4
    assert graphs() - before <= KINDS


@pytest.mark.usefixtures("without_inductor")
def test_a_run_with_held_out_evaluations_resumes_and_learns_what_eager_does(tmp_path, mixed_dataset):
    options = {"dataset__eval_split": 0.5, "save_freq": 1, "policy__offline_steps": 2, "eval_steps": 1}
    options |= {"policy__num_inference_steps": 2}
    options |= {"policy__optimizer_eps": 1e-3}  # with 1e-8 Adam makes whole steps of gradients that are rounding alone
    eager = run(write_config(tmp_path / "a.json", mixed_dataset, tmp_path / "a", **options))
    config = write_config(tmp_path / "b.json", mixed_dataset, tmp_path / "b", policy__compile_model=True, **options)
    compiled = run(config)
    name, before = "pretrained_model/model.safetensors", graphs()
    reference, whole = load_file(eager / name), load_file(compiled / name)
    assert reference.keys() == whole.keys()
    step_back(tmp_path / "b", "000001")
    resumed = load_file(run(config, resume="true") / name)
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []
    assert graphs() == before
    for ours, theirs in zip(metrics(tmp_path / "b"), metrics(tmp_path / "a"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


def test_the_plan_counts_the_same_and_compiles_nothing():
    before = graphs()
    counted = [training_step_flops(build(tiny_config(compile_model=on)), Shape(1, 12)) for on in (True, False)]
    assert counted[0] == counted[1]
    assert graphs() == before


def test_without_a_compiler_the_run_ends_before_it_begins_with_one_line(tmp_path, mixed_dataset, capsys):
    config = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", policy__compile_model=True)
    arguments = ["offline", str(config)]
    torch._dynamo.reset()  # what this process has compiled
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        assert cli.run_verb(cli.verb_function("offline"), arguments[1:], debug=False) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pi05-rl: error: policy.compile_model is true, but torch.compile does not work on cpu")
    assert "no-such-compiler" in last and "policy.compile_model to false" in last
    assert not (tmp_path / "run").exists()


def test_an_unknown_mode_is_named(tmp_path, mixed_dataset):
    config = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", policy__compile_mode="fast")
    with pytest.raises(ConfigError, match=r"policy\.compile_mode must be one of default, .* got 'fast'"):
        load_config(config)
