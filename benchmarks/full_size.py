"""The main command once at full π0.5 size: training by LoRA, labelling, saving, resuming, one guided chunk.

    python benchmarks/full_size.py [--folder outputs/full_size] [--device cpu] [--write-docs]

Writes a random checkpoint with the names and shapes of stock π0.5 (bf16, 8 GB, on the disk alone) and a small
recording with two cameras. Then, each in a process of its own: ``pi05-rl offline`` from it with LoRA on both towers,
three critics by adapters, batch 1 (two steps of the critics, labels, two of the policy), which says what moved; a
resume from the checkpoint in the middle, which must end in the same bytes; a chunk as ``lerobot-eval`` computes one.
Prints the most memory that each held, beside what ``pi05-rl plan`` counts of the step.
"""

import argparse
import dataclasses
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from compile import sizes_and_batch
from docs_section import replace_section
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.modeling_pi05 import PI05Pytorch
from memory import BOTH_TOWERS
from safetensors.torch import load_file, save_file
from synthetic_dataset import REPO_ID, record
from torch import Tensor, nn

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.resolve import resolved
from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.offline_learner import train_phases
from lerobot_policy_pi05_rl.plan.command import plan
from lerobot_policy_pi05_rl.plan.meta_step import build, with_cameras
from lerobot_policy_pi05_rl.runtime.files import replacing
from lerobot_policy_pi05_rl.training.start import make_writer, start

