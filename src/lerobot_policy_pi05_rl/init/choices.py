"""What a configuration says of a dataset and a machine: pure functions from facts to keys, each with its reason."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..plan.gpus import USABLE
from ..plan.report import gib
from .facts import Facts, Machine

BASE, ADAPTER_RANK = "lerobot/pi05_base", 16
SAMPLES = 32  # of a step: batch × accumulation
# A GPU is the faster the larger the batch, and a step of several batches holds its gradients beside the next one's
# activations: 32 at once need less memory than four times 8, and took half the time (docs/performance.md).
BATCHES = (32, 16, 8, 4, 2, 1)
PASSES, LEAST_STEPS, MOST_STEPS = 10, 3000, 30_000
CHUNK, CHUNK_FPS = 50, 30  # π0.5's steps, which at this rate are 1.7 s
LEAST_EPISODES = 20  # of which a tenth can be held out

Keys = dict[str, Any]  # dotted → value
Count = Callable[[Keys], int]  # bytes of a step under these keys

# What trains, in the order in which it is tried: (name, keys).
TRAINED: tuple[tuple[str, Keys], ...] = (
    ("everything", {}),
    ("the action expert alone", {"policy.train_expert_only": True}),
    ("a LoRA adapter", {"peft.method_type": "LORA", "peft.r": 16}),
)


@dataclass(frozen=True)
class Choice:
    """Keys and why they are so."""

    reason: str
    keys: Keys = field(default_factory=dict)
    fails: bool = False  # the reason is one why the run will fail


def choose_start(is_ours: bool) -> Keys:
    """What the policy starts from, and how a full-size one is held.

    Args:
        is_ours: it starts from a checkpoint of this package, whose critic it takes as it is.
    """
    keys: Keys = {"policy.type": "pi05_rl", "policy.pi05_checkpoint": BASE}
    keys |= {"policy.dtype": "bfloat16", "policy.gradient_checkpointing": True}
    if not is_ours:
        keys["policy.critic_adapter_rank"] = ADAPTER_RANK  # labels as well as layers of its own, and takes far less
    return keys


def choose_data(facts: Facts) -> list[Choice]:
    """Where the data lie, and their outcomes where a person says them; what is held out."""
    where: Keys = {"dataset.repo_id": facts.repo_id}
    if facts.root is not None:
        where["dataset.root"] = str(facts.root)
    if facts.unlabelled or facts.by_hand.is_file():
        where["reward.outcome_file"] = str(facts.by_hand)
    found = [Choice("", where)]
    if len(facts.lengths) < LEAST_EPISODES:
        found.append(Choice(f"{len(facts.lengths)} episodes are too few to hold any out", {"dataset.eval_split": 0.0}))
    return found


def choose_chunk(facts: Facts) -> list[Choice]:
    """Slower recordings get shorter chunks: a chunk is a stretch of time. Empty at 30 frames a second and above."""
    if facts.fps >= CHUNK_FPS:
        return []
    steps = max(10, round(CHUNK * facts.fps / CHUNK_FPS))
    keys = {"policy.chunk_size": steps, "policy.n_action_steps": steps}
    return [Choice(f"at {facts.fps:g} fps a chunk of {steps} steps lasts {steps / facts.fps:.1f} s", keys)]


def choose_robot(facts: Facts, given: Keys) -> list[Choice]:
    """For going on online with the robot that the user names; empty without one.

    The policy may go no further and no faster than whoever recorded the data.
    """
    if "env.robot.type" not in given:
        return []
    longest = math.ceil(1.5 * max(facts.lengths) / facts.fps)
    keys: Keys = {"env.type": "gym_manipulator", "env.name": "real_robot", "env.task": facts.name}
    keys |= {"env.fps": round(facts.fps), "env.processor.reset.control_time_s": float(longest)}
    keys["output_dir"] = f"outputs/{facts.name}_online"
    if str(given.get("env.teleop.type", "")).endswith("_leader"):
        keys["env.processor.control_mode"] = "leader"
    found = [Choice(f"online, an episode lasts {longest} s at most, half as long again as the longest", keys)]
    if facts.limits:
        clamps = {name: [_outward(low, -1), _outward(high, 1)] for name, (low, high, _) in facts.limits.items()}
        steps = {name: _outward(step, 1) or 1.0 for name, (*_, step) in facts.limits.items()}  # 0: the clamp holds it
        limits = {"actor.action_clamp_limits": clamps, "actor.max_action_step": steps}
        found.append(Choice("the actor goes no further and no faster than the recording", limits))
    return found


def _outward(value: float, direction: int) -> float:
    """Rounded to three digits, up or down."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    rounded = (math.ceil if direction > 0 else math.floor)(value / unit) * unit
    return float(f"{rounded:.6g}")


