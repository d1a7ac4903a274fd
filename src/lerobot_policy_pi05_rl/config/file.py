"""A configuration file, JSON or YAML, with ``--key=value`` overrides, decoded by draccus.

A key nobody knows is an error that names it and the nearest known one.
"""

import importlib
import math
from pathlib import Path
from typing import Any

import draccus
from draccus.utils import DraccusException
from lerobot.utils.import_utils import register_third_party_plugins

from ..advantage import extraction_names
from ..configuration_pi05_rl import whole_mapping
from .arguments import assign, parse_overrides
from .earlier_keys import ALIASES, remove_unread_keys, rename_aliases
from .errors import explain, forbidden_nulls
from .keys import SIZE_FIELDS as SIZE_FIELDS  # where other modules look for it
from .names import check_names
from .reading import find_file, read_mapping
from .sizes import inherit_sizes
from .train import ConfigError, PI05RLTrainConfig, log_warnings


def load_config[C: PI05RLTrainConfig](
    path: str | Path, overrides: list[str] | None = None, kind: type[C] = PI05RLTrainConfig
) -> C:
    """Read a JSON or YAML file, apply ``--key=value`` overrides, decode.

    ``policy.type`` may be left out.

    Args:
        kind: the run it is for; all kinds have the same keys.

    Raises:
        ConfigError: the file is missing or unreadable, a key is unknown, or a value has the wrong type.
    """
    file = find_file(Path(path))
    raw = read_mapping(file)
    pairs = parse_overrides(overrides or [])
    of_aliases = _overridden(file, raw, pairs)
    try:
        warnings, refused = remove_unread_keys(raw)
        _check_values(raw)
        if refused:
            raise ConfigError("; ".join(refused))
        check_names(raw)
        _complete(raw, kind, {key for key, _ in pairs}, file)
        nulls = forbidden_nulls(PI05RLTrainConfig, raw)
        if nulls:
            raise ConfigError(f"null is not a value of {', '.join(nulls)}")
        if isinstance(raw["policy"], dict) and "normalization_mapping" in raw["policy"]:
            whole_mapping(raw["policy"]["normalization_mapping"])  # draccus names neither the mode nor those there are
        cfg = draccus.decode(kind, raw)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: a section contains itself, or sections are nested too deep") from error
    except (DraccusException, AttributeError, ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{file}: {explain(error)}") from error
    log_warnings([*of_aliases, *warnings])
    return cfg


def _overridden(file: Path, raw: dict[str, Any], pairs: list[tuple[str, Any]]) -> list[str]:
    """Put the overrides into ``raw``, each name that leads to a key under that key; returns warnings."""
    try:
        warnings = rename_aliases(raw)
        given: dict[str, Any] = {}
        for key, value in pairs:
            assign(given, key, value)
        warnings += rename_aliases(given)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    for key, value in pairs:
        assign(raw, ALIASES.get(key, key), value)
    return warnings


def _complete(raw: dict[str, Any], kind: type[PI05RLTrainConfig], overridden: set[str], file: Path) -> None:
    """Fill in what the configuration leaves to the policy's type and to the checkpoint, and make devices known."""
    policy = raw.setdefault("policy", {})
    if isinstance(policy, dict):
        if policy.get("policy_extraction", "conditioning") not in extraction_names():
            register_third_party_plugins()  # lerobot_policy_* may bring it
        if policy.setdefault("type", "pi05_rl") != "pi05_rl":
            raise ConfigError(f"policy.type must be pi05_rl, got {policy['type']!r}")
        inherit_sizes(
            raw,
            kind.directory_of(raw),
            lambda key: "on the command line" if key in overridden else f"in {file.name}",
        )
    env = raw.get("env")
    if isinstance(env, dict):  # nobody else pays for their import
        register_third_party_plugins()  # lerobot_env_*, lerobot_robot_*, lerobot_teleoperator_*, lerobot_camera_*
        if env.get("type") == "gym_manipulator":
            _register_devices()


def _register_devices() -> None:
    """Make LeRobot's cameras, robots and teleoperators known to draccus, so that a robot's configuration parses.

    The same ones as ``lerobot.rl.gym_manipulator`` imports; no hardware is touched.
    """
    for module in (
        "lerobot.cameras.opencv",
        "lerobot.cameras.realsense",
        "lerobot.robots.so_follower",
        "lerobot.robots.koch_follower",
        "lerobot.teleoperators.so_leader",
        "lerobot.teleoperators.koch_leader",
        "lerobot.teleoperators.gamepad",
        "lerobot.teleoperators.keyboard",
    ):
        importlib.import_module(module)


def _check_values(node: Any, name: str = "") -> None:
    """
    Raises:
        ConfigError: a number is not finite, a list holds null, or a key is no text.
    """
    if isinstance(node, float) and not math.isfinite(node):
        raise ConfigError(f"{name} is {node}, not a finite number")
    if isinstance(node, list):
        if None in node:
            raise ConfigError(f"{name}[{node.index(None)}] is null; leave it out of the list")
        for number, inner in enumerate(node):
            _check_values(inner, f"{name}[{number}]")
    if isinstance(node, dict):
        for key, inner in node.items():
            if not isinstance(key, str):
                raise ConfigError(f"the key {key!r}{f' of {name}' if name else ''} is not text; put it in quotes")
            _check_values(inner, f"{name}.{key}" if name else key)
