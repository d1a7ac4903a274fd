"""The card that a run is on: what it has, and whether a step fits."""

import logging

import torch

from ..config.train import PI05RLTrainConfig
from ..distributed.processes import Processes
from .compute import Case
from .gpus import USABLE
from .report import gib
from .setup import step_shape

logger = logging.getLogger(__name__)


def card_memory(device: str | None) -> int | None:
    """Bytes of the GPU of this name, or of LeRobot's choice where there is none; None: no GPU."""
    if torch.device(device or "cuda").type != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(device or "cuda").total_memory


def describe_card(card: int) -> str:
    """In words, what it has."""
    return f"the card has {gib(card)} GiB, of which tensors can fill {gib(card * USABLE)}"


def warn_of_memory(cfg: PI05RLTrainConfig, processes: Processes) -> None:
    """Say so before the first step where it cannot fit the card.

    Args:
        cfg: whose policy knows its features.
    """
    card = card_memory(cfg.policy.device)
    if card is None or not processes.is_main:
        return
    peak = Case(cfg.policy, cfg.peft, step_shape(cfg), processes.count, processes.fsdp is not None).memory().peak
    if peak > card * USABLE:
        logger.warning(
            "%s A step needs %s GiB by pi05-rl plan's count, and %s: it will probably run out of memory. `pi05-rl "
            "plan` with this configuration lists flags that fit",
            cfg.tag,
            gib(peak),
            describe_card(card),
        )
