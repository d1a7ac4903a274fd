"""The card that a run is on: what it has, and whether a step fits."""

import torch

from ..config.train import PI05RLTrainConfig
from .gpus import USABLE
from .memory import training_step_memory
from .meta_step import Shape, build
from .report import gib
from .setup import TEXT_TOKENS


def card_memory(device: str | None) -> int | None:
    """Bytes of the GPU of this name, or of LeRobot's choice where there is none; None: no GPU."""
    if torch.device(device or "cuda").type != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(device or "cuda").total_memory


def describe_card(card: int) -> str:
    """In words, what it has."""
    return f"the card has {gib(card)} GiB, of which tensors can fill {gib(card * USABLE)}"


def memory_warning(cfg: PI05RLTrainConfig, card: int) -> str | None:
    """What to say before the first step where it cannot fit; None: it can.

    Args:
        cfg: whose policy knows its features.
        card: bytes.
    """
    policy = cfg.policy
    labelled = cfg.dataset.labeling is not None or cfg.labels_itself
    shape = Shape(cfg.batch_size, min(TEXT_TOKENS, policy.tokenizer_max_length), precomputed=labelled)
    peak = training_step_memory(build(policy, cfg.peft), shape).peak
    if peak <= card * USABLE:
        return None
    return (
        f"a step needs {gib(peak)} GiB by pi05-rl plan's count, and {describe_card(card)}: it will probably run out "
        "of memory. `pi05-rl plan` with this configuration lists flags that fit"
    )
