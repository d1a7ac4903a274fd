"""Every key of a batch: what lies under it, who writes it and who reads it.

A *sample* is one item of ``data/frames.py``; collated, with B of them, it is a batch. ``training/build.py``
preprocesses it into what the losses read: images from uint8 to float, states and actions normalised, the prompt
tokenized. LeRobot's constants name what its own code reads, too; every other key is spelled here, and nowhere else.
The module imports nothing of the package, so that the processors may read it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lerobot.utils.constants import (
    ACTION,
    DONE,
    INFO,
    OBS_IMAGES,
    OBS_LANGUAGE_ATTENTION_MASK,
    OBS_LANGUAGE_TOKENS,
    OBS_STATE,
    REWARD,
    TRUNCATED,
)

Batch = dict[str, Any]  # key → tensor, or a list of texts
Preprocess = Callable[[Batch], Batch]  # collated samples → what the losses read

TASK = "task"  # LeRobot's pipelines read it, too, and have no constant for it
ACTION_IS_PAD = f"{ACTION}_is_pad"
RETURN = "return"
TASK_INDEX = "task_index"
INTERVENTION = "intervention"  # lerobot-rollout's name of the dataset's column
FOLD = "fold"
POSITION = "position"
IMPORTANCE_WEIGHT = "importance_weight"
PRECOMPUTED_ADVANTAGE, PRECOMPUTED_TAG = "precomputed_advantage", "precomputed_tag"
N_STEP = "n_step_"  # begins the key of what belongs to a later frame
N_STEP_REWARD, N_STEP_DISCOUNT = "reward", "discount"  # behind :func:`n_step_key`


@dataclass(frozen=True)
class BatchKey:
    """What lies under one key.

    Letters of a shape: B samples, H steps of the action chunk, A actions, S states, h × w pixels, T tokens of the
    longest prompt.
    """

    shape: tuple[str | int, ...] | None  # None: a list of B texts
    dtype: str  # of torch, as collated; "→" where preprocessing changes it
    unit: str
    written: str
    read: str


COLUMNS = "data/frames.py"
PROMPT = "processor_pi05_rl.py"
LOSSES = "losses.py"
HELD_OUT = "training/evaluation.py"
BOTH = f"{LOSSES}, {HELD_OUT}"
KEYS: dict[str, BatchKey] = {
    f"{OBS_IMAGES}.<camera>": BatchKey(
        ("B", 3, "h", "w"), "uint8 → float32", "0 to 255 → 0 to 1, red green blue", COLUMNS, "modeling_pi05_rl.py"
    ),
    OBS_STATE: BatchKey(("B", "S"), "float32", "as recorded → normalised to [−1, 1]", COLUMNS, PROMPT),
    ACTION: BatchKey(("B", "H", "A"), "float32", "as recorded → normalised", COLUMNS, BOTH),
    ACTION_IS_PAD: BatchKey(
        ("B", "H"),
        "bool",
        "true behind the episode's end, where the last action stands",
        COLUMNS,
        BOTH,
    ),
    TASK: BatchKey(None, "str", "the frame's task → the prompt", COLUMNS, PROMPT),
    OBS_LANGUAGE_TOKENS: BatchKey(("B", "T"), "int64", "ids of the prompt", PROMPT, "modeling_pi05_rl.py"),
    OBS_LANGUAGE_ATTENTION_MASK: BatchKey(("B", "T"), "bool", "false: padding", PROMPT, "modeling_pi05_rl.py"),
    RETURN: BatchKey(("B",), "float32", "discounted sum of rewards; NaN where unknown", COLUMNS, BOTH),
    TASK_INDEX: BatchKey(("B",), "int64", "place among the run's tasks", COLUMNS, f"{LOSSES}: which threshold"),
    INTERVENTION: BatchKey(("B",), "bool", "a human's correction", COLUMNS, f"{LOSSES}: always positive"),
    FOLD: BatchKey(
        ("B",),
        "int64",
        "critic that has not seen the episode; −1: none has, or there is one",
        COLUMNS,
        BOTH,
    ),
    POSITION: BatchKey(
        ("B",),
        "int64",
        "global sample index, the how-manieth sample of the run; of a held-out frame its number",
        f"{COLUMNS}, online/learner/batches.py",
        f"recap.py (noise and time), {HELD_OUT}",
    ),
    IMPORTANCE_WEIGHT: BatchKey(
        ("B",), "float32", "how much rarer the frame is drawn than it was recorded", COLUMNS, f"{LOSSES}: the critic's"
    ),
    PRECOMPUTED_ADVANTAGE: BatchKey(
        ("B",), "float32", "a labeling's advantage, in units of the return; NaN where unknown", COLUMNS, LOSSES
    ),
    PRECOMPUTED_TAG: BatchKey(
        ("B",), "int64", "a labeling's tag: 1 positive, 0 negative, −1 unknown", COLUMNS, LOSSES
    ),
    f"{N_STEP}<n>.{N_STEP_REWARD}": BatchKey(
        ("B",), "float32", "discounted rewards of the n steps; NaN where unknown", COLUMNS, LOSSES
    ),
    f"{N_STEP}<n>.{N_STEP_DISCOUNT}": BatchKey(
        ("B",), "float32", "what the later frame's value counts; 0 past the episode's end", COLUMNS, LOSSES
    ),
    **{
        key: BatchKey((), "none", "LeRobot's pipeline fills it in; it says nothing here", PROMPT, "nobody")
        for key in (REWARD, DONE, TRUNCATED, INFO)
    },
}
"""Key → what lies under it. The observation of the frame n steps later lies under ``n_step_<n>.`` and its own key."""


def n_step_key(n: int, key: str) -> str:
    """The batch key of what belongs to the frame ``n`` steps later."""
    return f"{N_STEP}{n}.{key}"


def n_step_columns(batch: Batch) -> dict[int, Batch]:
    """The inverse of :func:`ahead`, over a batch: n → key → value of what belongs to the frames ``n`` steps later."""
    later: dict[int, Batch] = {}
    for key, value in batch.items():
        prefix, _, name = key.partition(".")
        if prefix.startswith(N_STEP):
            later.setdefault(int(prefix.removeprefix(N_STEP)), {})[name] = value
    return later


def own_columns(batch: Batch) -> Batch:
    """The rest of the batch: what belongs to the samples' own frames."""
    return {key: value for key, value in batch.items() if not key.startswith(N_STEP)}
