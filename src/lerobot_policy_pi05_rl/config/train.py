"""One configuration for the offline learner, the online learner and the actor: a subclass of LeRobot's
``TrainRLServerPipelineConfig``. It is read from a file by ``config_file.py``."""

import importlib.util
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.configs.default import DatasetConfig, WandBConfig
from lerobot.rl.train_rl import TrainRLServerPipelineConfig
from lerobot.utils.device_utils import is_torch_device_available

from ..configuration_pi05_rl import PI05RLConfig
from ..errors import ConfigError as ConfigError  # where other modules look for it
from ..options import DATA, LEARNING, NOTE, OFFLINE, OTHER_RUN, OWN, REFUSED, RUNS, WARNED, check_options, option
from ..returns import RewardConfig
from . import encoding as config_encoding  # noqa: F401 - registers an encoder
from .actor import ActorConfig, ReplayConfig
from .leaves import answered, no_effect, not_supported

logger = logging.getLogger(__name__)

CRITIC_SHARE = 5  # of a run that labels its own data, one step in so many is its critics' alone
LORA_INITS = ("gaussian", "orthogonal")  # of those in PEFT's LoraConfig, the ones that leave the base as it is


@dataclass
class OfflineDatasetConfig(DatasetConfig):
    """LeRobot's dataset configuration, and more datasets of the same robot to learn from."""

    eval_split: float = option(0.1, DATA)  # share of each task's episodes held out, both outcomes among them; 0: none
    additional_offline_dataset_paths: list[str] = option(list, NOTE)  # folders or Hub ids
    # Share of the samples, the first dataset's first; None: all frames alike.
    weights: list[float] | None = option(None, LEARNING)
    # pooled | own: each dataset is brought from its own scale to the first one's.
    statistics: str = option("pooled", OTHER_RUN, choices=("pooled", "own"))
    # Read datasets of other frame rates at the first one's; absolute actions only.
    resample_actions: bool = option(False, NOTE)
    # Folder of decoded frames (pi05-rl cache); None: decode what is drawn.
    frame_cache: str | None = option(None, NOTE)
    # NaN, infinity, outliers in state or action: error | drop_episode | keep_outliers.
    bad_values: str = option("error", DATA, choices=("error", "drop_episode", "keep_outliers"))
    # Advantages come from the side-car of this name (pi05-rl label), not from the critic.
    labeling: str | None = option(None, DATA)


@dataclass
class OfflineWandBConfig(WandBConfig):
    """LeRobot's W&B configuration; the offline run may go to a project of its own."""

    offline_project: str | None = option(None, NOTE, OFFLINE)