GIB = 2**30
CRITIC_STEPS, STEPS = 2, 4
SEED = 1  # of whose four samples each critic may learn from two: its adapters move once its head has
SPREAD = 0.02  # standard deviation of the weights
BLOCK = 2**24  # numbers that are drawn; all weights are cut from them


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of stock π0.5; at the demo's size without its two heads that nobody reads."""
    if size == "full":
        with torch.device("meta"):
            network = PI05Pytorch(PI05Config(device="cpu"))
        return {f"model.{name}": tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    policy = build(with_cameras(PI05RLConfig(device="cpu", policy_extraction="none", **sizes(size)), 2)).policy
    return {name: tuple(t.shape) for name, t in policy.state_dict().items() if "advantage_embedding" not in name}


def sizes(size: str) -> dict:
    """Keys of the policy."""
    return {} if size == "full" else sizes_and_batch(size)[0]


def write_start(folder: Path, size: str) -> int:
    """A checkpoint of stock π0.5 with random weights; returns its bytes."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).mul_(SPREAD).to(torch.bfloat16)
    tensors, place = {}, 0
    for name, shape in shapes(size).items():
        count = int(torch.tensor(shape).prod())
        place = (place + 7919) % (BLOCK // 2)
        tensors[name] = block[place:].repeat(count // (BLOCK - place) + 1)[:count].reshape(shape).clone()
    stock = {field.name for field in dataclasses.fields(PI05Config)}
    keys = {key: value for key, value in sizes(size).items() if key in stock}
    with replacing(folder) as aside:  # a start that a kill cut short is not taken for one
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        save_file(tensors, aside / "model.safetensors")
        PI05Config(device="cpu", dtype="bfloat16", **keys).save_pretrained(aside)
    return (folder / "model.safetensors").stat().st_size


def write_config(folder: Path, size: str, device: str) -> Path:
    """The run's configuration."""
    raw = {
        **{"output_dir_offline": str(folder / "run"), "seed": SEED, "num_workers": 0, "batch_size": 1, "log_freq": 1},
        **{"save_freq": 1, "eval_steps": 0, "peft": {"method_type": "LORA", "r": 16, "target_modules": BOTH_TOWERS}},
        "dataset": {"repo_id": REPO_ID, "root": str(folder / "data"), "video_backend": "pyav"},
        "policy": {
            **{"device": device, "dtype": "bfloat16", "gradient_checkpointing": True, "tokenizer": "tasks"},
            **{"pi05_checkpoint": str(folder / "start"), "critic_adapter_rank": 16, "tokenizer_max_length": 64},
            **{"offline_steps": STEPS, "critic_warmup_steps": CRITIC_STEPS},
            # Every frame is positive and shows its tag, so that two samples move all that trains.
            **{"advantage_positive_fraction": 1.0, "advantage_dropout": 0.0},
            **{key: value for key, value in sizes(size).items() if key != "critic_folds"},
        },
    }
    path = folder / "config.json"
    path.write_text(json.dumps(raw, indent=1))
    return path


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bits as integers, in which a NaN equals itself."""
    return tensor.detach().view(
        {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    )


def fingerprints(policy: nn.Module) -> dict[str, int]:
    """Name → sum of the parameter's bits."""
    return {name: int(bits(parameter).sum(dtype=torch.int64)) for name, parameter in policy.named_parameters()}


def train(config: Path, overrides: list[str]) -> dict:
    """``pi05-rl offline``, and a look at what moved."""
    began = time.perf_counter()
    run = start(resolved(load_config(config, overrides)))
    policy, loaded = run.algorithm.policy, time.perf_counter() - began
    before, resumed = fingerprints(policy), run.resumed_step
    if torch.cuda.is_initialized():  # looking at the bits took memory
        torch.cuda.reset_peak_memory_stats()
    writer = make_writer(run)
    began = time.perf_counter()
    train_phases(run, writer)
    writer.close()
    found = {"load_s": loaded, "train_s": time.perf_counter() - began, **most_memory()}
    after = fingerprints(policy)
    trains = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    still = sorted(name for name in trains if after[name] == before[name])
    moved = sorted(name for name in after if name not in trains and after[name] != before[name])
    return found | {"resumed": resumed, "trainable": len(trains), "still": still, "frozen_moved": moved}


def act(checkpoint: Path, data: Path) -> dict:
    """One guided chunk, by the calls of ``lerobot-eval``."""
    began = time.perf_counter()
    config = PreTrainedConfig.from_pretrained(checkpoint)
    config.pretrained_path = checkpoint
    dataset = LeRobotDataset(REPO_ID, root=data)
    policy = make_policy(config, ds_meta=dataset.meta)
    preprocess, postprocess = make_pre_post_processors(config, pretrained_path=str(checkpoint))
    frame = {key: value for key, value in dataset[0].items() if key.startswith("observation.")}
    loaded, began = time.perf_counter() - began, time.perf_counter()
    with torch.inference_mode():
        action = postprocess(policy.select_action(preprocess(frame | {"task": "pick the cube"})))
    found = {"load_s": loaded, "chunk_s": time.perf_counter() - began, **most_memory()}
    return found | {"finite": bool(torch.isfinite(action).all()), "guidance_scale": policy.config.guidance_scale}


def most_memory() -> dict[str, float]:
    """GiB that this process held at most, of the machine and of the card."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    card = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_initialized() else 0.0
    return {"resident": resident, "card": card}


def in_process(*arguments: str) -> dict:
    """One of the above in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    began = time.perf_counter()
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(ended.stdout.splitlines()[-1])
    numbers = {key: round(value, 2) for key, value in found.items() if isinstance(value, float)}
    print(f"{time.perf_counter() - began:5.0f} s {' '.join(arguments)} {numbers}", flush=True)
    return found


def differing(one: Path, other: Path) -> list[str]:
    """The tensors of two checkpoints that are not the same, bit for bit, and how far apart they are."""

    def tensors(checkpoint: Path) -> dict[str, Tensor]:
        files = sorted(checkpoint.rglob("*.safetensors"))
        return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}

    left, right = tensors(one), tensors(other)
    both = [name for name in left if name in right]
    unequal = [name for name in both if not torch.equal(bits(left[name]), bits(right[name]))]
    apart = [f"{name} by {(left[name].double() - right[name].double()).abs().max():.1e}" for name in unequal]
    return sorted(left.keys() ^ right.keys()) + apart


