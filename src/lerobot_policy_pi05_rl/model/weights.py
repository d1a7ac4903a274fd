"""Load a checkpoint's weights into a policy completely, or not at all.

LeRobot's ``PI05Policy.from_pretrained`` (policies/pi05/modeling_pi05.py) catches every exception and returns
random weights; here anything missing, unexpected or of another shape is an error before a tensor is touched.
"""

import logging
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..stored.files import (
    CRITIC_PREFIX,
    CheckpointError,
    CheckpointFiles,
    StoredTensor,
    list_names,
    open_tensors,
    was_shown_tags,
)
from ..stored.files import locate as locate
from ..stored.folders import policy_kind, stored_settings, stored_type
from ..stored.keys import NORMALISATION, is_unused, model_kind, size_differences
from .precision import place

logger = logging.getLogger(__name__)

ADVANTAGE_EMBEDDING = "model.advantage_embedding.weight"
FLOATS = ("F64", "F32", "F16", "BF16")  # how weights are stored; anything else is quantised or no weight


def load_policy_weights(
    policy: nn.Module, files: CheckpointFiles, reduced: Set[str] = frozenset(), *, only: str = ""
) -> None:
    """Copy every tensor of weights and critic into ``policy``, one at a time; those of the meta device take the file's
    place as they are read, on the policy's device, in fp32, or in bf16 where ``reduced`` names them.

    A stock π0.5 checkpoint has no critic: the critic is then initialised from the loaded actor and the log says
    so; nor has it a tag, whose vector is 0 then. What π0.5 never uses (stock's two logits heads, for instance) is
    skipped, and so are the statistics that LeRobot kept in the network up to 0.3 (the log says so). A policy without a
    critic skips the checkpoint's.

    Args:
        only: what the names of the tensors begin with that are loaded.

    Raises:
        CheckpointError: the tensors differ in name, shape or kind, before one is touched; or a file is damaged or a
            tensor not finite, which shows as it is copied.
    """
    wanted = {key: tensor for key, tensor in policy.state_dict().items() if key.startswith(only)}
    has_critic = any(key.startswith(CRITIC_PREFIX) for key in wanted)
    with open_tensors(files) as stored:
        statistics = [tensor.name for key, tensor in stored.items() if NORMALISATION.match(key) and not only]
        sources = {
            key: tensor
            for key, tensor in stored.items()
            if key.startswith(only)
            if key in wanted or not (NORMALISATION.match(key) or is_unused(key))
            if has_critic or not key.startswith(CRITIC_PREFIX)
        }
        needs_critic = has_critic and not any(key.startswith(CRITIC_PREFIX) for key in sources)
        needs_tag = ADVANTAGE_EMBEDDING in wanted and ADVANTAGE_EMBEDDING not in sources
        if needs_tag and was_shown_tags(stored_settings(files.weights.parent)):
            raise CheckpointError(
                f"{files.weights} has no {ADVANTAGE_EMBEDDING}, its advantage tag: an earlier version trained it, "
                "with the tag as text, or it is damaged. Train again from what that run started from"
            )
        expected = {
            key: v
            for key, v in wanted.items()
            if not (needs_critic and key.startswith(CRITIC_PREFIX)) and not (needs_tag and key == ADVANTAGE_EMBEDDING)
        }
        _check(files.weights, sources, expected)
        with torch.no_grad():
            for key, tensor in sources.items():
                if wanted[key].is_meta:
                    # A copy, in memory of torch's: where it is aligned otherwise, products of matrices may round
                    # otherwise, and a run that goes on would not be the one that nobody stopped.
                    dtype = torch.bfloat16 if key in reduced else torch.float32
                    loaded = tensor.read().to(policy.config.device, dtype, copy=True)
                    place(policy, key, loaded)
                else:
                    loaded = wanted[key].copy_(tensor.read())
                _check_finite(tensor, loaded)
    if statistics:
        logger.warning(
            "%s stores the normalisation of an older LeRobot with its weights (%s): it is left out. Training "
            "normalises with the statistics of its data and saves them with each checkpoint",
            files.weights,
            list_names(statistics),
        )
    if needs_tag:
        nn.init.zeros_(policy.model.advantage_embedding.weight)
        logger.info("%s has no advantage tag: its vector is 0, and changes nothing before it learns", files.directory)
    if needs_critic:
        policy.model.critic.init_from_actor(policy.model.language_model)
        logger.info("%s has no critic: its layers are initialised from the actor's, its head is new", files.directory)


