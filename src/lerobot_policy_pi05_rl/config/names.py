"""The names of the configuration's keys, known without LeRobot: a key nobody knows, and a number that is none or out
of its range, is told before torch is imported.

They are read from ``keys.json`` beside this file, which ``make configuration`` writes out of the configuration's
classes and a test compares with them.
"""

import difflib
import json
from collections.abc import Set
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..options import RUNS, Option
from .arguments import assign, parse_overrides
from .reading import find_file, read_mapping

FILE = Path(__file__).with_name("keys.json")


class KeyText(NamedTuple):
    """A key, as help and documentation show it."""

    name: str  # with dots
    type: str
    default: str
    readers: str  # runs, offline or online; empty: no run reads it
    least: float | None = None
    above: float | None = None
    most: float | None = None


class Names(NamedTuple):
    """All names that a configuration may hold."""

    keys: list[KeyText]
    aliases: list[str]  # other names of keys
    earlier: list[str]  # keys of earlier versions, answered with a warning


@cache
def names() -> Names:
    """The content of ``keys.json``."""
    raw = json.loads(FILE.read_text(encoding="utf-8"))
    return Names([KeyText(*row) for row in raw["keys"]], raw["aliases"], raw["earlier"])


@cache
def _tree() -> dict[str, tuple[set[str], list[str]]]:
    """Section → the names that may stand in it, and those of them that a misspelt one can have meant."""
    known = names()
    tree: dict[str, tuple[set[str], list[str]]] = {"": (set(), [])}
    for name in [key.name for key in known.keys]:
        *parents, _ = parts = name.split(".")
        for depth in range(len(parents) + 1):
            allowed, meant = tree.setdefault(".".join(parts[:depth]), (set(), []))
            if parts[depth] not in allowed:
                allowed.add(parts[depth])
                meant.append(parts[depth])
    for name in ["policy.type", *known.aliases, *known.earlier]:
        section, _, last = name.rpartition(".")
        if section in tree:
            tree[section][0].add(last)
    tree[""][1].extend(known.aliases)
    return tree


def check_names(raw: dict[str, Any]) -> None:
    """Look for keys that nobody knows; below ``env`` and in mappings of the user's own names, anything goes.

    Raises:
        ConfigError: there are some; it names the nearest known one of each.
    """
    unknown = _unknown(raw, "")
    if unknown:
        raise ConfigError("; ".join(unknown))


def check_numbers(raw: dict[str, Any]) -> None:
    """Look at the numbers that every run reads.

    Raises:
        ConfigError: a text stands for one and is none, or it is out of its range.
    """
    for key in names().keys:
        number = key.type.removesuffix(" | None")
        if key.readers != RUNS or number not in ("int", "float"):
            continue
        value: Any = raw
        for part in key.name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, str) and not _is_number(value):
            raise ConfigError(
                f"{key.name}: Couldn't parse {value!r} into {'an int' if number == 'int' else 'a float'}"
            )
        if isinstance(value, int | float) and not isinstance(value, bool):
            wrong = Option(least=key.least, above=key.above, most=key.most).wrong(value)
            if wrong:
                raise ConfigError(f"{key.name} {wrong}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_option_names(arguments: list[str], own: Set[str]) -> None:
    """The same of a command line on which overrides stand among a verb's ``own`` options (``--name``).

    Raises:
        ConfigError: as :func:`check_names`; it knows the options, too.
    """
    given: dict[str, Any] = {}
    for argument in arguments:
        option = argument.partition("=")[0]
        if not option.startswith("--") or option in own:
            continue
        near = difflib.get_close_matches(option, own, n=1, cutoff=0.8)
        if near and "." not in option and option[2:] not in _tree()[""][0]:
            raise ConfigError(f"unknown option {option}; did you mean {near[0]}?")
        assign(given, option[2:], None)
    check_names(given)


def _unknown(node: dict[Any, Any], section: str) -> list[str]:
    allowed, meant = _tree()[section]
    found, prefix = [], f"{section}." if section else ""
    for key, value in node.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str):
            continue  # told where values are looked at
        if key not in allowed:
            near = difflib.get_close_matches(key, meant, n=1, cutoff=0.5)
            found.append(
                f"unknown key {' '.join(name.split())}" + (f"; did you mean {prefix}{near[0]}?" if near else "")
            )
        elif name in _tree() and isinstance(value, dict):
            found += _unknown(value, name)
    return found


def check_file(path: str, overrides: list[str] | None = None) -> None:
    """What can be said of a configuration file and its overrides without decoding them.

    Args:
        overrides: None: there are some that are not known here, so values may be others yet.

    Raises:
        ConfigError: the file is missing or unreadable, an override is none, or a key is unknown.
    """
    file = find_file(Path(path))
    raw = read_mapping(file)
    for key, value in parse_overrides(overrides or []):
        assign(raw, key, value)
    try:
        check_names(raw)
        if overrides is not None:
            check_numbers(raw)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: a section contains itself, or sections are nested too deep") from error
