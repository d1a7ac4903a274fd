"""Beyond one machine, on paper: network, memory, time, data, checkpoints and batch size at 2 to 512 GPUs.

    python benchmarks/scaling.py [CONFIG] [--frames N] [--decode-ms MS] [--frame-bytes BYTES] [--json] [--write-docs]

Counts are those of ``pi05-rl plan``; what they are combined with is in the table of assumptions. Nothing is measured
here: ``scaling_check.py`` counts what processes really send, ``scaling_codec.py`` what a frame costs.
"""

import argparse
import copy
import json
from dataclasses import dataclass
from math import floor
from pathlib import Path

import scaling_model as model_of
import torch
from docs_section import replace_section
from lerobot.configs.default import PeftConfig
from scaling_model import BF16, FP32, GPUS_A_MACHINE, HOP_SECONDS, LINK_EFFICIENCY, ROOT, Fabric, Traffic, Unit

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.pictures.frame_cache import stored_size
from lerobot_policy_pi05_rl.losses import RecapLosses
from lerobot_policy_pi05_rl.model.lora import add_adapter
from lerobot_policy_pi05_rl.model.trainable import select_trainable
from lerobot_policy_pi05_rl.plan.compute import checkpoint_bytes
from lerobot_policy_pi05_rl.plan.flops import part_of, total, training_step_flops
from lerobot_policy_pi05_rl.plan.gpus import EFFICIENCY, GPUS, USABLE
from lerobot_policy_pi05_rl.plan.memory import nbytes, training_step_memory
from lerobot_policy_pi05_rl.plan.meta_step import MetaModel, MetaPolicy, build
from lerobot_policy_pi05_rl.plan.setup import Setup, make_setup
from lerobot_policy_pi05_rl.returns import AdvantageThresholds

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
COUNTS = (2, 8, 64, 512)
GB, GIB = 1e9, 2**30
FABRICS = (
    Fabric("H100, NVLink, 8 × 400 Gbit/s", "H100 SXM", 450e9, 8 * 50e9),
    Fabric("H100, NVLink, 1 × 100 Gbit/s", "H100 SXM", 450e9, 12.5e9),
    Fabric("A100, NVLink, 1 × 400 Gbit/s", "A100 80GB", 300e9, 50e9),
    Fabric("L40S, PCIe 4.0 x16, 1 × 100 Gbit/s", "L40S", 31.5e9, 12.5e9),
)
DISKS = {"NVMe drive": 3e9, "network file system": 1e9, "SATA SSD": 0.5e9, "hard disk": 0.15e9}  # bytes/s written
HOST_COPY = 5e9  # bytes/s from GPU to pageable host memory
RECORDED = (480, 640)  # of configs/so101.json's cameras
# Printed by benchmarks/scaling_codec.py with --codec libsvtav1, LeRobot 0.6.1's default, on a server's CPU core.
DECODE_MS, FRAME_BYTES = 7.8, 14_800
SHARES = (0.1, 0.2)  # of compute, below which communication is called small
SAVING_SHARES = (0.01, 0.05)
FULL, EXPERT, LORA = "everything trains", "train_expert_only", "LoRA"
OPTIONS = {FULL: {}, EXPERT: {"train_expert_only": True}, LORA: {}}
LORA_RANK = 16
ASSUMPTIONS = {
    "a GPU's peak": ("plan/gpus.py", "vendors' data sheets, dense bf16"),
    "share of the peak that a step reaches": (f"{EFFICIENCY:.0%}", "plan/gpus.py; large models train at 30 to 50 %"),
    "NVLink of an H100, of an A100": ("450, 300 GB/s", "data sheets: 900 and 600 GB/s, both directions together"),
    "PCIe 4.0 x16": ("31.5 GB/s", "16 GT/s × 16 lanes, 128b/130b; for each GPU at once, which shared switches miss"),
    "400, 100 Gbit/s": ("50, 12.5 GB/s", "InfiniBand NDR, Ethernet; line rate"),
    "share of a link that a collective reaches": (f"{LINK_EFFICIENCY:.0%}", "large messages reach 70 to 90 %"),
    "one hop of a small message": (f"{HOP_SECONDS * 1e6:.0f} µs", "5 to 20 µs, launch of the kernel included"),
    "GPUs of a machine": (f"{GPUS_A_MACHINE}", "the usual server"),
    "written to disk": (
        ", ".join(f"{n} {v / GB:g} GB/s" for n, v in DISKS.items()),
        "sequential, rounded data sheets",
    ),
    "GPU to host memory": (f"{HOST_COPY / GB:g} GB/s", "pageable copies reach 3 to 8"),
    "a decoded frame": (
        f"{DECODE_MS} CPU ms, {FRAME_BYTES:,} bytes on disk",
        "printed by `python benchmarks/scaling_codec.py --codec libsvtav1`; `--decode-ms`, `--frame-bytes`",
    ),
    "share of a card that tensors fill": (f"{USABLE:.0%}", "plan/gpus.py"),
}


