"""Counts what processes really send in a step of a tiny model, beside what benchmarks/scaling.py says.

    python -m torch.distributed.run --standalone --nproc-per-node 2 benchmarks/scaling_check.py [--json]

Every case is a policy's options. A critic-only step and a joint one, of two accumulated batches each, on the CPU.
"""

import argparse
import json
import os
from collections import Counter
from dataclasses import replace
from itertools import repeat

import scaling as model_of
import torch
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK
from torch.utils._python_dispatch import TorchDispatchMode

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.data.batch import POSITION
from lerobot_policy_pi05_rl.distributed.processes import start_processes
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.plan.meta_step import Shape, build, make_batch, with_cameras
from lerobot_policy_pi05_rl.recap import RecapAlgorithm, RecapConfig

SIZES = {
    **{"llm_width": 64, "llm_mlp_dim": 128, "llm_depth": 3, "head_dim": 8, "expert_width": 32, "expert_mlp_dim": 64},
    **{"vision_width": 32, "vision_mlp_dim": 64, "vision_depth": 2, "vision_heads": 4, "vision_patch_size": 16},
    **{"image_resolution": (32, 32), "vocab_size": 301, "critic_llm_depth": 2, "critic_image_pooling": 1},
    **{"chunk_size": 6, "n_action_steps": 3, "max_action_dim": 8, "max_state_dim": 8, "num_value_queries": 2},
}
CASES = {
    "everything trains": {},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "train_expert_only": {"train_expert_only": True},
    "freeze_vision_encoder": {"freeze_vision_encoder": True},
    "cloning": {"policy_extraction": "none"},
    "shared critic": {"use_separate_critic": False},
}
BATCHES = 2
GATHER, SCATTER, REDUCE = "all-gather", "reduce-scatter", "all-reduce"
OPERATIONS = {"_allgather_base_": GATHER, "_reduce_scatter_base_": SCATTER, "allreduce_": REDUCE}
SMALL = 64  # numbers: metrics, advantages and norms, which are not what is counted here


def tiny(**options) -> PI05RLConfig:
    """A π0.5 of some ten thousand parameters."""
    config = PI05RLConfig(device="cpu", **SIZES, critic_warmup_steps=1, gradient_accumulation_steps=BATCHES, **options)
    return with_cameras(config, 2, state_dim=4, action_dim=3)


class Sent(TorchDispatchMode):
    """Adds up the numbers in every collective: of an all-gather and a reduce-scatter the whole, of an all-reduce."""

    def __init__(self):
        super().__init__()
        self.calls, self.numbers = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = OPERATIONS.get(func._schema.name.removeprefix("c10d::"))
        if name is not None:
            tensors = args[0] if isinstance(args[0], list) else [args[1] if name == SCATTER else args[0]]
            count = sum(tensor.numel() for tensor in tensors)
            if count > SMALL:
                self.calls[name] += 1
                self.numbers[name] += count
        return func(*args, **(kwargs or {}))


def measure(config: PI05RLConfig, processes) -> dict[str, dict]:
    """Step → operation → [calls, numbers], of a critic-only step and of a joint one."""
    torch.manual_seed(0)
    policy = PI05RLPolicy(config, load_critic=config.trains_critic)
    algorithm = RecapAlgorithm(policy, RecapConfig(policy_config=config), tasks=["task"], processes=processes)
    shapes, _ = make_batch(config, Shape(2, 9))
    batch = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in shapes.items()}
    batch[OBS_LANGUAGE_ATTENTION_MASK].fill_(1)
    batch[POSITION] = torch.arange(2)
    steps = {}
    for step in ("critic only", "joint") if config.trains_critic else ("joint",):
        with Sent() as sent:
            algorithm.update(repeat(batch))
        steps[step] = {name: [sent.calls[name], sent.numbers[name]] for name in sorted(sent.calls)}
    return steps


def expected(config: PI05RLConfig, kind: str, processes: int) -> dict[str, dict]:
    """The same by formula; of the calls, those that do not depend on buckets and on what backward does when."""
    model, steps = build(config), {}
    units = model_of.units_of(model)
    for step in ("critic only", "joint") if config.trains_critic else ("joint",):
        traffic = model_of.traffic_of(model, Shape(2, 9), train_actor=step == "joint")
        if kind == "DDP":
            steps[step] = {REDUCE: [None, model_of.reduced_numbers(traffic)]}
            continue
        gathers = [
            BATCHES * sum(traffic.gathers.values()),
            BATCHES * model_of.gathered_numbers(traffic, units, processes),
        ]
        steps[step] = {GATHER: gathers, SCATTER: [None, BATCHES * model_of.scattered_numbers(traffic, processes)]}
    return steps


def rows(counted: dict, formula: dict) -> list[dict]:
    """One for each kind of collective of each step."""
    return [
        {
            "case": f"{kind}, {case}, {step}",
            "operation": name,
            "calls": calls,
            "calls by formula": formula[kind][case][step][name][0],
            "numbers": numbers,
            "numbers by formula": formula[kind][case][step][name][1],
        }
        for kind, cases in counted.items()
        for case, steps in cases.items()
        for step, sent in steps.items()
        for name, (calls, numbers) in sent.items()
    ]


def table(found: list[dict]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(found[0])} |", "| --- | --- |" + " ---: |" * (len(found[0]) - 2)]
    for row in found:
        cells = ("-" if cell is None else f"{cell:,}" if isinstance(cell, int) else cell for cell in row.values())
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cases in every process; the first prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    torch.set_num_threads(1)
    processes = start_processes("cpu")
    kinds = {"DDP": replace(processes, fsdp=None), "FSDP": processes}
    counted = {
        kind: {name: measure(tiny(**options), how) for name, options in CASES.items()} for kind, how in kinds.items()
    }
    if processes.is_main:
        formula = {
            kind: {name: expected(tiny(**options), kind, processes.count) for name, options in CASES.items()}
            for kind in kinds
        }
        found = rows(counted, formula)
        print(json.dumps(found) if args.json else table(found))
    processes.wait()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