@dataclass(kw_only=True)
class PI05RLTrainConfig(TrainRLServerPipelineConfig):
    """The fields of design section 3; everything else is LeRobot's."""

    dataset: OfflineDatasetConfig | None = None
    wandb: OfflineWandBConfig = field(default_factory=OfflineWandBConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    output_dir_offline: Path | None = option(None, OWN, OFFLINE)  # the offline run writes here; None: output_dir
    offline_save_freq: int | None = option(None, NOTE, OFFLINE)  # wins over save_freq offline
    keep_last_checkpoints: int | None = option(None, NOTE, least=1)  # None: all
    # Training goes on while a checkpoint is written. Off by default: it holds a copy of all that trains, weights and
    # optimizer state, in host memory, and a run that has not got that room would be killed hours after its start.
    save_in_background: bool = option(False, NOTE)
    resume_from: str | int | None = option(None, OWN)  # step, or folder of a checkpoint of this run; None: the newest
    # Steps between held-out evaluations (there is one at the end, too); 0: never.
    eval_steps: int = option(1000, NOTE, least=0)
    # Held-out frames per evaluation, spread over all held-out episodes; 0: all.
    max_eval_samples: int = option(512, NOTE, least=0)
    # LeRobot's default; here it also orders samples and draws noise, so it cannot be None.
    seed: int = option(1000, LEARNING, least=0)

    def validate(self, device_key: str | None = "learner_device") -> None:
        """Check what does not need the data. LeRobot's own ``validate`` reads ``sys.argv`` and knows SAC only.

        Args:
            device_key: the policy's field that names the device this process computes on. One file serves learner
                and actor, which may run on two machines: the other's device is not looked for here. None: this
                process computes nothing.

        Raises:
            ConfigError: something is missing or impossible.
        """
        if not isinstance(self.policy, PI05RLConfig):
            raise ConfigError(f"policy.type must be pi05_rl, got {getattr(self.policy, 'type', None)!r}")
        if self.dataset is None:
            raise ConfigError("dataset.repo_id is missing: the offline learner learns from a LeRobot dataset")
        refused = answered(self, REFUSED)
        if refused:
            raise ConfigError("; ".join(not_supported(names, advice) for names, advice in refused))
        self._check_options()
        self._check_mixture()
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
        self._check_peft()
        if self.policy.extraction.needs_labeling and self.dataset.labeling is None:
            raise ConfigError(
                f"policy.policy_extraction {self.policy.policy_extraction} needs a labeling; name one in "
                "dataset.labeling (pi05-rl label makes one)"
            )
        if self.policy.uses_advantage and not self.policy.train_critic and self.dataset.labeling is None:
            raise ConfigError(
                "policy.train_critic is false, but advantages come from the critic; let it train, or name a labeling "
                "in dataset.labeling (pi05-rl label makes one)"
            )
        if self.policy.critic_early_stop is not None and not (self.dataset.eval_split and self.eval_steps > 0):
            raise ConfigError(
                "policy.critic_early_stop needs held-out evaluations: set dataset.eval_split and eval_steps above 0"
            )
        check_baseline("policy.advantage_baseline", self.baseline, self.reward)
        if device_key is not None:
            self.check_device(device_key)
        if self._labelled and self.policy.advantage_labels == "once" and self.policy.critic_warmup_steps:
            log_warnings(
                [
                    f"policy.critic_warmup_steps has no effect under dataset.labeling ({self.dataset.labeling}): the "
                    "labels are there, and the policy trains from the first step"
                ]
            )
        log_warnings([no_effect(names, advice) for names, advice in answered(self, WARNED)])

    def _check_options(self) -> None:
        sections = {"": self, "dataset": self.dataset, "wandb": self.wandb, "peft": self.peft}
        try:
            for section, config in sections.items():
                if config is not None:
                    check_options(config, section, self.reads)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _check_mixture(self) -> None:
        dataset = self.dataset
        assert dataset is not None  # validate has looked
        if dataset.statistics == "own" and self.policy.use_relative_actions:
            raise ConfigError(
                "dataset.statistics is own, but with policy.use_relative_actions differences of scaled actions and "
                "states would not be scaled differences; use pooled"
            )
        if dataset.weights is not None and not all(0 < weight < float("inf") for weight in dataset.weights):
            raise ConfigError(f"dataset.weights must be positive numbers, got {dataset.weights}")

    def check_device(self, key: str) -> None:
        """Refuse a device that this machine does not have.

        Args:
            key: learner_device or actor_device.

        Raises:
            ConfigError: it has not got it.
        """
        device = getattr(self.policy, key)
        if device is not None and not _is_available(device):
            raise ConfigError(
                f"policy.{key} is {device!r}, which this machine does not have; set it to one that it has "
                f"(--policy.{key}=cpu always works)"
            )

    def _check_peft(self) -> None:
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
        if importlib.util.find_spec("peft") is None:
            raise ConfigError("the package peft is not installed: pip install 'lerobot[peft]'")

    @staticmethod
    def directory_of(raw: dict[str, Any]) -> Any:
        """:attr:`run_dir` of a configuration that is not decoded yet; None: it names none."""
        return raw.get("output_dir_offline") or raw.get("output_dir")

    @property
    def reads(self) -> frozenset[str]:
        """The readers (:mod:`..options`) that this run is among."""
        return frozenset({RUNS, OFFLINE})

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
    def run_name(self) -> str:
        """``job_name``, or that of an offline run without one."""
        return self.job_name or "pi05_rl_offline"

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
    def _labelled(self) -> bool:
        return self.dataset is not None and self.dataset.labeling is not None

    @property
    def labels_itself(self) -> bool:
        """Whether the run's critics label its own data, before its policy trains."""
        once = self.policy.advantage_labels == "once" and not self._labelled
        return once and self.policy.trains_critic

    @property
    def baseline(self) -> str:
        """``policy.advantage_baseline``; where nothing is said, a success if the rewards tell one."""
        tells = self.reward.source == "steps_to_success"
        return self.policy.advantage_baseline or ("success" if tells else "all")

    @property
    def critic_steps(self) -> int:
        """How many steps the actor waits: before labels that are made once, in the run that makes them."""
        steps = self.policy.critic_warmup_steps
        if self.policy.advantage_labels == "once" and not self.labels_itself:
            return 0
        if steps is None:
            return max(1, self.total_steps // CRITIC_SHARE) if self.labels_itself else 0
        return steps

    def check_phases(self, *, fresh: bool) -> None:
        """Critics must have learnt before they label, and the policy needs steps behind that.

        Args:
            fresh: the run begins; else it goes on.

        Raises:
            ConfigError: they have none.
        """
        if self.labels_itself and self.critic_steps < 1:
            raise ConfigError(
                "policy.critic_warmup_steps is 0, but the run labels its own data, with critics that must learn "
                "before: give them steps, leave the key out (a fifth of the run), set policy.advantage_labels=running "
                "(each batch is labelled by the critic of the moment), or name a labeling in dataset.labeling"
            )
        if self.labels_itself and self.critic_steps >= self.total_steps:
            raise ConfigError(
                f"policy.critic_warmup_steps ({self.critic_steps}) leaves none of policy.offline_steps "
                f"({self.total_steps}) to the policy: lower it, or leave it out (a fifth of the run); with "
                "policy.advantage_labels=running such a run trains critics alone"
            )

    @property
    def wandb_project(self) -> str | None:
        """W&B project of the offline run."""
        return self.wandb.offline_project or self.wandb.project


def check_baseline(key: str, baseline: str, reward: RewardConfig) -> None:
    """
    Raises:
        ConfigError: ``key`` asks for a baseline of which the rewards say nothing.
    """
    if baseline == "success" and reward.source != "steps_to_success":
        raise ConfigError(
            f"{key} is success, but returns of reward.source={reward.source} do not say which are a success's: "
            "leave it out, or set reward.source=steps_to_success"
        )


def log_warnings(warnings: list[str]) -> None:
    """Log each once, whatever the number of processes that read the configuration."""
    if os.environ.get("RANK", "0") == "0":
        for warning in warnings:
            logger.warning("%s", warning)


def _is_available(device: str) -> bool:
    try:
        return is_torch_device_available(device)
    except ValueError:  # no such kind of device
        return False
