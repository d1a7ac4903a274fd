"""Checkpoints as stock LeRobot saves them."""

import json

import torch
from safetensors.torch import save_file
from tiny import randomised, tiny_config

from lerobot_policy_pi05_rl.model.weights import ADVANTAGE_EMBEDDING
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy

EMBEDDING = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"


def stock_checkpoint(folder, *, prefix: str = "model.", tied: bool = False, **sizes):
    """A directory as LeRobot saves stock π0.5: no critic, two logits heads nobody uses."""
    torch.manual_seed(5)
    source = randomised(PI05RLPolicy(tiny_config(**sizes), load_critic=False))
    torch.nn.init.zeros_(source.model.advantage_embedding.weight)  # stock has no tag
    tensors = {name: tensor.clone() for name, tensor in source.state_dict().items() if name != ADVANTAGE_EMBEDDING}
    tensors["model.paligemma_with_expert.gemma_expert.lm_head.weight"] = torch.randn(300, 32)
    head = tensors.pop(EMBEDDING) if tied else torch.randn(300, 64)
    tensors["model.paligemma_with_expert.paligemma.lm_head.weight"] = head
    folder.mkdir(parents=True)
    save_file({prefix + k.removeprefix("model."): v for k, v in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"type": "pi05"}))
    return source
