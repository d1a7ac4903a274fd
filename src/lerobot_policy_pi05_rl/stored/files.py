"""Find a checkpoint's files and open them; nothing of a policy is needed for it."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from draccus.utils import DecodingError, DraccusException, ParsingError
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)
from lerobot.configs import PreTrainedConfig
from safetensors import SafetensorError, safe_open

from ..advantage import find_extraction
from ..errors import UserError, one_line, typed_line
from .folders import ADAPTER_WEIGHTS, why_no_weights
from .keys import ACTOR_HEAD, EMBED_TOKENS, our_key

CRITIC_PREFIX = "model.critic."
CRITIC_WEIGHTS = "critic.safetensors"  # beside an adapter, under the keys of model.safetensors
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's own
PEFT_PREFIX = "base_model.model."  # of every key in an adapter
LISTED = 3  # names in a message


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not fit the policy."""


@dataclass(frozen=True)
class CheckpointFiles:
    """Where a checkpoint's tensors lie. One in LeRobot's PEFT form stores neither the base it was trained on nor a
    critic that is the base's own."""

    weights: Path  # model.safetensors, or the index of its shards; of a checkpoint in PEFT form its base's
    adapter: Path | None = None  # adapter_model.safetensors: what PEFT puts on top of `weights`
    critic: Path | None = None  # critic.safetensors: stands in for a critic in `weights`
    shards: tuple[Path, ...] = ()  # the files that the index in `weights` names

    @property
    def directory(self) -> Path:
        """Of the checkpoint itself, with its configuration and processors."""
        return (self.adapter or self.weights).parent

    @property
    def stored(self) -> tuple[Path, ...]:
        """The files that hold the weights."""
        return self.shards or (self.weights,)


def locate(name_or_path: str | Path, **hub_kwargs) -> CheckpointFiles:
    """The files of a directory, or of a Hub repository through the ordinary Hub cache.

    Raises:
        CheckpointError: there are none (says what is there instead), or those of the base of a checkpoint in PEFT form
            are gone.
    """
    try:
        weights, unreachable = find_weights(name_or_path, **hub_kwargs), None
    except CheckpointError as error:  # without network a Hub cache does not tell what a repository lacks
        if Path(name_or_path).exists():
            raise
        weights, unreachable = None, error
    if weights is not None:
        return weights
    try:
        settings_file = find_file(name_or_path, ADAPTER_CONFIG, **hub_kwargs)
        adapter = find_file(name_or_path, ADAPTER_WEIGHTS, **hub_kwargs)
    except CheckpointError as error:
        raise unreachable or error from error
    if settings_file is None or adapter is None:
        missing = SAFETENSORS_SINGLE_FILE if settings_file is None else ADAPTER_WEIGHTS
        directory = Path(name_or_path)
        why = f": {why_no_weights(directory)}" if directory.is_dir() else ""
        raise CheckpointError(f"no {missing} in the checkpoint {name_or_path}{why}")
    try:
        settings = json.loads(settings_file.read_text())
        base, revision = settings["base_model_name_or_path"], settings.get("revision")
        if base is not None and not isinstance(base, str):
            raise ValueError(f"base_model_name_or_path is {base!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{settings_file} is damaged ({error}); use another checkpoint") from error
    base_kwargs = hub_kwargs | {"revision": revision}
    try:
        base_weights = None if base is None else find_weights(base, **base_kwargs)
    except CheckpointError as error:
        raise missing_base(settings_file, base) from error
    if base_weights is None:
        raise missing_base(settings_file, base)
    critic = find_file(name_or_path, CRITIC_WEIGHTS, **hub_kwargs)
    return CheckpointFiles(base_weights.weights, adapter, critic, base_weights.shards)