@dataclass(frozen=True)
class Counted:
    """Everything that is counted of one way of training."""

    units: dict[str, Unit]
    joint: Traffic
    critic_only: Traffic
    joint_flops: dict[str, int]  # of a batch, "forward" and "backward"
    ddp_memory: int
    weights: int
    checkpoint: int
    fsdp_memory: dict[int, dict[int, float]]  # processes → bytes of a layer's number on its way → peak


def with_lora(setup: Setup) -> MetaModel:
    """The model with LeRobot's default adapter; the critic trains in full."""
    config = copy.deepcopy(setup.config.policy)
    config.device = "meta"
    with torch.device("meta"):
        policy = MetaPolicy(config, load_critic=True)
        add_adapter(policy, PeftConfig(method_type="LORA", r=LORA_RANK), "base")
        trainable = select_trainable(policy)
    thresholds = AdvantageThresholds([config.advantage_positive_fraction], window=1)
    return MetaModel(RecapLosses(policy, thresholds).train(), trainable)


def count(setup: Setup, name: str) -> Counted:
    """Count one way; seconds at full size."""
    setup = copy.deepcopy(setup)
    for option, value in OPTIONS[name].items():
        setattr(setup.config.policy, option, value)
    model = with_lora(setup) if name == LORA else build(setup.config.policy)
    units, shape = model_of.units_of(model), setup.shape
    flops = training_step_flops(model, shape)
    memory, weights, checkpoint = (
        training_step_memory(model, shape),
        nbytes(model.losses.parameters()),
        checkpoint_bytes(model),
    )
    joint, critic_only = (model_of.traffic_of(model, shape, train_actor=actor) for actor in (True, False))
    rest = model_of.rest_of(model, units, shape)
    return Counted(
        units,
        joint,
        critic_only,
        {phase: total(flops, phase) for phase in ("forward", "backward")},
        memory.peak,
        weights,
        checkpoint,
        {n: {b: model_of.fsdp_memory(units, rest, n, b) for b in (FP32, BF16)} for n in COUNTS},
    )


class Run:
    """One way of training under a configuration's schedule."""

    def __init__(self, setup: Setup, counted: Counted):
        policy = setup.config.policy
        self.counted, self.batch = counted, setup.shape.batch_size
        self.batches = policy.gradient_accumulation_steps
        self.steps, self.warmup = policy.offline_steps, policy.scheduler_warmup_steps
        self.cameras, self.resolution = len(policy.image_features), policy.image_resolution

    def compute(self, fabric: Fabric, batches: int | None = None) -> float:
        """Seconds of a joint step."""
        return (batches or self.batches) * sum(self.counted.joint_flops.values()) / _speed(fabric)

    def ddp(self, fabric: Fabric, n: int, *, one_ring: bool = False) -> float:
        """Seconds of a joint step's all-reduces."""
        traffic = self.counted.joint
        sent, passes = model_of.ddp_bytes(traffic, n), model_of.ddp_passes(traffic)
        return model_of.seconds(sent, passes, fabric, n, one_ring=one_ring)

    def fsdp(self, fabric: Fabric, n: int, layer_bytes: int, batches: int | None = None) -> float:
        """Seconds of a joint step's gathers and reduce-scatters."""
        traffic, units = self.counted.joint, self.counted.units
        sent = model_of.fsdp_bytes(traffic, units, n, layer_bytes=layer_bytes)
        passes = model_of.fsdp_passes(traffic, units)
        return (batches or self.batches) * model_of.seconds(sent, passes, fabric, n)

    def last_backward(self, fabric: Fabric) -> float:
        """Seconds that hide DDP's messages: the last batch's backward."""
        return self.counted.joint_flops["backward"] / _speed(fabric)


def _speed(fabric: Fabric) -> float:
    return next(gpu.bf16 for gpu in GPUS if gpu.name == fabric.gpu) * EFFICIENCY


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Markdown; numbers to the right."""
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def short(value: float) -> str:
    """Three digits, or the whole number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def assumptions() -> str:
    """What is not counted, and where it is from."""
    return table(["assumed", "value", "source"], [[name, *row] for name, row in ASSUMPTIONS.items()])