def robot_cameras(facts: Facts) -> str:
    """As ``--robot.cameras`` takes them, with whatever the dataset says of them."""
    each = [
        f"{name.rsplit('.', 1)[-1]}: {{type: opencv, index_or_path: {number}, width: {width}, height: {height}, "
        f"fps: {facts.fps:g}}}"
        for number, (name, (height, width)) in enumerate(facts.cameras.items())
    ]
    return "{" + ", ".join(each) + "}"


def choose_steps(facts: Facts, given: Keys, samples: int) -> Choice:
    """As many as draw every frame about ten times, a fifth of them for the critics.

    Args:
        samples: of a step.
    """
    wanted = min(max(PASSES * facts.frames / samples, LEAST_STEPS), MOST_STEPS)
    steps = int(given.get("policy.offline_steps", round(wanted, -2)))
    bound = {LEAST_STEPS: " (the least)", MOST_STEPS: " (the most)"}.get(steps, "")
    reason = f"{steps} steps{bound} of {samples} samples draw each frame {steps * samples / facts.frames:.1f} times"
    keys: Keys = {"policy.offline_steps": steps}
    every = max(500, steps // 1000 * 100)
    if every < steps:
        keys |= {"offline_save_freq": every, "keep_last_checkpoints": 2}
    return Choice(reason, keys)


def choose_training(machine: Machine, given: Keys, count: Count) -> Choice:
    """The most that trains on the card, and the largest batch with which it does.

    Args:
        given: what the user has said of batch, accumulation and what trains; it is not chosen.
    """
    usable = machine.card * USABLE
    said = any(key.partition(".")[0] == "peft" or key == "policy.train_expert_only" for key in given)
    batches = (given["batch_size"],) if "batch_size" in given else BATCHES
    smaller = []
    for name, trained in (("what you asked for", {}),) if said else TRAINED:
        batch, peak = largest_batch(
            lambda size, trained=trained: count(trained | _batch(size, given)), batches, usable
        )
        keys = trained | _batch(batch, given)
        if peak <= usable:
            fits = (
                f"{name} trains, with a batch of {batch}: {gib(peak)} of the {gib(usable)} GiB that tensors can fill"
            )
            return Choice("; ".join([*smaller, fits]), keys)
        smaller.append(f"{name} needs {gib(peak)} GiB with a batch of {batch}")
    nothing = f"nothing fits the {gib(usable)} GiB that tensors can fill: a larger card, or several"
    return Choice("; ".join([*smaller, nothing]), keys, fails=True)


def largest_batch(count: Callable[[int], int], batches: tuple[int, ...], usable: float) -> tuple[int, int]:
    """The largest batch that fits and its bytes; the smallest one where none does."""
    largest, *between = batches
    peak = count(largest)
    if peak <= usable or not between:
        return largest, peak
    *between, smallest = between
    least = count(smallest)
    if least <= usable:
        for batch in between:
            if (peak := count(batch)) <= usable:
                return batch, peak
    return smallest, least


def _batch(size: int, given: Keys) -> Keys:
    accumulation = {"policy.gradient_accumulation_steps": max(1, SAMPLES // size)}
    return {key: value for key, value in ({"batch_size": size} | accumulation).items() if key not in given}


def missing(facts: Facts, given: Keys, config: str) -> list[str]:
    """What stands between the data and a good run, each with what mends it."""
    found, counts = [], facts.outcomes
    if "env.robot.type" in given and not any(key.startswith("env.robot.cameras") for key in given):
        found.append(f"the robot's cameras, under the dataset's names: --robot.cameras='{robot_cameras(facts)}'")
    if "env.robot.type" in given and not facts.limits:
        found.append("the dataset gives its actions no names, so the robot has no limits: actor.action_clamp_limits")
    if facts.unlabelled:
        found.append(
            f"{len(facts.unlabelled)} episodes have no outcome: `pi05-rl label {config} --browser` shows each one and "
            f"takes a key, `pi05-rl label {config} --success … --failure …` takes numbers such as 0-40,52"
        )
    elif not counts.get("success") or not counts.get("failure"):
        only = "no failure" if counts.get("success") else "no success"
        found.append(
            f"there is {only} among the outcomes: RL can only tell fast episodes from slow ones. Record the "
            "other kind, too, or clone: `--policy.policy_extraction=none`"
        )
    for column, names in facts.constant.items():
        if names:
            found.append(f"{column}: {', '.join(names)} never changes; if it should, the recording lacks it")
    if len(facts.tasks) == 1 and len(facts.tasks[0].split()) < 2:
        found.append(
            f"the task's text is {facts.tasks[0]!r}: a sentence is better, `--policy.task='Pick up the cube.'`"
        )
    return found
