"""One configuration file for the offline learner, the online learner and the actor.

JSON or YAML, with ``--key=value`` overrides, decoded by draccus into a subclass of LeRobot's
``TrainRLServerPipelineConfig``. A key nobody knows is an error that names it and the nearest known one.
"""

import importlib
import importlib.util
import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import draccus
import yaml
from draccus.utils import DraccusException
from lerobot.configs.default import DatasetConfig, WandBConfig
from lerobot.rl.train_rl import TrainRLServerPipelineConfig
from lerobot.utils.device_utils import is_torch_device_available
from lerobot.utils.import_utils import register_third_party_plugins

from . import config_encoding  # noqa: F401 - registers an encoder
from .actor_config import ActorConfig, ReplayConfig
from .config_errors import explain, forbidden_nulls
from .configuration_pi05_rl import PI05RLConfig
from .errors import UserError
from .returns import RewardConfig

logger = logging.getLogger(__name__)

# Keys of earlier π0.5 RL learners that are accepted and do nothing: key → what replaces it.
REPLACED_KEYS = {
    "advantage_scaling": "the advantage is a tag, not a number: set advantage_positive_fraction",
    "storage_device": "frames stay in the dataset's own files and are decoded when drawn",
    "async_prefetch": "num_workers and prefetch_factor of the data loader prefetch",
}
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
STATISTICS = ("pooled", "own")
LORA_INITS = ("gaussian", "orthogonal")  # of those in PEFT's LoraConfig, the ones that leave the base as it is
ALIASES = {"offline_output_dir": "output_dir_offline"}


class ConfigError(UserError):
    """A configuration that cannot be read, or says something impossible."""


@dataclass
class OfflineDatasetConfig(DatasetConfig):
    """LeRobot's dataset configuration, and more datasets of the same robot to learn from."""

    eval_split: float = 0.1  # share of each task's episodes held out, both outcomes among them; 0: none
    additional_offline_dataset_paths: list[str] = field(default_factory=list)  # folders or Hub ids
    weights: list[float] | None = None  # share of the draws, the first dataset's first; None: all frames alike
    statistics: str = "pooled"  # pooled | own: each dataset is brought from its own scale to the first one's
    resample_actions: bool = False  # read datasets of other frame rates at the first one's; absolute actions only
    frame_cache: str | None = None  # folder of decoded frames (pi05-rl cache); None: decode what is drawn
    labeling: str | None = None  # advantages come from the side-car of this name (pi05-rl label), not from the critic


@dataclass
class OfflineWandBConfig(WandBConfig):
    """LeRobot's W&B configuration; the offline run may go to a project of its own."""

    offline_project: str | None = None


