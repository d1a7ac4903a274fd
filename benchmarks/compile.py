"""What ``policy.compile_model`` changes: samples per second, seconds of the first step, number of compilations.

    python benchmarks/compile.py [--sizes demo small] [--variants cloning RL] [--repeats 5] [--write-docs]

CPU, fp32, one thread, the package's own update on drawn batches whose prompts have several lengths. Each line of the
table is a process of its own with an empty compiler cache, in which an eager and a compiled policy take turns; the
ratio is taken within one round. A second process, which finds that cache, makes one compiled step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from docs_section import write_section
from memory import SIZES, drawn_batch
from torch import Tensor
from torch._dynamo.utils import counters

from lerobot_policy_pi05_rl.config.file import SIZE_FIELDS
from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.plan.meta_step import Shape, with_cameras
from lerobot_policy_pi05_rl.recap import RecapAlgorithm, RecapConfig

DEMO = Path(__file__).parents[1] / "configs" / "demo.json"
VARIANTS = {
    "cloning": {"policy_extraction": "none"},
    "RL": {},
    "RL, checkpointing": {"gradient_checkpointing": True},
}
TEXTS = (24, 32, 40, 48)  # tokens of the prompts, one after the other
ROUND_SECONDS = 4.0  # of either policy


def sizes_and_batch(name: str) -> tuple[dict, int]:
    """Fields of the configuration and samples of a batch: the demo's, or one of ``benchmarks/memory.py``."""
    if name != "demo":
        return SIZES[name][0], SIZES[name][1].batch_size
    raw = json.loads(DEMO.read_text())
    sizes = {key: value for key, value in raw["policy"].items() if key in SIZE_FIELDS and key != "critic_folds"}
    return sizes | {"image_resolution": tuple(sizes["image_resolution"])}, raw["batch_size"]


def make_algorithm(size: str, variant: str, *, compiled: bool) -> RecapAlgorithm:
    """The update around a policy with two cameras and random weights."""
    config = PI05RLConfig(device="cpu", compile_model=compiled, **sizes_and_batch(size)[0], **VARIANTS[variant])
    torch.manual_seed(0)
    config = with_cameras(config, 2, state_dim=4, action_dim=4)  # the demo has so many
    policy = PI05RLPolicy(config, load_critic=config.trains_critic)
    return RecapAlgorithm(policy, RecapConfig(policy_config=config), tasks=["a task"])


def drawn_batches(algorithm: RecapAlgorithm, batch: int) -> Iterator[dict[str, Tensor]]:
    """One batch of each prompt length, over and over."""
    return cycle([drawn_batch(algorithm.policy.config, Shape(batch, text)) for text in TEXTS])


def seconds_of(algorithm: RecapAlgorithm, batches: Iterator[dict[str, Tensor]], steps: int) -> float:
    """Wall-clock seconds of so many optimization steps."""
    began = time.perf_counter()
    for _ in range(steps):
        algorithm.update(batches)
    return time.perf_counter() - began


def first_step(size: str, variant: str) -> dict:
    """Seconds of a compiled policy's first step, with the making of the policy, which tries the compiler."""
    began = time.perf_counter()
    algorithm = make_algorithm(size, variant, compiled=True)
    algorithm.update(drawn_batches(algorithm, sizes_and_batch(size)[1]))
    return {"first_s": time.perf_counter() - began}


def compare(size: str, variant: str, repeats: int) -> dict:
    """Seconds of the first step, samples per second of either policy in each round, compilations."""
    batch, began = sizes_and_batch(size)[1], time.perf_counter()
    compiled = make_algorithm(size, variant, compiled=True)
    batches = drawn_batches(compiled, batch)
    compiled.update(batches)
    result = {"first_s": time.perf_counter() - began, "eager": [], "compiled": []}
    eager = make_algorithm(size, variant, compiled=False)
    policies = {"eager": (eager, drawn_batches(eager, batch)), "compiled": (compiled, batches)}
    seconds_of(*policies["compiled"], len(TEXTS))  # every length once; the eager policy's first steps allocate
    per_step = seconds_of(*policies["eager"], len(TEXTS)) / len(TEXTS)
    steps = len(TEXTS) * max(1, round(ROUND_SECONDS / per_step / len(TEXTS)))
    for _ in range(repeats):
        for name, (algorithm, endless) in policies.items():
            result[name].append(steps * batch / seconds_of(algorithm, endless, steps))
    return result | {"graphs": counters["stats"]["unique_graphs"]}


def in_process(what: str, size: str, variant: str, repeats: int, cache: str) -> dict:
    """:func:`compare` or :func:`first_step` in a process of its own, on one thread."""
    command = [sys.executable, __file__, "--measure", what, "--sizes", size, "--variants", variant]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache}
    result = subprocess.run(
        [*command, "--repeats", str(repeats)], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def report(rows: list[dict]) -> str:
    """A table: medians, and the ratio within each round with its spread."""
    lines = [
        "| size | step | samples/s, eager | samples/s, compiled | ratio | first step (s) | again (s) | graphs |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        ratios = sorted(ours / base for ours, base in zip(row["compiled"], row["eager"], strict=True))
        speeds = [f"{median(row[name]):.1f}" for name in ("eager", "compiled")]
        ratio = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        cells = [row["size"], row["variant"], *speeds, ratio, f"{row['first_s']:.0f}", f"{row['again_s']:.0f}"]
        lines.append(f"| {' | '.join([*cells, str(row['graphs'])])} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=["demo", *SIZES], default=["demo", "small"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["cloning", "RL"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--measure", choices=("compare", "first_step"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        torch.set_num_threads(1)
        size, variant = args.sizes[0], args.variants[0]
        result = first_step(size, variant) if args.measure == "first_step" else compare(size, variant, args.repeats)
        print(json.dumps(result))
        return
    rows = []
    for size in args.sizes:
        for variant in args.variants:
            with tempfile.TemporaryDirectory() as cache:
                row = in_process("compare", size, variant, args.repeats, cache)
                row["again_s"] = in_process("first_step", size, variant, args.repeats, cache)["first_s"]
            rows.append({"size": size, "variant": variant, **row})
            print(report(rows[-1:]).splitlines()[-1], flush=True)
    table = report(rows)
    print(table)
    if args.write_docs:
        command = f"python benchmarks/compile.py --sizes {' '.join(args.sizes)} --variants {' '.join(args.variants)}"
        write_section("compile", f"{command} --repeats {args.repeats}", table)


if __name__ == "__main__":
    main()
