"""The value critic V(o, task): value bins, HL-Gauss targets and the network (RECAP, section IV-B).

A separate critic reads what the actor's prefix is made of (image features and prompt embeddings) through a few
language layers: its own, or the actor's with adapters. A shared one reads what the actor's layers made of it. All read
it detached, and never see the advantage tag.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d
from lerobot.policies.pi_gemma import PiGemmaModel, PiGemmaRMSNorm
from torch import Tensor, nn

from ..returns import SUCCESSES_ABOVE
from .cache import CriticFeatures
from .critic_adapter import LayerAdapter
from .towers import encode_block, with_own_layers


class ValueBins(nn.Module):
    """A categorical distribution over returns: ``num_bins`` equal bins on [support_min, support_max].

    Args:
        sigma_ratio: standard deviation of the target's Gaussian in bin widths (HL-Gauss, arXiv 2403.03950);
            0 spreads the return over the two nearest bin centres (two-hot).
    """

    def __init__(self, num_bins: int, support_min: float, support_max: float, sigma_ratio: float):
        super().__init__()
        self.support_min, self.support_max = support_min, support_max
        self.width = (support_max - support_min) / num_bins
        self.sigma = sigma_ratio * self.width
        edges = torch.linspace(support_min, support_max, num_bins + 1, dtype=torch.float32)
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("centers", (edges[:-1] + edges[1:]) / 2, persistent=False)

    def target(self, returns: Tensor) -> Tensor:
        """(B,) returns inside the support → (B, num_bins) probabilities, each row summing to 1."""
        if self.sigma == 0:
            return self._two_hot(returns)
        cdf = torch.special.ndtr((self.edges - returns[:, None]) / self.sigma)
        mass = cdf[:, 1:] - cdf[:, :-1]
        return mass / mass.sum(dim=1, keepdim=True)  # the part of the Gaussian outside the support is cut off

    def _two_hot(self, returns: Tensor) -> Tensor:
        last = len(self.centers) - 1
        position = ((returns - self.centers[0]) / self.width).clamp(0, last)
        low = position.floor().long().clamp(max=last - 1)
        high_share = (position - low)[:, None]
        return F.one_hot(low, last + 1) * (1 - high_share) + F.one_hot(low + 1, last + 1) * high_share

    def value(self, logits: Tensor) -> Tensor:
        """(…, num_bins) logits → (…) expected return, in the centres' precision: fp32."""
        return logits.to(self.centers.dtype).softmax(dim=-1) @ self.centers

    def success_value(self, logits: Tensor) -> Tensor:
        """(…, num_bins) logits → (…) expected return of a success; where next to none is expected, the middle of what
        successes return. Of ``steps_to_success`` alone."""
        probabilities = logits.to(self.centers.dtype).softmax(dim=-1) * (self.centers > SUCCESSES_ABOVE)
        few, middle = 1e-3, SUCCESSES_ABOVE / 2
        return (probabilities @ self.centers + few * middle) / (probabilities.sum(dim=-1) + few)

    def cross_entropy(self, logits: Tensor, returns: Tensor) -> Tensor:
        """(…, num_bins) logits, (…) returns → (…) cross-entropy in nats, fp32."""
        target = self.target(returns.flatten()).view_as(logits)
        return -(target * logits.to(target.dtype).log_softmax(dim=-1)).sum(dim=-1)


def pool_images(features: CriticFeatures, *, cameras: int, grid: int, side: int) -> CriticFeatures:
    """Each square of ``side`` × ``side`` image tokens becomes their mean; the prompt's tokens stay.

    Args:
        features: their first ``cameras · grid²`` tokens are the images', row by row; an image is there or not as a
            whole.
    """
    if side == 1:
        return features
    count, rows = cameras * grid**2, grid // side
    images, prompt = features.states[:, :count], features.states[:, count:]
    squares = images.unflatten(1, (cameras, rows, side, rows, side)).mean(dim=(3, 5)).flatten(1, 3)
    there = features.mask[:, :count].unflatten(1, (cameras, grid**2))[:, :, 0]
    mask = there[:, :, None].expand(-1, -1, rows**2).flatten(1)
    return CriticFeatures(torch.cat([squares, prompt], dim=1), torch.cat([mask, features.mask[:, count:]], dim=1))


class QueryCritic(nn.Module):
    """What every critic has: a few learned value queries, and a head on what they gather."""

    def __init__(self, width: int, *, num_queries: int, bins: ValueBins):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, width) * width**-0.5)
        self.head = nn.Linear(num_queries * width, len(bins.centers))
        nn.init.zeros_(self.head.weight)  # the first values are the middle of the support, not noise
        nn.init.zeros_(self.head.bias)
        self.bins = bins

    def init_from_actor(self, language_model: nn.Module) -> None:
        """Nothing, where the critic has no layers of the actor's kind."""

    def forward(self, states: Tensor, mask: Tensor, language_model: nn.Module | None) -> Tensor:
        """Args:
            states: (B, P, width) what the critic reads of an observation, detached.
            mask: (B, P) bool, false at padding.
            language_model: the actor's; read by a critic that shares its layers.

        Returns:
            (B, num_bins) fp32 logits.
        """
        return self.head(self.gather(states, mask, language_model).flatten(1)).float()

    def gather(self, states: Tensor, mask: Tensor, language_model: nn.Module | None) -> Tensor:
        """(B, queries, width) what the queries found."""
        raise NotImplementedError


