"""What a step sends and a GPU holds on 1, 8 and 64 GPUs, on paper: the table of docs/scaling.md.

    python benchmarks/scaling.py [CONFIG] [--gpus 1 8 64] [--write-docs]

The network is the package's own, on the meta device, as in ``pi05-rl plan``. ``scaling_check.py`` holds the formulas
of what is sent against real processes; the seconds follow from the assumptions below.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

from docs_section import replace_section
from torch import Tensor

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.model.towers import TowerLayer
from lerobot_policy_pi05_rl.plan.flops import total, training_step_flops
from lerobot_policy_pi05_rl.plan.gpus import GPUS
from lerobot_policy_pi05_rl.plan.memory import training_step_memory
from lerobot_policy_pi05_rl.plan.meta_step import MetaModel, Shape, build, forward
from lerobot_policy_pi05_rl.plan.setup import Setup, make_setup
from lerobot_policy_pi05_rl.plan.sharding import BF16, FP32, ROOT, Unit, numbers, sharded_step_memory, units_of

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
GPU = next(gpu for gpu in GPUS if gpu.name == "H100 SXM")
GPUS_A_MACHINE = 8
# Bytes/s of the slowest edge of a ring, each direction, from data sheets: a GPU's NVLink; a machine's whole network,
# since as many rings as GPUs share it.
INSIDE, BETWEEN = 450e9, {"8 × 400 Gbit/s": 400e9, "100 Gbit/s": 12.5e9}
EFFICIENCY = 0.4  # share of a GPU's peak. High on purpose: the faster a step, the more its links matter.
LINK_EFFICIENCY = 0.8  # share of a link that collectives reach. An assumption: large messages reach 0.7 to 0.9.


@dataclass(frozen=True)
class Traffic:
    """What one batch moves under FSDP, and one step under DDP."""

    gathers: Counter[str]  # unit → how often it is gathered in a batch
    scattered: tuple[tuple[int, ...], ...]  # shapes of the parameters that get a gradient


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

            def forward_with_cache(*args, name=name, original=module.forward_with_cache):
                output = original(*args)
                note(name, args, output)
                return output

            module.forward_with_cache = forward_with_cache
            undo.append(lambda module=module: delattr(module, "forward_with_cache"))
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
    return numbers(traffic.scattered, processes)


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
    gathered = sum(times * units[name].gathered(processes, layer_bytes) for name, times in traffic.gathers.items())
    return _share(processes) * (gathered + FP32 * scattered_numbers(traffic, processes))


def _share(processes: int) -> float:
    return (processes - 1) / processes


def seconds(sent: float, processes: int, between: float) -> float:
    """Of so many bytes over a ring's slowest edge, nothing of it behind compute; hops are not counted."""
    slowest = INSIDE if processes <= GPUS_A_MACHINE else min(INSIDE, between)
    return sent / (slowest * LINK_EFFICIENCY)


def rows(setup: Setup, gpus: list[int]) -> list[list[str]]:
    """One line of the table for each number of GPUs."""
    policy, shape = setup.config.policy, setup.shape
    model, batches = build(policy), policy.gradient_accumulation_steps
    units, traffic = units_of(model), traffic_of(model, shape, train_actor=True)
    compute = batches * total(training_step_flops(model, shape)) / (GPU.bf16 * EFFICIENCY)
    whole = training_step_memory(model, shape).peak
    found = []
    for n in gpus:
        sent = {"DDP": ddp_bytes(traffic, n), "FSDP": batches * fsdp_bytes(traffic, units, n, layer_bytes=BF16)}
        peak = whole if n == 1 else sharded_step_memory(build(policy), shape, n).peak
        cells = [f"{n}", f"{n * shape.batch_size * batches:,}", f"{whole / 2**30:.1f}", f"{peak / 2**30:.1f}"]
        cells += [f"{size / 1e9:.1f}" for size in sent.values()]
        cells.append(f"{compute:.2f}")
        for between in BETWEEN.values():
            cells.append(", ".join(f"{seconds(size, n, between):.2f}" for size in sent.values()))
        found.append(cells)
    return found


def table(found: list[list[str]]) -> str:
    """Markdown."""
    heads = ["GPUs", "samples a step", "DDP: peak (GiB)", "FSDP: peak (GiB)", "DDP: sends (GB)", "FSDP: sends (GB)"]
    heads += ["compute (s)", *(f"network at {name} (s): DDP, FSDP" for name in BETWEEN)]
    lines = [f"| {' | '.join(heads)} |", f"|{' ---: |' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in found)])


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/so101.json")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/scaling.md")
    args = parser.parse_args()
    found = table(rows(make_setup(load_config(args.config)), args.gpus))
    print(found)
    if args.write_docs:
        replace_section(PAGE, "gpus", f"`python benchmarks/scaling.py`\n\n{found}")


if __name__ == "__main__":
    main()
