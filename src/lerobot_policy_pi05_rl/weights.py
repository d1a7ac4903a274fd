"""Load ``model.safetensors`` into a policy completely, or not at all.

LeRobot's ``PI05Policy.from_pretrained`` (policies/pi05/modeling_pi05.py) catches every exception and returns
random weights; here anything missing, unexpected or of another shape is an error before a tensor is touched.
"""

import logging
import re
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn

from .errors import UserError

logger = logging.getLogger(__name__)

CRITIC_PREFIX = "model.critic."
_ACTOR_HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"
_EXPERT_HEAD = "model.paligemma_with_expert.gemma_expert.lm_head.weight"
_EMBED_TOKENS = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not fit the policy."""


def resolve_weights_file(name_or_path: str | Path, **hub_kwargs) -> Path:
    """The local ``model.safetensors`` of a directory, or of a Hub repository through the ordinary Hub cache.

    Raises:
        CheckpointError: there is none.
    """
    directory = Path(name_or_path)
    if directory.is_dir():
        file = directory / SAFETENSORS_SINGLE_FILE
        if file.is_file():
            return file
        hint = ""
        if (directory / "pretrained_model" / SAFETENSORS_SINGLE_FILE).is_file():
            hint = f"; did you mean {directory / 'pretrained_model'}?"
        raise CheckpointError(f"no {SAFETENSORS_SINGLE_FILE} in the checkpoint directory {directory}{hint}")
    if directory.is_absolute() or str(name_or_path).startswith(".") or str(name_or_path).count("/") > 1:
        raise CheckpointError(f"the checkpoint directory {directory} does not exist")
    try:
        return Path(hf_hub_download(repo_id=str(name_or_path), filename=SAFETENSORS_SINGLE_FILE, **hub_kwargs))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"the checkpoint {name_or_path} is neither a local directory nor a reachable Hub repository with a "
            f"{SAFETENSORS_SINGLE_FILE} ({type(error).__name__})"
        ) from error


def stores_critic(name_or_path: str | Path, **hub_kwargs) -> bool:
    """Whether a checkpoint holds a critic.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    file = resolve_weights_file(name_or_path, **hub_kwargs)
    try:
        with safe_open(file, framework="pt") as stored:
            return any(key.startswith(CRITIC_PREFIX) for key in stored.keys())  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or truncated ({error}); use another checkpoint") from error


def load_policy_weights(policy: nn.Module, name_or_path: str | Path, **hub_kwargs) -> None:
    """Copy every tensor of the checkpoint into ``policy`` (cast to its dtype), one at a time.

    A stock π0.5 checkpoint has no critic: the critic is then initialised from the loaded actor and the log says
    so. Stock's two logits heads, which the network never uses, are skipped. A policy without a critic skips the
    checkpoint's.

    Raises:
        CheckpointError: the file is missing or damaged, or the tensors differ in name or shape.
    """
    file = resolve_weights_file(name_or_path, **hub_kwargs)
    wanted = policy.state_dict()
    has_critic = any(key.startswith(CRITIC_PREFIX) for key in wanted)
    try:
        with safe_open(file, framework="pt") as stored:
            sources = map_keys(list(stored.keys()))
            if not has_critic:
                sources = {key: name for key, name in sources.items() if not key.startswith(CRITIC_PREFIX)}
            needs_critic = has_critic and not any(key.startswith(CRITIC_PREFIX) for key in sources)
            expected = {key for key in wanted if not (needs_critic and key.startswith(CRITIC_PREFIX))}
            _check(file, stored, sources, {key: wanted[key] for key in expected})
            with torch.no_grad():
                for key, name in sources.items():
                    wanted[key].copy_(stored.get_tensor(name))
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or truncated ({error}); use another checkpoint") from error
    if needs_critic:
        policy.model.critic.init_from_actor(policy.model.language_model)
        logger.info("%s has no critic: its layers are initialised from the actor's, its head is new", name_or_path)


def map_keys(names: list[str]) -> dict[str, str]:
    """Our key → the name in the file. Renames as in LeRobot's ``_fix_pytorch_state_dict_keys`` (openpi names)."""
    sources = {}
    for name in names:
        key = name if name.startswith("model.") else f"model.{name}"
        key = re.sub(r"^model\.action_time_mlp_(in|out)\.", r"model.time_mlp_\1.", key)
        sources[key] = name
    head = sources.pop(_ACTOR_HEAD, None)
    if head is not None:
        sources.setdefault(_EMBED_TOKENS, head)  # tied weights are stored once, under the head's name
    sources.pop(_EXPERT_HEAD, None)
    return sources


def _check(file: Path, stored, sources: dict[str, str], expected: dict[str, torch.Tensor]) -> None:
    missing = sorted(expected.keys() - sources.keys())
    unexpected = sorted(sources.keys() - expected.keys())
    shapes = [
        f"{key}: {tuple(stored.get_slice(name).get_shape())} in the file, {tuple(expected[key].shape)} here"
        for key, name in sources.items()
        if key in expected and tuple(stored.get_slice(name).get_shape()) != tuple(expected[key].shape)
    ]
    problems = [
        f"{len(items)} {what} ({', '.join(items[:3])}{', …' if len(items) > 3 else ''})"
        for what, items in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if items
    ]
    if problems:
        raise CheckpointError(
            f"{file} does not fit the policy; tensors: {'; '.join(problems)}. Check that the policy's sizes "
            "(llm_*, expert_*, vision_*, critic_*) are those of the checkpoint"
        )
