"""What this card does at full π0.5 size: samples per second, peak memory, milliseconds a chunk, frames labelled.

    python benchmarks/gpu.py [--output outputs/gpu.json] [--minutes 9] [--only NAME …]   # measure, on the card
    python benchmarks/gpu.py --report FILE [--write-docs]                                # tables, on any machine

No download and no dataset: weights and batches are drawn on the card, two cameras, prompts of 64 tokens, bf16 compute,
the package's own update. Stock is LeRobot's ``PI05Policy`` in ``lerobot-train``'s own step; its text is padded to 200
tokens, as its default is. First the graphs of all compiled lines are made, at the same time, by policies of few
layers: a graph serves any depth. Then every line is a process of its own, so that neither memory nor a failure carries
over, and is written to ``--output`` as it is made; a line that does not fit, or for which no time is left, says so.
The report puts beside each line what ``pi05-rl plan`` predicts for it.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking for the card must not open it before the processes fork
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the work is the card's

import torch
from docs_section import write_section
from gpu_measures import KINDS, Line
from gpu_report import report

LONGEST = 150.0  # seconds of one line, and of all graphs
FEW_LAYERS = {"llm_depth": 3, "vision_depth": 2}  # a first one, one between, the last

CLONING, ADAPTERS = {"policy_extraction": "none"}, {"critic_adapter_rank": 16}
EXPERT = {"train_expert_only": True}
KEPT = {"gradient_checkpointing": False}
COMPILED = {"compile_model": True}
STOCK_COMPILED = COMPILED | {"compile_mode": "default"}
LINES = (
    Line("stock, cloning", "stock train"),
    Line("cloning", policy=CLONING),
    Line("cloning, compiled", policy=CLONING | COMPILED),
    Line("RL, critic by adapters", policy=ADAPTERS),
    Line("RL, critic by adapters, compiled", policy=ADAPTERS | COMPILED),
    Line("RL, LoRA on both towers, critic by adapters", batch=4, lora=True, policy=ADAPTERS),
    Line("RL, LoRA on both towers, critic by adapters, compiled", batch=4, lora=True, policy=ADAPTERS | COMPILED),
    Line("stock, one chunk", "stock act", batch=1),
    Line("one chunk", "act", batch=1),
    Line("one chunk, compiled", "act", batch=1, policy=COMPILED),
    Line("labelling", "label", batch=64),
    Line("RL, expert only, critic by adapters", policy=EXPERT | ADAPTERS),
    Line("stock, cloning", "stock train", batch=32),
    Line("cloning", batch=32, policy=CLONING),
    Line("RL, critic by adapters", batch=32, policy=ADAPTERS),
    Line("RL, critic by adapters, compiled", batch=32, policy=ADAPTERS | COMPILED),
    Line("RL", policy={}),
    Line("RL, LoRA on both towers, critic by adapters", lora=True, policy=ADAPTERS),
    Line("cloning, without checkpointing", policy=CLONING | KEPT),
    Line("stock, cloning, without checkpointing", "stock train", policy=KEPT),
    Line("stock, cloning, compiled", "stock train", policy=STOCK_COMPILED),
    Line("stock, one chunk, compiled", "stock act", batch=1, policy=STOCK_COMPILED),
)


def measure(line: Line, device: str, size: str, connection: Connection) -> None:
    """In a process of its own: send the numbers, or in a line why there are none."""
    try:
        found = KINDS[line.kind](line, device, size)
        if torch.device(device).type == "cuda":
            properties = torch.cuda.get_device_properties(0)
            found |= {"card": properties.name, "memory": properties.total_memory}
    except Exception as error:  # whatever it is, the other lines are measured
        traceback.print_exc()
        found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    connection.send(found)


class Work:
    """:func:`measure` of a line, going on in a process of its own."""

    def __init__(self, line: Line, device: str, size: str):
        context = multiprocessing.get_context("fork")  # what was imported is there
        self.receiving, sending = context.Pipe(duplex=False)
        self.process = context.Process(target=measure, args=(line, device, size, sending))
        self.process.start()
        sending.close()

    def result(self, limit: float) -> dict:
        """What it sends, given up after ``limit`` seconds."""
        found = {"error": f"not done in {limit:.0f} s"}
        try:
            if self.receiving.poll(max(limit, 0.0)):
                found = self.receiving.recv()
        except EOFError:
            found = {"error": "the process died"}
        self.process.kill()
        self.process.join()
        return found


def make_graphs(lines: list[Line], args: argparse.Namespace) -> dict[str, float]:
    """Seconds until the first step or chunk of each compiled line of ours, all at once, which torch's cache keeps."""
    few = FEW_LAYERS if args.size == "full" else {}
    ours = [line for line in lines if line.kind in ("train", "act") and line.policy.get("compile_model")]
    chosen = {line.name: line for line in reversed(ours)}  # of two batches the first
    began = time.monotonic()
    works = {
        name: Work(dataclasses.replace(line, policy=line.policy | few), args.device, args.size)
        for name, line in chosen.items()
    }
    found = {name: work.result(LONGEST - (time.monotonic() - began)) for name, work in works.items()}
    print(f"{time.monotonic() - began:5.0f} s graphs: {found}", file=sys.stderr, flush=True)
    return {name: each["first_s"] for name, each in found.items() if "first_s" in each}


def measure_all(args: argparse.Namespace) -> list[dict]:
    """Every line in its order, as long as there is time."""
    deadline, done = time.monotonic() + 60 * args.minutes, []
    args.output.parent.mkdir(parents=True, exist_ok=True)
    lines = [line for line in LINES if not args.only or line.name in args.only]
    if args.size != "full":
        lines = [line for line in lines if not line.kind.startswith("stock")]
    graphs = make_graphs(lines, args)
    for line in lines:
        left = deadline - time.monotonic()
        if left < 10:
            found = {"error": "no time was left"}
        else:
            found = Work(line, args.device, args.size).result(min(left, LONGEST))
        if line.name in graphs:
            found["graphs_s"] = graphs[line.name]
        done.append(dataclasses.asdict(line) | found | {"torch": torch.__version__, "size": args.size})
        args.output.write_text(json.dumps(done, indent=1))
        brief = {key: value for key, value in found.items() if key in ("error", "seconds", "first_s", "allocated")}
        print(f"{args.minutes * 60 - left:5.0f} s {line.name}, batch {line.batch}: {brief}", flush=True)
    return done


def main() -> None:
    """Measure, or report what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu.json"))
    parser.add_argument("--minutes", type=float, default=9.0, help="no line begins later, and none runs on")
    parser.add_argument("--only", nargs="+", help="lines of these names")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="full", choices=["full", "demo"], help="demo: to try the script; ours alone")
    parser.add_argument("--report", type=Path, help="of these measurements")
    parser.add_argument("--write-docs", action="store_true", help="put the report into docs/performance.md")
    args = parser.parse_args()
    if args.report is None:
        measure_all(args)
        return
    lines = [
        (Line(**{field.name: each[field.name] for field in dataclasses.fields(Line)}), each)
        for each in json.loads(args.report.read_text())
    ]
    text = report(lines)
    print(text)
    if args.write_docs:
        write_section("gpu", "python benchmarks/gpu.py", text)


if __name__ == "__main__":
    main()
