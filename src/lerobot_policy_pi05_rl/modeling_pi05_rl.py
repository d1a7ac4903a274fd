"""π0.5 with the advantage tag in an attention block of its own, and the value critic beside it.

Prefix (images, prompt) and actions are stock π0.5 (lerobot/policies/pi05/modeling_pi05.py). The tag tokens lie
between them: the prefix cannot see the tag, the actions can. With no tag the block is left out and the network
is stock π0.5 bit for bit.
"""

import contextlib
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from lerobot.configs import PreTrainedConfig
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.common.vla_utils import (
    clone_past_key_values,
    make_att_2d_masks,
    prepare_attention_masks_4d,
)
from lerobot.policies.pi05.modeling_pi05 import PI05Policy, PI05Pytorch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_pi05_rl import PI05RLConfig
from .critic import CrossFittedCritic, SharedValueCritic, ValueBins, ValueCritic
from .processor_pi05_rl import ADVANTAGE_MASKS, ADVANTAGE_TOKENS
from .towers import PaliGemmaWithExpert
from .weights import CRITIC_PREFIX, load_policy_weights

logger = logging.getLogger(__name__)

ADVANTAGE_TAG = "advantage_tag"  # batch key: (B,) int64 of the three values below
TAG_NEGATIVE, TAG_POSITIVE, TAG_NONE = 0, 1, -1
_TAG_BY_NAME = {"negative": TAG_NEGATIVE, "positive": TAG_POSITIVE}


class Block(NamedTuple):
    """Embedded tokens and their masks, as LeRobot's ``embed_prefix`` returns them."""

    embs: Tensor  # (B, N, width)
    pad_masks: Tensor  # (B, N) bool, false where no token is
    att_masks: Tensor  # (B, N) bool, true where a new attention block starts


class PrefixStates(NamedTuple):
    """What the language tower made of a prefix: all that tag, actions and a shared critic need of it."""

    pad_masks: Tensor  # (B, P) bool
    att_masks: Tensor  # (B, P) bool
    keys: list[Tensor]  # of each layer, (B, key-value heads, P, head size)
    values: list[Tensor]
    tapped: Tensor | None  # (B, P, width) behind layer critic_llm_depth, where the shared critic reads

    def first(self, count: int) -> "PrefixStates":
        """Those of the batch's first ``count`` samples."""
        keys, values = ([tensor[:count] for tensor in tensors] for tensors in (self.keys, self.values))
        tapped = None if self.tapped is None else self.tapped[:count]
        return PrefixStates(self.pad_masks[:count], self.att_masks[:count], keys, values, tapped)


class Features(NamedTuple):
    """What the critic reads of an observation, detached from the actor."""

    states: Tensor  # (B, P, width): the prefix itself, or with a shared critic the actor's states of it
    mask: Tensor  # (B, P) bool, false at padding


