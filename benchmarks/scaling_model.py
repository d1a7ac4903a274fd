"""Several machines on paper: what a step sends, how long that takes, what a GPU holds. Pure functions of counts.

The network is the package's own, on the meta device; ``scaling_check.py`` holds the traffic against real processes.
"""

from collections import Counter
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor

from lerobot_policy_pi05_rl.distributed.fsdp import LAYERS
from lerobot_policy_pi05_rl.model.towers import TowerLayer
from lerobot_policy_pi05_rl.plan.compute import usable
from lerobot_policy_pi05_rl.plan.gpus import CAPACITIES_GIB
from lerobot_policy_pi05_rl.plan.memory import ADAM_STATES, training_step_memory
from lerobot_policy_pi05_rl.plan.meta_step import MetaModel, Shape, forward

FP32, BF16 = 4, 2
ROOT = "the rest"  # what no unit of its own holds: gathered once a batch, for forward and backward


@dataclass(frozen=True)
class Unit:
    """Parameters that FSDP gathers together."""

    shapes: tuple[tuple[int, ...], ...]
    trainable: tuple[tuple[int, ...], ...]
    is_layer: bool  # of language tower, expert or critic: what travels in bf16 where the policy computes in it

    def numbers(self, processes: int) -> int:
        """Of an all-gather: torch pads the first dimension to a multiple of the processes."""
        return sum(padded(shape, processes) for shape in self.shapes)


@dataclass(frozen=True)
class Traffic:
    """What one batch moves under FSDP, and one step under DDP."""

    gathers: Counter[str]  # unit → how often it is gathered in a batch
    scattered: tuple[tuple[int, ...], ...]  # shapes of the parameters that get a gradient


def padded(shape: tuple[int, ...], processes: int) -> int:
    """Numbers of a parameter whose first dimension is cut into equal parts."""
    return ceil(shape[0] / processes) * processes * prod(shape[1:])


def units_of(model: MetaModel) -> dict[str, Unit]:
    """Name → unit, by the rule of sharding.py."""
    named = dict(model.losses.named_modules())
    has_own = [name for name, module in named.items() if type(module).__name__ in LAYERS]
    chosen = [name for name in has_own if any(True for _ in named[name].parameters())]
    shapes: dict[str, list] = {name: [] for name in [ROOT, *chosen]}
    for name, parameter in model.losses.named_parameters():
        owner = next((unit for unit in chosen if name.startswith(f"{unit}.")), ROOT)
        shapes[owner].append((tuple(parameter.shape) or (1,), parameter.requires_grad))
    return {
        name: Unit(
            tuple(shape for shape, _ in held),
            tuple(shape for shape, trains in held if trains),
            name != ROOT and isinstance(named[name], TowerLayer),
        )
        for name, held in shapes.items()
    }


def calls_of(model: MetaModel, shape: Shape, *, train_actor: bool) -> list[tuple[str, bool, bool]]:
    """The units in the order in which a forward runs them: name, whether the output needs a gradient, whether an
    input does."""
    calls, undo, units = [], [], units_of(model)

    def note(name: str, inputs: tuple, output) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        calls.append((name, _needs_gradient(outputs), _needs_gradient(inputs)))

    for name, module in model.losses.named_modules():
        if name not in units:
            continue
        if isinstance(module, TowerLayer):

            def read(*args, name=name, original=module.read):
                output = original(*args)
                note(name, args, output)
                return output

            module.read = read
            undo.append(lambda module=module: delattr(module, "read"))
        else:
            hook = module.register_forward_hook(lambda _, inputs, output, name=name: note(name, inputs, output))
            undo.append(hook.remove)
    try:
        forward(model, shape, train_actor=train_actor)
    finally:
        for function in undo:
            function()
    return calls


