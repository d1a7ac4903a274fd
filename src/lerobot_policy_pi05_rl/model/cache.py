"""What passes between the parts of the network: embedded tokens, what was made of them, what the critic reads."""

from typing import NamedTuple

from torch import Tensor


class Block(NamedTuple):
    """Embedded tokens and their masks."""

    embs: Tensor  # (B, N, width)
    pad_masks: Tensor  # (B, N) bool, false where no token is
    att_masks: Tensor  # (B, N) bool, true where a new attention block starts
    cameras: int = 0  # how many images' tokens stand in front


class Context(NamedTuple):
    """What the language tower made of a prefix, and of a tag behind it: all that actions and a shared critic need."""

    pad_masks: Tensor  # (B, N) bool
    keys: list[Tensor]  # of each layer, (B, key-value heads, N, head size)
    values: list[Tensor]
    tapped: Tensor | None  # (B, P, width) the prefix behind layer critic_llm_depth, where the shared critic reads

    def first(self, count: int) -> "Context":
        """That of the batch's first ``count`` samples."""
        keys, values = ([tensor[:count] for tensor in tensors] for tensors in (self.keys, self.values))
        return Context(self.pad_masks[:count], keys, values, None if self.tapped is None else self.tapped[:count])


class Features(NamedTuple):
    """What the critic reads of an observation, detached from the actor."""

    states: Tensor  # (B, P, width): the prefix itself, or with a shared critic the actor's states of it
    mask: Tensor  # (B, P) bool, false at padding