@dataclass(frozen=True)
class LeftOut:
    """What of a checkpoint a policy does without as long as it only acts."""

    files: CheckpointFiles
    reduced: dict[str, nn.Parameter]  # by their names when they were loaded: an adapter renames what it wraps
    critic: bool


def load_left_out(policy: nn.Module, left_out: LeftOut) -> None:
    """What is held in bf16 becomes the file's, in fp32 and in place; the critic joins it.

    Raises:
        CheckpointError: as :func:`load_policy_weights`; a file is gone.
    """
    with open_tensors(left_out.files) as stored:
        for key, parameter in left_out.reduced.items():
            exact = stored[key].read().to(parameter.device, torch.float32)
            untouched = torch.equal(exact.to(parameter.dtype), parameter.data)  # else somebody has put others there
            parameter.data = exact if untouched else parameter.data.float()
    if left_out.critic:
        policy.model.add_critic()
        load_policy_weights(policy, left_out.files, only=CRITIC_PREFIX)
        policy.model.critic.to(policy.config.device)


def _check(file: Path, sources: dict[str, StoredTensor], expected: dict[str, torch.Tensor]) -> None:
    missing = sorted(expected.keys() - sources.keys())
    unexpected = sorted(sources[key].name for key in sources.keys() - expected.keys())
    both = [(key, sources[key]) for key in sources if key in expected]
    shapes = [
        f"{key}: {tensor.shape} in the file, {tuple(expected[key].shape)} here"
        for key, tensor in both
        if tensor.shape != tuple(expected[key].shape)
    ]
    kinds = [f"{key}: {tensor.dtype}" for key, tensor in both if tensor.dtype not in FLOATS]
    problems = [
        f"{len(items)} {what} ({list_names(items)})"
        for what, items in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            (f"quantised or no weights, which must be {', '.join(FLOATS)}", kinds),
        )
        if items
    ]
    if problems:
        raise CheckpointError(_misfit(file, sources, expected, "; ".join(problems)))


def _misfit(file: Path, sources: dict[str, StoredTensor], expected: dict[str, torch.Tensor], problems: str) -> str:
    """The error for tensors that do not fit: another model, other sizes, or neither."""
    kind = model_kind(sources) or policy_kind(stored_type(file.parent))
    if kind is not None:
        return f"{file} holds {kind}, but a π0.5 is needed, such as lerobot/pi05_base; tensors: {problems}"
    differing = size_differences(
        {key: tensor.shape for key, tensor in sources.items()},
        {key: tuple(tensor.shape) for key, tensor in expected.items()},
    )
    if not differing:
        return f"{file} does not fit the policy; tensors: {problems}. It is damaged, or of another model"
    said = ", ".join(f"policy.{key} is {theirs} in it and {ours} here" for key, (theirs, ours) in differing.items())
    flags = " ".join(f"--policy.{key}={_flag(key, theirs)}" for key, (theirs, _) in differing.items())
    return f"{file} does not fit the policy: {said}; tensors: {problems}. Give the checkpoint's sizes: {flags}"


def _flag(key: str, size: int) -> str:
    return f"[{size},{size}]" if key == "image_resolution" else str(size)


def _check_finite(tensor: StoredTensor, loaded: torch.Tensor) -> None:
    if loaded.numel() and not torch.stack(torch.aminmax(loaded)).isfinite().all():
        count = int((~loaded.isfinite()).sum())
        raise CheckpointError(
            f"{tensor.file}: {count} of {loaded.numel()} values of the tensor {tensor.name} are NaN or infinite, as "
            f"{loaded.dtype}; use another checkpoint, an earlier one of that run"
        )
