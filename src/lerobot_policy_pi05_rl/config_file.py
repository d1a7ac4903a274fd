"""A configuration file, JSON or YAML, with ``--key=value`` overrides, decoded by draccus.

A key nobody knows is an error that names it and the nearest known one.
"""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import draccus
import yaml
from draccus.utils import DraccusException
from lerobot.utils.import_utils import register_third_party_plugins

from .config import ConfigError, PI05RLTrainConfig
from .config_errors import explain, forbidden_nulls
from .configuration_pi05_rl import whole_mapping

ALIASES = {"offline_output_dir": "output_dir_offline"}
# Fields that the shapes of a checkpoint's tensors and what its networks read (and its chunks) depend on.
SIZE_FIELDS = [
    "llm_width",
    "llm_mlp_dim",
    "llm_depth",
    "expert_width",
    "expert_mlp_dim",
    "head_dim",
    "num_kv_heads",
    "vision_width",
    "vision_mlp_dim",
    "vision_depth",
    "vision_heads",
    "vision_patch_size",
    "vocab_size",
    "image_resolution",
    "chunk_size",
    "n_action_steps",
    "max_action_dim",
    "max_state_dim",
    "num_value_bins",
    "use_separate_critic",
    "critic_llm_depth",
    "critic_image_pooling",
    "critic_folds",
    "num_value_queries",
]


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
    raw = _read(Path(path))
    for key, value in parse_overrides(overrides or []):
        _assign(raw, ALIASES.get(key, key), value)
    for alias, key in ALIASES.items():
        if alias in raw:
            raw.setdefault(key, raw.pop(alias))
    policy = raw.setdefault("policy", {})
    if isinstance(policy, dict):
        if policy.setdefault("type", "pi05_rl") != "pi05_rl":
            raise ConfigError(f"{path}: policy.type must be pi05_rl, got {policy['type']!r}")
        _inherit_sizes(policy)
    env = raw.get("env")
    if isinstance(env, dict):  # nobody else pays for their import
        register_third_party_plugins()  # lerobot_env_*, lerobot_robot_*, lerobot_teleoperator_*, lerobot_camera_*
        if env.get("type") == "gym_manipulator":
            _register_devices()
    raw.pop("checkpoint_path", None)  # LeRobot saves this field but does not read it back (init=False)
    nulls = forbidden_nulls(PI05RLTrainConfig, raw)
    if nulls:
        raise ConfigError(f"{path}: null is not a value of {', '.join(nulls)}")
    try:
        if isinstance(policy, dict) and "normalization_mapping" in policy:
            whole_mapping(policy["normalization_mapping"])  # draccus names neither the mode nor those there are
        return draccus.decode(kind, raw)
    except (DraccusException, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {explain(error, PI05RLTrainConfig, aliases=list(ALIASES))}") from error


def _inherit_sizes(policy: dict[str, Any]) -> None:
    """Sizes that the configuration leaves out are those of the local checkpoint it starts from."""
    checkpoint = policy.get("pi05_checkpoint")
    file = Path(str(checkpoint)) / "config.json"
    if not checkpoint or not file.is_file():
        return
    stored = _read(file)
    for name in SIZE_FIELDS:
        if name in stored:
            policy.setdefault(name, stored[name])


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


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"the configuration file {path} does not exist")
    try:
        raw = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not readable as {path.suffix or 'YAML'}: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, not a mapping of keys")
    return raw


def _assign(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        if not isinstance(raw.get(parent), dict):
            raw[parent] = {}
        raw = raw[parent]
    raw[last] = value