class PI05RLPytorch(PI05Pytorch):
    """The network: stock π0.5, the tag block, the critic (``critic`` is None when it was not asked for)."""

    def __init__(self, config: PI05RLConfig, rtc_processor=None, *, with_critic: bool = True):
        nn.Module.__init__(self)
        self.config, self.rtc_processor = config, rtc_processor
        self.gradient_checkpointing_enabled = False
        self.paligemma_with_expert = PaliGemmaWithExpert(config)
        self.action_in_proj = nn.Linear(config.max_action_dim, config.expert_width)
        self.action_out_proj = nn.Linear(config.expert_width, config.max_action_dim)
        self.time_mlp_in = nn.Linear(config.expert_width, config.expert_width)
        self.time_mlp_out = nn.Linear(config.expert_width, config.expert_width)
        self.critic = None
        if with_critic:
            bins = ValueBins(
                config.num_value_bins,
                config.value_support_min,
                config.value_support_max,
                config.hl_gauss_sigma_ratio,
            )
            member = (
                partial(ValueCritic, self.language_model.config, depth=config.critic_llm_depth)
                if config.use_separate_critic
                else partial(SharedValueCritic, config.llm_width)
            )
            self.critic = CrossFittedCritic(
                [member(num_queries=config.num_value_queries, bins=bins) for _ in range(config.critic_folds)]
            )
            self.critic.init_from_actor(self.language_model)
        if config.compile_model:
            torch.set_float32_matmul_precision("high")
            self.sample_actions = torch.compile(self.sample_actions, mode=config.compile_mode)

    @property
    def language_model(self) -> nn.Module:
        """The actor's language tower."""
        return self.paligemma_with_expert.paligemma.model.language_model

    @property
    def vision_tower(self) -> nn.Module:
        """The SigLIP tower, shared by actor and critic (the critic reads it detached)."""
        return self.paligemma_with_expert.paligemma.model.vision_tower

    def gradient_checkpointing_enable(self) -> None:
        """Checkpoint each layer by itself, never nested (stock wraps the whole forward around its layers)."""
        self._checkpoint_layers(True)

    def gradient_checkpointing_disable(self) -> None:
        """Undo :meth:`gradient_checkpointing_enable`."""
        self._checkpoint_layers(False)

    def _checkpoint_layers(self, enabled: bool) -> None:
        self.paligemma_with_expert.gemma_expert.model.gradient_checkpointing = enabled  # read by the joint layers
        for tower in (self.vision_tower, self.critic):
            for layer in () if tower is None else tower.modules():
                if isinstance(layer, GradientCheckpointingLayer):
                    layer.gradient_checkpointing = enabled
                    layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def embed_tag(self, tokens: Tensor, masks: Tensor) -> Block:
        """(B, L) tag token ids and bool mask → the tag's block; it opens a new attention block."""
        att_masks = torch.zeros_like(masks)
        att_masks[:, 0] = True
        return Block(self.paligemma_with_expert.embed_language_tokens(tokens), masks, att_masks)

    def read_prefix(self, prefix: Block, *, for_critic_alone: bool = False) -> PrefixStates:
        """The language tower over the prefix, once for the critic and for the actor under whatever tag.

        Args:
            for_critic_alone: run the layers alone whose output a shared critic reads.
        """
        keys, values, tapped = self.paligemma_with_expert.read_prefix(
            prefix.embs,
            prepare_attention_masks_4d(make_att_2d_masks(prefix.pad_masks, prefix.att_masks)),
            torch.cumsum(prefix.pad_masks, dim=1) - 1,
            tap=None if self.config.use_separate_critic else self.config.critic_llm_depth,
            stop_at_tap=for_critic_alone,
        )
        return PrefixStates(prefix.pad_masks, prefix.att_masks, keys, values, tapped)

    def critic_features(self, prefix: Block, states: PrefixStates | None = None) -> Features:
        """What the critic reads. ``states`` are the prefix's, if they were computed; a shared critic computes what it
        needs without them."""
        if self.config.use_separate_critic:
            return Features(prefix.embs.detach(), prefix.pad_masks)
        if states is None:
            with torch.no_grad():
                states = self.read_prefix(prefix, for_critic_alone=True)
        return Features(states.tapped.detach(), prefix.pad_masks)

    def velocity(self, prefix: PrefixStates, tag: Block | None, x_t: Tensor, time: Tensor) -> Tensor:
        """One pass over tag and noisy actions.

        Args:
            x_t: (B, H, A) noisy actions; time: (B,) in (0, 1], 1 is noise.

        Returns:
            (B, H, A) fp32 predicted velocity ``noise - actions``.
        """
        suffix_embs, suffix_pad, suffix_att, adarms_cond = self.embed_suffix(x_t, time)
        tag_pad, tag_att = ([], []) if tag is None else ([tag.pad_masks], [tag.att_masks])
        pad_masks = torch.cat([prefix.pad_masks, *tag_pad, suffix_pad], dim=1)
        att_masks = torch.cat([prefix.att_masks, *tag_att, suffix_att], dim=1)
        length = prefix.pad_masks.shape[1]
        suffix_out = self.paligemma_with_expert.read_suffix(
            prefix.keys,
            prefix.values,
            None if tag is None else tag.embs,
            suffix_embs,
            prepare_attention_masks_4d(make_att_2d_masks(pad_masks, att_masks)[:, length:]),
            (torch.cumsum(pad_masks, dim=1) - 1)[:, length:],
            adarms_cond,
        ).to(torch.float32)
        with _full_precision(suffix_out.device.type):
            return self.action_out_proj(suffix_out)

    def flow_matching_error(
        self, prefix: PrefixStates, tag: Block | None, actions: Tensor, noise: Tensor, time: Tensor
    ) -> Tensor:
        """(B, H, A) squared error of the velocity; ``actions`` and ``noise`` are (B, H, A), ``time`` (B,)."""
        expanded = time[:, None, None]
        x_t = expanded * noise + (1 - expanded) * actions
        return F.mse_loss(noise - actions, self.velocity(prefix, tag, x_t, time), reduction="none")

    def forward(self, images, img_masks, tokens, masks, actions, noise, time) -> Tensor:
        """Stock's training forward (no tag): (B, H, A) squared errors."""
        prefix = self.read_prefix(Block(*self.embed_prefix(images, img_masks, tokens, masks)))
        return self.flow_matching_error(prefix, None, actions, noise, time)

    @torch.no_grad()
    def sample_actions(
        self,
        images,
        img_masks,
        tokens,
        masks,
        tag_tokens=None,
        tag_masks=None,
        noise=None,
        num_steps=None,
        guidance_scale: float = 1.0,
        **rtc,
    ) -> Tensor:
        """Denoise a chunk (B, H, A) with one cached pass over the prefix, and one over the tag.

        Args:
            tag_tokens, tag_masks: (B, L) the advantage tag; None: plain π0.5.
            noise: (B, H, A) start of the integration; None: drawn.
            guidance_scale: β; each step follows ``v(no tag) + β · (v(tag) − v(no tag))``. 1 is plain conditioning.
            rtc: ``inference_delay``, ``prev_chunk_left_over``, ``execution_horizon`` (LeRobot's
                real-time chunking).
        """
        if noise is None:
            shape = (tokens.shape[0], self.config.chunk_size, self.config.max_action_dim)
            noise = self.sample_noise(shape, tokens.device)
        prefix = Block(*self.embed_prefix(images, img_masks, tokens, masks))
        context, cache = self._prefill(prefix)
        readings = [context]
        if tag_tokens is not None:
            context, cache = self._prefill(self.embed_tag(tag_tokens, tag_masks), context, cache)
            readings = [context]
            if guidance_scale != 1.0:
                untagged = context.clone()
                untagged[:, prefix.pad_masks.shape[1] :] = False
                readings.append(untagged)

        def velocity(x_t: Tensor, time: Tensor) -> Tensor:
            tagged, *untagged = self.cached_velocity(readings, cache, x_t, time)
            return tagged if not untagged else untagged[0] + guidance_scale * (tagged - untagged[0])

        return euler_integrate(
            velocity,
            noise,
            num_steps or self.config.num_inference_steps,
            rtc_processor=self.rtc_processor,
            rtc_enabled=self._rtc_enabled(),
            **rtc,
        )

    def cached_velocity(self, readings: list[Tensor], cache, x_t: Tensor, time: Tensor) -> list[Tensor]:
        """The velocity (B, H, A) under each of several readings of one key-value cache, in one pass of the expert.

        Args:
            readings: (B, N) bool masks of the cache's columns that the actions may attend to. Each reading is a copy
                of the action tokens; the copies do not see each other.
            x_t: (B, H, A); time: (B,).
        """
        embs, pad, att, adarms_cond = self.embed_suffix(x_t, time)
        copies, length = len(readings), pad.shape[1]
        own = make_att_2d_masks(pad, att)
        masks, positions = [], []
        for number, reading in enumerate(readings):
            others = [own if k == number else torch.zeros_like(own) for k in range(copies)]
            masks.append(torch.cat([reading[:, None, :].expand(-1, length, -1), *others], dim=2))
            positions.append(reading.sum(dim=1, keepdim=True) + torch.cumsum(pad, dim=1) - 1)
        expert = self.paligemma_with_expert.gemma_expert.model
        expert.config._attn_implementation = "eager"  # as stock, whose results these equal
        (_, out), _ = self.paligemma_with_expert(
            attention_mask=prepare_attention_masks_4d(torch.cat(masks, dim=1)),
            position_ids=torch.cat(positions, dim=1),
            past_key_values=clone_past_key_values(cache),
            inputs_embeds=[None, embs.repeat(1, copies, 1)],
            use_cache=False,
            adarms_cond=[None, adarms_cond],
        )
        return list(self.action_out_proj(out.to(torch.float32)).chunk(copies, dim=1))

    def _prefill(self, block: Block, past_mask: Tensor | None = None, cache=None):
        """Append a bidirectional block to the key-value cache; returns the context's mask and the cache."""
        mask = block.pad_masks
        attention = mask[:, None, :] & mask[:, :, None]
        positions = torch.cumsum(mask, dim=1) - 1
        if past_mask is not None:
            attention = torch.cat([past_mask[:, None, :] & mask[:, :, None], attention], dim=2)
            positions = positions + past_mask.sum(dim=1, keepdim=True)
            mask = torch.cat([past_mask, mask], dim=1)
        self.language_model.config._attn_implementation = "eager"  # as stock, whose results these equal
        _, cache = self.paligemma_with_expert(
            attention_mask=prepare_attention_masks_4d(attention),
            position_ids=positions,
            past_key_values=cache,
            inputs_embeds=[block.embs, None],
            use_cache=True,
        )
        return mask, cache


