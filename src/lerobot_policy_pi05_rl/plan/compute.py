"""The plan of a run: parameters, memory, FLOPs, speed, disk, and what would make it fit."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from ..config.resolve import changed
from ..configuration_pi05_rl import PI05RLConfig
from ..online.transport.weights import pushed_tensors
from .flops import Flops, part_of, total, training_step_flops
from .gpus import CAPACITIES_GIB, EFFICIENCY, GPUS, USABLE
from .memory import Memory, nbytes, training_step_memory
from .meta_step import MetaModel, Shape, build
from .setup import Setup

Change = Callable[[PI05RLConfig, Shape], tuple[PI05RLConfig, Shape] | None]  # None: it would change nothing


@dataclass(frozen=True)
class Phase:
    """A part of the run that labels its own data, or all of one that does not."""

    count: int
    unit: str  # of the count: "steps" or "frames"
    flops: int


@dataclass(frozen=True)
class Plan:
    """Everything ``pi05-rl plan`` prints. Bytes, FLOPs and samples per second."""

    assumptions: list[str]
    parameters: dict[str, dict[str, int]]  # part → "trainable", "frozen"
    memory: dict[str, int]  # of a step as configured: Memory's fields and "peak"
    without_checkpointing: dict[str, int]  # "activations", "peak"
    with_checkpointing: dict[str, int]
    flops_per_batch: Flops  # one batch, critic and actor
    flops_per_step: int  # an optimization step of the policy: accumulation, utd_ratio, policy_update_freq
    phases: dict[str, Phase]  # of the whole run, in their order
    cloning: int  # FLOPs of as many steps of plain cloning as the policy takes
    samples_per_step: int
    efficiency: float
    samples_per_s: dict[str, float]  # GPU → samples/s
    hours: dict[str, float]  # GPU → hours of the whole run
    checkpoint: int
    checkpoints_written: int
    disk: int  # the most at once: the checkpoints kept, and the one being written
    pushed: int  # one version of the weights on its way to an online actor
    fits: dict[int, bool]  # GiB → whether the step fits
    changes: dict[str, int]  # what one change alone would bring the peak to


def make_plan(setup: Setup, *, efficiency: float = EFFICIENCY) -> Plan:
    """Count everything; seconds at full size, no weights."""
    policy, shape = setup.config.policy, setup.shape
    model = build(policy)
    flops = training_step_flops(model, shape)
    critic = training_step_flops(model, shape, train_actor=False) if policy.trains_critic else {}
    critic_alone = total(critic)
    memory = {
        wanted: training_step_memory(build(changed(policy, gradient_checkpointing=wanted)), shape)
        for wanted in (False, True)
    }
    chosen = memory[policy.gradient_checkpointing]
    per_step = _flops_per_step(policy, total(flops), critic_alone)
    samples = shape.batch_size * policy.gradient_accumulation_steps * (policy.utd_ratio if policy.trains_critic else 1)
    peaks = {gpu.name: gpu.bf16 if policy.dtype == "bfloat16" else gpu.fp32 for gpu in GPUS}
    seconds = {name: per_step / (peak * efficiency) for name, peak in peaks.items()}
    phases = run_phases(setup, per_step, critic)
    everything = sum(phase.flops for phase in phases.values())
    checkpoint = checkpoint_bytes(model)
    fits = {gib: chosen.peak <= usable(gib) for gib in CAPACITIES_GIB}
    return Plan(
        assumptions=setup.assumptions,
        parameters=parameters_by_part(model),
        memory={**asdict(chosen), "peak": chosen.peak},
        without_checkpointing={"activations": memory[False].activations, "peak": memory[False].peak},
        with_checkpointing={"activations": memory[True].activations, "peak": memory[True].peak},
        flops_per_batch=flops,
        flops_per_step=per_step,
        phases=phases,
        cloning=phases["policy"].count * cloning_step_flops(policy, shape) if "policy" in phases else 0,
        samples_per_step=samples,
        efficiency=efficiency,
        samples_per_s={name: samples / spent for name, spent in seconds.items()},
        hours={name: everything / (peak * efficiency) / 3600 for name, peak in peaks.items()},
        checkpoint=checkpoint,
        checkpoints_written=setup.checkpoints_written,
        disk=checkpoint * setup.checkpoints_at_once,
        pushed=pushed_bytes(model),
        fits=fits,
        changes={} if all(fits.values()) else peaks_after_changes(policy, shape, memory),
    )


def parameters_by_part(model: MetaModel) -> dict[str, dict[str, int]]:
    """Part → how many of its parameters train and how many do not."""
    counts: dict[str, dict[str, int]] = {}
    for name, parameter in model.losses.named_parameters():
        part = counts.setdefault(part_of(name) or "other", {"trainable": 0, "frozen": 0})
        part["trainable" if parameter.requires_grad else "frozen"] += parameter.numel()
    return counts


def checkpoint_bytes(model: MetaModel) -> int:
    """Weights, AdamW's averages, a target critic and the best critic so far; the rest is a few kilobytes."""
    config, critic = model.policy.config, model.policy.model.critic
    trainable = [parameter for group in model.trainable.values() for parameter in group]
    best = critic.parameters() if config.trains_critic and config.critic_early_stop is not None else []
    return nbytes(model.losses.parameters()) + 2 * nbytes(trainable) + nbytes(best)