def _needs_gradient(values: tuple) -> bool:
    flat = [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    return any(isinstance(value, Tensor) and value.requires_grad for value in flat)


def count_gathers(calls: list[tuple[str, bool, bool]]) -> Counter[str]:
    """How often torch's fully_shard gathers each unit for one batch.

    Forward gathers at every call and lets go behind it. Backward goes through the calls from the last to the first:
    one that needs a gradient gathers itself and, ahead of time, the call before it, even if that needs none; it lets
    go once its inputs have their gradients, or at the end if they need none; until then an earlier call of the same
    unit gathers nothing, ahead of time neither. The rest stays from start to end.
    """
    gathers, held, kept = Counter({ROOT: 1}), set(), set()

    def gather(name: str) -> None:
        if name not in held:
            held.add(name)
            gathers[name] += 1

    gathers.update(name for name, _, _ in calls)
    before = [name for name, _, _ in calls]
    if calls:
        gather(before[-1])
    for place in range(len(calls) - 1, -1, -1):
        name, needs_gradient, inputs_do = calls[place]
        if not needs_gradient or name in kept:
            continue
        gather(name)
        if place:
            gather(before[place - 1])
        if inputs_do:
            held.discard(name)
        else:
            kept.add(name)
    return gathers


def traffic_of(model: MetaModel, shape: Shape, *, train_actor: bool) -> Traffic:
    """Of a batch with the actor, or of the critic alone."""
    parts = [*(model.trainable["actor"] if train_actor else []), *model.trainable["critic"]]
    gathers = count_gathers(calls_of(model, shape, train_actor=train_actor))
    return Traffic(gathers, tuple(tuple(parameter.shape) or (1,) for parameter in parts))


def gathered_numbers(traffic: Traffic, units: dict[str, Unit], processes: int) -> int:
    """Of all all-gathers of a batch, each as a whole."""
    return sum(times * units[name].numbers(processes) for name, times in traffic.gathers.items())


def scattered_numbers(traffic: Traffic, processes: int) -> int:
    """Of all reduce-scatters of a batch: every gradient once, however often its layer runs, because autograd hands
    it over behind the last use."""
    return sum(padded(shape, processes) for shape in traffic.scattered)


def reduced_numbers(traffic: Traffic) -> int:
    """Of a step's all-reduces under DDP."""
    return sum(prod(shape) for shape in traffic.scattered)


def ddp_bytes(traffic: Traffic, processes: int) -> float:
    """Sent by each GPU in a step, and received: a ring passes every gradient on twice; the accumulated batches before
    the last one send nothing."""
    return 2 * _share(processes) * FP32 * reduced_numbers(traffic)


def fsdp_bytes(traffic: Traffic, units: dict[str, Unit], processes: int, *, layer_bytes: int = FP32) -> float:
    """Sent by each GPU for one batch, and received; the batches that a step accumulates all pay it.

    Args:
        layer_bytes: of a number of a layer's parameters on their way; gradients travel in fp32.
    """
    gathered = sum(
        times * units[name].numbers(processes) * (layer_bytes if units[name].is_layer else FP32)
        for name, times in traffic.gathers.items()
    )
    return _share(processes) * (gathered + FP32 * scattered_numbers(traffic, processes))


def _share(processes: int) -> float:
    return (processes - 1) / processes


@dataclass(frozen=True)
class Fabric:
    """How GPUs are connected. Bytes/s, each direction, as data sheets give them."""

    name: str
    gpu: str  # of plan/gpus.py
    inside: float  # of a GPU, to the others of its machine
    between: float  # of a whole machine, to the others


GPUS_A_MACHINE = 8
LINK_EFFICIENCY = 0.8  # share of a link that collectives reach. An assumption: large messages reach 0.7 to 0.9.
HOP_SECONDS = 10e-6  # from one GPU to the next, of a small message. An assumption: 5 to 20 µs.


def bandwidth(fabric: Fabric, processes: int) -> float:
    """Bytes/s of the ring's slowest edge. Between machines as many rings as there are GPUs share the machine's
    network, so that the machine as a whole sends what one GPU sends."""
    slowest = fabric.inside if processes <= GPUS_A_MACHINE else min(fabric.inside, fabric.between)
    return slowest * LINK_EFFICIENCY


def hops(processes: int, *, one_ring: bool) -> int:
    """Of one pass of a collective (an all-gather, a reduce-scatter, half an all-reduce), first inside the machines,
    then between them, or around one ring of all GPUs."""
    if one_ring or processes <= GPUS_A_MACHINE:
        return processes - 1
    return GPUS_A_MACHINE - 1 + processes // GPUS_A_MACHINE - 1


def seconds(sent: float, passes: int, fabric: Fabric, processes: int, *, one_ring: bool = False) -> float:
    """Of collectives that follow one another: bytes over bandwidth, and ``passes`` times the hops."""
    return sent / bandwidth(fabric, processes) + passes * hops(processes, one_ring=one_ring) * HOP_SECONDS


DDP_BUCKET = 25 * 2**20  # torch's bucket_cap_mb


def ddp_passes(traffic: Traffic) -> int:
    """All-reduces of a step, twice each."""
    return 2 * ceil(reduced_numbers(traffic) * FP32 / DDP_BUCKET)


def fsdp_passes(traffic: Traffic, units: dict[str, Unit]) -> int:
    """Collectives of a batch: the gathers, and one reduce-scatter for each unit that trains."""
    return sum(traffic.gathers.values()) + sum(bool(unit.trainable) for unit in units.values())


def rest_of(model: MetaModel, units: dict[str, Unit], shape: Shape) -> dict[int, int]:
    """Bytes of a number of a layer's parameters on their way → activations and temporaries at the peak, which no
    sharding makes smaller; the layers of ``model`` are bf16 afterwards.

    In forward the copies that autocast keeps of fp32 weights until it ends are among them, in backward the gradients
    that the layers have from the tag and keep until those of the prefix are added.
    """
    rest = {}
    for layer_bytes in (FP32, BF16):
        if layer_bytes == BF16:
            for name, module in model.losses.named_modules():
                if name in units and units[name].is_layer:
                    module.to(torch.bfloat16)
        memory = training_step_memory(model, shape)
        rest[layer_bytes] = memory.step - memory.gradients
    return rest


def fsdp_memory(units: dict[str, Unit], rest: dict[int, int], processes: int, layer_bytes: int) -> float:
    """Bytes of a GPU at the peak, an upper estimate: it adds up what does not all meet.

    This process's part of weights, gradients and AdamW's averages; the rest as a whole; two layers, the one that runs
    and the one that is fetched; the largest gradient on its way, as it is and as it is sent; activations.
    """
    weights = sum(unit.numbers(processes) for unit in units.values())
    trained = sum(padded(shape, processes) for unit in units.values() for shape in unit.trainable)
    parts = FP32 * (weights + (1 + ADAM_STATES) * trained) / processes
    layer = max(unit.numbers(processes) for name, unit in units.items() if name != ROOT)
    whole = FP32 * units[ROOT].numbers(processes) + 2 * layer_bytes * layer
    gradient = max(sum(padded(shape, processes) for shape in unit.trainable) for unit in units.values())
    return parts + whole + 2 * FP32 * gradient + rest[layer_bytes]


def smallest_card(peak: float) -> str:
    """The smallest of plan/gpus.py's cards that holds it."""
    return next((f"{capacity} GiB" for capacity in CAPACITIES_GIB if peak <= usable(capacity)), "none")


def every_so_many_steps(blocked: float, step: float, share: float) -> int:
    """Steps between saves of ``blocked`` seconds that cost at most this share of the time."""
    return ceil(blocked / (share * step))
