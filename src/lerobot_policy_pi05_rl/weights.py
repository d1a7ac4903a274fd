"""Find a checkpoint's files and load its weights into a policy completely, or not at all.

LeRobot's ``PI05Policy.from_pretrained`` (policies/pi05/modeling_pi05.py) catches every exception and returns
random weights; here anything missing, unexpected or of another shape is an error before a tensor is touched.
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from safetensors import SafetensorError, safe_open
from torch import nn

from .errors import UserError

logger = logging.getLogger(__name__)

CRITIC_PREFIX = "model.critic."
CRITIC_WEIGHTS = "critic.safetensors"  # beside an adapter, under the keys of model.safetensors
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's own two names
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # of every key in it
_ACTOR_HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"
_EXPERT_HEAD = "model.paligemma_with_expert.gemma_expert.lm_head.weight"
_EMBED_TOKENS = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not fit the policy."""


@dataclass(frozen=True)
class CheckpointFiles:
    """Where a checkpoint's tensors lie. One in LeRobot's PEFT form stores neither the base it was trained on nor a
    critic that is the base's own."""

    weights: Path  # model.safetensors; of a checkpoint in PEFT form its base's
    adapter: Path | None = None  # adapter_model.safetensors: what PEFT puts on top of `weights`
    critic: Path | None = None  # critic.safetensors: stands in for a critic in `weights`

    @property
    def directory(self) -> Path:
        """Of the checkpoint itself, with its configuration and processors."""
        return (self.adapter or self.weights).parent


def locate(name_or_path: str | Path, **hub_kwargs) -> CheckpointFiles:
    """The files of a directory, or of a Hub repository through the ordinary Hub cache.

    Raises:
        CheckpointError: there are none, or those of the base of a checkpoint in PEFT form are gone.
    """
    try:
        weights, unreachable = find_file(name_or_path, SAFETENSORS_SINGLE_FILE, **hub_kwargs), None
    except CheckpointError as error:  # without network a Hub cache does not tell what a repository lacks
        weights, unreachable = None, error
    if weights is not None:
        return CheckpointFiles(weights)
    try:
        settings_file = find_file(name_or_path, ADAPTER_CONFIG, **hub_kwargs)
        adapter = find_file(name_or_path, ADAPTER_WEIGHTS, **hub_kwargs)
    except CheckpointError as error:
        raise unreachable or error from error
    directory = Path(name_or_path)
    if settings_file is None or adapter is None:
        inner = directory / PRETRAINED_MODEL_DIR
        is_checkpoint = any((inner / name).is_file() for name in (SAFETENSORS_SINGLE_FILE, ADAPTER_WEIGHTS))
        hint = f"; did you mean {inner}?" if is_checkpoint else ""
        missing = SAFETENSORS_SINGLE_FILE if settings_file is None else ADAPTER_WEIGHTS
        raise CheckpointError(f"no {missing} in the checkpoint {name_or_path}{hint}")
    try:
        settings = json.loads(settings_file.read_text())
        base, revision = settings["base_model_name_or_path"], settings.get("revision")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{settings_file} is damaged ({error}); use another checkpoint") from error
    base_kwargs = hub_kwargs | {"revision": revision}
    try:
        base_weights = None if base is None else find_file(base, SAFETENSORS_SINGLE_FILE, **base_kwargs)
    except CheckpointError as error:
        raise missing_base(settings_file, base) from error
    if base_weights is None:
        raise missing_base(settings_file, base)
    return CheckpointFiles(base_weights, adapter, find_file(name_or_path, CRITIC_WEIGHTS, **hub_kwargs))


def missing_base(settings_file: Path, base: str | None) -> "CheckpointError":
    """The error for a checkpoint in PEFT form whose base is gone."""
    return CheckpointError(
        f"{settings_file.parent} holds an adapter alone; the base it was trained on, {base}, has no "
        f"{SAFETENSORS_SINGLE_FILE} any more. Move the base back, or write its new place into base_model_name_or_path "
        f"of {settings_file}"
    )


