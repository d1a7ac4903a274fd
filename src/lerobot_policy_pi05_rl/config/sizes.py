"""Sizes that a configuration leaves out are those of the checkpoint it starts from; one it states must be the same."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR

from ..configuration_pi05_rl import PI05RLConfig
from ..errors import typed_line
from ..stored.files import CheckpointError, find_file, locate, stores_critic
from .keys import ACTOR_SIZES, CRITIC_SIZES, SIZE_FIELDS
from .train import ConfigError

logger = logging.getLogger(__name__)


def inherit_sizes(raw: dict[str, Any], run_dir: Any, origin: Callable[[str], str]) -> None:
    """Fill the sizes of ``raw["policy"]`` in, in place. A run that goes on has those of its newest checkpoint; what it
    states, ``resume.check_config`` compares.

    Args:
        run_dir: where the run writes.
        origin: key → where the configuration says it.

    Raises:
        ConfigError: a size differs from the checkpoint's, though it cannot.
    """
    policy = raw["policy"]
    own = Path(str(run_dir)) / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR if run_dir else None
    going_on = raw.get("resume") is True and own is not None and (own / "config.json").is_file()
    if not (going_on or policy.get("pi05_checkpoint")):
        return
    checkpoint = str(own if going_on else policy["pi05_checkpoint"])
    stored = _stored_sizes(checkpoint)
    given = {name: policy[name] for name in SIZE_FIELDS if policy.get(name) is not None}
    if not going_on:
        _check(checkpoint, stored, given, origin)
    missing = {name: value for name, value in stored.items() if name not in given and value != _default(name)}
    policy |= missing
    if missing:
        values = ", ".join(f"{name}={_text(value)}" for name, value in missing.items())
        logger.info("Sizes of %s: %s", checkpoint, values)


def _stored_sizes(checkpoint: str) -> dict[str, Any]:
    """Sizes in the ``config.json`` of a directory or Hub repository; a missing one is told when it is loaded."""
    try:
        file = find_file(checkpoint, "config.json")
    except CheckpointError:
        return {}
    if file is None:
        return {}
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return {name: stored[name] for name in SIZE_FIELDS if stored.get(name) is not None}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"policy.pi05_checkpoint: {file} is unreadable ({typed_line(error)})") from error


def _check(checkpoint: str, stored: dict[str, Any], given: dict[str, Any], origin: Callable[[str], str]) -> None:
    both = [name for name in (*ACTOR_SIZES, *CRITIC_SIZES) if name in stored and name in given]
    differing = [name for name in both if given[name] != stored[name]]
    if any(name in CRITIC_SIZES for name in differing) and not _holds_critic(checkpoint):  # asks the Hub for weights
        differing = [name for name in differing if name in ACTOR_SIZES]
    if not differing:
        return
    each = "; ".join(
        f"policy.{name} is {_text(given[name])} {origin(f'policy.{name}')}, but {_text(stored[name])} there"
        for name in differing
    )
    flags = " ".join(f"--policy.{name}={_text(stored[name])}" for name in differing)
    raise ConfigError(
        f"the checkpoint {checkpoint} has other sizes: {each}. Leave {'it' if len(differing) == 1 else 'them'} out to "
        f"take the checkpoint's, or set {flags}"
    )


def _default(name: str) -> Any:
    value = PI05RLConfig.__dataclass_fields__[name].default
    return list(value) if isinstance(value, tuple) else value


def _holds_critic(checkpoint: str) -> bool:
    """Weights that are missing or damaged are reported when they are loaded; ``pi05-rl plan`` needs none."""
    try:
        return stores_critic(locate(checkpoint))
    except CheckpointError:
        return False


def _text(value: Any) -> str:
    return json.dumps(value).replace(" ", "")
