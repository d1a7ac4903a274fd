"""What ``gpu.py`` measures: one line of its tables, and how long it takes on a device."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from compile import sizes_and_batch
from lerobot.configs.default import PeftConfig
from memory import drawn_batch, lora_on_both_towers, random_policy

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.model.precision import Purpose
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.plan.meta_step import Shape, with_cameras
from lerobot_policy_pi05_rl.recap import RecapAlgorithm, RecapConfig

CAMERAS, TEXT, STOCK_TEXT = 2, 64, 200
WARM_UP, SECONDS, LEAST, MOST = 2, 4.0, 5, 40  # steps before the clock starts; how long, and of how many steps
CHUNKS = 20


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
        return lora_on_both_towers() if self.lora else None

    @property
    def shape(self) -> Shape:
        """Of a batch under labels that are there, as the policy's phase of a run sees it."""
        return Shape(self.batch, TEXT, precomputed=True)

    def config(self, device: str, size: str = "full") -> PI05RLConfig:
        """The policy's configuration; its critic has layers of its own where the line does not say otherwise."""
        sizes = {"dtype": "bfloat16"} if size == "full" else sizes_and_batch(size)[0]
        keys = {"gradient_checkpointing": True} | sizes | self.policy
        return with_cameras(PI05RLConfig(device=device, **keys), CAMERAS)


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


def policy_of(line: Line, device: str, size: str, purpose: Purpose, *, load_critic: bool) -> PI05RLPolicy:
    """The line's, drawn on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        return random_policy(line.config(device, size), line.peft, purpose, load_critic=load_critic)


def train(line: Line, device: str, size: str) -> dict:
    """Samples per second and peak of the package's own optimization step."""
    clock, config = Clock(device), line.config(device, size)
    purpose: Purpose = "adapt" if line.lora else "train"
    policy = policy_of(line, device, size, purpose, load_critic=config.trains_critic)
    algorithm = RecapAlgorithm(policy, RecapConfig(policy_config=config, critic_steps=1), tasks=["a task"])
    batch = on_device(drawn_batch(config, line.shape), device)
    return timed_steps(lambda: algorithm.update(iter([dict(batch)])), clock)


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

    return timed_steps(step, clock)


def timed_steps(step: Callable[[], object], clock: Clock) -> dict:
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
    return {"seconds": statistics.median(seconds), "first_s": first, **clock.bytes()}


def act(line: Line, device: str, size: str) -> dict:
    """Seconds of one chunk of an actor (bf16 weights, no critic), plain and guided in turn."""
    policy = policy_of(line, device, size, "act", load_critic=False)
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
    policy = policy_of(line, device, size, "act", load_critic=True).eval()
    batch = on_device(drawn_batch(policy.config, line.shape), device)
    return timed_steps(lambda: policy.predict_label_values(batch), Clock(device))


KINDS = {"train": train, "act": act, "label": label, "stock train": train_stock, "stock act": act_stock}