class ValueCritic(QueryCritic):
    """Its queries attend to the prefix through ``depth`` language layers of its own."""

    def __init__(self, language_model: nn.Module, *, depth: int, num_queries: int, bins: ValueBins):
        config = copy.deepcopy(language_model.config)
        super().__init__(config.hidden_size, num_queries=num_queries, bins=bins)
        config.num_hidden_layers = depth
        config.vocab_size, config.pad_token_id = 1, None  # the critic embeds nothing: no table is allocated
        self.backbone = with_own_layers(PiGemmaModel(config), compile_mode=config.compile_mode)
        self.backbone.embed_tokens = None

    @torch.no_grad()
    def init_from_actor(self, language_model: nn.Module) -> None:
        """Copy the actor's first language layers, parameter by parameter."""
        actor_layers = language_model.layers[: len(self.backbone.layers)]
        for critic_layer, actor_layer in zip(self.backbone.layers, actor_layers, strict=True):
            critic_layer.load_state_dict(actor_layer.state_dict())

    def gather(self, states: Tensor, mask: Tensor, language_model: nn.Module | None) -> Tensor:
        """As :meth:`QueryCritic.gather`, of the prefix's embeddings."""
        return self.backbone.norm(read_prefix(self.backbone, states, mask, self.queries))[0]


class AdaptedValueCritic(QueryCritic):
    """Its queries attend to the prefix through the actor's first ``depth`` language layers, as they are at that
    moment, and low-rank adapters of its own."""

    def __init__(self, language_model: nn.Module, *, rank: int, depth: int, num_queries: int, bins: ValueBins):
        width = language_model.config.hidden_size
        super().__init__(width, num_queries=num_queries, bins=bins)
        self.adapters = nn.ModuleList(LayerAdapter(layer, rank) for layer in language_model.layers[:depth])
        self.norm = PiGemmaRMSNorm(width, eps=language_model.config.rms_norm_eps)

    def gather(self, states: Tensor, mask: Tensor, language_model: nn.Module | None) -> Tensor:
        """As :meth:`QueryCritic.gather`, of the prefix's embeddings."""
        return self.norm(read_prefix(language_model, states, mask, self.queries, self.adapters))[0]


class SharedValueCritic(QueryCritic):
    """Its queries attend once to the actor's own prefix states, behind one of its layers: a critic that costs next to
    nothing, since the actor computes what it reads."""

    HEADS = 8  # as π0.5's towers

    def __init__(self, width: int, *, num_queries: int, bins: ValueBins):
        super().__init__(width, num_queries=num_queries, bins=bins)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, self.HEADS, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def gather(self, states: Tensor, mask: Tensor, language_model: nn.Module | None) -> Tensor:
        """As :meth:`QueryCritic.gather`, of the actor's hidden states."""
        states = self.norm(states)
        queries = self.queries.to(states.dtype).expand(len(states), -1, -1)
        hidden, _ = self.attention(queries, states, states, key_padding_mask=~mask, need_weights=False)
        return hidden + self.mlp(hidden)


def read_prefix(
    tower: PiGemmaModel,
    prefix_embs: Tensor,
    prefix_mask: Tensor,
    queries: Tensor,
    adapters: Sequence[LayerAdapter] | None = None,
) -> Tensor:
    """(B, queries, width) hidden states of (queries, width) value queries behind all layers that run.

    The queries form an attention block behind the prefix: they see it, it does not see them.

    Args:
        adapters: as of :func:`.towers.encode_block`.
    """
    own = prefix_mask.new_ones(len(prefix_mask), len(queries))
    *prefix, _ = encode_block(
        tower,
        prefix_embs,
        prepare_attention_masks_4d(make_att_2d_masks(prefix_mask, torch.zeros_like(prefix_mask))),
        torch.cumsum(prefix_mask, dim=1) - 1,
        adapters=adapters,
    )
    seen = torch.cat([prefix_mask, own], dim=1)[:, None, :].expand(-1, own.shape[1], -1)
    *_, hidden = encode_block(
        tower,
        queries.to(prefix_embs.dtype).repeat(len(own), 1, 1),
        prepare_attention_masks_4d(seen),
        prefix_mask.sum(dim=1, keepdim=True) + torch.cumsum(own, dim=1) - 1,
        prefix,
        output_layer=len(prefix[0]),
        adapters=adapters,
    )
    return hidden


class CrossFittedCritic(nn.Module):
    """An ensemble of K critics. Critic k never learns from the episodes of fold k and is the one asked about them, so
    that no advantage comes from a critic that has memorised the return; K = 1 is one critic that learns from all."""

    def __init__(self, members: Sequence[QueryCritic]):
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def bins(self) -> ValueBins:
        """The value bins, the same for every critic."""
        return self.members[0].bins

    def init_from_actor(self, language_model: nn.Module) -> None:
        """Copy the actor's first language layers into every critic that has its own."""
        for member in self.members:
            member.init_from_actor(language_model)

    def forward(self, features: CriticFeatures, language_model: nn.Module) -> Tensor:
        """As :meth:`QueryCritic.forward`, of every critic: (B, K, num_bins) fp32 logits."""
        return torch.stack([member(*features, language_model) for member in self.members], dim=1)

    def learns_from(self, fold: Tensor) -> Tensor:
        """(B,) folds → (B, K) bool: which critics learn from each sample."""
        own_folds = torch.arange(len(self.members), device=fold.device)
        return (fold[:, None] != own_folds) | (len(self.members) == 1)

    def out_of_fold(self, values: Tensor, fold: Tensor) -> Tensor:
        """(B, K) values, (B,) folds → (B,) the value of the critic blind to the sample; the mean where the fold is −1
        (an episode that none of them has seen)."""
        chosen = values.gather(1, fold.clamp(min=0)[:, None])[:, 0]
        return torch.where(fold < 0, values.mean(dim=1), chosen)
