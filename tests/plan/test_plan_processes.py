"""``pi05-rl plan`` for several processes, for an actor, and what a save takes of the host's memory."""

import json
from dataclasses import replace

import pytest
from lerobot.configs.default import PeftConfig
from tiny import batches, make_algorithm, tiny_config, write_config

from lerobot_policy_pi05_rl import cli
from lerobot_policy_pi05_rl.checkpoint.snapshot import collect
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.plan.command import plan
from lerobot_policy_pi05_rl.plan.compute import checkpoint_bytes, host_bytes
from lerobot_policy_pi05_rl.plan.memory import Memory, chunk_memory, training_step_memory
from lerobot_policy_pi05_rl.plan.meta_step import Shape, build, build_actor
from lerobot_policy_pi05_rl.plan.sharding import ROOT, Unit, shard_of, sharded_step_memory

SHAPE = Shape(2, 12)


def test_a_shard_is_a_part_and_what_is_gathered():
    units = {ROOT: Unit(((4,),), (4,), ((4,),), False), "layer": Unit(((8, 10), (3, 2)), (4, 4), ((8, 10),), True)}
    whole = Memory(0, 0, 0, kept_critic=600, activations=300, step=1000)
    shard = shard_of(units, whole, 2, layer_bytes=2)
    # three rows on two processes are four
    assert (shard.weights, shard.gradients) == (4 * (4 + 80 + 8) / 2, 4 * (4 + 80) / 2)
    assert (shard.optimizer, shard.kept_critic, shard.activations) == (2 * shard.gradients, 300, 300)
    # gradients' shards, the rest, two layers in bf16, a layer's gradient twice, what is not sharded
    assert shard.step == shard.gradients + 4 * 4 + 2 * 2 * 88 + 2 * 4 * 80 + 1000
    many = shard_of(units, replace(whole, step=0, kept_critic=0), 80, layer_bytes=2)
    assert many.peak >= 4 * (4 + 80 + 6), "all weights are there before they are cut"


def test_what_a_step_needs_without_its_gradients_is_what_it_needs_beside_them():
    config = tiny_config()
    kept, gone = (training_step_memory(build(config), SHAPE, keeps_gradients=keeps).step for keeps in (True, False))
    gradients = training_step_memory(build(config), SHAPE).gradients
    assert kept - gradients <= gone < kept
    frozen = tiny_config(train_expert_only=True)
    assert training_step_memory(build(frozen), SHAPE, keeps_gradients=False).activations > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_more_processes_hold_less_each(dtype):
    def shard(processes: int) -> Memory:
        return sharded_step_memory(build(tiny_config(dtype=dtype)), SHAPE, processes)

    whole = training_step_memory(build(tiny_config(dtype=dtype)), SHAPE)
    two, eight = shard(2), shard(8)
    assert whole.optimizer > two.optimizer > eight.optimizer >= whole.optimizer / 8
    assert two.activations == eight.activations
    assert two.peak > eight.peak


def test_processes_multiply_samples_and_work_and_divide_the_labels_hours(tmp_path):
    config = load_config(write_config(tmp_path / "c.json", tmp_path / "none", tmp_path / "run"))
    one, four = (plan(config, processes=count) for count in (1, 4))
    assert four.samples_per_step == 4 * one.samples_per_step
    assert four.flops_per_step == 4 * one.flops_per_step
    assert four.memory == one.memory
    assert four.phases["policy"].flops == 4 * one.phases["policy"].flops
    assert four.cloning == 4 * one.cloning
    for gpu, speed in one.samples_per_s.items():
        assert four.samples_per_s[gpu] == pytest.approx(4 * speed)
    sharded = plan(config, processes=4, fsdp=True)
    assert sharded.memory["optimizer"] < one.memory["optimizer"] / 3
    assert sharded.host == sharded.checkpoint
    assert any("FSDP" in line for line in sharded.assumptions)


def test_an_adapter_is_proposed_beside_shards_as_well(tmp_path):
    sizes = {"policy__vocab_size": 9_000_000, "policy__llm_width": 1024, "policy__pi05_checkpoint": "org/base"}
    config = load_config(write_config(tmp_path / "c.json", tmp_path / "none", tmp_path / "run", batch_size=2, **sizes))
    counted = plan(config, processes=2, fsdp=True)
    (peak,) = [memory for flags, memory in counted.changes.items() if "peft" in flags][:1]
    assert peak < sum(counted.memory.values())