def gathers(counted: Counted) -> str:
    """How often each part is gathered for one batch."""
    rows: dict[str, list] = {}
    for name, unit in counted.units.items():
        part = ROOT if name == ROOT else part_of(name)
        row = rows.setdefault(part, [0, 0, 0, 0])
        row[0] += 1
        row[1] += unit.numbers(1)
        row[2] += counted.joint.gathers[name]
        row[3] += counted.critic_only.gathers[name]
    cells = [[part, f"{u}", f"{n / 1e6:,.1f}", f"{j}", f"{c}"] for part, (u, n, j, c) in rows.items()]
    heads = ["part", "units", "parameters (millions)", "gathers of a joint batch", "of a critic-only batch"]
    return table(heads, cells)


def network(runs: dict[str, Run]) -> str:
    """GB that a GPU sends in a step."""
    rows = []
    for name, run in runs.items():
        counted, units = run.counted, run.counted.units
        for n in COUNTS:
            cells = []
            for traffic in (counted.joint, counted.critic_only):
                cells.append(model_of.ddp_bytes(traffic, n))
                fsdp = (model_of.fsdp_bytes(traffic, units, n, layer_bytes=b) for b in (FP32, BF16))
                cells += [run.batches * sent for sent in fsdp]
            shown = ["-" if name == LORA and place % 3 else short(sent / GB) for place, sent in enumerate(cells)]
            rows.append([f"{name}, {n}", *shown])
    kinds = ("DDP", "FSDP, fp32", "FSDP, bf16 layers")
    return table(["GB, GPUs", *(f"{step}: {kind}" for step in ("joint", "critic only") for kind in kinds)], rows)


def memory(runs: dict[str, Run]) -> str:
    """GiB of a GPU at the peak, and the smallest card that holds it."""

    def cell(peak: float) -> str:
        return f"{peak / GIB:.1f}, {model_of.smallest_card(peak)}"

    rows = []
    for name, run in runs.items():
        rows.append([f"{name}, DDP", cell(run.counted.ddp_memory), "-"])
        if name != LORA:
            rows += [
                [f"{name}, FSDP, {n}", *(cell(peak) for peak in run.counted.fsdp_memory[n].values())] for n in COUNTS
            ]
    return table(["peak (GiB), smallest card; GPUs", "fp32", "bf16 layers"], rows)


def times(run: Run) -> str:
    """Seconds of a joint step: compute beside the network."""
    rows = []
    for fabric in FABRICS:
        for n in COUNTS:
            compute, ddp = run.compute(fabric), run.ddp(fabric, n)
            hidden = max(0.0, ddp - run.last_backward(fabric))
            cells = [f"{short(ddp)} ({ddp / compute:.0%})"]
            cells.append(f"{compute / (compute + ddp):.0%} to {compute / (compute + hidden):.0%}")
            for layer_bytes in (FP32, BF16):
                spent = run.fsdp(fabric, n, layer_bytes)
                cells.append(f"{short(spent)} ({spent / compute:.0%})")
            cells.append(f"{compute / (compute + spent):.0%} to {compute / max(compute, spent):.0%}")
            rows.append([f"{fabric.name}; {n}", short(compute), *cells])
    heads = ["fabric; GPUs", "compute (s)", "DDP (s, of compute)", "kept under DDP", "FSDP, fp32", "FSDP, bf16 layers"]
    return table([*heads, "kept under FSDP, bf16 layers"], rows)


def thresholds(run: Run) -> str:
    """Samples of a GPU from which the network, all of it in the open, stays below a share of compute."""
    rows = []
    for fabric in FABRICS:
        sample = run.compute(fabric, 1) / run.batch
        for n in COUNTS:
            spent = (run.ddp(fabric, n), run.fsdp(fabric, n, FP32, 1), run.fsdp(fabric, n, BF16, 1))
            cells = (f"{-(-seconds // (share * sample)):,.0f}" for seconds in spent for share in SHARES)
            rows.append([f"{fabric.name}; {n}", *cells])
    kinds = ("DDP, a step", "FSDP fp32, a batch", "FSDP bf16, a batch")
    return table(["samples of a GPU; GPUs", *(f"{kind}: {share:.0%}" for kind in kinds for share in SHARES)], rows)


