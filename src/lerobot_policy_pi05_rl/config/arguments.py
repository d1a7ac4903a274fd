"""The command line of a verb that takes a configuration: its path, and ``--key=value`` overrides.

Imports neither torch nor LeRobot.
"""

import argparse
import re
from typing import Any

import yaml

from ..errors import ConfigError


def split_config_path(arguments: list[str], verb: str = "offline") -> tuple[str, list[str]]:
    """The configuration's path, positional or ``--config_path``, and the remaining overrides.

    Raises:
        ConfigError: there is none, or there are two.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config_path")
    known, rest = parser.parse_known_args(arguments)
    positional = rest.pop(0) if rest and not rest[0].startswith("--") else None
    paths = [path for path in (known.config_path, positional) if path is not None]
    if len(paths) != 1:
        raise ConfigError(f"give one configuration file: pi05-rl {verb} CONFIG (or --config_path=CONFIG)")
    return paths[0], rest


def parse_overrides(arguments: list[str]) -> list[tuple[str, Any]]:
    """``--a.b=c`` and ``--a.b c`` → [("a.b", value)], values read as YAML.

    Raises:
        ConfigError: an argument is neither.
    """
    pairs, index = [], 0
    while index < len(arguments):
        argument = arguments[index]
        if not argument.startswith("--"):
            raise ConfigError(f"unexpected argument {argument!r}; overrides look like --policy.offline_steps=20")
        key, separator, text = argument[2:].partition("=")
        if not all(key.split(".")):
            raise ConfigError(f"{argument!r} names no key; overrides look like --policy.offline_steps=20")
        if not separator:
            if index + 1 < len(arguments) and not arguments[index + 1].startswith("--"):
                index += 1
                text = arguments[index]
            else:
                text = "true"
        pairs.append((key, _scalar(text)))
        index += 1
    return pairs


def _scalar(text: str) -> Any:
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text):
        return float(text)  # YAML 1.1 reads 1e-4 as a string
    if re.fullmatch(r"0\d+", text):
        return text  # and 002000, a checkpoint's name, as an octal number
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    prose = isinstance(value, dict) and not text.startswith("{")  # a task's text: "pick: the cube"
    word = isinstance(value, bool) and text.lower() not in ("true", "false")  # yes, no, on, off
    return text if prose or word else value


def assign(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a key below its sections, in place."""
    *parents, last = dotted.split(".")
    for parent in parents:
        if not isinstance(raw.get(parent), dict):
            raw[parent] = {}
        raw = raw[parent]
    raw[last] = value
