"""π0.5's two towers (language model and action expert) with every size taken from the configuration, and their
passes with fused attention: the prefix, then the actions, which see its keys and values.

Stock (lerobot/policies/pi05/modeling_pi05.py: compute_layer_complete) trains both at once, computes attention eagerly
and runs the last language layer to its end, although only that layer's keys and values are ever read. Apart, the
critic can read the prefix's states, and training and sampling are the same code.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from lerobot.policies.pi05.modeling_pi05 import PaliGemmaWithExpertModel
from lerobot.policies.pi_gemma import (
    PaliGemmaModelWithPiGemma,
    PiGemmaModel,
    _get_pi_gemma_decoder_layer_base,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.auto import CONFIG_MAPPING
from transformers.models.gemma.modeling_gemma import rotate_half

from ..configuration_pi05_rl import PI05RLConfig
from .compiling import compiled
from .critic_adapter import LayerAdapter, apply_detached


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
        compile_mode = config.compile_mode if config.compile_model else None
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
        for tower in (self.paligemma.model.language_model, self.gemma_expert.model):
            with_own_layers(tower, compile_mode=compile_mode)
        self.to(torch.float32)  # fp32 master weights; compute precision is autocast's business

    def run_expert(
        self,
        keys: list[Tensor],
        values: list[Tensor],
        actions: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        adarms_cond: Tensor,
    ) -> Tensor:
        """The expert over noisy actions (B, S, expert width), which see what stands in front of them.

        Args:
            keys, values: of the N tokens in front, from :func:`encode_block`.
            attention_mask: (B, 1, S, N + S) additive.
            position_ids: (B, S).
            adarms_cond: (B, expert width) time embedding.

        Returns:
            (B, S, expert width) the expert's output after its final norm.
        """
        expert = self.gemma_expert.model
        cos, sin = _rotation(self.paligemma.model.language_model, actions, position_ids)
        for layer, *past in zip(expert.layers, keys, values, strict=True):
            actions, *_ = _run(expert, layer, actions, past, attention_mask, cos, sin, adarms_cond)
        return expert.norm(actions, cond=adarms_cond)[0]


def encode_block(
    tower: PiGemmaModel,
    hidden: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor,
    past: tuple[list[Tensor], list[Tensor]] | None = None,
    *,
    output_layer: int | None = None,
    stop_at_output_layer: bool = False,
    adapters: Sequence[LayerAdapter] | None = None,
) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """A tower of language layers over the prefix, or over a block behind it, (B, N, width).

    Args:
        attention_mask: (B, 1, N, P + N) additive, as LeRobot's ``prepare_attention_masks_4d`` makes it.
        position_ids: (B, N).
        past: keys and values of the P tokens in front.
        output_layer: the number of layers after which hidden states are returned, before any norm.
        stop_at_output_layer: run no layer behind it.
        adapters: of a critic that reads the first layers alone, one each.

    Returns:
        Keys and values (B, key-value heads, P + N, head size) of each layer that ran, and the hidden states
        (B, N, width). Of the last layer keys and values alone are computed, unless it is the ``output_layer``.
    """
    layers = tower.layers if adapters is None else tower.layers[: len(adapters)]
    depth = len(layers)
    cos, sin = _rotation(tower, hidden, position_ids)
    keys, values, hidden_states = [], [], None
    for number, layer in enumerate(layers):
        if number == output_layer:
            hidden_states = hidden
            if stop_at_output_layer:
                break
        kv_only = number + 1 == depth and output_layer != depth
        before = None if past is None else (past[0][number], past[1][number])
        adapter = None if adapters is None else adapters[number]
        hidden, key, value = _run(tower, layer, hidden, before, attention_mask, cos, sin, None, kv_only, adapter)
        keys.append(key)
        values.append(value)
    return keys, values, hidden if output_layer == depth else hidden_states


def _run(tower: PiGemmaModel, layer: "TowerLayer", *args) -> tuple[Tensor, Tensor, Tensor]:
    mode, forward = tower.config.compile_mode, layer.forward_with_cache
    if mode is not None:
        forward = partial(compiled(TowerLayer.forward_with_cache, mode), layer)
    if tower.gradient_checkpointing and tower.training:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)
    return forward(*args)


def with_own_layers(tower: PiGemmaModel, *, compile_mode: str | None = None) -> PiGemmaModel:
    """``tower``, its layers as :class:`TowerLayer`; parameters and their names stay.

    Args:
        compile_mode: of ``torch.compile``; None: the layers run as they are.
    """
    tower.layers = nn.ModuleList(TowerLayer.of(layer) for layer in tower.layers)
    tower.config.compile_mode = compile_mode
    return tower


class TowerLayer(_get_pi_gemma_decoder_layer_base()):
    """LeRobot's layer of language tower, action expert and critic, with the forward pass that all three use.

    LeRobot makes a class of its own for the layers of each tower (pi_gemma.py: PiGemmaModel); one for all is what a
    compiled graph can serve and a sharding configuration can name.
    """

    @classmethod
    def of(cls, layer: nn.Module) -> "TowerLayer":
        """The same layer, its parameters not copied."""
        own = cls.__new__(cls)
        own.__dict__ = layer.__dict__
        return own

    def forward_with_cache(
        self,
        hidden: Tensor,
        past: tuple[Tensor, Tensor] | None,
        attention_mask: Tensor,
        cos: Tensor,
        sin: Tensor,
        adarms_cond: Tensor | None = None,
        kv_only: bool = False,
        adapter: LayerAdapter | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output, keys and values of a block that sees ``past``; with ``kv_only`` the output is not computed. Through
        an ``adapter`` a critic reads the layer, whose own parameters then get no gradient."""
        attention = self.self_attn
        if adapter is None:
            project, mlp, norm = _project, self.mlp, _call
        else:
            project, mlp, norm = adapter.project, partial(adapter.mlp, self.mlp), apply_detached
        normed, gate = norm(self.input_layernorm, hidden, cond=adarms_cond)
        key = _rotated(project(attention, "k_proj", normed), attention, cos, sin)
        value = _heads(project(attention, "v_proj", normed), attention)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        if not kv_only:
            query = _rotated(project(attention, "q_proj", normed), attention, cos, sin)
            attended = _attend(query, key, value, attention_mask, attention.scaling)
            attended = project(attention, "o_proj", attended)
            hidden = hidden + (attended if gate is None else attended * gate)
            normed, gate = norm(self.post_attention_layernorm, hidden, cond=adarms_cond)
            out = mlp(normed)
            hidden = hidden + (out if gate is None else out * gate)
        return hidden, key, value


