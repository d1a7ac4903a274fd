"""Bytes of a training step: what lies there all the time, what backward keeps, how high the step reaches.

The step runs on the meta device, operation by operation; every storage that appears is counted from its creation to its
end, as an allocator would, so that freed activations, growing gradients, temporaries and recomputed layers all show.
"""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .meta_modes import FusedAttention
from .meta_step import MetaModel, Shape, backward, forward

ADAM_STATES = 2  # fp32 averages of gradient and squared gradient, each of the parameter's size


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step."""

    weights: int  # fp32, frozen ones too, and a target critic's
    gradients: int
    optimizer: int
    kept_critic: int  # the best critic so far, with critic_early_stop
    activations: int  # kept for backward where the forward ends, bf16 copies of weights among them
    step: int  # the most that activations, gradients and temporaries reach together between two steps

    @property
    def peak(self) -> int:
        """The most that lies there at once."""
        return self.weights + self.optimizer + self.kept_critic + self.step


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations create, until nothing refers to them any more."""

    def __init__(self, ignore: list[Tensor]):
        """``ignore``: tensors that are counted elsewhere."""
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in ignore}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.now -= count


def training_step_memory(model: MetaModel, shape: Shape, *, train_actor: bool = True) -> Memory:
    """Of one step without accumulation, all parameters' optimizer state already there."""
    tensors = [*model.losses.parameters(), *model.losses.buffers()]
    trainable = [parameter for group in model.trainable.values() for parameter in group]
    with LiveBytes(tensors) as live, FusedAttention():
        loss = forward(model, shape, train_actor=train_actor)
        activations = live.now
        backward(model, loss)
        del loss
    for parameter in trainable:
        parameter.grad = None
    gradients = nbytes(trainable)
    critic = model.policy.model.critic
    keeps_best = critic is not None and model.policy.config.critic_early_stop is not None
    return Memory(
        weights=nbytes(tensors),
        gradients=gradients,
        optimizer=ADAM_STATES * gradients,
        kept_critic=nbytes(critic.parameters()) if keeps_best else 0,
        activations=activations,
        step=max(live.peak, gradients),
    )


def nbytes(tensors) -> int:
    """Bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
