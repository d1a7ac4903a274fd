"""π0.5 with an advantage tag, and the value critic beside it.

Prefix (images, prompt) and actions are stock π0.5 (lerobot/policies/pi05/modeling_pi05.py). The tag is a vector that
is added to the time embedding of the action expert, 0 at first, so that a pretrained policy is what it was until the
tag has learnt (LeHome, arXiv 2606.27163). The prefix cannot see it. With no tag the network is stock π0.5.
"""

import contextlib
from functools import partial

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d
from lerobot.policies.pi05.modeling_pi05 import PI05Pytorch
from lerobot.policies.pi_gemma import PiGemmaModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ..advantage import TAG_NONE
from ..configuration_pi05_rl import PI05RLConfig
from .cache import Block, CriticFeatures, PrefixCache
from .compiling import check_compiler, compile_in_place
from .critic import (
    AdaptedValueCritic,
    CrossFittedCritic,
    QueryCritic,
    SharedValueCritic,
    ValueBins,
    ValueCritic,
    pool_images,
)
from .towers import PaliGemmaWithExpert, encode_block

# The tag's vector has to get from 0 to where it matters beside the time embedding, at a learning rate and in as many
# steps as a pretrained policy is fine-tuned with.
TAG_GAIN = 10.0


class PI05RLPytorch(PI05Pytorch):
    """The network: stock π0.5, the tag, the critic (``critic`` is None when it was not asked for)."""

    def __init__(
        self, config: PI05RLConfig, rtc_processor=None, *, with_critic: bool = True, empty_towers: bool = False
    ):
        """``empty_towers``: their parameters are on the meta device; a checkpoint's take their places."""
        nn.Module.__init__(self)
        if config.compile_model:
            check_compiler(config.device)
        self.config, self.rtc_processor = config, rtc_processor
        self.gradient_checkpointing_enabled = False
        with init_empty_weights(include_buffers=False) if empty_towers else contextlib.nullcontext():
            self.paligemma_with_expert = PaliGemmaWithExpert(config)
        self.action_in_proj = nn.Linear(config.max_action_dim, config.expert_width)
        self.action_out_proj = nn.Linear(config.expert_width, config.max_action_dim)
        self.time_mlp_in = nn.Linear(config.expert_width, config.expert_width)
        self.time_mlp_out = nn.Linear(config.expert_width, config.expert_width)
        self.advantage_embedding = nn.Embedding(2, config.expert_width)  # negative, positive
        nn.init.zeros_(self.advantage_embedding.weight)
        self.critic = None
        if with_critic:
            self.add_critic()
            if not empty_towers:
                self.critic.init_from_actor(self.language_model)
        if config.compile_model:  # the towers' own layers compile themselves
            for layer in self.vision_tower.modules():
                if isinstance(layer, GradientCheckpointingLayer):
                    compile_in_place(layer, config.compile_mode)

    def add_critic(self) -> None:
        """Build the critics, one a fold, on the CPU or where the context says."""
        config = self.config
        bins = ValueBins(
            config.num_value_bins,
            config.value_support_min,
            config.value_support_max,
            config.hl_gauss_sigma_ratio,
        )
        self.critic = CrossFittedCritic([self._make_critic(bins) for _ in range(config.critic_folds)])

    def _make_critic(self, bins: ValueBins) -> QueryCritic:
        config, tower = self.config, self.language_model
        made = {"num_queries": config.num_value_queries, "bins": bins}
        if not config.use_separate_critic:
            return SharedValueCritic(config.llm_width, **made)
        if config.critic_adapter_rank == 0:
            return ValueCritic(tower, depth=config.critic_llm_depth, **made)
        return AdaptedValueCritic(tower, rank=config.critic_adapter_rank, depth=config.critic_llm_depth, **made)

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
        for module in self.modules():
            if isinstance(module, PiGemmaModel):  # its forward passes (towers.py) look at it
                module.gradient_checkpointing = enabled
        for layer in self.vision_tower.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.gradient_checkpointing = enabled
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def embed_observation(self, images: list[Tensor], img_masks: list[Tensor], tokens: Tensor, masks: Tensor) -> Block:
        """The prefix: all cameras through the vision tower in one batch, then the prompt.

        Args:
            images: per camera (B, 3, H, W) in [−1, 1]; img_masks: per camera (B,) bool.
            tokens, masks: (B, T) prompt ids and bool mask.
        """
        towers = self.paligemma_with_expert
        embs = towers.embed_image(torch.cat(images)).unflatten(0, (len(images), -1))  # (cameras, B, N, width)
        seen = [mask[:, None].expand(-1, embs.shape[2]) for mask in img_masks]
        pad_masks = torch.cat([*seen, masks], dim=1)
        embs = torch.cat([*embs, towers.embed_language_tokens(tokens).to(embs.dtype)], dim=1)
        return Block(embs, pad_masks, torch.zeros_like(pad_masks), len(images))

    def encode_prefix(self, prefix: Block, *, for_critic_alone: bool = False) -> PrefixCache:
        """The language tower over the prefix, once for critic and actor, whatever the tag.

        Args:
            for_critic_alone: run the layers alone whose hidden states a shared critic needs.
        """
        keys, values, hidden_states = encode_block(
            self.language_model,
            prefix.embs,
            prepare_attention_masks_4d(make_att_2d_masks(prefix.pad_masks, prefix.att_masks)),
            torch.cumsum(prefix.pad_masks, dim=1) - 1,
            output_layer=None if self.config.use_separate_critic else self.config.critic_llm_depth,
            stop_at_output_layer=for_critic_alone,
        )
        return PrefixCache(prefix.pad_masks, keys, values, hidden_states)

    def critic_features(self, prefix: Block, cache: PrefixCache | None = None) -> CriticFeatures:
        """The critic's input. ``cache`` is the prefix's, if it was computed; for a shared critic what is needed is
        computed without it."""
        if self.config.use_separate_critic:
            return pool_images(
                CriticFeatures(prefix.embs.detach(), prefix.pad_masks),
                cameras=prefix.cameras,
                grid=self.config.image_grid,
                side=self.config.critic_image_pooling,
            )
        if cache is None:
            with torch.no_grad():
                cache = self.encode_prefix(prefix, for_critic_alone=True)
        return CriticFeatures(cache.hidden_states.detach(), prefix.pad_masks)

    def critic_logits(self, features: CriticFeatures, critic: CrossFittedCritic | None = None) -> Tensor:
        """(B, K, num_bins) fp32 logits of each critic, or of those of ``critic``, a target."""
        return (self.critic if critic is None else critic)(features, self.language_model)

    def velocity(self, cache: PrefixCache, x_t: Tensor, time: Tensor, tags: Tensor | None = None) -> Tensor:
        """(B, H, A) fp32 predicted velocity ``noise - actions``: one pass of the expert, which sees the whole cache.

        Args:
            x_t: (B, H, A) noisy actions; time: (B,) in (0, 1], 1 is noise.
            tags: (B,) of TAG_NEGATIVE, TAG_POSITIVE, TAG_NONE; None: no sample has one.
        """
        embs, pad_masks, att_masks, adarms_cond = self.embed_suffix(x_t, time)
        if tags is not None:
            shown = (tags >= 0)[:, None].to(adarms_cond.dtype)
            adarms_cond = adarms_cond + TAG_GAIN * shown * self.advantage_embedding(tags.clamp(min=0))
        before = cache.pad_masks[:, None, :].expand(-1, pad_masks.shape[1], -1)
        out = self.paligemma_with_expert.run_expert(
            cache.keys,
            cache.values,
            embs.clone(),  # it is a view, for which a compiled layer would have a graph of its own
            prepare_attention_masks_4d(torch.cat([before, make_att_2d_masks(pad_masks, att_masks)], dim=2)),
            cache.pad_masks.sum(dim=1, keepdim=True) + torch.cumsum(pad_masks, dim=1) - 1,
            adarms_cond,
        ).to(torch.float32)
        with _full_precision(out.device.type):
            return self.action_out_proj(out)

    def flow_matching_error(
        self, cache: PrefixCache, actions: Tensor, noise: Tensor, time: Tensor, tags: Tensor | None = None
    ) -> Tensor:
        """(B, H, A) squared error of the velocity; ``actions`` and ``noise`` are (B, H, A), ``time`` (B,), ``tags`` as
        of :meth:`velocity`."""
        expanded = time[:, None, None]
        x_t = expanded * noise + (1 - expanded) * actions
        return F.mse_loss(noise - actions, self.velocity(cache, x_t, time, tags), reduction="none")

    def forward(self, images, img_masks, tokens, masks, actions, noise, time) -> Tensor:
        """Stock's training forward (no tag): (B, H, A) squared errors."""
        prefix = self.encode_prefix(self.embed_observation(images, img_masks, tokens, masks))
        return self.flow_matching_error(prefix, actions, noise, time)

    @torch.no_grad()
    def sample_actions(
        self,
        images,
        img_masks,
        tokens,
        masks,
        tags=None,
        noise=None,
        num_steps=None,
        guidance_scale: float = 1.0,
        **rtc,
    ) -> Tensor:
        """Denoise a chunk (B, H, A) with one cached pass over the prefix.

        Args:
            tags: as of :meth:`velocity`; None: plain π0.5.
            noise: (B, H, A) start of the integration; None: drawn.
            guidance_scale: β; each step follows ``v(no tag) + β · (v(tag) − v(no tag))``. 1 is plain conditioning.
            rtc: ``inference_delay``, ``prev_chunk_left_over``, ``execution_horizon`` (LeRobot's
                real-time chunking).
        """
        if noise is None:
            shape = (tokens.shape[0], self.config.chunk_size, self.config.max_action_dim)
            noise = self.sample_noise(shape, tokens.device)
        cache = self.encode_prefix(self.embed_observation(images, img_masks, tokens, masks))
        guided = guidance_scale != 1.0 and tags is not None
        if guided:  # both branches in one batch
            cache, tags = cache.twice(), torch.cat([tags, torch.full_like(tags, TAG_NONE)])

        def velocity(x_t: Tensor, time: Tensor) -> Tensor:
            if not guided:
                return self.velocity(cache, x_t, time, tags)
            tagged, untagged = self.velocity(cache, x_t.repeat(2, 1, 1), time.repeat(2), tags).chunk(2)
            return untagged + guidance_scale * (tagged - untagged)

        return euler_integrate(
            velocity,
            noise,
            num_steps or self.config.num_inference_steps,
            rtc_processor=self.rtc_processor,
            rtc_enabled=self._rtc_enabled(),
            **rtc,
        )


def _full_precision(device_type: str) -> contextlib.AbstractContextManager:
    """Autocast off; the meta device, on which sizes are counted, knows no autocast at all."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else contextlib.nullcontext()