def run_all(folder: Path, size: str, device: str) -> tuple[list[str], list[str]]:
    """Everything; returns the lines of the report, and what did not move that trains, moved that does not, or ended
    elsewhere when resumed."""
    if not (folder / "start").is_dir():
        written = in_process("--make", str(folder), "--size", size)["bytes"]
    else:
        written = (folder / "start" / "model.safetensors").stat().st_size
    shutil.rmtree(folder / "run", ignore_errors=True)
    if not (folder / "data").is_dir():
        with replacing(folder / "data") as aside:
            shutil.rmtree(aside, ignore_errors=True)
            record(aside, episodes=4, length=3)
    config = write_config(folder, size, device)
    predicted = plan(load_config(config, [])).memory["peak"] / GIB
    first = in_process("--train", str(config))
    checkpoints = folder / "run" / "checkpoints"
    undisturbed = folder / "undisturbed"
    shutil.rmtree(undisturbed, ignore_errors=True)
    shutil.move(checkpoints / f"{STEPS:06d}", undisturbed)
    (checkpoints / "last").unlink()
    middle = checkpoints / f"{STEPS - 1:06d}"
    saved = sum(file.stat().st_size for file in middle.rglob("*") if file.is_file())
    second = in_process("--train", str(config), "--resume=true", f"--resume_from={middle}")
    chunk = in_process("--act", str(checkpoints / f"{STEPS:06d}" / "pretrained_model"), "--data", str(folder / "data"))
    wrong = [f"trains and did not move: {name}" for name in first["still"]]
    wrong += [f"is frozen and moved: {name}" for run in (first, second) for name in run["frozen_moved"]]
    wrong += [f"of a resumed run: {name}" for name in differing(undisturbed, checkpoints / f"{STEPS:06d}")]
    if not chunk["finite"]:
        wrong.append("the chunk is not finite")
    lines = [
        f"Start {written / 1e9:.2f} GB, a checkpoint of the run {saved / 1e6:.0f} MB; {device}"
        + (f" ({torch.cuda.get_device_name()})" if device == "cuda" else f", {torch.get_num_threads()} thread(s)"),
        f"{first['trainable'] - len(first['still'])} of {first['trainable']} tensors that train moved, "
        f"{len(first['frozen_moved'])} that do not; resumed at step {second['resumed']}, the last checkpoint is "
        + ("not " if any(what.startswith("of a resumed") for what in wrong) else "")
        + "the undisturbed run's bit for bit.",
        f"A guided chunk (β = {chunk['guidance_scale']:g}) through LeRobot's own calls: finite, "
        f"{chunk['chunk_s']:.1f} s.",
        "",
        "| process | load (s) | work (s) | peak resident (GiB) | peak on the card (GiB) | plan, a step (GiB) |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {run['load_s']:.0f} | {run[work]:.0f} | {run['resident']:.2f} | {run['card']:.2f} | {guess} |"
            for name, run, work, guess in (
                ("critics, labels, policy", first, "train_s", f"{predicted:.2f}"),
                ("resumed", second, "train_s", f"{predicted:.2f}"),
                ("one chunk", chunk, "chunk_s", ""),
            )
        ),
    ]
    return lines, wrong


def main() -> int:
    """Run everything, or one of its processes; exit code 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/full_size"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", default="full", choices=["full", "demo"])
    parser.add_argument("--write-docs", action="store_true", help="put the report into docs/gpus.md")
    for name in ("--make", "--train", "--act", "--data"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    args, overrides = parser.parse_known_args()
    if args.make is not None:
        print(json.dumps({"bytes": write_start(args.make / "start", args.size)}))
    elif args.train is not None:
        print(json.dumps(train(args.train, overrides)))
    elif args.act is not None:
        print(json.dumps(act(args.act, args.data)))
    else:
        if overrides:
            parser.error(f"unknown: {' '.join(overrides)}")
        args.folder.mkdir(parents=True, exist_ok=True)
        lines, wrong = run_all(args.folder.resolve(), args.size, args.device)
        print("\n".join([*lines, *wrong[:20]]))
        if args.write_docs:
            page = Path(__file__).parents[1] / "docs" / "gpus.md"
            text = "\n".join([f"`python benchmarks/full_size.py --device {args.device}`", "", *lines])
            replace_section(page, f"full_size {args.device}", text)
        return 1 if wrong else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