def find_file(name_or_path: str | Path, filename: str, **hub_kwargs) -> Path | None:
    """A file of a directory or a Hub repository; None where it has no such file.

    Raises:
        CheckpointError: there is no such directory or reachable repository.
    """
    directory = Path(name_or_path)
    if directory.is_dir():
        return directory / filename if (directory / filename).is_file() else None
    if directory.is_absolute() or str(name_or_path).startswith(".") or str(name_or_path).count("/") > 1:
        raise CheckpointError(f"the checkpoint directory {directory} does not exist")
    try:
        return Path(hf_hub_download(repo_id=str(name_or_path), filename=filename, **hub_kwargs))
    except RemoteEntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"the checkpoint {name_or_path} is neither a local directory nor a reachable Hub repository with a "
            f"{filename} ({type(error).__name__})"
        ) from error


@contextlib.contextmanager
def open_tensors(files: CheckpointFiles) -> Iterator[dict[str, "StoredTensor"]]:
    """Our key → the stored tensor, of the weights and the critic; the adapter's are PEFT's business.

    Raises:
        CheckpointError: a file is damaged (also where it only shows while the block reads).
    """
    file = files.weights
    try:
        with contextlib.ExitStack() as stack:
            tensors = {}
            for file in [files.weights] if files.critic is None else [files.weights, files.critic]:
                handle = stack.enter_context(safe_open(file, framework="pt"))
                if file == files.critic:
                    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(CRITIC_PREFIX)}
                names = map_keys(list(handle.keys()))
                tensors |= {key: StoredTensor(file, handle, name) for key, name in names.items()}
            yield tensors
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or truncated ({error}); use another checkpoint") from error


class StoredTensor(NamedTuple):
    """A tensor in an open safetensors file."""

    file: Path
    handle: Any  # safetensors.safe_open
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Read from the file's header."""
        return tuple(self.handle.get_slice(self.name).get_shape())

    def read(self) -> torch.Tensor:
        """The tensor, in memory."""
        return self.handle.get_tensor(self.name)


def stores_critic(files: CheckpointFiles) -> bool:
    """Whether a checkpoint holds a critic.

    Raises:
        CheckpointError: a file is damaged.
    """
    with open_tensors(files) as stored:
        return any(key.startswith(CRITIC_PREFIX) for key in stored)


def load_policy_weights(policy: nn.Module, files: CheckpointFiles) -> None:
    """Copy every tensor of weights and critic into ``policy`` (cast to its dtype), one at a time.

    A stock π0.5 checkpoint has no critic: the critic is then initialised from the loaded actor and the log says
    so. Stock's two logits heads, which the network never uses, are skipped. A policy without a critic skips the
    checkpoint's.

    Raises:
        CheckpointError: a file is damaged, or the tensors differ in name or shape.
    """
    wanted = policy.state_dict()
    has_critic = any(key.startswith(CRITIC_PREFIX) for key in wanted)
    with open_tensors(files) as stored:
        sources = {k: v for k, v in stored.items() if has_critic or not k.startswith(CRITIC_PREFIX)}
        needs_critic = has_critic and not any(key.startswith(CRITIC_PREFIX) for key in sources)
        expected = {key: v for key, v in wanted.items() if not (needs_critic and key.startswith(CRITIC_PREFIX))}
        _check(files.weights, sources, expected)
        with torch.no_grad():
            for key, tensor in sources.items():
                wanted[key].copy_(tensor.read())
    if needs_critic:
        policy.model.critic.init_from_actor(policy.model.language_model)
        logger.info("%s has no critic: its layers are initialised from the actor's, its head is new", files.directory)


def map_keys(names: list[str]) -> dict[str, str]:
    """Our key → the name in the file. Renames as in LeRobot's ``_fix_pytorch_state_dict_keys`` (openpi names)."""
    sources = {}
    for name in names:
        key = name.removeprefix(PEFT_PREFIX)
        key = key if key.startswith("model.") else f"model.{key}"
        key = re.sub(r"^model\.action_time_mlp_(in|out)\.", r"model.time_mlp_\1.", key)
        sources[key] = name
    head = sources.pop(_ACTOR_HEAD, None)
    if head is not None:
        sources.setdefault(_EMBED_TOKENS, head)  # tied weights are stored once, under the head's name
    sources.pop(_EXPERT_HEAD, None)
    return sources


def _check(file: Path, sources: dict[str, StoredTensor], expected: dict[str, torch.Tensor]) -> None:
    missing = sorted(expected.keys() - sources.keys())
    unexpected = sorted(sources.keys() - expected.keys())
    shapes = [
        f"{key}: {tensor.shape} in the file, {tuple(expected[key].shape)} here"
        for key, tensor in sources.items()
        if key in expected and tensor.shape != tuple(expected[key].shape)
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
