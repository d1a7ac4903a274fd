"""Peak memory of a training step: predicted by ``pi05-rl plan``'s own code, and measured in a process that trains.

    python benchmarks/memory.py [--lines wide lora …] [--json] [--write-docs]

CPU, π0.5 at reduced sizes. Each measurement is a fresh process (of ``fsdp`` lines two) that makes two optimization
steps of the package's own update; it reports the growth of its resident set from before the model is built to the
peak behind that. The C library is told to give freed tensors back to the system.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from docs_section import write_section
from lerobot.configs.default import PeftConfig
from torch import Tensor

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.data.batch import ACTION_IS_PAD, POSITION, RETURN
from lerobot_policy_pi05_rl.distributed.processes import start_processes
from lerobot_policy_pi05_rl.model.lora import add_adapter
from lerobot_policy_pi05_rl.model.precision import Purpose, hold_in_bf16, names_in_bf16
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.plan.memory import training_step_memory
from lerobot_policy_pi05_rl.plan.meta_step import Shape, build, make_batch, with_cameras
from lerobot_policy_pi05_rl.plan.sharding import sharded_step_memory
from lerobot_policy_pi05_rl.recap import RecapAlgorithm, RecapConfig

_COMMON = {"vocab_size": 4096, "critic_image_pooling": 2, "chunk_size": 16, "n_action_steps": 16}
_WIDE = (
    _COMMON
    | {"llm_width": 768, "llm_mlp_dim": 6144, "expert_width": 384, "expert_mlp_dim": 1536, "head_dim": 96}
    | {"vision_width": 384, "vision_mlp_dim": 1536, "vision_depth": 8, "vision_heads": 8, "llm_depth": 8}
    | {"critic_llm_depth": 3, "image_resolution": (112, 112)}
)
SIZES: dict[str, tuple[dict, Shape]] = {
    # Mostly weights and what the optimizer keeps of them.
    "wide": (_WIDE, Shape(2, 32)),
    # Mostly activations.
    "small": (
        _COMMON
        | {"llm_width": 384, "llm_mlp_dim": 2048, "expert_width": 192, "expert_mlp_dim": 768, "head_dim": 48}
        | {"vision_width": 256, "vision_mlp_dim": 1024, "vision_depth": 8, "vision_heads": 8, "llm_depth": 8}
        | {"critic_llm_depth": 3, "image_resolution": (168, 168)},
        Shape(8, 32),
    ),
    # Twice as deep as the first, so that what does not train is most of it.
    "deep": (_WIDE | {"vision_depth": 12, "llm_depth": 16}, Shape(4, 32)),
}
NEARLY_NOTHING = {"llm_width": 64, "llm_mlp_dim": 64, "expert_width": 32, "expert_mlp_dim": 64, "head_dim": 8}
NEARLY_NOTHING |= {"vision_width": 64, "vision_mlp_dim": 64, "vision_depth": 1, "image_resolution": (28, 28)}
BOTH_TOWERS = r".*\.(language_model|gemma_expert)\..*\.(q|k|v|o|gate|up|down)_proj"
FOLDS_OF_ONE, ADAPTERS = {"critic_folds": 1}, {"critic_adapter_rank": 16}


def lora_on_both_towers() -> PeftConfig:
    """Of rank 16, on every product of language model and expert."""
    return PeftConfig(method_type="LORA", r=16, target_modules=BOTH_TOWERS)


@dataclass(frozen=True)
class Line:
    """A way to train."""

    size: str
    text: str
    options: dict = field(default_factory=dict)
    lora: bool = False
    processes: int = 1  # more than one: FSDP

    def config(self, **others) -> PI05RLConfig:
        """The policy's, with two cameras."""
        return with_cameras(PI05RLConfig(device="cpu", **SIZES[self.size][0] | self.options | others), 2)

    @property
    def peft(self) -> PeftConfig | None:
        """Of the adapter that trains."""
        return lora_on_both_towers() if self.lora else None


