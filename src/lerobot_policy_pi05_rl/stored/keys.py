"""What the names and shapes of a checkpoint's tensors say: their names here, the model they are of, its sizes.

Pure functions; the renames are those of LeRobot's ``_fix_pytorch_state_dict_keys`` (policies/pi05/modeling_pi05.py)
and of transformers before 4.52.
"""

import math
import re
from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]

_GEMMA = "model.paligemma_with_expert.paligemma."
_LANGUAGE = f"{_GEMMA}model.language_model."
_VISION = f"{_GEMMA}model.vision_tower.vision_model."
_EXPERT = "model.paligemma_with_expert.gemma_expert."
_CRITIC = "model.critic.members."
ACTOR_HEAD = f"{_GEMMA}lm_head.weight"
EMBED_TOKENS = f"{_LANGUAGE}embed_tokens.weight"

# What torch.compile, DistributedDataParallel, FSDP and activation checkpointing put into names, at any depth.
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
OUTER = {"base_model", "model", "policy"}  # attributes that hold the network, nested as one likes (PEFT, LeRobot, us)
_RENAMES = (
    (r"^model\.action_time_mlp_(in|out)\.", r"model.time_mlp_\1."),
    (rf"^{re.escape(_GEMMA)}language_model\.lm_head\.", f"{_GEMMA}lm_head."),
    (rf"^{re.escape(_GEMMA)}language_model\.(model\.)?", _LANGUAGE),
    (rf"^{re.escape(_GEMMA)}(vision_tower|multi_modal_projector)\.", rf"{_GEMMA}model.\1."),
)
# Statistics that LeRobot kept in the network up to 0.3, of one dataset or of several by name.
NORMALISATION = re.compile(
    r"^model\.((un)?normalize(_inputs|_outputs|_targets)?|(input|output)_normalizer|normalizer)\.(.*buffer_)?"
)
# What π0.5 does not use and other code stores beside it: logits of the expert, norms without a condition, π0's state.
_UNUSED = re.compile(
    rf"^({re.escape(_EXPERT)}(lm_head|model\.embed_tokens|model\.norm|model\.layers\.\d+\.(input|post_attention)_layernorm)"
    r"\.weight|model\.state_proj\.\w+|.*\.(position_ids|inv_freq))$"
)


def our_key(name: str) -> str:
    """The name that a stored tensor has in the policy's ``state_dict``."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] in OUTER:
        parts.pop(0)
    key = ".".join(["model", *parts])
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def is_unused(key: str) -> bool:
    """Whether π0.5 has no use for the tensor, so that it may be left out where the policy has none of that name."""
    return _UNUSED.match(key) is not None


def model_kind(keys: Iterable[str]) -> str | None:
    """The model that :func:`our_key` names are of, where it is not π0.5; None where they do not tell."""
    keys = list(keys)

    def has(text: str) -> bool:
        return any(text in key for key in keys)

    if has(".lora_A."):
        return "an adapter that was not merged into its weights (PEFT's merge_and_unload does)"
    if has("gemma_expert.") and not has(".dense."):
        return "π0"
    if has("paligemma") and not has("gemma_expert."):
        return "π0-FAST or PaliGemma"
    if has("vlm_with_expert."):
        return "SmolVLA"
    if has("model.vae_encoder") or has("model.encoder_robot_state_input_proj"):
        return "ACT"
    return "Diffusion Policy" if has("model.diffusion.") else None


def sizes(shapes: Mapping[str, Shape]) -> dict[str, int]:
    """The sizes of a π0.5 that its tensors tell, by configuration key; those on which they contradict each other are
    left out."""
    witnesses = {
        "vocab_size": [(EMBED_TOKENS, 0)],
        "llm_width": [(EMBED_TOKENS, 1), (f"{_LANGUAGE}norm.weight", 0)],
        "llm_mlp_dim": [(f"{_LANGUAGE}layers.0.mlp.gate_proj.weight", 0)],
        "expert_width": [("model.action_in_proj.weight", 0), ("model.time_mlp_out.weight", 0)],
        "expert_mlp_dim": [(f"{_EXPERT}model.layers.0.mlp.gate_proj.weight", 0)],
        "max_action_dim": [("model.action_in_proj.weight", 1), ("model.action_out_proj.weight", 0)],
        "vision_width": [(f"{_VISION}embeddings.patch_embedding.weight", 0), (f"{_VISION}post_layernorm.weight", 0)],
        "vision_mlp_dim": [(f"{_VISION}encoder.layers.0.mlp.fc1.weight", 0)],
        "vision_patch_size": [(f"{_VISION}embeddings.patch_embedding.weight", dim) for dim in (2, 3)],
        "num_value_queries": [(f"{_CRITIC}0.queries", 0)],
        "critic_adapter_rank": [(f"{_CRITIC}0.adapters.0.q_proj.down.weight", 0)],
        "num_value_bins": [(f"{_CRITIC}0.head.weight", 0), (f"{_CRITIC}0.head.bias", 0)],
    }
    found = {key: _agreed([_dimension(shapes, *place) for place in places]) for key, places in witnesses.items()}
    for key, prefix in (
        ("llm_depth", f"{_LANGUAGE}layers."),
        ("vision_depth", f"{_VISION}encoder.layers."),
        ("critic_folds", _CRITIC),
        ("critic_llm_depth", f"{_CRITIC}0.backbone.layers."),
        ("critic_llm_depth", f"{_CRITIC}0.adapters."),
    ):
        numbers = {name[len(prefix) :].partition(".")[0] for name in shapes if name.startswith(prefix)}
        found[key] = len(numbers) or found.get(key)
    if any(name.startswith(f"{_CRITIC}0.backbone.") for name in shapes):
        found["critic_adapter_rank"] = 0
    heads = [_dimension(shapes, f"{_LANGUAGE}layers.0.self_attn.{name}_proj.weight", 0) for name in ("q", "k")]
    if None not in heads and heads[0] >= 8:
        found["head_dim"] = heads[0] // 8  # LeRobot's joint layer has eight heads
        found["num_kv_heads"] = heads[1] // found["head_dim"]
    patches = _dimension(shapes, f"{_VISION}embeddings.position_embedding.weight", 0)
    if patches and found["vision_patch_size"]:
        found["image_resolution"] = math.isqrt(patches) * found["vision_patch_size"]
    return {key: value for key, value in found.items() if value is not None}


def size_differences(stored: Mapping[str, Shape], here: Mapping[str, Shape]) -> dict[str, tuple[int, int]]:
    """Configuration key → (stored size, size here), where both tell one and they differ."""
    theirs, ours = sizes(stored), sizes(here)
    return {key: (theirs[key], ours[key]) for key in ours if theirs.get(key, ours[key]) != ours[key]}


def _dimension(shapes: Mapping[str, Shape], name: str, dimension: int) -> int | None:
    shape = shapes.get(name, ())
    return shape[dimension] if dimension < len(shape) else None


def _agreed(values: list[int | None]) -> int | None:
    told = {value for value in values if value is not None}
    return told.pop() if len(told) == 1 else None
