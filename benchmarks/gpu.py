"""What this card does at full π0.5 size: samples per second, peak memory, milliseconds a chunk, frames labelled.

    python benchmarks/gpu.py [--output outputs/gpu.json] [--minutes 9] [--only NAME …]   # measure, on the card
    python benchmarks/gpu.py --report FILE [--write-docs]                                # tables, on any machine

No download and no dataset: weights and batches are drawn on the card, two cameras, prompts of 64 tokens, bf16 compute,
the package's own update. Stock is LeRobot's ``PI05Policy`` in ``lerobot-train``'s own step; its text is padded to 200
tokens, as its default is. Every line is a process of its own, so that neither memory nor a failure carries over, and
is written to ``--output`` as it is made; a line that does not fit, or for which no time is left, says so. The report
puts beside each line what ``pi05-rl plan`` predicts for it.
"""

import argparse
import dataclasses
import gc
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking for the card must not open it before the processes fork
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the work is the card's

import torch
from compile import sizes_and_batch
from docs_section import write_section
from gpu_report import report
from lerobot.configs.default import PeftConfig
from memory import drawn_batch

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.model.lora import add_adapter
from lerobot_policy_pi05_rl.model.precision import Purpose, names_in_bf16, place
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.plan.meta_step import Shape, with_cameras
from lerobot_policy_pi05_rl.recap import RecapAlgorithm, RecapConfig

CAMERAS, TEXT, STOCK_TEXT = 2, 64, 200
BOTH_TOWERS = r".*\.(language_model|gemma_expert)\..*\.(q|k|v|o|gate|up|down)_proj"
WARM_UP, SECONDS, LEAST, MOST = 2, 4.0, 5, 40  # steps before the clock starts; how long, and of how many steps
CHUNKS = 20
LONGEST = 150.0  # seconds of one line


@dataclass(frozen=True)
class Line:
    """One line of the tables.

    Attributes:
        kind: what is measured: "train", "act" or "label"; "stock train" and "stock act" for LeRobot's own.
        policy: keys of the policy; stock knows ``gradient_checkpointing``, ``compile_model`` and ``compile_mode``.
    """

    name: str
    kind: str = "train"
    batch: int = 8
    lora: bool = False
    policy: dict = field(default_factory=dict)

    @property
    def peft(self) -> PeftConfig | None:
        """The adapter that trains."""
        return PeftConfig(method_type="LORA", r=16, target_modules=BOTH_TOWERS) if self.lora else None

    @property
    def shape(self) -> Shape:
        """Of a batch under labels that are there, as the policy's phase of a run sees it."""
        return Shape(self.batch, TEXT, precomputed=True)

    def config(self, device: str, size: str = "full") -> PI05RLConfig:
        """The policy's configuration; its defaults are those of ``configs/so101.json``."""
        sizes = {"dtype": "bfloat16"} if size == "full" else sizes_and_batch(size)[0]
        keys = {"gradient_checkpointing": True} | sizes | self.policy
        return with_cameras(PI05RLConfig(device=device, **keys), CAMERAS)


CLONING, ADAPTERS = {"policy_extraction": "none"}, {"critic_adapter_rank": 16}
EXPERT = {"train_expert_only": True}
KEPT = {"gradient_checkpointing": False}
COMPILED = {"compile_model": True}
STOCK_COMPILED = COMPILED | {"compile_mode": "default"}
LINES = (
    Line("stock, cloning", "stock train"),
    Line("cloning", policy=CLONING),
    Line("RL", policy={}),
    Line("RL, critic by adapters", policy=ADAPTERS),
    Line("RL, expert only, critic by adapters", policy=EXPERT | ADAPTERS),
    Line("RL, LoRA on both towers, critic by adapters", batch=4, lora=True, policy=ADAPTERS),
    Line("RL, LoRA on both towers, critic by adapters", lora=True, policy=ADAPTERS),
    Line("stock, one chunk", "stock act", batch=1),
    Line("one chunk", "act", batch=1),
    Line("labelling", "label", batch=64),
    Line("stock, cloning, without checkpointing", "stock train", policy=KEPT),
    Line("cloning, without checkpointing", policy=CLONING | KEPT),
    Line("RL, critic by adapters, without checkpointing", policy=ADAPTERS | KEPT),
    Line("stock, cloning", "stock train", batch=32),
    Line("cloning", batch=32, policy=CLONING),
    Line("RL", batch=32),
    Line("one chunk, compiled", "act", batch=1, policy=COMPILED),
    Line("cloning, compiled", policy=CLONING | COMPILED),
    Line("RL, critic by adapters, compiled", policy=ADAPTERS | COMPILED),
    Line("RL, LoRA on both towers, critic by adapters, compiled", batch=4, lora=True, policy=ADAPTERS | COMPILED),
    Line("stock, one chunk, compiled", "stock act", batch=1, policy=STOCK_COMPILED),
    Line("stock, cloning, compiled", "stock train", policy=STOCK_COMPILED),
)