def _project(owner: nn.Module, name: str, x: Tensor) -> Tensor:
    return getattr(owner, name)(x)


def _call(module: nn.Module, *args, **kwargs) -> tuple:
    return module(*args, **kwargs)


def _rotation(tower: PiGemmaModel, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1, N, head size) cosine and sine of the positions, for all heads and layers."""
    cos, sin = tower.rotary_emb(hidden, position_ids)
    return cos[:, None], sin[:, None]


def _rotated(projected: Tensor, attention: nn.Module, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, N, heads · head size) → (B, heads, N, head size), turned by the positions, in the projection's own type:
    attention would cast it to that, behind a copy for each head that shares it."""
    heads = _heads(projected, attention)
    return (heads * cos + rotate_half(heads) * sin).to(projected.dtype)


def _attend(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float) -> Tensor:
    """Fused attention: (B, heads, N, head size) → (B, N, heads · head size)."""
    if key.shape[1] == 1:
        key, value = (tensor.expand(-1, query.shape[1], -1, -1) for tensor in (key, value))
    attended = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask.to(query.dtype),
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return attended.transpose(1, 2).flatten(2)


def _heads(projected: Tensor, attention: nn.Module) -> Tensor:
    """(B, N, heads · head_dim) → (B, heads, N, head_dim)."""
    return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)


def _set(config, **values) -> None:
    for name, value in values.items():
        setattr(config, name, value)
