"""The plan of a run: parameters, memory, FLOPs, speed, disk, and what would make it fit."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from lerobot.configs.default import PeftConfig

from ..config.resolve import changed
from ..configuration_pi05_rl import PI05RLConfig
from ..model.lora import stored_state
from ..model.trainable import pushed_tensors
from .flops import Flops, part_of, total, training_step_flops
from .gpus import CAPACITIES_GIB, EFFICIENCY, GPUS, USABLE
from .memory import Memory, chunk_memory, nbytes, training_step_memory
from .meta_step import MetaModel, Shape, build, build_actor
from .setup import Setup
from .sharding import sharded_step_memory


@dataclass(frozen=True)
class Case:
    """What a step's cost depends on."""

    policy: PI05RLConfig
    peft: PeftConfig | None  # of the adapter that trains
    shape: Shape
    processes: int = 1
    fsdp: bool = False  # each of them holds a shard; else all of it

    def having(self, **values) -> "Case":
        """Another value of some of the policy's keys."""
        return replace(self, policy=changed(self.policy, **values))

    def build(self) -> MetaModel:
        """Its model on the meta device."""
        return build(self.policy, self.peft)

    def memory(self) -> Memory:
        """Of a step, in each process."""
        if self.fsdp:
            return sharded_step_memory(self.build(), self.shape, self.processes)
        return training_step_memory(self.build(), self.shape)


Change = Callable[[Case], tuple[str, Case] | None]  # the flags and what they make of it; None: nothing


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
    processes: int
    memory: dict[str, int]  # of a step as configured, in each process: Memory's fields and "peak"
    without_checkpointing: dict[str, int]  # "activations", "peak"
    with_checkpointing: dict[str, int]
    flops_per_batch: Flops  # one batch, critic and actor
    flops_per_step: int  # an optimization step of the policy: accumulation, utd_ratio, policy_update_freq; of all
    phases: dict[str, Phase]  # of the whole run, in their order, in all processes
    cloning: int  # FLOPs of as many steps of plain cloning as the policy takes
    samples_per_step: int  # of all processes
    efficiency: float
    samples_per_s: dict[str, float]  # GPU → samples/s of all processes, what they send each other not counted
    hours: dict[str, float]  # GPU → hours of the whole run
    checkpoint: int
    checkpoints_written: int
    disk: int  # the most at once: the checkpoints kept, and the one being written
    host: int  # memory that the process which saves needs, beside its own, while a checkpoint is written
    acting: dict[str, int]  # of an actor that samples a chunk: its "weights" and "peak"
    pushed: int  # one version of the weights on its way to an online actor
    fits: dict[int, bool]  # GiB → whether the step fits
    changes: dict[str, int]  # flags → what they alone would bring the peak down to