def find_weights(name_or_path: str | Path, **hub_kwargs) -> CheckpointFiles | None:
    """Where the weights lie, in one file or in shards with an index; None where there are none.

    Raises:
        CheckpointError: the index is damaged or names a file that is not there; or as :func:`find_file`.
    """
    try:
        single, unreachable = find_file(name_or_path, SAFETENSORS_SINGLE_FILE, **hub_kwargs), None
    except CheckpointError as error:  # without network a Hub cache does not tell what a repository lacks
        single, unreachable = None, error
    if single is not None:
        return CheckpointFiles(single)
    try:
        index = find_file(name_or_path, SAFETENSORS_INDEX_FILE, **hub_kwargs)
    except CheckpointError as error:
        raise unreachable or error from error
    if index is None:
        return None
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("weight_map names no files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged ({typed_line(error)}); copy it again") from error
    shards = {name: find_file(name_or_path, name, **hub_kwargs) for name in names}
    missing = [name for name, shard in shards.items() if shard is None]
    if missing:
        raise CheckpointError(
            f"{index} names {list_names(missing)}, which {'is' if len(missing) == 1 else 'are'} not beside it; copy "
            "the checkpoint again, with every part"
        )
    return CheckpointFiles(index, shards=tuple(shards.values()))


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
    if directory.is_file():
        raise CheckpointError(f"the checkpoint {directory} is no folder: {why_no_weights(directory)}")
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
        CheckpointError: a file is damaged (also where it only shows while the block reads), or stores a tensor twice.
    """
    file = files.weights
    try:
        with contextlib.ExitStack() as stack:

            def read(paths: tuple[Path, ...]) -> dict[str, StoredTensor]:
                nonlocal file
                names = []
                for file in paths:
                    handle = stack.enter_context(safe_open(file, framework="pt"))
                    names += [StoredTensor(file, handle, name) for name in handle.keys()]  # noqa: SIM118
                return by_our_key(names)

            tensors = read(files.stored)
            if files.critic is not None:
                tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(CRITIC_PREFIX)}
                tensors |= read((files.critic,))
            yield tensors
    except (SafetensorError, OSError) as error:
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

    @property
    def dtype(self) -> str:
        """Read from the file's header, in safetensors' words: F32, BF16, I8, …"""
        return self.handle.get_slice(self.name).get_dtype()

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


def by_our_key(tensors: list[StoredTensor]) -> dict[str, StoredTensor]:
    """The stored tensors by their names here. The token embedding, tied to the actor's head, may be stored as either.

    Raises:
        CheckpointError: two of them have the same name here.
    """
    found: dict[str, StoredTensor] = {}
    for tensor in tensors:
        first = found.setdefault(our_key(tensor.name), tensor)
        if first is not tensor:
            raise CheckpointError(
                f"{tensor.file} stores {our_key(tensor.name)} twice, as {first.name} and as {tensor.name}; which of "
                "them is meant cannot be told: remove one"
            )
    head = found.pop(ACTOR_HEAD, None)
    if head is not None:
        found.setdefault(EMBED_TOKENS, head)
    return found


def stored_config(name_or_path: str | Path, **hub_kwargs) -> PreTrainedConfig:
    """The policy configuration in a checkpoint's directory or Hub repository.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    directory = Path(name_or_path)
    if directory.exists() and not (directory / "config.json").is_file():
        raise CheckpointError(f"no config.json in the checkpoint {directory}: {_why_no_config(directory)}")
    try:
        return PreTrainedConfig.from_pretrained(name_or_path, **hub_kwargs)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, DraccusException, HfHubHTTPError) as error:
        own = error.__cause__ if isinstance(error, ParsingError) and not isinstance(error, DecodingError) else None
        if isinstance(own, ValueError):  # the configuration's own, which names the key
            raise CheckpointError(f"the config.json of the checkpoint {name_or_path}: {own}") from error
        raise CheckpointError(
            f"the config.json of the checkpoint {name_or_path} is missing or damaged: {one_line(error)}"
        ) from error


def was_shown_tags(stored: Mapping[str, Any]) -> bool:
    """Whether the policy of this ``config.json`` trained under advantage tags."""
    if stored.get("type") != "pi05_rl":
        return False
    try:
        return find_extraction(str(stored.get("policy_extraction"))).shows_tag
    except UserError:  # one that somebody wrote; whether it shows tags, its module would say
        return True


def _why_no_config(directory: Path) -> str:
    if directory.is_dir() and (directory / SAFETENSORS_SINGLE_FILE).is_file():
        return (
            "weights without it, such as those converted in openpi, start a run: policy.pi05_checkpoint="
            f"{directory} with the sizes in policy.*"
        )
    return why_no_weights(directory)


def list_names(names: list[str]) -> str:
    """The first few of them, for a message."""
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
