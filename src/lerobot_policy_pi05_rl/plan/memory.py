"""Bytes of a training step: what lies there all the time, what backward keeps, how high the step reaches.

The step runs on the meta device, operation by operation; every storage that appears counts from its creation to its
end, as in an allocator, so that freed activations, growing gradients, temporaries and recomputed layers all show.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .meta_modes import FusedAttention
from .meta_step import MetaModel, MetaPolicy, Shape, backward, forward, make_observation, without_values

ADAM_STATES = 2  # fp32 averages of gradient and squared gradient, each of the parameter's size


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step."""

    weights: int  # fp32, or bf16 where they do not train; a target critic's too
    gradients: int  # fp32
    optimizer: int  # AdamW's averages
    kept_critic: int  # the best critic so far, with critic_early_stop
    activations: int  # kept for backward where the forward ends, bf16 copies of weights among them
    step: int  # the most that activations, gradients and temporaries reach together

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


def training_step_memory(
    model: MetaModel, shape: Shape, *, train_actor: bool = True, fused: bool = True, keeps_gradients: bool = True
) -> Memory:
    """Of one step whose parameters already have optimizer state; with accumulation, of its second batch, which
    meets the gradients of the first.

    Args:
        fused: the optimizer is one kernel, as on a GPU; false: it makes temporaries, as on a CPU.
        keeps_gradients: false: each is gone as soon as it is whole, and ``step`` is of what else there is.
    """
    config, critic = model.policy.config, model.policy.model.critic
    tensors = [*model.losses.parameters(), *model.losses.buffers()]
    trainable = [parameter for group in model.trainable.values() for parameter in group]
    let_go = [] if keeps_gradients else [p.register_post_accumulate_grad_hook(_let_go) for p in trainable]
    with LiveBytes(tensors) as live, FusedAttention():
        if config.gradient_accumulation_steps > 1 and keeps_gradients:
            for parameter in trainable:
                parameter.grad = torch.empty_like(parameter)
        before = live.now
        loss = forward(model, shape, train_actor=train_actor)
        activations = live.now - before
        backward(model, loss)
        del loss
    for parameter in trainable:
        parameter.grad = None
    for hook in let_go:
        hook.remove()
    gradients = nbytes(trainable)
    temporaries = 0 if fused else 2 * max(map(nbytes, ([parameter] for parameter in trainable)))
    keeps_best = config.trains_critic and config.critic_early_stop is not None
    return Memory(
        weights=nbytes(tensors),
        gradients=gradients,
        optimizer=ADAM_STATES * gradients,
        kept_critic=nbytes(critic.parameters()) if keeps_best else 0,
        activations=activations,
        step=max(live.peak, gradients + temporaries) if keeps_gradients else live.peak,
    )


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None


def chunk_memory(policy: MetaPolicy, shape: Shape) -> dict[str, int]:
    """Bytes of what acts (:func:`~.meta_step.build_actor`): its "weights", and the "peak" while a chunk is sampled."""
    tensors = [*policy.parameters(), *policy.buffers()]
    with torch.device("meta"):
        batch = make_observation(policy.config, shape)
    with LiveBytes(tensors) as live, FusedAttention(), without_values():
        policy.predict_action_chunk(batch)
    return {"weights": nbytes(tensors), "peak": nbytes(tensors) + live.peak}


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