def test_a_shard_of_a_base_in_bf16_is_half_as_large():
    adapter = PeftConfig(method_type="LORA", r=4)
    in_fp32, in_bf16 = (
        sharded_step_memory(build(tiny_config(dtype=dtype), adapter), SHAPE, 2) for dtype in ("float32", "bfloat16")
    )
    assert in_bf16.weights < 0.8 * in_fp32.weights
    assert (in_bf16.gradients, in_bf16.optimizer) == (in_fp32.gradients, in_fp32.optimizer)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--processes", "0"], "--processes must be at least 1"),
        (["--fsdp"], "--fsdp needs --processes N"),
        (
            ["--fsdp", "--processes=2", "--policy.compile_model=true"],
            "compile_model and FSDP do not go",
        ),
    ],
)
def test_what_cannot_run_is_not_planned(capsys, tmp_path, arguments, said):
    config = write_config(tmp_path / "c.json", tmp_path / "none", tmp_path / "run", policy__pi05_checkpoint="org/base")
    with pytest.raises(SystemExit) as exit_:
        cli.main(["plan", str(config), *arguments])
    assert exit_.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


def test_the_command_says_each_of_the_new_lines(capsys, tmp_path):
    config = write_config(tmp_path / "c.json", tmp_path / "none", tmp_path / "run", save_in_background=True)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["plan", str(config), "--processes", "2"])
    out = capsys.readouterr().out
    assert exit_.value.code == 0
    for text in ("each of 2 GPUs", "Host memory while one is written", "Acting (actor", "all GPUs"):
        assert text in out
    with pytest.raises(SystemExit):
        cli.main(["plan", str(config), "--json", "--save_in_background=false"])
    assert json.loads(capsys.readouterr().out)["host"] == 0


@pytest.mark.parametrize("overrides", [{}, {"train_expert_only": True}, {"critic_early_stop": 2}])
def test_the_hosts_copy_is_what_a_snapshot_copies(overrides):
    algorithm = make_algorithm(**overrides)
    algorithm.update(batches())
    live = {tensor.data_ptr() for tensor in algorithm.policy.parameters()}
    snapshot = collect(algorithm, {}, copied=True)
    state = [value for entry in snapshot.optimizer["state"].values() for value in entry.values()]
    tensors = [*snapshot.model.values(), *snapshot.recap.values(), *state]
    copied = sum(tensor.nbytes for tensor in tensors if tensor.data_ptr() not in live)
    model = build(tiny_config(**overrides))
    assert host_bytes(model, in_background=True, fsdp=False) == pytest.approx(copied, rel=0.01)
    assert host_bytes(model, in_background=False, fsdp=False) == 0
    assert host_bytes(model, in_background=False, fsdp=True) == checkpoint_bytes(model)


@pytest.mark.parametrize("peft", [None, PeftConfig(method_type="LORA", r=2)])
def test_an_actors_weights_are_those_it_holds(tmp_path, peft):
    config = tiny_config(dtype="bfloat16", pi05_checkpoint="org/base")
    counted = chunk_memory(build_actor(config, peft), Shape(1, 12))
    PI05RLPolicy(tiny_config(dtype="bfloat16")).save_pretrained(tmp_path)
    policy = PI05RLPolicy.from_pretrained(tmp_path, load_critic=False, purpose="act")
    held = sum(tensor.nbytes for tensor in (*policy.parameters(), *policy.buffers()))
    assert held <= counted["weights"] if peft else held == counted["weights"]
    assert counted["peak"] > counted["weights"]


def test_guidance_and_cameras_cost_an_actor_memory():
    def peak(**overrides) -> int:
        counted = chunk_memory(build_actor(tiny_config(**overrides)), Shape(1, 12))
        return counted["peak"] - counted["weights"]

    assert peak(guidance_scale=5.0) > 0
    assert (
        chunk_memory(build_actor(tiny_config()), Shape(4, 12))["peak"]
        > chunk_memory(build_actor(tiny_config()), Shape(1, 12))["peak"]
    )
    full, half = (chunk_memory(build_actor(tiny_config(dtype=kind)), SHAPE) for kind in ("float32", "bfloat16"))
    assert half["weights"] < 0.8 * full["weights"]
