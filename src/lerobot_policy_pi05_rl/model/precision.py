"""Which weights are held in bf16 where the network computes in bf16: those that no training moves.

Autocast casts the matrices of linear and convolutional layers to bf16 wherever they are read, so holding those so
changes no result, and saves the copy. The table of token embeddings, which it does not cast, is rounded to bf16. What
trains keeps fp32 masters; norms, biases, positions and the small projections of actions and time stay fp32, too.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import nn

from .trainable import frozen_modules

TOWERS = "model.paligemma_with_expert"
Purpose = Literal["train", "adapt", "act"]  # what the configuration does not freeze trains, an adapter, or nothing


def supports_bf16(device: str) -> bool:
    """Whether the network can compute in bf16 there."""
    kind = torch.device(device).type
    return kind in ("cpu", "meta") or (kind == "cuda" and torch.cuda.is_bf16_supported())


def names_in_bf16(policy: PreTrainedPolicy, purpose: Purpose, full: Iterable[str] = ()) -> set[str]:
    """Names of the weights to hold in bf16; none where ``policy`` computes in fp32.

    Args:
        policy: on any device, the meta device included, without an adapter.
        full: modules that train in full beside an adapter (``peft.full_training_modules``).
    """
    if not (policy.config.dtype == "bfloat16" and supports_bf16(policy.config.device)):
        return set()
    found = cast_by_autocast(policy)
    if purpose == "train":
        frozen = {id(parameter) for module in frozen_modules(policy) for parameter in module.parameters()}
        return {name for name, parameter in found.items() if id(parameter) in frozen}
    kept = {f".{name}." for name in full}
    return {name for name in found if not any(part in f".{name}" for part in kept)}


def cast_by_autocast(policy: PreTrainedPolicy) -> dict[str, nn.Parameter]:
    """Name → matrix of the towers, and the table of token embeddings."""
    tokens = policy.model.language_model.embed_tokens
    return {
        f"{name}.weight": module.weight
        for name, module in policy.named_modules()
        if name.startswith(TOWERS) and (isinstance(module, nn.Linear | nn.Conv2d) or module is tokens)
    }


def hold_in_bf16(policy: nn.Module, names: Iterable[str]) -> None:
    """Round these parameters, wherever they are."""
    for name in names:
        place(policy, name, policy.get_parameter(name).detach().to(torch.bfloat16))


def place(policy: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put ``value`` where the parameter ``name`` is, which may be on the meta device; it keeps its type."""
    parent, _, leaf = name.rpartition(".")
    parameters = policy.get_submodule(parent)._parameters
    parameters[leaf] = nn.Parameter(value, requires_grad=parameters[leaf].requires_grad)
