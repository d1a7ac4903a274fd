"""From what the user calls the configuration to a mapping: which file is meant, and what it holds."""

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError

# LeRobot's, whose modules import torch; a test compares them.
TRAIN_CONFIG_NAME = "train_config.json"
CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR = "checkpoints", "last", "pretrained_model"
SHOWN = 200  # characters of a parser's complaint


def find_file(path: Path) -> Path:
    """The file itself, or of a checkpoint's or a run's folder the configuration that lies in it.

    Raises:
        ConfigError: there is none.
    """
    if path.is_dir():
        last = Path(CHECKPOINTS_DIR) / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR
        for inside in (Path(), Path(PRETRAINED_MODEL_DIR), last):
            if (path / inside / TRAIN_CONFIG_NAME).is_file():
                return path / inside / TRAIN_CONFIG_NAME
        raise ConfigError(
            f"{path} is a folder without {TRAIN_CONFIG_NAME}; give a configuration file, or the folder of a "
            "checkpoint or of a run of this package. To start from its weights, set policy.pi05_checkpoint to it"
        )
    if not path.is_file():
        raise ConfigError(f"the configuration file {path} does not exist")
    return path


def read_mapping(path: Path) -> dict[str, Any]:
    """What a JSON or YAML file holds.

    Raises:
        ConfigError: it cannot be read, holds no mapping or a key twice, or is a policy's own configuration.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        raw = json.loads(text, object_pairs_hook=_once) if path.suffix == ".json" else yaml.load(text, _Loader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is not readable: its brackets are too deep") from error
    except (ValueError, yaml.YAMLError) as error:  # JSON's and Unicode's errors are ValueErrors
        reason = " ".join(str(error).split())[:SHOWN]
        raise ConfigError(f"{path} is not readable as {path.suffix or 'YAML'}: {reason}") from error
    if raw is None:
        raise ConfigError(f"{path} is empty; a configuration has at least dataset.repo_id")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, not a mapping of keys")
    if "policy" not in raw and "dataset" not in raw and "type" in raw:
        beside = path.parent / TRAIN_CONFIG_NAME
        instead = f"give {beside}" if beside.is_file() else f"set policy.pi05_checkpoint={path.parent} in one"
        raise ConfigError(f"{path} is the configuration of a policy alone, not of a training run; {instead}")
    return raw


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return mapping


class _Loader(yaml.SafeLoader):
    """YAML's plain values; a key that is there twice is an error, where PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping, each key once."""
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((str(name) for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"the key {twice!r} is there twice, in {node.start_mark}")
        return super().construct_mapping(node, deep)
