"""A plan on the terminal."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from .compute import Plan, usable
from .gpus import CAPACITIES_GIB, GPUS, PUBLISHED, USABLE


def print_plan(plan: Plan, console: Console) -> None:
    """The plan's tables, each with its units."""
    console.print("Assumed: " + "; ".join(plan.assumptions) + ".", highlight=False)
    console.print(_parameters(plan), _memory(plan), _flops(plan), _phases(plan), _speed(plan))
    for line in _fit(plan):
        console.print(line, highlight=False, soft_wrap=True)  # flags that are copied
    disk = f"Checkpoint: {gib(plan.checkpoint)} GiB; {plan.checkpoints_written} written, at most {gib(plan.disk)} GiB"
    console.print(f"{disk} on disk at once.", highlight=False)
    if plan.host:
        console.print(f"Host memory while one is written: {gib(plan.host)} GiB more.", highlight=False)
    weights, peak = (gib(plan.acting[name]) for name in ("weights", "peak"))
    console.print(
        f"Acting (actor, lerobot-eval, lerobot-rollout): {peak} GiB, {weights} of it weights.", highlight=False
    )
    console.print(f"Online, each version of the weights is {gib(plan.pushed)} GiB to each actor.", highlight=False)


def gib(count: float) -> str:
    """Bytes in GiB."""
    return f"{count / 2**30:.2f}"


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _parameters(plan: Plan) -> Table:
    table = _table("Parameters (millions)", "part", "trainable", "frozen")
    counts = {**plan.parameters, "all": _sum(plan.parameters)}
    for part, kinds in counts.items():
        table.add_row(part, f"{kinds['trainable'] / 1e6:,.2f}", f"{kinds['frozen'] / 1e6:,.2f}")
    return table


def _memory(plan: Plan) -> Table:
    each = "" if plan.processes == 1 else f", each of {plan.processes} GPUs"
    table = _table(f"Memory of a step (GiB{each})", "", "as configured")
    names = {
        "weights": "weights",
        "gradients": "gradients, fp32",
        "optimizer": "AdamW's averages, fp32",
        "kept_critic": "best critic so far",
        "activations": "activations kept for backward",
        "peak": "peak",
    }
    for name, text in names.items():
        if plan.memory[name]:
            table.add_row(text, gib(plan.memory[name]))
    for name, values in (("without", plan.without_checkpointing), ("with", plan.with_checkpointing)):
        both = f"{gib(values['activations'])}, {gib(values['peak'])}"
        table.add_row(f"activations, peak {name} gradient checkpointing", both)
    return table


def _flops(plan: Plan) -> Table:
    table = _table("TFLOP of a batch", "part", "forward", "backward")
    for part, phases in {**plan.flops_per_batch, "all": _sum(plan.flops_per_batch)}.items():
        table.add_row(part, *(f"{phases[phase] / 1e12:,.4f}" for phase in ("forward", "backward")))
    step = f"{plan.samples_per_step} samples a step" + ("" if plan.processes == 1 else ", all GPUs")
    table.add_row(f"an optimization step, {step}", "", f"{plan.flops_per_step / 1e12:,.4f}")
    return table


def _phases(plan: Plan) -> Table:
    """Each phase beside the cloning of as many steps as the policy takes."""
    table = _table("Phases of the run", "", "", "PFLOP", "of cloning")
    everything = sum(phase.flops for phase in plan.phases.values())
    rows = {name: (f"{phase.count:,} {phase.unit}", phase.flops) for name, phase in plan.phases.items()}
    for name, (count, flops) in {**rows, "all": ("", everything)}.items():
        share = f"{flops / plan.cloning:.3f}" if plan.cloning else "-"
        table.add_row(name, count, f"{flops / 1e15:,.2f}", share)
    return table


def _speed(plan: Plan) -> Table:
    published = ", ".join(f"{name} {speed}" for name, speed in PUBLISHED.items())
    title = f"Speed at an assumed {plan.efficiency:.0%} of the peak (published, full training on an H100: {published})"
    table = _table(title, "GPU", "samples/s", "hours of the run", "fits")
    for gpu in GPUS:
        fits = "yes" if plan.memory["peak"] <= usable(gpu.memory_gib) else "no"
        table.add_row(gpu.name, f"{plan.samples_per_s[gpu.name]:,.1f}", f"{plan.hours[gpu.name]:,.1f}", fits)
    return table


def _fit(plan: Plan) -> Iterator[str]:
    """A line a change: its peak, the smallest card that holds it, its flags."""
    yield f"What fits (a card is filled to {USABLE:.0%}): peak in GiB, smallest card, change"
    for flags, peak in {"as configured": plan.memory["peak"], **plan.changes}.items():
        card = next((f"{capacity} GiB" for capacity in CAPACITIES_GIB if peak <= usable(capacity)), "none")
        yield f"{gib(peak):>8}  {card:>6}  {flags}"


def _sum(parts: dict[str, dict[str, int]]) -> dict[str, int]:
    kinds = next(iter(parts.values()))
    return {kind: sum(values[kind] for values in parts.values()) for kind in kinds}