def data(run: Run, decode_ms: float, frame_bytes: float) -> str:
    """What the pictures of so many GPUs cost: CPU cores, reading."""
    height, width = stored_size(RECORDED, run.resolution)
    decoded, cached, coded = (
        run.cameras * size for size in (RECORDED[0] * RECORDED[1] * 3, height * width * 3, frame_bytes)
    )
    rows = []
    for fabric in {fabric.gpu: fabric for fabric in FABRICS}.values():
        speed = run.batch * run.batches / run.compute(fabric)
        cores = speed * run.cameras * decode_ms / 1000
        cells = [short(speed), short(cores), short(speed * decoded / 1e6), short(speed * cached / 1e6)]
        rates = (f"{short(n * speed * coded / 1e6)}, {short(n * speed * cached / 1e6)}" for n in COUNTS[1:])
        rows.append([fabric.gpu, *cells, *rates])
    heads = ["a GPU", "samples/s", "cores that decode", "decoded (MB/s)", "from the frame cache (MB/s)"]
    reading = (f"{n} GPUs read (MB/s): video, cache" for n in COUNTS[1:])
    cameras = f"{run.cameras} cameras of {RECORDED[0]} × {RECORDED[1]}"
    said = f"{cameras}, {decode_ms} CPU ms and {frame_bytes:,.0f} bytes a frame."
    return f"{said}\n\n{table([*heads, *reading], rows)}"


def checkpoints(run: Run) -> str:
    """How often saving may happen, at the step time of eight GPUs under DDP."""
    size, rows = run.counted.checkpoint, []
    fabrics = {fabric.gpu: fabric for fabric in FABRICS}.values()
    for disk, speed in DISKS.items():
        writing, copying = size / speed, size / HOST_COPY
        cells = [short(writing)]
        for fabric in fabrics:
            step = run.compute(fabric) + run.ddp(fabric, GPUS_A_MACHINE)
            waiting = (model_of.every_so_many_steps(writing, step, share) for share in SAVING_SHARES)
            least = model_of.every_so_many_steps(writing, step, 1.0)  # one at a time is being written
            behind = (max(least, model_of.every_so_many_steps(copying, step, share)) for share in SAVING_SHARES)
            cells += [" / ".join(f"{steps:,}" for steps in way) for way in (waiting, behind)]
        rows.append([disk, *cells])
    heads = [f"{fabric.gpu}: {way}" for fabric in fabrics for way in ("waiting", "from host memory")]
    shares = " / ".join(f"{share:.0%}" for share in SAVING_SHARES)
    said = f"A checkpoint is {size / GIB:.1f} GiB. Steps between saves that cost at most {shares} of the time:"
    return f"{said}\n\n{table(['disk', 'writes (s)', *heads], rows)}"


def host_memory(run: Run) -> str:
    """What loading and saving hold in a machine's memory, and what a save under FSDP sends."""
    weights, checkpoint = run.counted.weights, run.counted.checkpoint
    rows = []
    for what, size, processes in (
        ("start: the weights, in every process", weights, GPUS_A_MACHINE),
        ("resume: weights and AdamW's averages, in every process", checkpoint, GPUS_A_MACHINE),
        ("save under FSDP, kept by the process that writes", checkpoint, 1),
    ):
        rows.append([what, f"{size / GIB:.1f}", f"{processes * size / GIB:,.0f}"])
    return table(["host memory (GiB)", "a process", f"a machine of {GPUS_A_MACHINE}"], rows)


def batches(run: Run, frames: int) -> str:
    """Effective batches beside the data."""
    rows = []
    for n in (1, *COUNTS):
        plain, effective = n * run.batch, n * run.batch * run.batches
        steps = run.steps * run.batch * run.batches / plain
        cells = [f"{plain:,}", f"{effective:,}", short(frames / effective), short(steps)]
        rows.append([f"{n}", *cells, short(run.warmup * plain / frames)])
    heads = ["GPUs", "batch", "with accumulation", "steps of an epoch", "steps of the configured samples at the batch"]
    return f"{frames:,} frames.\n\n{table([*heads, f'epochs of {run.warmup:,} steps at the batch'], rows)}"


def most_gpus(run: Run, frames: int, epochs: float) -> int:
    """GPUs that share these epochs, no accumulation, without fewer steps than the warm-up of the learning rate."""
    return floor(frames * epochs / (run.warmup * run.batch))


