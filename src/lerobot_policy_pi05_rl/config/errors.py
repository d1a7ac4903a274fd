"""One clear line out of what goes wrong when a configuration is decoded."""

import dataclasses
import re
import typing
from typing import Any

from draccus.utils import DecodingError, DraccusException
from lerobot.configs import PreTrainedConfig

from ..configuration_pi05_rl import PI05RLConfig


def forbidden_nulls(cls: type, raw: dict[str, Any], prefix: str = "") -> list[str]:
    """Full names of the keys that hold null and may not."""
    names = []
    for key, hint in typing.get_type_hints(cls).items():
        if key in raw and raw[key] is None and type(None) not in (typing.get_args(hint) or (hint,)):
            names.append(prefix + key)
        nested = nested_dataclass(hint)
        if nested is not None and isinstance(raw.get(key), dict):
            names += forbidden_nulls(nested, raw[key], f"{prefix}{key}.")
    return names


def explain(error: Exception) -> str:
    """One line out of draccus's nested messages: the innermost one, with full key names.

    A key that is unknown here lies below ``env``, whose types are others'; :mod:`.names` has looked at the rest.
    """
    path: tuple[str, ...] = ()
    while True:
        path = tuple(getattr(error, "key_path", path)) or path
        if not isinstance(error.__cause__, DraccusException):
            break
        error = error.__cause__
    prefix = ".".join(path)
    if not isinstance(error, DecodingError):  # raised by a dataclass itself: our own messages name the key
        message = str(error.__cause__ or error).partition("\n")[0]
        return message if not prefix or prefix in message else f"{prefix}: {message}"
    unknown = re.search(r"The fields? (.+) (?:are|is) not valid", error.message)
    if not unknown:
        message = error.message.partition("\n")[0]
        message = re.sub(r"^Failed when parsing value='(.*)' into field .*", r"\1 is not a value of this key", message)
        message = re.sub(r"^Could not decode the value into any of.*", "the value is of the wrong type", message)
        return f"{prefix}: {message}" if prefix else message
    names = re.findall(r"`([^`]+)`", unknown.group(1)) or [unknown.group(1)]
    shown = [" ".join(name.split()) for name in names]  # a message is one line
    return "; ".join(f"unknown key {prefix}.{name}" if prefix else f"unknown key {name}" for name in shown)


def nested_dataclass(hint: Any) -> type | None:
    """The dataclass that a field of this type holds, if any; a policy here is always ours."""
    options = typing.get_args(hint) or (hint,)
    nested = next(
        (option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None
    )
    return PI05RLConfig if nested is PreTrainedConfig else nested