def make_plan(setup: Setup, *, efficiency: float = EFFICIENCY, card: int | None = None) -> Plan:
    """Count everything; seconds at full size, no weights.

    Args:
        card: bytes of one that the step should fit, beside those of ``CAPACITIES_GIB``.
    """
    policy, shape = setup.config.policy, setup.shape
    case = Case(policy, setup.config.peft, shape, setup.processes, setup.fsdp)
    model = case.build()
    flops = training_step_flops(model, shape)
    critic = training_step_flops(model, shape, train_actor=False) if policy.trains_critic else {}
    critic_alone = total(critic)
    memory = {wanted: case.having(gradient_checkpointing=wanted).memory() for wanted in (False, True)}
    chosen = memory[policy.gradient_checkpointing]
    per_step = setup.processes * _flops_per_step(policy, total(flops), critic_alone)
    batches = policy.gradient_accumulation_steps * (policy.utd_ratio if policy.trains_critic else 1)
    samples = setup.processes * shape.batch_size * batches
    peaks = {gpu.name: gpu.bf16 if policy.dtype == "bfloat16" else gpu.fp32 for gpu in GPUS}
    speeds = {name: peak * efficiency * setup.processes for name, peak in peaks.items()}
    phases = run_phases(setup, per_step, critic)
    everything = sum(phase.flops for phase in phases.values())
    checkpoint = checkpoint_bytes(model)
    fits = {gib: chosen.peak <= usable(gib) for gib in CAPACITIES_GIB}
    suffices = all(fits.values()) and (card is None or chosen.peak <= usable(card / 2**30))
    return Plan(
        assumptions=setup.assumptions,
        parameters=parameters_by_part(model),
        processes=setup.processes,
        memory={**asdict(chosen), "peak": chosen.peak},
        without_checkpointing={"activations": memory[False].activations, "peak": memory[False].peak},
        with_checkpointing={"activations": memory[True].activations, "peak": memory[True].peak},
        flops_per_batch=flops,
        flops_per_step=per_step,
        phases=phases,
        cloning=setup.processes * phases["policy"].count * cloning_step_flops(case) if "policy" in phases else 0,
        samples_per_step=samples,
        efficiency=efficiency,
        samples_per_s={name: samples * speed / per_step for name, speed in speeds.items()},
        hours={name: everything / speed / 3600 for name, speed in speeds.items()},
        checkpoint=checkpoint,
        checkpoints_written=setup.checkpoints_written,
        disk=checkpoint * setup.checkpoints_at_once,
        host=host_bytes(model, in_background=setup.config.save_in_background, fsdp=setup.fsdp),
        acting=chunk_memory(build_actor(policy, setup.config.peft), replace(shape, batch_size=1)),
        pushed=pushed_bytes(model),
        fits=fits,
        changes={} if suffices else peaks_after_changes(case, memory),
    )


def parameters_by_part(model: MetaModel) -> dict[str, dict[str, int]]:
    """Part → how many of its parameters train and how many do not."""
    counts: dict[str, dict[str, int]] = {}
    for name, parameter in model.losses.named_parameters():
        part = counts.setdefault(part_of(name) or "other", {"trainable": 0, "frozen": 0})
        part["trainable" if parameter.requires_grad else "frozen"] += parameter.numel()
    return counts


def checkpoint_bytes(model: MetaModel) -> int:
    """Weights (of an adapter's run its own alone), AdamW's averages, a target critic and the best critic so far; the
    rest is a few kilobytes."""
    config, critic, target = model.policy.config, model.policy.model.critic, model.losses.target_critic
    trainable = [parameter for group in model.trainable.values() for parameter in group]
    best = critic.parameters() if config.trains_critic and config.critic_early_stop is not None else []
    kept = [*stored_state(model.policy).values(), *best, *(target.parameters() if target is not None else [])]
    return nbytes(kept) + 2 * nbytes(trainable)


def host_bytes(model: MetaModel, *, in_background: bool, fsdp: bool) -> int:
    """What a save copies to host memory (checkpoint/snapshot.py): all of the checkpoint where it was sharded, what
    changes meanwhile where training goes on, else nothing."""
    if fsdp:
        return checkpoint_bytes(model)
    if not in_background:
        return 0
    state = stored_state(model.policy)
    return checkpoint_bytes(model) - nbytes(tensor for tensor in state.values() if not tensor.requires_grad)


def pushed_bytes(model: MetaModel) -> int:
    """What the online learner sends each actor of one version of its weights."""
    config = model.policy.config
    dtype = getattr(torch, config.actor_learner_config.push_dtype or config.dtype)
    return sum(tensor.numel() for tensor in pushed_tensors(model.policy).values()) * dtype.itemsize


def usable(gib: float) -> float:
    """Bytes of a card of so many GiB that tensors can fill."""
    return gib * 2**30 * USABLE