class PI05RLPolicy(PI05Policy):
    """The LeRobot policy ``pi05_rl``."""

    config_class = PI05RLConfig
    name = "pi05_rl"

    def __init__(self, config: PI05RLConfig, *, load_critic: bool = True, **kwargs):
        """``load_critic=False`` builds the actor alone; other keyword arguments of ``make_policy`` are unused."""
        PreTrainedPolicy.__init__(self, config)
        config.validate_features()
        self.config = config
        self.init_rtc_processor()
        self.model = PI05RLPytorch(config, self.rtc_processor, with_critic=load_critic)
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.model.to(config.device)
        self._warned_untagged = False
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        load_critic: bool = True,
        strict: bool = True,
        **kwargs,
    ) -> "PI05RLPolicy":
        """Load one of our checkpoints, or a stock π0.5 whose critic then starts from the actor (and says so).

        LeRobot's own ``PI05Policy.from_pretrained`` prints and returns random weights on a missing file or a
        wrong shape; this one raises.

        Raises:
            CheckpointError: a file is missing or damaged, or a tensor is missing, unexpected or of another shape.
        """
        hub_keys = ("force_download", "cache_dir", "token", "revision", "local_files_only")
        hub_kwargs = {key: kwargs[key] for key in hub_keys if kwargs.get(key) is not None}
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path, **hub_kwargs)
            if not isinstance(config, PI05RLConfig):
                raise ValueError(
                    f"{pretrained_name_or_path} holds a policy of type {config.type!r}; pass config=PI05RLConfig(…) "
                    "to start a pi05_rl policy from its weights"
                )
        policy = cls(config, load_critic=load_critic)
        load_policy_weights(policy, pretrained_name_or_path, **hub_kwargs)
        policy.to(config.device)
        return policy.eval()

    def get_optim_params(self) -> list[nn.Parameter]:
        """What stock ``lerobot-train`` optimises: the actor (it computes no critic loss)."""
        return [p for name, p in self.named_parameters() if not name.startswith(CRITIC_PREFIX)]

    def autocast(self) -> torch.autocast:
        """bf16 compute where the configuration asks for it and the device has it; weights stay fp32."""
        device = next(self.parameters()).device.type
        wanted = self.config.dtype == "bfloat16" and device == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(device, dtype=torch.bfloat16, enabled=wanted)

    def embed_observation(self, batch: dict[str, Tensor]) -> Block:
        """The prefix: each image through the vision tower once, and the prompt."""
        images, img_masks = self._preprocess_images(batch)
        return Block(
            *self.model.embed_prefix(images, img_masks, batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK])
        )

    @torch.no_grad()
    def read_for_critic(self, batch: dict[str, Tensor]) -> Features:
        """What the critic reads of a preprocessed batch; no layer of the actor runs that it does not read."""
        return self.model.critic_features(self.embed_observation(batch))

    @torch.no_grad()
    def predict_values(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, K) fp32 value of each critic for a preprocessed batch."""
        critic = self.model.critic
        with self.autocast():
            return critic.bins.value(critic(*self.read_for_critic(batch)))

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, dict]:
        """Behaviour cloning without a tag, for stock ``lerobot-train``.

        The RL update is :class:`~lerobot_policy_pi05_rl.recap.RecapLosses`.
        """
        if self.training and not self._warned_untagged:
            self._warned_untagged = True
            self.config.inference_advantage = "none"
            logger.warning(
                "lerobot-train clones with pi05_rl: no critic is trained and no advantage tag is seen, so "
                "inference_advantage is set to 'none'. Use `pi05-rl offline CONFIG` for RL."
            )
        with self.autocast():
            return super().forward(batch, reduction)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs) -> Tensor:
        """(B, H, action_dim) normalised actions, conditioned on ``config.inference_advantage``."""
        self.eval()
        images, img_masks = self._preprocess_images(batch)
        tag_tokens, tag_masks = self._inference_tag(batch)
        with self.autocast():
            actions = self.model.sample_actions(
                images,
                img_masks,
                batch[OBS_LANGUAGE_TOKENS],
                batch[OBS_LANGUAGE_ATTENTION_MASK],
                tag_tokens=tag_tokens,
                tag_masks=tag_masks,
                guidance_scale=self.config.guidance_scale,
                **kwargs,
            )
        return actions[:, :, : self.config.output_features[ACTION].shape[0]]

    def _inference_tag(self, batch: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        if self.config.inference_advantage == "none" or self.config.policy_extraction != "conditioning":
            return None, None
        if ADVANTAGE_TOKENS not in batch:
            raise KeyError(
                f"{ADVANTAGE_TOKENS} is not in the batch: the preprocessor is not pi05_rl's. Load the one saved in "
                "the checkpoint, or set --policy.inference_advantage=none"
            )
        tags = torch.full((batch[ADVANTAGE_TOKENS].shape[0],), _TAG_BY_NAME[self.config.inference_advantage])
        return select_tag(batch, tags.to(batch[ADVANTAGE_TOKENS].device))


def select_tag(batch: dict[str, Tensor], tags: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L) token ids and mask of each sample's tag; all masked where the tag is ``TAG_NONE``.

    Args:
        batch: holds the tokens of both tags, (B, 2, L), as the preprocessor makes them.
        tags: (B,) of TAG_NEGATIVE, TAG_POSITIVE, TAG_NONE.
    """
    rows = torch.arange(len(tags), device=tags.device)
    index = tags.clamp(min=0)
    return batch[ADVANTAGE_TOKENS][rows, index], batch[ADVANTAGE_MASKS][rows, index] & (tags >= 0)[:, None]


def _full_precision(device_type: str) -> contextlib.AbstractContextManager:
    """Autocast off; the meta device, on which sizes are counted, knows no autocast at all."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else contextlib.nullcontext()
