"""The configuration's classes as a list of keys, each with what is said of it (:mod:`..options`)."""

import dataclasses
import json
import typing
from collections.abc import Iterator, Set
from typing import Any, NamedTuple

import draccus

from ..configuration_pi05_rl import PI05RLConfig
from ..options import Option, option_of
from .errors import nested_dataclass


class Leaf(NamedTuple):
    """A field of the configuration that holds a value."""

    name: str  # with dots
    type: Any
    default: Any
    node: str = ""  # the key or section that speaks for it
    option: Option | None = None  # what that says; None: nothing does


def leaves(cls: type, prefix: str = "", node: str = "", option: Option | None = None) -> Iterator[Leaf]:
    """All fields of a configuration class that hold a value, with their types and defaults. A section whose fields
    depend on its own ``type`` is one of them.

    Args:
        node, option: what speaks for the fields of which nothing is said.
    """
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint, name = hints[field.name], prefix + field.name
        own = option_of(name, field)
        said = (node, option) if own is None else (name, own)
        nested = None if typing.get_origin(hint) is dict else nested_dataclass(hint)
        if nested is None or (issubclass(nested, draccus.ChoiceRegistry) and nested is not PI05RLConfig):
            yield Leaf(name, hint, _default(field), *said)
        else:
            yield from leaves(nested, f"{name}.", *said)


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def answered(config: Any, status: str) -> list[tuple[list[str], str]]:
    """Keys that differ from their defaults though nothing reads them, grouped by what speaks for them → the advice.

    Args:
        status: that of the keys.
    """
    found: dict[str, tuple[list[str], str]] = {}
    for leaf in leaves(type(config)):
        if leaf.option is None or leaf.option.status != status:
            continue
        value = _value(config, leaf.name)
        absent = value is None or (leaf.name == "eval.batch_size" and _is_automatic(config.eval))
        if not absent and value != leaf.default:
            found.setdefault(leaf.node, ([], leaf.option.advice))[0].append(leaf.name)
    return list(found.values())


def differing(config: Any, meanings: Set[str], readers: Set[str]) -> list[tuple[Leaf, Any]]:
    """Keys that differ from their defaults, with their values as a file has them: those that mean one of ``meanings``
    to a run that goes on (:mod:`..options`) or with which a policy acts, and are read by one of ``readers``."""
    found = []
    fresh = PI05RLConfig(device="cpu")  # some of LeRobot's fields are filled in by its own fields' default
    for leaf in leaves(type(config)):
        section, _, last = leaf.name.rpartition(".")
        if leaf.option is None or leaf.option.readers not in readers or (section and _value(config, section) is None):
            continue
        if leaf.option.on_resume not in meanings and not leaf.option.acts:
            continue
        default = getattr(fresh, last) if section == "policy" else leaf.default
        value = _plain(_value(config, leaf.name))
        if value != _plain(default):
            found.append((leaf, value))
    return found


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(draccus.encode(value)))


def _value(config: Any, name: str) -> Any:
    """The value of a key; None below a section that is not there."""
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


def _is_automatic(evaluation: Any) -> bool:
    """LeRobot fills ``eval.batch_size`` in by the number of cores."""
    return evaluation.batch_size == min(evaluation._auto_batch_size(), evaluation.n_episodes)


def no_effect(names: list[str], advice: str) -> str:
    """The warning for keys that are accepted and do nothing."""
    are = "is" if len(names) == 1 else "are"
    return f"{', '.join(names)} {are} accepted and {'has' if len(names) == 1 else 'have'} no effect: {advice}"


def not_supported(names: list[str], advice: str) -> str:
    """The error for keys that are refused."""
    return f"{', '.join(names)} is not supported: {advice}"