def peaks_after_changes(case: Case, known: dict[bool, Memory]) -> dict[str, int]:
    """What each single change brings the peak to, and what saves most together; by the flags that make it, those first
    that change least of what is learnt. What needs no less is no help: several small batches hold their gradients
    beside the next one's activations, which can be more than one large batch."""
    peaks: dict[str, int] = {}
    for change in CHANGES:
        made = change(case)
        if made is None:
            continue
        flags, altered = made
        checkpoints = altered == case.having(gradient_checkpointing=True)
        peaks[flags] = known[True].peak if checkpoints else altered.memory().peak
    for several in TOGETHER:
        flags, together = [], case
        for change in several:
            made = change(together)
            if made is not None:
                flags.append(made[0])
                together = made[1]
        if len(flags) > 1 and " ".join(flags) not in peaks:
            peaks[" ".join(flags)] = together.memory().peak
    now = known[case.policy.gradient_checkpointing].peak
    return {flags: peak for flags, peak in peaks.items() if peak < now}


def _set(name: str, value: object, *, of_base: bool = False) -> Change:
    """``of_base``: it freezes what an adapter has frozen."""

    def change(case: Case) -> tuple[str, Case] | None:
        if getattr(case.policy, name) == value or (of_base and case.peft is not None):
            return None
        return f"--policy.{name}={json.dumps(value).strip('"')}", case.having(**{name: value})

    return change


def _accumulate(case: Case) -> tuple[str, Case] | None:
    if case.shape.batch_size == 1:
        return None
    steps = case.policy.gradient_accumulation_steps * case.shape.batch_size
    fewer = replace(case.having(gradient_accumulation_steps=steps), shape=replace(case.shape, batch_size=1))
    return f"--batch_size=1 --policy.gradient_accumulation_steps={steps}", fewer


def _adapt_critic(case: Case) -> tuple[str, Case] | None:
    policy = case.policy
    if not policy.trains_critic or not policy.use_separate_critic or policy.critic_adapter_rank:
        return None
    return _set("critic_adapter_rank", 16)(case)


def _adapt(case: Case) -> tuple[str, Case] | None:
    if case.peft is not None or case.policy.pi05_checkpoint is None:
        return None
    return "--peft.method_type=LORA --peft.r=16", replace(case, peft=PeftConfig(method_type="LORA", r=16))


_CHECKPOINTING, _BF16 = _set("gradient_checkpointing", True), _set("dtype", "bfloat16")
_EXPERT = _set("train_expert_only", True, of_base=True)
CHANGES: tuple[Change, ...] = (
    _CHECKPOINTING,
    _BF16,
    _accumulate,
    _set("freeze_vision_encoder", True, of_base=True),
    _adapt_critic,
    _EXPERT,
    _adapt,
)
TOGETHER: tuple[tuple[Change, ...], ...] = (
    (_CHECKPOINTING, _BF16, _adapt_critic, _adapt),
    (_CHECKPOINTING, _BF16, _EXPERT, _adapt_critic, _accumulate),
)


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
        phases["critics"] = Phase(waits, "steps", setup.processes * waits * batches * total(critic))
    if config.labels_itself and waits < config.total_steps:
        each = total(critic, "forward") // setup.shape.batch_size
        phases["labels"] = Phase(setup.frames, "frames", setup.frames * each)
    if waits < config.total_steps:
        steps = config.total_steps - waits
        phases["policy"] = Phase(steps, "steps", steps * per_step)
    return phases


def cloning_step_flops(case: Case) -> int:
    """FLOPs of an optimization step that clones: no critic, no tag."""
    clone = case.having(policy_extraction="none").build()
    return total(training_step_flops(clone, case.shape)) * case.policy.gradient_accumulation_steps


def _flops_per_step(policy: PI05RLConfig, both: int, critic_alone: int) -> int:
    """Of the mean step behind the critic's warm-up (recap.py: RecapAlgorithm.update)."""
    if not policy.trains_critic:
        return both * policy.gradient_accumulation_steps
    last = both / policy.policy_update_freq + critic_alone * (1 - 1 / policy.policy_update_freq)
    return round(((policy.utd_ratio - 1) * critic_alone + last) * policy.gradient_accumulation_steps)