def pushed_bytes(model: MetaModel) -> int:
    """What the online learner sends each actor of one version of its weights."""
    config = model.policy.config
    dtype = getattr(torch, config.actor_learner_config.push_dtype or config.dtype)
    return sum(tensor.numel() for tensor in pushed_tensors(model.policy).values()) * dtype.itemsize


def usable(gib: int) -> float:
    """Bytes of a card of so many GiB that tensors can fill."""
    return gib * 2**30 * USABLE


def peaks_after_changes(policy: PI05RLConfig, shape: Shape, known: dict[bool, Memory]) -> dict[str, int]:
    """What each single change brings the peak to, and all that save memory together."""
    peaks = {}
    for name, change in CHANGES.items():
        altered = change(policy, shape)
        if altered is None:
            continue
        if name == CHECKPOINTING:
            peaks[name] = known[True].peak
        else:
            peaks[name] = training_step_memory(build(altered[0]), altered[1]).peak
    return peaks


CHECKPOINTING = "policy.gradient_checkpointing=true"


def _set(**values) -> Change:
    def change(policy: PI05RLConfig, shape: Shape) -> tuple[PI05RLConfig, Shape] | None:
        if all(getattr(policy, name) == value for name, value in values.items()):
            return None
        return changed(policy, **values), shape

    return change


def _accumulate(policy: PI05RLConfig, shape: Shape) -> tuple[PI05RLConfig, Shape] | None:
    if shape.batch_size == 1:
        return None
    batches = policy.gradient_accumulation_steps * shape.batch_size
    return changed(policy, gradient_accumulation_steps=batches), Shape(1, shape.text_tokens, shape.precomputed)


def _share_critic(policy: PI05RLConfig, shape: Shape) -> tuple[PI05RLConfig, Shape] | None:
    if not policy.trains_critic or not policy.use_separate_critic or policy.critic_llm_depth == policy.llm_depth:
        return None
    return changed(policy, use_separate_critic=False), shape


def _everything(policy: PI05RLConfig, shape: Shape) -> tuple[PI05RLConfig, Shape]:
    altered = changed(policy, gradient_checkpointing=True, train_expert_only=True, dtype="bfloat16"), shape
    for change in (_share_critic, _accumulate):
        altered = change(*altered) or altered
    return altered


CHANGES: dict[str, Change] = {
    CHECKPOINTING: _set(gradient_checkpointing=True),
    "policy.dtype=bfloat16": _set(dtype="bfloat16"),
    "batch_size=1 with accumulation": _accumulate,
    "policy.freeze_vision_encoder=true": _set(freeze_vision_encoder=True),
    "policy.use_separate_critic=false": _share_critic,
    "policy.train_expert_only=true": _set(train_expert_only=True),
    "all that apply, with train_expert_only": _everything,
}


def run_phases(setup: Setup, per_step: int, critic: Flops) -> dict[str, Phase]:
    """What each phase of the run takes (offline_learner.py: train_phases).

    Args:
        per_step: FLOPs of a step of the policy.
        critic: of a batch that trains the critics alone.
    """
    config, policy = setup.config, setup.config.policy
    waits = min(config.critic_steps, config.total_steps)
    phases = {}
    if waits:
        batches = policy.gradient_accumulation_steps * policy.utd_ratio
        phases["critics"] = Phase(waits, "steps", waits * batches * total(critic))
    if config.labels_itself and waits < config.total_steps:
        each = total(critic, "forward") // setup.shape.batch_size
        phases["labels"] = Phase(setup.frames, "frames", setup.frames * each)
    if waits < config.total_steps:
        steps = config.total_steps - waits
        phases["policy"] = Phase(steps, "steps", steps * per_step)
    return phases


def cloning_step_flops(policy: PI05RLConfig, shape: Shape) -> int:
    """FLOPs of an optimization step that clones: no critic, no tag."""
    clone = build(changed(policy, policy_extraction="none"))
    return total(training_step_flops(clone, shape)) * policy.gradient_accumulation_steps


def _flops_per_step(policy: PI05RLConfig, both: int, critic_alone: int) -> int:
    """Of the mean step behind the critic's warm-up (recap.py: RecapAlgorithm.update)."""
    if not policy.trains_critic:
        return both * policy.gradient_accumulation_steps
    last = both / policy.policy_update_freq + critic_alone * (1 - 1 / policy.policy_update_freq)
    return round(((policy.utd_ratio - 1) * critic_alone + last) * policy.gradient_accumulation_steps)