_CHECKPOINTING, _BF16 = {"gradient_checkpointing": True}, {"dtype": "bfloat16"}
LINES = {
    "wide": Line("wide", "everything, three folds"),
    "wide_checkpointing": Line("wide", "everything, three folds, checkpointing", _CHECKPOINTING),
    "one_fold": Line("wide", "everything, one fold, checkpointing", _CHECKPOINTING | FOLDS_OF_ONE),
    "adapters": Line("wide", "everything, critic by adapters, checkpointing", _CHECKPOINTING | ADAPTERS),
    "small": Line("small", "everything, three folds"),
    "small_checkpointing": Line("small", "everything, three folds, checkpointing", _CHECKPOINTING),
    "expert": Line("deep", "expert only, frozen in bf16", _BF16 | _CHECKPOINTING | {"train_expert_only": True}),
    "lora": Line("deep", "LoRA on both towers, base in bf16", _BF16 | _CHECKPOINTING, lora=True),
    "lora_adapters": Line(
        "deep", "LoRA on both towers, base in bf16, critic by adapters", _BF16 | _CHECKPOINTING | ADAPTERS, lora=True
    ),
    "fsdp": Line("wide", "everything, three folds, checkpointing, FSDP of two", _CHECKPOINTING, processes=2),
    "lora_fsdp": Line(
        "deep", "LoRA on both towers, base in bf16, FSDP of two", _BF16 | _CHECKPOINTING, lora=True, processes=2
    ),
}
STEPS = 2  # the second one meets the optimizer's state
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


def predicted(line: Line) -> int:
    """Bytes of the step's peak; the CPU's AdamW makes temporaries."""
    model, shape = build(line.config(), line.peft), SIZES[line.size][1]
    if line.processes > 1:
        return sharded_step_memory(model, shape, line.processes).peak
    return training_step_memory(model, shape, fused=False).peak


def train_and_measure(line: Line) -> int:
    """Bytes by which this process's resident set grows at most while it trains (Linux), beside what the libraries load
    when they are first used: a step of a network of nearly no size goes before."""
    torch.set_num_threads(1)
    processes = start_processes("cpu")
    for config in (line.config(**NEARLY_NOTHING), line.config()):
        batch = drawn_batch(config, SIZES[line.size][1])
        gc.collect()
        before = _status("VmRSS")
        policy = random_policy(config, line.peft, "adapt" if line.lora else "train")
        recap = RecapConfig(policy_config=config)
        algorithm = RecapAlgorithm(policy, recap, tasks=["a task"], processes=processes)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here: a run casts while it loads
        for _ in range(STEPS):
            algorithm.update(iter([dict(batch)]))
        grown = _status("VmHWM") - before
        del policy, algorithm
    return grown


def random_policy(
    config: PI05RLConfig, peft: PeftConfig | None, purpose: Purpose, *, load_critic: bool = True
) -> PI05RLPolicy:
    """Drawn on torch's default device, held as a run holds one that it has loaded."""
    policy = PI05RLPolicy(config, load_critic=load_critic)
    hold_in_bf16(policy, names_in_bf16(policy, purpose))
    if peft is not None:
        add_adapter(policy, peft, "")
    return policy


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


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measured(name: str) -> int:
    """:func:`train_and_measure` in processes of its own; of several the most."""
    launch, environment = [sys.executable], {**os.environ, **GIVE_BACK}
    if (count := LINES[name].processes) > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        environment |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    command = [*launch, __file__, "--measure", name]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return max(int(line) for line in result.stdout.split() if line.isdigit())


def main() -> None:
    """Predict, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--measure", choices=LINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(train_and_measure(LINES[args.measure]))
        return
    rows = []
    for name in args.lines:
        line = LINES[name]
        rows.append({"size": line.size, "step": line.text, "predicted": predicted(line), "measured": measured(name)})
    if args.json:
        print(json.dumps(rows))
        return
    lines = ["| size | step | predicted (MB) | measured (MB) | ratio |", "| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        guess, real = row["predicted"], row["measured"]
        lines.append(f"| {row['size']} | {row['step']} | {guess / 1e6:.0f} | {real / 1e6:.0f} | {guess / real:.3f} |")
    print("\n".join(lines))
    if args.write_docs:
        write_section("memory", "python benchmarks/memory.py", "\n".join(lines))


if __name__ == "__main__":
    main()