class Clock:
    """Seconds and bytes of work on one device."""

    def __init__(self, device: str):
        self.cuda = torch.device(device).type == "cuda"

    def now(self) -> float:
        """The time once everything asked for is done."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def forget(self) -> None:
        """Peaks count from here on."""
        gc.collect()
        self.held = 0
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.held = torch.cuda.memory_allocated()

    def bytes(self) -> dict[str, int]:
        """Of tensors before and at most, and what torch took of the card for them."""
        peaks = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if self.cuda else (0, 0)
        return {"held": self.held, "allocated": peaks[0], "reserved": peaks[1]}


def on_device(batch: dict, device: str) -> dict:
    """Every tensor of the batch there."""
    return {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}


def random_policy(line: Line, device: str, size: str, purpose: Purpose, *, load_critic: bool) -> PI05RLPolicy:
    """A policy drawn on the device, held as a run holds one that it has loaded."""
    torch.manual_seed(0)
    with torch.device(device):
        policy = PI05RLPolicy(line.config(device, size), load_critic=load_critic)
        for name in names_in_bf16(policy, purpose):
            place(policy, name, policy.get_parameter(name).detach().to(torch.bfloat16))
        if line.peft is not None:
            add_adapter(policy, line.peft, "")
    return policy


def train(line: Line, device: str, size: str) -> dict:
    """Samples per second and peak of the package's own optimization step."""
    clock, config = Clock(device), line.config(device, size)
    purpose: Purpose = "adapt" if line.lora else "train"
    policy = random_policy(line, device, size, purpose, load_critic=config.trains_critic)
    algorithm = RecapAlgorithm(policy, RecapConfig(policy_config=config, critic_steps=1), tasks=["a task"])
    batch = on_device(drawn_batch(config, line.shape), device)
    return timed_steps(lambda: algorithm.update(iter([dict(batch)])), line.batch, clock)


def stock_policy(line: Line, device: str):
    """LeRobot's π0.5 with random weights, at its own size alone."""
    from lerobot.policies.pi05.configuration_pi05 import PI05Config
    from lerobot.policies.pi05.modeling_pi05 import PI05Policy

    ours = line.config("cpu")
    features = {"input_features": ours.input_features, "output_features": ours.output_features}
    torch.manual_seed(0)
    keys = {"dtype": "bfloat16", "gradient_checkpointing": True} | line.policy
    with torch.device(device):
        return PI05Policy(PI05Config(device=device, **features, **keys))


def stock_batch(line: Line, device: str) -> dict:
    """The same pictures; the text as long as stock pads it."""
    return on_device(drawn_batch(line.config("cpu"), Shape(line.batch, STOCK_TEXT)), device)


def train_stock(line: Line, device: str, size: str) -> dict:
    """``lerobot-train``'s step: its function, its optimizer, its precision."""
    from accelerate import Accelerator
    from lerobot.scripts.lerobot_train import update_policy
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True  # as lerobot-train does
    clock, policy = Clock(device), stock_policy(line, device)
    accelerator = Accelerator(step_scheduler_with_optimizer=False, mixed_precision="bf16", cpu=device == "cpu")
    preset = policy.config.get_optimizer_preset()
    policy, optimizer = accelerator.prepare(policy, preset.build(policy.get_optim_params()))
    meters = {name: AverageMeter(name) for name in ("loss", "grad_norm", "lr", "update_s", "gpu_mem_gb")}
    tracker, batch = MetricsTracker(line.batch, 1, 1, meters), stock_batch(line, device)

    def step() -> None:
        update_policy(tracker, policy, dict(batch), optimizer, preset.grad_clip_norm, accelerator)

    return timed_steps(step, line.batch, clock)


