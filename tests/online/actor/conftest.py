"""A learner of the demo's simulator, as an actor sees it."""

from types import SimpleNamespace

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_STATE
from tiny import tiny_config

from lerobot_policy_pi05_rl.online.actor import actor, chunk_model, setup, threads
from lerobot_policy_pi05_rl.processor_pi05_rl import build_tasks_tokenizer, make_pi05_rl_pre_post_processors


@pytest.fixture
def wire(monkeypatch):
    """Weights that are numbers; ``applied`` holds what an actor was to act with."""

    def unpack(data, shapes):
        return {key: torch.full(shape, data) for key, shape in shapes.items()}

    found = SimpleNamespace(applied=[])
    monkeypatch.setattr(actor, "pushed_tensors", lambda policy: dict(policy.named_parameters()))
    monkeypatch.setattr(threads, "unpack_weights", unpack)
    monkeypatch.setattr(chunk_model, "apply_weights", lambda policy, tensors: found.applied.append(tensors))
    monkeypatch.setattr(setup, "frozen_fingerprint", lambda policy, names: "mine")
    return found


@pytest.fixture(scope="module")
def panda_setup(tmp_path_factory):
    """What a learner of the demo's simulator, with 32x32 pictures, says at the join."""
    config = tiny_config(
        input_features={
            **{
                f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 32, 32))
                for name in ("front", "wrist")
            },
            OBS_STATE: PolicyFeature(FeatureType.STATE, (4,)),
        },
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (4,))},
        num_inference_steps=2,
    )
    folder = tmp_path_factory.mktemp("setup")
    config._save_pretrained(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").unlink()
    task = "pick up the cube"
    bounds = {
        key: value * torch.ones(4) for key, value in {"min": -1, "max": 1, "q01": -1, "q99": 1, "mean": 0}.items()
    }
    stats = {key: {**bounds, "std": torch.ones(4)} for key in (OBS_STATE, ACTION)}
    for pipeline in make_pi05_rl_pre_post_processors(config, stats, tokenizer=build_tasks_tokenizer([task])):
        pipeline.save_pretrained(folder)
    return SimpleNamespace(
        session="first",
        policy_config=text,
        processors={path.name: path.read_bytes() for path in folder.iterdir()},
        tasks=[task],
        fps=10.0,
        frozen_fingerprint="",
        max_episode_frames=20_000,
        action_names=["delta_x", "delta_y", "delta_z", "gripper"],
    )
