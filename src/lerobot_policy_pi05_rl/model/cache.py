"""What passes between the parts of the network: embedded tokens, their KV cache, the critic's input."""

from typing import NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """Embedded tokens and their masks."""

    embs: Tensor  # (B, N, width)
    pad_masks: Tensor  # (B, N) bool, false where no token is
    att_masks: Tensor  # (B, N) bool, true where a new attention block starts
    cameras: int = 0  # how many images' tokens stand in front


class PrefixCache(NamedTuple):
    """The KV cache of a prefix from the language tower; for a shared critic also hidden states. All that actions and
    critic need."""

    pad_masks: Tensor  # (B, N) bool
    keys: list[Tensor]  # of each layer, (B, key-value heads, N, head size)
    values: list[Tensor]
    hidden_states: Tensor | None  # (B, N, width) after layer critic_llm_depth; for a shared critic

    def twice(self) -> "PrefixCache":
        """The batch and the same batch behind it; the critic's states are left out."""
        keys, values = ([torch.cat([tensor, tensor]) for tensor in tensors] for tensors in (self.keys, self.values))
        return PrefixCache(torch.cat([self.pad_masks, self.pad_masks]), keys, values, None)

    def first(self, count: int) -> "PrefixCache":
        """That of the batch's first ``count`` samples."""
        keys, values = ([tensor[:count] for tensor in tensors] for tensors in (self.keys, self.values))
        hidden = None if self.hidden_states is None else self.hidden_states[:count]
        return PrefixCache(self.pad_masks[:count], keys, values, hidden)


class CriticFeatures(NamedTuple):
    """The critic's input for an observation, detached from the actor."""

    states: Tensor  # (B, P, width): the prefix's embeddings, or with a shared critic the actor's hidden states of it
    mask: Tensor  # (B, P) bool, false at padding
