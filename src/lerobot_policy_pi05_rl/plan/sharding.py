"""Bytes of a training step on one GPU of several that hold a shard each of every parameter (distributed/fsdp.py)."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, prod

import torch

from ..distributed.fsdp import LAYERS
from ..model.towers import TowerLayer
from .memory import ADAM_STATES, Memory, training_step_memory
from .meta_step import MetaModel, Shape

FP32, BF16 = 4, 2
ROOT = "the rest"  # what no unit of its own holds: gathered once a batch, for forward and backward


@dataclass(frozen=True)
class Unit:
    """Parameters that FSDP gathers together."""

    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]  # bytes of a number of each: a frozen matrix may be held in bf16
    trainable: tuple[tuple[int, ...], ...]
    is_layer: bool  # of language tower, expert or critic: what travels in bf16 where the policy computes in it

    def numbers(self, processes: int) -> int:
        """Of an all-gather: torch pads the first dimension to a multiple of the processes."""
        return numbers(self.shapes, processes)

    def held(self, processes: int) -> int:
        """Bytes of its shards, those of all processes together."""
        return sum(size * padded(shape, processes) for shape, size in zip(self.shapes, self.sizes, strict=True))

    def gathered(self, processes: int, layer_bytes: int) -> int:
        """Bytes of an all-gather."""
        if self.is_layer and layer_bytes == BF16:
            return BF16 * self.numbers(processes)
        return self.held(processes)


def padded(shape: tuple[int, ...], processes: int) -> int:
    """Numbers of a parameter whose first dimension is cut into equal parts."""
    return ceil(shape[0] / processes) * processes * prod(shape[1:])


def numbers(shapes: Iterable[tuple[int, ...]], processes: int) -> int:
    """Of several parameters, each padded."""
    return sum(padded(shape, processes) for shape in shapes)


def units_of(model: MetaModel) -> dict[str, Unit]:
    """Name → unit, by the rule of distributed/fsdp.py."""
    named = dict(model.losses.named_modules())
    has_own = [name for name, module in named.items() if type(module).__name__ in LAYERS]
    chosen = [name for name in has_own if any(True for _ in named[name].parameters())]
    shapes: dict[str, list] = {name: [] for name in [ROOT, *chosen]}
    for name, parameter in model.losses.named_parameters():
        owner = next((unit for unit in chosen if name.startswith(f"{unit}.")), ROOT)
        shapes[owner].append((tuple(parameter.shape) or (1,), parameter.element_size(), parameter.requires_grad))
    return {
        name: Unit(
            tuple(shape for shape, _, _ in held),
            tuple(size for _, size, _ in held),
            tuple(shape for shape, _, trains in held if trains),
            name != ROOT and isinstance(named[name], TowerLayer),
        )
        for name, held in shapes.items()
    }


def sharded_step_memory(model: MetaModel, shape: Shape, processes: int) -> Memory:
    """:func:`shard_of` the model's step.

    Args:
        model: its layers are in bf16 afterwards, as they travel.
    """
    units, layer_bytes = units_of(model), BF16 if model.policy.computes_in_bf16 else FP32
    if layer_bytes == BF16:
        for name, module in model.losses.named_modules():
            if name in units and units[name].is_layer:
                module.to(torch.bfloat16)
    return shard_of(units, training_step_memory(model, shape, keeps_gradients=False), processes, layer_bytes)


def shard_of(units: dict[str, Unit], whole: Memory, processes: int, layer_bytes: int) -> Memory:
    """One process's part; an upper estimate, since ``step`` adds up what does not all meet.

    Its shards of weights, and of gradients and AdamW's averages in fp32; the rest gathered; two layers, the one that
    runs and the one that is fetched; the largest gradient on its way, as it is and as it is sent; activations. Before
    weights are cut into shards, every process has all of them on its GPU.

    Args:
        whole: of a step that keeps no gradients.
        layer_bytes: of a layer's number on its way.
    """
    weights = sum(unit.held(processes) for unit in units.values()) // processes
    trainable = [shape for unit in units.values() for shape in unit.trainable]
    gradients = FP32 * numbers(trainable, processes) // processes
    gathered = units[ROOT].held(processes) + 2 * max(
        unit.gathered(processes, layer_bytes) for name, unit in units.items() if name != ROOT
    )
    sent = FP32 * max(numbers(unit.trainable, processes) for unit in units.values())
    held = weights + ADAM_STATES * gradients + whole.kept_critic // processes
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=ADAM_STATES * gradients,
        kept_critic=whole.kept_critic // processes,
        activations=whole.activations,
        step=max(gradients + gathered + 2 * sent + whole.step, sum(unit.held(1) for unit in units.values()) - held),
    )
