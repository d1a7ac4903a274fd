"""Checkpoints as people have them: wrapped, sharded, of older versions, of another model, damaged; loaded or named."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stock import EMBEDDING, stock_checkpoint
from tiny import tiny_config

from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.stored.files import CheckpointError, locate, stored_config
from lerobot_policy_pi05_rl.stored.folders import convert_pickle, why_no_weights
from lerobot_policy_pi05_rl.stored.keys import model_kind, our_key, sizes

HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"
VISION = "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model."
BUFFERS = {
    "normalize_inputs.buffer_observation_state.mean": torch.zeros(4),
    "normalize_inputs.so100-red_buffer_observation_state.std": torch.ones(4),
    "normalize_targets.buffer_action.mean": torch.zeros(3),
    "unnormalize_outputs.buffer_action.std": torch.full((3,), torch.inf),
}


@pytest.fixture
def weights(tmp_path) -> dict[str, torch.Tensor]:
    """The tensors of a stock π0.5 of our sizes, in ``tmp_path/pi05``."""
    stock_checkpoint(tmp_path / "pi05")
    return load_file(tmp_path / "pi05" / "model.safetensors")


@pytest.fixture
def policy(tmp_path, tiny_policy):
    """One of ours, with a critic, in ``tmp_path/ours``."""
    tiny_policy.save_pretrained(tmp_path / "ours")
    return tiny_policy


def store(folder: Path, tensors: dict[str, torch.Tensor], **config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def load(folder: Path, **overrides) -> PI05RLPolicy:
    return PI05RLPolicy.from_pretrained(folder, config=tiny_config(**overrides))


def complaint(folder: Path, **overrides) -> str:
    with pytest.raises(CheckpointError) as error:
        load(folder, **overrides)
    return str(error.value)


def assert_holds(policy: PI05RLPolicy, tensors: dict[str, torch.Tensor]) -> None:
    """Every tensor of the actor is the stored one."""
    for name, value in policy.state_dict().items():
        if "critic" not in name and "advantage_embedding" not in name:
            torch.testing.assert_close(value, tensors[name].to(value.dtype), rtol=0, atol=0)


# ── Names ────────────────────────────────────────────────────────────────────────────────────────────────────────


WRAPPINGS = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled inside": lambda name: name.replace("model.", "model._orig_mod.", 1),
    "DDP": lambda name: f"module.{name}",
    "DDP around compiled": lambda name: f"module._orig_mod.{name}",
    "compiled around DDP": lambda name: f"_orig_mod.module.{name}",
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name.replace('.layers.', '.layers._checkpoint_wrapped_module.')}",
    "no model.": lambda name: name.removeprefix("model."),
    "DDP without model.": lambda name: f"module.{name.removeprefix('model.')}",
    "twice model.": lambda name: f"model.{name}",
    "in a policy": lambda name: f"policy.{name}",
    "layer by layer": lambda name: re.sub(r"\.layers\.(\d+)\.", r".layers.\1._orig_mod.", name),
    "transformers before 4.52": lambda name: (
        name.replace("paligemma.model.language_model.", "paligemma.language_model.model.")
        .replace("paligemma.lm_head", "paligemma.language_model.lm_head")
        .replace("paligemma.model.", "paligemma.")
    ),
}


@pytest.mark.parametrize("kind", WRAPPINGS)
def test_a_wrapped_checkpoint_loads_whole(tmp_path, weights, kind):
    renamed = {WRAPPINGS[kind](name): value for name, value in weights.items()}
    assert renamed.keys() != weights.keys()
    assert_holds(load(store(tmp_path / "wrapped", renamed)), weights)


def test_the_critic_of_a_wrapped_checkpoint_is_loaded(tmp_path, policy):
    stored = policy.state_dict()
    shutil.copytree(tmp_path / "ours", tmp_path / "wrapped")
    store(tmp_path / "wrapped", {f"_orig_mod.module.{name}": value for name, value in stored.items()})
    loaded = PI05RLPolicy.from_pretrained(tmp_path / "wrapped").state_dict()
    assert loaded.keys() == stored.keys() and all(torch.equal(loaded[name], stored[name]) for name in stored)


def test_every_name_of_ours_is_its_own(policy):
    assert all(our_key(name) == name for name in policy.state_dict())


def test_a_tensor_that_is_stored_twice_is_an_error(tmp_path, weights):
    doubled = {**weights, f"module.{EMBEDDING}": weights[EMBEDDING] + 1}
    said = complaint(store(tmp_path / "twice", doubled))
    assert f"{EMBEDDING} twice" in said and f"module.{EMBEDDING}" in said


@pytest.mark.parametrize(
    "kept", [{HEAD}, {EMBEDDING}, {HEAD, EMBEDDING}, set()], ids=["head", "embedding", "both", "-"]
)
def test_the_token_embedding_may_be_stored_as_the_head_it_is_tied_to(tmp_path, weights, kept):
    tied = {name: value for name, value in weights.items() if name not in {HEAD, EMBEDDING} - kept}
    folder = store(tmp_path / "tied", tied)
    if kept:
        expected = weights[EMBEDDING if EMBEDDING in kept else HEAD]
        assert torch.equal(load(folder).state_dict()[EMBEDDING], expected)
    else:
        assert f"1 missing ({EMBEDDING})" in complaint(folder)


def test_what_others_store_beside_a_pi05_is_left_out(tmp_path, weights):
    more = {
        f"{VISION}embeddings.position_ids": torch.arange(4),
        "model.paligemma_with_expert.gemma_expert.model.layers.0.input_layernorm.weight": torch.zeros(32),
        "model.state_proj.weight": torch.zeros(32, 8),
    }
    assert_holds(load(store(tmp_path / "more", weights | more)), weights)


# ── Normalisation in the weights (LeRobot up to 0.3) ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("prefix", ["", "model.", "_orig_mod."])
def test_old_normalisation_is_left_out_and_said_once(tmp_path, weights, caplog, prefix):
    buffers = {f"{prefix}{name}": value for name, value in BUFFERS.items()}
    folder = store(tmp_path / "old", weights | buffers)
    assert_holds(load(folder), weights)
    said = [record.getMessage() for record in caplog.records if "older LeRobot" in record.getMessage()]
    assert len(said) == 1
    assert str(folder) in said[0] and "normalize_inputs.buffer_observation_state.mean" in said[0]


# ── Sharded ──────────────────────────────────────────────────────────────────────────────────────────────────────


def shard(folder: Path, tensors: dict[str, torch.Tensor]) -> list[Path]:
    """Store in three files with an index, as transformers and huggingface_hub do."""
    folder.mkdir(parents=True)
    names, files = sorted(tensors), [folder / f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    parts = {file: names[n::3] for n, file in enumerate(files)}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, file)
    places = {name: file.name for file, part in parts.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def test_a_sharded_checkpoint_loads_whole(tmp_path, weights):
    shard(tmp_path / "sharded", weights)
    assert_holds(load(tmp_path / "sharded"), weights)


def remove_index(files: list[Path]) -> None:
    files[0].with_name("model.safetensors.index.json").unlink()


def rewrite_index(text: str):
    return lambda files: files[0].with_name("model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda files: files[1].unlink(), ["model-00002-of-00003.safetensors", "not beside it"]),
        (lambda files: files[2].write_bytes(files[2].read_bytes()[:-9]), ["model-00003-of-00003", "truncated"]),
        (lambda files: files[0].write_bytes(files[1].read_bytes()), ["twice"]),
        (remove_index, ["no model.safetensors in", "model.safetensors.index.json"]),
        (rewrite_index("{"), ["index.json is damaged"]),
        (rewrite_index('{"weight_map": {}}'), ["index.json is damaged"]),
        (rewrite_index('{"weight_map": {"a": "../x.safetensors"}}'), ["index.json is damaged"]),
        (rewrite_index("[]"), ["index.json is damaged"]),
    ],
)
def test_a_damaged_sharded_checkpoint_names_the_file(tmp_path, weights, damage, words):
    damage(shard(tmp_path / "sharded", weights))
    said = complaint(tmp_path / "sharded")
    assert all(word in said for word in [str(tmp_path / "sharded"), *words]), said


# ── Another folder than the checkpoint's ─────────────────────────────────────────────────────────────────────────


def test_the_folder_that_was_meant_is_named_and_loads(tmp_path, policy):
    run = tmp_path / "run"
    inner = run / "checkpoints" / "000010" / "pretrained_model"
    inner.parent.mkdir(parents=True)
    shutil.move(tmp_path / "ours", inner)
    (inner.parent / "training_state").mkdir()
    (run / "checkpoints" / "last").symlink_to("000010")
    last = run / "checkpoints" / "last" / "pretrained_model"
    places = {
        run: last,
        run / "checkpoints": last,
        run / "checkpoints" / "last": last,
        inner.parent: inner,
        inner.parent / "training_state": inner,
    }
    for given, meant in places.items():
        named = complaint(given).partition("did you mean ")[2].removesuffix("?")
        assert named == str(meant)
        assert torch.equal(load(Path(named)).model.action_in_proj.weight, policy.model.action_in_proj.weight)
    (run / "checkpoints" / "last").unlink()
    assert complaint(run).endswith(f"did you mean {inner}?")
    assert f"give its folder, {inner}" in complaint(inner / "model.safetensors")


def test_a_run_without_a_checkpoint_and_an_empty_folder_are_named(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "no model.safetensors" in complaint(tmp_path / "run") and "checkpoints" in complaint(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in complaint(tmp_path / "empty")
    assert "does not exist" in complaint(tmp_path / "none")


@pytest.mark.parametrize("parts", [1, 2])
def test_pickled_weights_are_not_read_and_the_command_converts_them(tmp_path, weights, parts):
    folder = tmp_path / "pickled"
    folder.mkdir()
    names = sorted(weights)
    for n in range(parts):
        name = "pytorch_model.bin" if parts == 1 else f"pytorch_model-0000{n + 1}-of-0000{parts}.bin"
        torch.save({key: weights[key] for key in names[n::parts]}, folder / name)
    said = complaint(folder)
    assert "pytorch_model" in said and said.endswith(convert_pickle(folder))
    command = shlex.split(said.partition("convert it: ")[2])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert_holds(load(folder), weights)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["params/_METADATA", "assets/x/norm_stats.json"], "convert_jax_model_to_pytorch.py --checkpoint_dir"),
        (["_METADATA", "manifest.ocdbt", "d/0"], "a JAX (orbax) checkpoint of openpi"),
        (["meta/info.json"], "it is a LeRobot dataset"),
        (["readme.txt"], "the folder holds readme.txt"),
    ],
)
def test_what_a_folder_is_instead_is_said(tmp_path, files, words):
    for file in files:
        (tmp_path / "x" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / file).touch()
    assert words in complaint(tmp_path / "x")


def test_a_cached_repository_of_the_hub_is_resolved_to_its_snapshot(tmp_path, weights):
    folder = tmp_path / "models--someone--pi05"
    store(folder / "snapshots" / "abc", weights)
    assert why_no_weights(folder) == f"did you mean {folder / 'snapshots' / 'abc'}?"


# ── Another model ────────────────────────────────────────────────────────────────────────────────────────────────


def as_pi0(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of π0: a state, time mixed into the actions, norms without a condition."""
    tensors = {re.sub(r"(\w*layernorm|norm)\.dense\.weight", r"\1.weight", name): v for name, v in weights.items()}
    tensors = {name: value for name, value in tensors.items() if ".dense." not in name}
    tensors = {name.replace("time_mlp_", "action_time_mlp_"): value for name, value in tensors.items()}
    return tensors | {"model.action_time_mlp_in.weight": torch.zeros(32, 64), "model.state_proj.bias": torch.zeros(32)}


