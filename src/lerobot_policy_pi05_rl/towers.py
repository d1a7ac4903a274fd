"""π0.5's two towers (language model and action expert) with every size taken from the configuration, and their
joint pass with fused attention.

Stock (lerobot/policies/pi05/modeling_pi05.py: compute_layer_complete) computes attention eagerly and runs the last
language layer to its end, although only that layer's keys and values are ever read.
"""

import torch
import torch.nn.functional as F
from lerobot.policies.pi05.modeling_pi05 import PaliGemmaWithExpertModel
from lerobot.policies.pi_gemma import PaliGemmaModelWithPiGemma, PiGemmaModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.auto import CONFIG_MAPPING
from transformers.models.gemma.modeling_gemma import apply_rotary_pos_emb

from .configuration_pi05_rl import PI05RLConfig


class _WithoutLogitsHead(nn.Module):
    """Holds ``model`` under stock's attribute path; stock's logits head, which nothing uses, is never built."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model


class PaliGemmaWithExpert(PaliGemmaWithExpertModel):
    """Stock's two towers with every size taken from the configuration."""

    def __init__(self, config: PI05RLConfig):
        nn.Module.__init__(self)  # stock's own constructor knows two sizes only
        self.freeze_vision_encoder = config.freeze_vision_encoder
        self.train_expert_only = config.train_expert_only
        text = {
            "intermediate_size": config.llm_mlp_dim,
            "num_attention_heads": 8,  # fixed in LeRobot's compute_layer_complete
            "head_dim": config.head_dim,
            "num_hidden_layers": config.llm_depth,
            "num_key_value_heads": config.num_kv_heads,
            "hidden_activation": "gelu_pytorch_tanh",
            "dtype": "float32",
            "vocab_size": config.vocab_size,
        }
        vlm = CONFIG_MAPPING["paligemma"]()
        vlm._vocab_size = vlm.image_token_index = config.vocab_size
        _set(vlm.text_config, hidden_size=config.llm_width, use_adarms=False, adarms_cond_dim=None, **text)
        _set(
            vlm.vision_config,
            image_size=config.image_resolution[0],
            hidden_size=config.vision_width,
            intermediate_size=config.vision_mlp_dim,
            num_hidden_layers=config.vision_depth,
            num_attention_heads=config.vision_heads,
            patch_size=config.vision_patch_size,
            projection_dim=config.llm_width,
            projector_hidden_act="gelu_fast",
            dtype="float32",
        )
        expert = CONFIG_MAPPING["gemma"](
            **text | {"hidden_size": config.expert_width, "intermediate_size": config.expert_mlp_dim},
            use_adarms=True,
            adarms_cond_dim=config.expert_width,
        )
        expert.vocab_size, expert.pad_token_id = 1, None  # its token embedding is dropped: do not allocate it
        self.paligemma = _WithoutLogitsHead(PaliGemmaModelWithPiGemma(vlm))
        self.gemma_expert = _WithoutLogitsHead(PiGemmaModel(expert))
        self.gemma_expert.model.embed_tokens = None
        self.to(torch.float32)  # fp32 master weights; compute precision is autocast's business

    def joint_forward(
        self, prefix: Tensor, suffix: Tensor, attention_mask: Tensor, position_ids: Tensor, adarms_cond: Tensor
    ) -> Tensor:
        """One pass of both towers over prefix (B, P, width) and suffix (B, S, expert width), as in training.

        Args:
            attention_mask: (B, 1, P + S, P + S) additive, as LeRobot's ``prepare_attention_masks_4d`` makes it.
            position_ids: (B, P + S).
            adarms_cond: (B, expert width) time embedding.

        Returns:
            (B, S, expert width) the expert's output after its final norm. The prefix's output is never computed.
        """
        language, expert = self.paligemma.model.language_model, self.gemma_expert.model
        cos, sin = language.rotary_emb(suffix, position_ids)
        pairs = list(zip(language.layers, expert.layers, strict=True))
        for number, layers in enumerate(pairs):
            args = (layers, prefix, suffix, attention_mask, cos, sin, adarms_cond, number + 1 == len(pairs))
            if expert.gradient_checkpointing and self.training:
                prefix, suffix = checkpoint(_joint_layer, *args, use_reentrant=False, preserve_rng_state=False)
            else:
                prefix, suffix = _joint_layer(*args)
        return expert.norm(suffix, cond=adarms_cond)[0]


def _joint_layer(
    layers: tuple[nn.Module, nn.Module],
    prefix: Tensor,
    suffix: Tensor,
    attention_mask: Tensor,
    cos: Tensor,
    sin: Tensor,
    adarms_cond: Tensor,
    last: bool,
) -> tuple[Tensor, Tensor]:
    """A pair of layers; the last one's prefix only provides keys and values."""
    language, expert = layers
    length = prefix.shape[1]
    normed, _ = language.input_layernorm(prefix)
    suffix_normed, gate = expert.input_layernorm(suffix, cond=adarms_cond)
    parts = ((language.self_attn, normed), (expert.self_attn, suffix_normed))
    keys = torch.cat([_heads(attention.k_proj(x), attention) for attention, x in parts], dim=2)
    values = torch.cat([_heads(attention.v_proj(x), attention) for attention, x in parts], dim=2)
    reading = parts[1:] if last else parts
    queries = torch.cat([_heads(attention.q_proj(x), attention) for attention, x in reading], dim=2)
    start = length if last else 0
    _, keys = apply_rotary_pos_emb(keys, keys, cos, sin)
    queries, _ = apply_rotary_pos_emb(queries, queries, cos[:, start:], sin[:, start:])
    attended = F.scaled_dot_product_attention(
        queries,
        keys.expand(-1, queries.shape[1], -1, -1) if keys.shape[1] == 1 else keys,
        values.expand(-1, queries.shape[1], -1, -1) if values.shape[1] == 1 else values,
        attn_mask=attention_mask[:, :, start:].to(queries.dtype),
        scale=language.self_attn.scaling,
        enable_gqa=keys.shape[1] not in (1, queries.shape[1]),
    )
    attended = attended.transpose(1, 2).flatten(2)
    suffix_read = attended if last else attended[:, length:]
    suffix = _feed_forward(expert, suffix + expert.self_attn.o_proj(suffix_read) * gate, adarms_cond)
    if not last:
        prefix = _feed_forward(language, prefix + language.self_attn.o_proj(attended[:, :length]), None)
    return prefix, suffix


def _heads(projected: Tensor, attention: nn.Module) -> Tensor:
    """(B, N, heads · head_dim) → (B, heads, N, head_dim)."""
    return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)


def _feed_forward(layer: nn.Module, hidden: Tensor, adarms_cond: Tensor | None) -> Tensor:
    normed, gate = layer.post_attention_layernorm(hidden, cond=adarms_cond)
    out = layer.mlp(normed)
    return hidden + (out if gate is None else out * gate)


def _set(config, **values) -> None:
    for name, value in values.items():
        setattr(config, name, value)
