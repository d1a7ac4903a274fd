"""Damaged checkpoints load what they store, or end in one clear error; nothing is loaded in part."""

from pathlib import Path

import pytest
import torch
from fuzz import (
    BYTES,
    FEW,
    MANY,
    PLACES,
    TREE,
    cases,
    copied,
    damage_bytes,
    damage_json,
    outcome,
    rewrite,
    unchanged,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save
from tiny import write_config

from lerobot_policy_pi05_rl.checkpoint.resume import check_config, checkpoint_to_resume
from lerobot_policy_pi05_rl.checkpoint.write import load_training_state
from lerobot_policy_pi05_rl.config.encoding import encoded
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.offline_learner import train_offline
from lerobot_policy_pi05_rl.recap import RecapAlgorithm, RecapConfig
from lerobot_policy_pi05_rl.stored.files import locate, open_tensors, stored_config
from lerobot_policy_pi05_rl.training.build import load_processors

TENSORS = ("drop", "rename", "wrap", "twice", "reshape", "longer", "cast", "nan", "zeros", "add", "scalar", "empty")
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool, torch.float8_e4m3fn)
TENSOR = st.tuples(st.just("tensor"), st.sampled_from(TENSORS), PLACES, st.sampled_from(DTYPES))
CHANGES = st.lists(st.tuples(PLACES, st.one_of(TENSOR, TENSOR, TREE, BYTES)), min_size=1, max_size=2)
CASES = st.tuples(CHANGES, st.booleans())  # with or without the manifest


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, mixed_dataset):
    """(a run of one step, a copy of it to damage, its configuration)."""
    folder = tmp_path_factory.mktemp("checkpoints")
    path = write_config(folder / "run.json", mixed_dataset, folder / "run", policy__offline_steps=1)
    train_offline(load_config(path))
    copy = write_config(folder / "copy.json", mixed_dataset, folder / "copy", policy__offline_steps=2, resume=True)
    return folder / "run", folder / "copy", copy


def damage_tensors(file: Path, kind: str, place: int, dtype: torch.dtype) -> None:
    tensors = load(file.read_bytes())
    assume(tensors)
    name = sorted(tensors)[place % len(tensors)]
    value = tensors[name]
    floating = value.is_floating_point()
    match kind:
        case "drop":
            del tensors[name]
        case "rename":
            tensors[f"{name}x"] = tensors.pop(name)
        case "wrap":
            tensors = {f"_orig_mod.module.{key}": tensor for key, tensor in tensors.items()}
        case "twice":
            tensors[f"module.{name}"] = value + 1
        case "reshape":
            tensors[name] = value.reshape(-1, 1)
        case "longer":
            tensors[name] = torch.cat([value.reshape(-1), value.reshape(-1)[:1]])
        case "cast":
            assume(floating)
            tensors[name] = value.to(dtype)
        case "nan":
            assume(floating and value.numel())
            tensors[name] = torch.full_like(value, torch.nan)
        case "zeros":
            tensors[name] = torch.zeros_like(value)
        case "add":
            tensors["more"] = torch.zeros(2)
        case "scalar":
            tensors[name] = torch.zeros((), dtype=value.dtype)
        case "empty":
            tensors[name] = value.reshape(-1)[:0]
    rewrite(file, save(tensors))


def apply(run: Path, place: int, how: tuple) -> None:
    files = sorted(path for path in (run / "checkpoints" / "000001").rglob("*") if path.is_file())
    suffix = {"tensor": ".safetensors"}.get(how[0], ".json" if len(how) == 3 else "")
    files = [file for file in files if file.suffix == suffix or not suffix]
    assume(files)
    file = files[place % len(files)]
    try:
        if how[0] == "tensor":
            damage_tensors(file, *how[1:])
        elif len(how) == 3:
            damage_json(file, how)
        else:
            damage_bytes(file, how)
    except (SafetensorError, ValueError):  # an earlier change has left no such file, or no value can be there
        assume(False)


def start_from(folder: Path) -> PI05RLPolicy:
    config = stored_config(folder)
    config.device = "cpu"
    policy = PI05RLPolicy.from_pretrained(folder, config=config)
    preprocess, postprocess = load_processors(config, folder)
    batch = {"observation.state": torch.zeros(1, 4), "task": ["pick the cube"]}
    batch |= {key: torch.zeros(1, 3, 32, 32) for key in config.image_features}
    actions = postprocess(policy.predict_action_chunk(preprocess(batch))[:, 0])
    assert actions.shape == (1, 3) and actions.isfinite().all()
    return policy


def resume(path: Path) -> RecapAlgorithm:
    cfg = load_config(path)
    cfg.validate()
    checkpoint = checkpoint_to_resume(cfg.run_dir)
    check_config(checkpoint, encoded(cfg), cfg.reads)
    folder = checkpoint / "pretrained_model"
    cfg.policy.input_features, cfg.policy.output_features = (
        getattr(stored_config(folder), name) for name in ("input_features", "output_features")
    )
    policy = PI05RLPolicy.from_pretrained(folder, config=cfg.policy)
    load_processors(cfg.policy, folder)
    recap = RecapConfig(policy_config=cfg.policy, seed=cfg.seed, total_steps=cfg.total_steps)
    algorithm = RecapAlgorithm(policy, recap, tasks=["pick the cube"])
    load_training_state(checkpoint, algorithm)
    return algorithm


def check(workplace, changes, whole: bool) -> None:
    original, run, config = workplace
    copied(original, run)
    for place, how in changes:
        apply(run, place, how)
    if not whole:
        (run / "checkpoints" / "000001" / "manifest.json").unlink(missing_ok=True)
    folder = run / "checkpoints" / "000001" / "pretrained_model"
    with unchanged(run):
        policy = outcome(lambda: start_from(folder), str(folder), "policy.")
        algorithm = outcome(lambda: resume(config), str(run), "policy.")
    if policy is not None:
        with open_tensors(locate(folder)) as stored:
            for key, value in policy.state_dict().items():
                torch.testing.assert_close(value, stored[key].read().to(value.dtype), rtol=0, atol=0)
    if algorithm is not None:
        assert algorithm.optimization_step >= 0
        assert all(parameter.isfinite().all() for parameter in algorithm.policy.parameters())


@cases(FEW)
@given(case=CASES)
@pytest.mark.usefixtures("logging_as_before")
def test_any_checkpoint(workplace, case):
    check(workplace, *case)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@cases(MANY)
@given(case=CASES)
@pytest.mark.usefixtures("logging_as_before")
def test_many_checkpoints(workplace, case):
    check(workplace, *case)