@pytest.mark.parametrize("config", [{}, {"type": "pi0"}, {"type": "pi05"}])
def test_a_pi0_is_named(tmp_path, weights, config):
    said = complaint(store(tmp_path / "pi0", as_pi0(weights), **config))
    assert "holds π0, but a π0.5 is needed" in said and "sizes" not in said


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["model.paligemma_with_expert.paligemma.model.language_model.norm.weight"], "π0-FAST or PaliGemma"),
        (["model.vlm_with_expert.vlm.x.weight"], "SmolVLA"),
        (["model.encoder_robot_state_input_proj.weight"], "ACT"),
        (["model.diffusion.unet.x.weight"], "Diffusion Policy"),
        (["model.something.weight"], None),
    ],
)
def test_models_are_known_by_their_tensors(keys, kind):
    assert model_kind(keys) == kind


def test_a_pi05_is_known_by_its_tensors(policy):
    assert model_kind(policy.state_dict()) is None


@pytest.mark.parametrize(("name", "kind"), [("smolvla", "SmolVLA"), ("pi0_fast", "π0-FAST"), ("groot", "groot")])
def test_another_policy_is_named_by_its_configuration(tmp_path, name, kind):
    folder = store(tmp_path / "other", {"x.weight": torch.zeros(2)}, type=name)
    assert f"holds {kind}, but a π0.5 is needed" in complaint(folder)
    (folder / "model.safetensors").unlink()
    assert f"it is of {kind}; a π0.5 is needed" in complaint(folder)