def limits(run: Run, frames: int) -> str:
    """How many GPUs a dataset keeps busy."""
    configured = run.steps * run.batch * run.batches / frames
    rows = []
    for size in (frames // 10, frames):
        for epochs in (configured, 5, 20):
            least = max(1, most_gpus(run, size, epochs))
            rows.append([f"{size:,} frames, {short(epochs)} epochs", short(size * epochs), f"{least}"])
    return table(["data", "samples", f"GPUs at a batch of {run.batch}"], rows)


def conclusions(runs: dict[str, Run], frames: int) -> str:
    """What the tables say, in sentences whose numbers are theirs."""
    run = runs[FULL]
    counted, many = run.counted, COUNTS[-1]
    ddp = model_of.ddp_bytes(counted.joint, many)
    critic = model_of.ddp_bytes(counted.critic_only, many)
    fsdp = {b: run.batches * model_of.fsdp_bytes(counted.joint, counted.units, many, layer_bytes=b) for b in (4, 2)}
    lines = [
        f"- At {many} GPUs a joint step of {run.batches} batches sends {short(ddp / GB)} GB a GPU under DDP, "
        f"{short(fsdp[FP32] / GB)} under FSDP in fp32 ({fsdp[FP32] / ddp:.1f} times as much) and "
        f"{short(fsdp[BF16] / GB)} with layers in bf16; "
        f"a critic-only step under DDP {short(critic / GB)}.",
    ]
    for fabric in FABRICS:
        words = []
        for n in COUNTS[1:]:
            compute = run.compute(fabric)
            spent = {"DDP": run.ddp(fabric, n), "FSDP": run.fsdp(fabric, n, BF16)}
            slow = [name for name, value in spent.items() if value > compute]
            words.append(f"{n} GPUs by {'the network under ' + ' and '.join(slow) if slow else 'compute'}")
        held = model_of.smallest_card(counted.ddp_memory)
        lines.append(f"- {fabric.name}: bound at {', at '.join(words)}. FSDP with layers in bf16; DDP wants {held}.")
    for layer_bytes, name in ((FP32, "fp32"), (BF16, "bf16 layers")):
        fits = {}
        for n in COUNTS:
            fits.setdefault(model_of.smallest_card(counted.fsdp_memory[n][layer_bytes]), n)
        lines.append(
            f"- FSDP, {name}: " + ", ".join(f"a card of {card} from {n} GPUs on" for card, n in fits.items()) + "."
        )
    two_levels, flat = run.ddp(FABRICS[0], many), run.ddp(FABRICS[0], many, one_ring=True)
    lines.append(
        f"- Hops: at {many} GPUs ({FABRICS[0].name}) DDP's all-reduces take {short(two_levels)} s, inside machines "
        f"first and between them then; around one ring of all GPUs it would be {short(flat)} s."
    )
    samples = run.steps * run.batch * run.batches
    lines.append(
        f"- The configured run draws {samples:,} samples, {samples / frames:.1f} epochs of {frames:,} frames. More "
        f"than {most_gpus(run, frames, samples / frames)} GPUs at a batch of {run.batch} would take fewer than "
        f"{run.warmup:,} optimization steps, the warm-up of π0.5's learning rate: beyond that they buy larger "
        "batches, no shorter run. More data moves the limit, more GPUs do not."
    )
    return "\n".join(lines)


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/so101.json")
    parser.add_argument("--frames", type=int, default=100_000, help="of the dataset")
    parser.add_argument("--decode-ms", type=float, default=DECODE_MS, help="CPU time of a frame")
    parser.add_argument("--frame-bytes", type=float, default=FRAME_BYTES, help="of a frame of video")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/scaling.md")
    args = parser.parse_args()
    setup = make_setup(load_config(args.config))
    runs = {name: Run(setup, count(setup, name)) for name in OPTIONS}
    full = runs[FULL]
    sections = {
        "conclusions": conclusions(runs, args.frames),
        "assumptions": assumptions(),
        "gathers": gathers(full.counted),
        "network": network(runs),
        "memory": memory(runs),
        "times": times(full),
        "thresholds": thresholds(full),
        "data": data(full, args.decode_ms, args.frame_bytes),
        "checkpoints": checkpoints(full),
        "host": host_memory(full),
        "batches": batches(full, args.frames),
        "limits": limits(full, args.frames),
    }
    print(json.dumps(sections) if args.json else "\n\n".join(f"{name}\n\n{text}" for name, text in sections.items()))
    if args.write_docs:
        for name, text in sections.items():
            replace_section(PAGE, name, text)


if __name__ == "__main__":
    main()
