"""Peak memory of a training step: predicted by ``pi05-rl plan``'s own code, and measured in a process that trains.

    python benchmarks/memory.py [--sizes small wide] [--json] [--write-docs]

CPU, fp32, π0.5 at two reduced sizes, with and without gradient checkpointing. Each measurement is a fresh process that
makes two optimization steps of the package's own update; it reports the growth of its resident set from before the
model is built to the peak. The C library is told to give freed tensors back to the system.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from docs_section import write_section
from torch import Tensor

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.data.batch import ACTION_IS_PAD, POSITION, RETURN
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.plan.memory import training_step_memory
from lerobot_policy_pi05_rl.plan.meta_step import Shape, build, make_batch, with_cameras
from lerobot_policy_pi05_rl.recap import RecapAlgorithm, RecapConfig

_COMMON = {"vocab_size": 4096, "critic_image_pooling": 2, "chunk_size": 16, "n_action_steps": 16}
SIZES: dict[str, tuple[dict, Shape]] = {
    # Mostly weights and what the optimizer keeps of them.
    "wide": (
        _COMMON
        | {"llm_width": 768, "llm_mlp_dim": 6144, "expert_width": 384, "expert_mlp_dim": 1536, "head_dim": 96}
        | {"vision_width": 384, "vision_mlp_dim": 1536, "vision_depth": 8, "vision_heads": 8, "llm_depth": 8}
        | {"critic_llm_depth": 3, "image_resolution": (112, 112)},
        Shape(2, 32),
    ),
    # Mostly activations.
    "small": (
        _COMMON
        | {"llm_width": 384, "llm_mlp_dim": 2048, "expert_width": 192, "expert_mlp_dim": 768, "head_dim": 48}
        | {"vision_width": 256, "vision_mlp_dim": 1024, "vision_depth": 8, "vision_heads": 8, "llm_depth": 8}
        | {"critic_llm_depth": 3, "image_resolution": (168, 168)},
        Shape(8, 32),
    ),
}
STEPS = 2  # the second one meets the optimizer's state
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


def policy_config(size: str, checkpointing: bool) -> PI05RLConfig:
    """The policy of a size, with two cameras."""
    return with_cameras(PI05RLConfig(device="cpu", gradient_checkpointing=checkpointing, **SIZES[size][0]), 2)


def predicted(size: str, checkpointing: bool) -> int:
    """Bytes of the step's peak; the CPU's AdamW makes temporaries."""
    return training_step_memory(build(policy_config(size, checkpointing)), SIZES[size][1], fused=False).peak


def train_and_measure(size: str, checkpointing: bool) -> int:
    """Bytes by which this process's resident set grows at most while it trains (Linux)."""
    torch.set_num_threads(1)
    config = policy_config(size, checkpointing)
    batch = drawn_batch(config, SIZES[size][1])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    algorithm = RecapAlgorithm(PI05RLPolicy(config), RecapConfig(policy_config=config), tasks=["a task"])
    for _ in range(STEPS):
        algorithm.update(iter([dict(batch)]))
    return _status("VmHWM") - before


def drawn_batch(config: PI05RLConfig, shape: Shape) -> dict[str, Tensor]:
    """A preprocessed batch of this shape, as the update reads it."""
    batch = {key: _values(tensor) for key, tensor in make_batch(config, shape)[0].items()}
    positions = torch.arange(shape.batch_size)
    return batch | {RETURN: -torch.rand(len(positions)), POSITION: positions, ACTION_IS_PAD: ~batch[ACTION_IS_PAD]}


def _values(tensor: Tensor) -> Tensor:
    """Something in place of a meta tensor's values: a drawn picture or action, token 0, task 0, true."""
    if tensor.is_floating_point():
        return torch.rand(tensor.shape)
    return torch.full(tensor.shape, tensor.dtype == torch.bool, dtype=tensor.dtype)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measured(size: str, checkpointing: bool) -> int:
    """:func:`train_and_measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", size, *(["--checkpointing"] if checkpointing else [])]
    environment = {**os.environ, **GIVE_BACK}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return int(result.stdout.splitlines()[-1])


def main() -> None:
    """Predict, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--measure", choices=SIZES, help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(train_and_measure(args.measure, args.checkpointing))
        return
    rows = []
    for size in args.sizes:
        for checkpointing in (False, True):
            guess, real = predicted(size, checkpointing), measured(size, checkpointing)
            rows.append({"size": size, "checkpointing": checkpointing, "predicted": guess, "measured": real})
    if args.json:
        print(json.dumps(rows))
        return
    lines = [
        "| size | gradient checkpointing | predicted (MB) | measured (MB) | ratio |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        guess, real = row["predicted"], row["measured"]
        kind = "yes" if row["checkpointing"] else "no"
        lines.append(f"| {row['size']} | {kind} | {guess / 1e6:.0f} | {real / 1e6:.0f} | {guess / real:.3f} |")
    print("\n".join(lines))
    if args.write_docs:
        write_section("memory", "python benchmarks/memory.py", "\n".join(lines))


if __name__ == "__main__":
    main()