def test_stocks_act_checkpoint_is_named(checkpoint):
    assert "holds ACT, but a π0.5 is needed" in complaint(checkpoint)
    with pytest.raises(CheckpointError, match=r"is of ACT, but a π0\.5 is needed"):
        PI05RLPolicy.from_pretrained(checkpoint)


# ── Values, kinds and sizes ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_load(tmp_path, weights, dtype):
    cast = {name: value.to(dtype) for name, value in weights.items()}
    policy = load(store(tmp_path / "cast", cast))
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert_holds(policy, cast)


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.bool, "BOOL")]
)
def test_quantised_weights_are_refused_by_name(tmp_path, weights, dtype, name):
    weights[EMBEDDING] = weights[EMBEDDING].to(dtype)
    assert f"{EMBEDDING}: {name}" in complaint(store(tmp_path / "quantised", weights))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, weights, value):
    weights["model.time_mlp_in.bias"][3] = value
    said = complaint(store(tmp_path / "nan", weights))
    assert "1 of 32 values of the tensor model.time_mlp_in.bias are NaN or infinite" in said


def test_a_value_too_large_for_the_policy_is_named(tmp_path, weights):
    weights["model.time_mlp_in.bias"] = torch.full((32,), 1e300, dtype=torch.float64)
    assert "32 of 32 values of the tensor model.time_mlp_in.bias" in complaint(store(tmp_path / "large", weights))


