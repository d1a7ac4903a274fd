"""The tables of ``gpu.py``: what was measured, and what ``pi05-rl plan`` predicts for it."""

import re
from functools import partial
from statistics import median

from lerobot_policy_pi05_rl.plan.flops import total, training_step_flops
from lerobot_policy_pi05_rl.plan.gpus import EFFICIENCY, GPUS
from lerobot_policy_pi05_rl.plan.memory import training_step_memory
from lerobot_policy_pi05_rl.plan.meta_step import build

GIB = 2**30


def report(lines: list) -> str:
    """Three tables: training, a chunk, labelling.

    Args:
        lines: each with what was measured of it.
    """
    card = next((found["card"] for _, found in lines if "card" in found), "no card")
    version = lines[0][1]["torch"]
    parts = [f"{card}, torch {version}, bf16, 2 cameras, 64 prompt tokens."]
    measured = [(line, found) for line, found in lines if "error" not in found]
    for wanted, table in (("train", partial(training, peak_of(card))), ("act", acting), ("label", labelling)):
        chosen = [(line, found) for line, found in measured if line.kind.endswith(wanted)]
        if chosen:
            parts.append(table(chosen))
    failed = [f"- {line.name}, batch {line.batch}: {found['error']}" for line, found in lines if "error" in found]
    if failed:
        parts.append("\n".join(["Not measured:", "", *failed]))
    return "\n\n".join(parts)


def peak_of(card: str) -> float | None:
    """FLOP/s of bf16 by the data sheet; None: the card is not in the list."""
    kind = re.search(r"[A-Z]*\d{3,4}[A-Z]*", card)
    known = [gpu for gpu in GPUS if kind and kind[0] in gpu.name]
    return known[0].bf16 if known else None


def training(peak: float | None, lines: list) -> str:
    """Speed beside stock at the same batch, share of the peak, memory beside the prediction."""
    stock = {
        (line.batch, line.policy.get("gradient_checkpointing", True)): found["seconds"]
        for line, found in lines
        if line.kind == "stock train" and not line.policy.get("compile_model")
    }
    rows = [
        f"| training step | batch | samples/s | × stock | share of peak (plan assumes {EFFICIENCY:.0%}) "
        "| first step (s) | graphs (s) | peak, GiB | predicted | ratio | taken of the card |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line, found in lines:
        base = stock.get((line.batch, line.policy.get("gradient_checkpointing", True)))
        ratio = f"{base / found['seconds']:.2f}" if base else ""
        share = guess = compared = ""
        if line.kind == "train":
            model = build(line.config("cpu"), line.peft)
            if peak:
                share = f"{total(training_step_flops(model, line.shape)) / found['seconds'] / peak:.0%}"
            predicted = training_step_memory(build(line.config("cpu"), line.peft), line.shape).peak
            guess = f"{predicted / GIB:.2f}"
            compared = f"{predicted / found['allocated']:.3f}" if found["allocated"] else ""
        rows.append(
            f"| {line.name} | {line.batch} | {line.batch / found['seconds']:.1f} | {ratio} | {share} "
            f"| {found['first_s']:.0f} | {seconds_of_graphs(found)} | {found['allocated'] / GIB:.2f} "
            f"| {guess} | {compared} | {found['reserved'] / GIB:.2f} |"
        )
    return "\n".join(rows)


def acting(lines: list) -> str:
    """Milliseconds of a chunk, and what guidance costs in the same round."""
    rows = [
        "| action chunk | plain, ms | guided, ms | guided × plain | first (s) | graphs (s) | weights, GiB "
        "| peak, GiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line, found in lines:
        chunks = found["chunks"]
        guided = ratio = ""
        if "guided" in chunks:
            guided = f"{median(chunks['guided']) * 1e3:.1f}"
            times = sorted(more / less for more, less in zip(chunks["guided"], chunks["plain"], strict=True))
            ratio = f"{median(times):.2f} ({times[len(times) // 4]:.2f} to {times[-1 - len(times) // 4]:.2f})"
        rows.append(
            f"| {line.name} | {median(chunks['plain']) * 1e3:.1f} | {guided} | {ratio} | {found['first_s']:.1f} "
            f"| {seconds_of_graphs(found)} | {found['held'] / GIB:.2f} | {found['allocated'] / GIB:.2f} |"
        )
    return "\n".join(rows)


def seconds_of_graphs(found: dict) -> str:
    """Until the first step where no graph was in torch's cache, beside the other lines' graphs."""
    return f"{found['graphs_s']:.0f}" if "graphs_s" in found else ""


def labelling(lines: list) -> str:
    """Frames per second."""
    rows = ["| labelling | batch | frames/s | peak, GiB |", "| --- | ---: | ---: | ---: |"]
    rows += [
        f"| {line.name} | {line.batch} | {line.batch / found['seconds']:.0f} | {found['allocated'] / GIB:.2f} |"
        for line, found in lines
    ]
    return "\n".join(rows)
