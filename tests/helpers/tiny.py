"""A tiny π0.5: its configuration, policy, batches and runs."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from lerobot.configs import FeatureType, PolicyFeature

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.data.batch import ACTION_IS_PAD, FOLD, INTERVENTION, POSITION, RETURN, TASK_INDEX
from lerobot_policy_pi05_rl.model.cache import PrefixCache
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.recap import RecapAlgorithm, RecapConfig

TINY_SIZES = {
    "llm_width": 64,
    "llm_mlp_dim": 128,
    "expert_width": 32,
    "expert_mlp_dim": 64,
    "llm_depth": 3,
    "head_dim": 8,
    "vision_width": 32,
    "vision_mlp_dim": 64,
    "vision_depth": 2,
    "vision_heads": 4,
    "vision_patch_size": 16,
    "image_resolution": [32, 32],
    "vocab_size": 300,
    "critic_llm_depth": 2,
    "critic_folds": 1,
    "num_value_queries": 2,
    "chunk_size": 6,
    "n_action_steps": 3,
    "max_action_dim": 8,
    "max_state_dim": 8,
}
CAMERAS = ("observation.images.front", "observation.images.wrist")


def tiny_config(**overrides) -> PI05RLConfig:
    """A π0.5 of some ten thousand parameters, on CPU."""
    values = {
        **TINY_SIZES,
        "image_resolution": (32, 32),
        "device": "cpu",
        "tokenizer": "tasks",
        "tokenizer_max_length": 48,
        "input_features": {
            **{camera: PolicyFeature(FeatureType.VISUAL, (3, 32, 32)) for camera in CAMERAS},
            "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (3,))},
    }
    return PI05RLConfig(**{**values, **overrides})


def randomised(policy: PI05RLPolicy) -> PI05RLPolicy:
    """Random values where the initialisation has zeros, so that equality tests compare something."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return policy


def model_inputs(batch: int = 3, text: int = 12, seed: int = 1) -> dict[str, torch.Tensor]:
    """What the network reads, drawn: two cameras, padded text, every tag, actions, noise, time."""
    g = torch.Generator().manual_seed(seed)
    masks = torch.ones(batch, text, dtype=torch.bool)
    masks[0, text - 4 :] = False
    return {
        "images": [torch.rand(batch, 3, 32, 32, generator=g) * 2 - 1 for _ in CAMERAS],
        "img_masks": [torch.ones(batch, dtype=torch.bool) for _ in CAMERAS],
        "tokens": torch.randint(2, 300, (batch, text), generator=g),
        "masks": masks,
        "tags": torch.arange(batch) % 3 - 1,
        "actions": torch.randn(batch, 6, 8, generator=g),
        "noise": torch.randn(batch, 6, 8, generator=g),
        "time": torch.rand(batch, generator=g),
    }


def make_batch(first: int = 0, size: int = 6) -> dict:
    """A preprocessed batch, drawn from its positions."""
    g = torch.Generator().manual_seed(first)
    return {
        **{camera: torch.rand(size, 3, 32, 32, generator=g) for camera in CAMERAS},
        "observation.language.tokens": torch.randint(2, 300, (size, 9), generator=g),
        "observation.language.attention_mask": torch.ones(size, 9, dtype=torch.bool),
        "action": torch.randn(size, 6, 3, generator=g),
        ACTION_IS_PAD: torch.arange(6).expand(size, -1) >= torch.randint(1, 7, (size, 1), generator=g),
        RETURN: -torch.rand(size, generator=g),
        TASK_INDEX: torch.zeros(size, dtype=torch.long),
        INTERVENTION: torch.zeros(size, dtype=torch.bool),
        FOLD: torch.zeros(size, dtype=torch.long),
        POSITION: torch.arange(first, first + size),
    }


def batches() -> Iterator[dict]:
    """:func:`make_batch` without end, six positions at a time."""
    first = 0
    while True:
        yield make_batch(first)
        first += 6


def encode_prefix(policy: PI05RLPolicy, batch: dict) -> PrefixCache:
    """What the actor reads of a batch's observations."""
    return policy.model.encode_prefix(policy.embed_observation(batch))


def make_algorithm(steps: int = 10, **overrides) -> RecapAlgorithm:
    """The update around a tiny randomised policy; ``overrides`` are fields of its configuration."""
    torch.manual_seed(0)
    values = {"advantage_window": 4, "actor_lr": 1e-3, "critic_lr": 1e-3, **overrides}
    policy = randomised(PI05RLPolicy(tiny_config(**values)))
    config = RecapConfig(policy_config=policy.config, seed=3, total_steps=steps)
    return RecapAlgorithm(policy, config, tasks=["pick the cube"])


def write_config(path: Path, dataset: Path, run_dir: Path, **changes) -> Path:
    """A configuration for a run of a few steps on the CPU; dotted keys in ``changes`` override."""
    raw = {
        "output_dir_offline": str(run_dir),
        "seed": 7,
        "num_workers": 0,
        "batch_size": 4,
        "log_freq": 1,
        "save_freq": 100,
        "dataset": {"repo_id": "test/tiny", "root": str(dataset), "eval_split": 0.0},
        "policy": {
            **TINY_SIZES,
            "device": "cpu",
            "tokenizer": "tasks",
            "tokenizer_max_length": 48,
            "offline_steps": 4,
            "actor_lr": 1e-3,
            "critic_lr": 1e-3,
        },
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = raw
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    if raw["policy"]["offline_steps"] == 1:  # one step has no two phases
        raw["policy"].setdefault("advantage_labels", "running")
    path.write_text(json.dumps(raw))
    return path