def test_the_tensors_tell_the_sizes(policy):
    config = policy.config
    told = sizes({name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()})
    assert told.pop("image_resolution") == 32
    assert told == {key: getattr(config, key) for key in told}
    assert len(told) == 18


SIZES = {
    "vocab_size": 310,
    "llm_width": 128,
    "llm_mlp_dim": 96,
    "llm_depth": 4,
    "expert_width": 48,
    "expert_mlp_dim": 96,
    "head_dim": 16,
    "num_kv_heads": 2,
    "max_action_dim": 9,
    "vision_width": 48,
    "vision_mlp_dim": 96,
    "vision_depth": 1,
    "vision_patch_size": 8,
    "image_resolution": (64, 64),
    "critic_llm_depth": 1,
    "critic_adapter_rank": 4,
    "critic_folds": 2,
    "num_value_queries": 3,
    "num_value_bins": 51,
}


@pytest.mark.parametrize("key", SIZES)
def test_another_size_is_named_by_its_key_with_both_values_and_the_advice_works(tmp_path, policy, key):
    stored, here = getattr(policy.config, key), SIZES[key]
    said = complaint(tmp_path / "ours", **{key: here})
    flag = said.partition("Give the checkpoint's sizes: ")[2]
    if key == "image_resolution":
        assert "policy.image_resolution is 32 in it and 64 here" in said
        assert flag == "--policy.image_resolution=[32,32]"
    else:
        assert f"policy.{key} is {stored} in it and {here} here" in said
        assert flag == f"--policy.{key}={stored}"
    assert str(tmp_path / "ours" / "model.safetensors") in said
    loaded = load(tmp_path / "ours", **{key: stored}).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in policy.state_dict().items())


def test_one_damaged_tensor_is_not_taken_for_another_size(tmp_path, weights):
    weights["model.action_in_proj.weight"] = torch.zeros(3, 3)
    said = complaint(store(tmp_path / "damaged", weights))
    assert "(3, 3) in the file, (32, 8) here" in said and "It is damaged" in said and "policy." not in said


# ── Configuration, adapter, processors ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"type": "nobody"}', '{"type": "pi05_rl", "llm_depth": "x"}'])
def test_a_damaged_configuration_is_named(tmp_path, policy, text):
    (tmp_path / "ours" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=str(tmp_path / "ours")):
        PI05RLPolicy.from_pretrained(tmp_path / "ours")


def test_weights_without_a_configuration_say_so_and_start_a_run(tmp_path, weights):
    """openpi's own conversion writes weights without LeRobot's configuration."""
    folder = store(tmp_path / "converted", weights)
    with pytest.raises(CheckpointError, match=rf"no config.json .* policy.pi05_checkpoint={folder}"):
        stored_config(folder)
    assert_holds(load(folder), weights)


@pytest.mark.parametrize("text", ["{", "[]", '{"base_model_name_or_path": 3}', '{"base_model_name_or_path": null}'])
def test_a_damaged_adapter_is_named(tmp_path, text):
    folder = tmp_path / "adapter"
    store(folder, {"base_model.model.x.lora_A.weight": torch.zeros(2)})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=str(folder / "adapter_config.json")):
        locate(folder)


def test_the_base_of_an_adapter_may_be_sharded(tmp_path, weights):
    shard(tmp_path / "base", weights)
    folder = store(tmp_path / "adapter", {"base_model.model.x.lora_A.weight": torch.zeros(2)})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    files = locate(folder)
    assert len(files.shards) == 3 and files.directory == folder