def timed_steps(step: Callable[[], object], batch: int, clock: Clock) -> dict:
    """Run ``step`` until the numbers stand."""
    clock.forget()
    began = clock.now()
    step()
    first = clock.now() - began
    for _ in range(WARM_UP):
        step()
    seconds, began = [], clock.now()
    while len(seconds) < LEAST or (sum(seconds) < SECONDS and len(seconds) < MOST):
        step()
        ended = clock.now()
        seconds.append(ended - began)
        began = ended
    return {"seconds": statistics.median(seconds), "batch": batch, "first_s": first, **clock.bytes()}


def act(line: Line, device: str, size: str) -> dict:
    """Seconds of one chunk of an actor (bf16 weights, no critic), plain and guided in turn."""
    policy = random_policy(line, device, size, "act", load_critic=False)
    batch, guided = on_device(drawn_batch(policy.config, line.shape), device), policy.config.guidance_scale

    def chunk(scale: float) -> None:
        policy.config.guidance_scale = scale
        policy.predict_action_chunk(batch)

    return timed_chunks({"plain": lambda: chunk(1.0), "guided": lambda: chunk(guided)}, Clock(device))


def act_stock(line: Line, device: str, size: str) -> dict:
    """The same of LeRobot's policy, as ``lerobot-eval`` runs it."""
    policy, batch = stock_policy(line, device).eval(), stock_batch(line, device)

    def chunk() -> None:
        with torch.inference_mode(), torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            policy.predict_action_chunk(batch)

    return timed_chunks({"plain": chunk}, Clock(device))


def timed_chunks(kinds: dict[str, Callable[[], object]], clock: Clock) -> dict:
    """Seconds of each kind in each round."""
    clock.forget()
    began, first = clock.now(), {}
    for name, chunk in kinds.items():
        chunk()
        first[name], began = clock.now() - began, clock.now()
    for _ in range(WARM_UP):
        for chunk in kinds.values():
            chunk()
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(CHUNKS):
        for name, chunk in kinds.items():
            began = clock.now()
            chunk()
            seconds[name].append(clock.now() - began)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    return {"chunks": seconds, "seconds": medians["plain"], "first_s": sum(first.values()), **clock.bytes()}


def label(line: Line, device: str, size: str) -> dict:
    """Frames per second through the critics, without decoding."""
    policy = random_policy(line, device, size, "act", load_critic=True).eval()
    batch = on_device(drawn_batch(policy.config, line.shape), device)
    return timed_steps(lambda: policy.predict_label_values(batch), line.batch, Clock(device))


KINDS = {"train": train, "act": act, "label": label, "stock train": train_stock, "stock act": act_stock}


def measure(line: Line, device: str, size: str, connection: Connection) -> None:
    """In a process of its own: send the numbers, or in a line why there are none."""
    try:
        found = KINDS[line.kind](line, device, size)
        if torch.device(device).type == "cuda":
            properties = torch.cuda.get_device_properties(0)
            found |= {"card": properties.name, "memory": properties.total_memory}
    except Exception as error:  # whatever it is, the other lines are measured
        found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    connection.send(found)


def in_process(line: Line, device: str, size: str, limit: float) -> dict:
    """:func:`measure`, given up after ``limit`` seconds."""
    context = multiprocessing.get_context("fork")  # what was imported is there
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(line, device, size, sending))
    process.start()
    sending.close()
    found = {"error": f"not done in {limit:.0f} s"}
    try:
        if receiving.poll(limit):
            found = receiving.recv()
    except EOFError:
        found = {"error": "the process died"}
    process.kill()
    process.join()
    return found


def described(line: Line, found: dict) -> dict:
    """The line with its numbers, as the report reads it."""
    return {
        "name": line.name,
        "kind": line.kind,
        "batch": line.batch,
        "lora": line.lora,
        "policy": line.policy,
    } | found


def measure_all(args: argparse.Namespace) -> list[dict]:
    """Every line in its order, as long as there is time."""
    deadline, done = time.monotonic() + 60 * args.minutes, []
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for number, line in enumerate(LINES):
        if args.only and line.name not in args.only:
            continue
        if args.size != "full" and line.kind.startswith("stock"):
            continue
        left = deadline - time.monotonic()
        if left < 10:
            found = {"error": "no time was left"}
        else:
            found = in_process(line, args.device, args.size, min(left, LONGEST))
        done.append(described(line, found) | {"number": number, "torch": torch.__version__, "size": args.size})
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