@dataclass(kw_only=True)
class PI05RLTrainConfig(TrainRLServerPipelineConfig):
    """The fields of design section 3; everything else is LeRobot's."""

    dataset: OfflineDatasetConfig | None = None  # type: ignore[assignment]
    wandb: OfflineWandBConfig = field(default_factory=OfflineWandBConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    output_dir_offline: Path | None = None  # the offline run writes here; None: output_dir
    offline_save_freq: int | None = None  # wins over save_freq offline
    keep_last_checkpoints: int | None = None  # None: all
    # Training goes on while a checkpoint is written. Off by default: it holds a copy of all that trains, weights and
    # optimizer state, in host memory, and a run that has not got that room would be killed hours after its start.
    save_in_background: bool = False
    resume_from: str | int | None = None  # step, or folder of a checkpoint of this run; None: the newest
    eval_steps: int = 1000  # steps between held-out evaluations (there is one at the end, too); 0: never
    max_eval_samples: int = 512  # held-out frames per evaluation, spread over all held-out episodes; 0: all
    seed: int = 1000  # LeRobot's default; here it also orders samples and draws noise, so it cannot be None

    def validate(self) -> None:
        """Check what does not need the data. LeRobot's own ``validate`` reads ``sys.argv`` and knows SAC only.

        Raises:
            ConfigError: something is missing or impossible.
        """
        if not isinstance(self.policy, PI05RLConfig):
            raise ConfigError(f"policy.type must be pi05_rl, got {getattr(self.policy, 'type', None)!r}")
        if self.dataset is None:
            raise ConfigError("dataset.repo_id is missing: the offline learner learns from a LeRobot dataset")
        self._check_mixture()
        if self.dataset.streaming:
            raise ConfigError("dataset.streaming is not supported: samples are drawn in random order from local files")
        for name, least in (("batch_size", 1), ("keep_last_checkpoints", 1), ("num_workers", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        if self.output_dir_offline and self.output_dir:
            offline, online = Path(self.output_dir_offline).resolve(), Path(self.output_dir).resolve()
            if offline == online:
                raise ConfigError(
                    f"output_dir_offline and output_dir are both {offline}; the two runs never share one"
                )
        if self.resume_from is not None and not self.resume:
            raise ConfigError("resume_from says where resume goes on, but resume is false; set resume=true")
        if self.save_checkpoint_to_hub and not self.policy.repo_id:
            raise ConfigError("save_checkpoint_to_hub needs policy.repo_id: the Hub repository they go to")
        if self.sample_weighting is not None:
            raise ConfigError("sample_weighting is not supported by the offline learner")
        self._check_peft()
        if self.policy.uses_advantage and not self.policy.train_critic and self.dataset.labeling is None:
            raise ConfigError(
                "policy.train_critic is false, but advantages come from the critic; let it train, or name a labeling "
                "in dataset.labeling (pi05-rl label makes one)"
            )
        if self.policy.critic_early_stop is not None and not (self.dataset.eval_split and self.eval_steps > 0):
            raise ConfigError(
                "policy.critic_early_stop needs held-out evaluations: set dataset.eval_split and eval_steps above 0"
            )
        device = self.policy.learner_device
        if device is not None and not _is_available(device):
            raise ConfigError(f"policy.learner_device is {device!r}, which this machine does not have")
        for key, replacement in REPLACED_KEYS.items():
            if getattr(self.policy, key) is not None:
                logger.warning("policy.%s is accepted and has no effect: %s", key, replacement)
        self.job_name = self.job_name or "pi05_rl_offline"

    def _check_mixture(self) -> None:
        dataset = self.dataset
        if dataset.statistics not in STATISTICS:
            raise ConfigError(f"dataset.statistics must be one of {', '.join(STATISTICS)}, got {dataset.statistics!r}")
        if dataset.statistics == "own" and self.policy.use_relative_actions:
            raise ConfigError(
                "dataset.statistics is own, but with policy.use_relative_actions differences of scaled actions and "
                "states would not be scaled differences; use pooled"
            )
        if dataset.weights is not None and not all(0 < weight < float("inf") for weight in dataset.weights):
            raise ConfigError(f"dataset.weights must be positive numbers, got {dataset.weights}")

    def _check_peft(self) -> None:
        self.policy.use_peft = False  # LeRobot sets it once there is an adapter; `peft` asks for one
        if self.peft is None:
            return
        if not self.policy.pi05_checkpoint:
            raise ConfigError(
                "peft adapts the weights of a checkpoint, but policy.pi05_checkpoint is null; name one, or leave peft "
                "out to train everything"
            )
        if self.peft.method_type.upper() != "LORA":
            raise ConfigError(f"peft.method_type must be LORA, got {self.peft.method_type!r}")
        if self.peft.init_type not in (None, *LORA_INITS):
            raise ConfigError(
                f"peft.init_type must be null or one of {', '.join(LORA_INITS)}, got {self.peft.init_type!r}: others "
                "change the base's weights, which the checkpoint does not store"
            )
        for name in ("r", "lora_alpha"):
            value = getattr(self.peft, name)
            if value is not None and value < 1:
                raise ConfigError(f"peft.{name} must be at least 1, got {value}")
        if importlib.util.find_spec("peft") is None:
            raise ConfigError("the package peft is not installed: pip install 'lerobot[peft]'")

    @property
    def run_dir(self) -> Path:
        """Where the offline run writes.

        Raises:
            ConfigError: the configuration names no directory.
        """
        directory = self.output_dir_offline or self.output_dir
        if directory is None:
            raise ConfigError("output_dir_offline (or output_dir) is missing: where shall the run write?")
        return Path(directory)

    @property
    def checkpoint_freq(self) -> int:
        """Steps between checkpoints of the offline run."""
        return self.save_freq if self.offline_save_freq is None else self.offline_save_freq

    @property
    def tag(self) -> str:
        """What begins a console line of the offline run."""
        return "[OFFLINE LEARNER]"

    @property
    def keeps_processors(self) -> bool:
        """Whether a fresh run goes on with the statistics of the checkpoint that it starts from; else its data's."""
        return False

    @property
    def total_steps(self) -> int:
        """Optimization steps of the offline run."""
        return self.policy.offline_steps

    @property
    def wandb_project(self) -> str | None:
        """W&B project of the offline run."""
        return self.wandb.offline_project or self.wandb.project


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
    if isinstance(env, dict) and env.get("type") == "gym_manipulator":
        _register_devices()
    raw.pop("checkpoint_path", None)  # LeRobot saves this field but does not read it back (init=False)
    nulls = forbidden_nulls(PI05RLTrainConfig, raw)
    if nulls:
        raise ConfigError(f"{path}: null is not a value of {', '.join(nulls)}")
    try:
        return draccus.decode(kind, raw)
    except (DraccusException, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {explain(error, PI05RLTrainConfig, aliases=list(ALIASES))}") from error


def _is_available(device: str) -> bool:
    try:
        return is_torch_device_available(device)
    except ValueError:  # no such kind of device
        return False


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

    The same ones as ``lerobot.rl.gym_manipulator`` imports, and plugins; no hardware is touched.
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
    register_third_party_plugins()


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
