"""How the configuration is written into a checkpoint, where draccus cannot tell by itself.

``env.processor.reset`` of ``gym_manipulator`` has a field of type ``Any | None``; draccus asks whether its value is an
instance of ``Any`` and raises a TypeError. Every checkpoint of a robot's configuration would fail to be written.
"""

import json
from dataclasses import fields
from typing import Any

import draccus
from lerobot.envs.configs import ResetConfig


def encoded(config: Any) -> dict[str, Any]:
    """A configuration as its file says it."""
    return json.loads(json.dumps(draccus.encode(config)))


@draccus.encode.register(ResetConfig)
def encode_reset(config: ResetConfig, declared_type: type | None = None) -> dict:
    """Field → plain value, each by what it is, not by what its type is declared to be."""
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def _plain(value: object) -> object:
    return None if value is None else draccus.encode(value)
