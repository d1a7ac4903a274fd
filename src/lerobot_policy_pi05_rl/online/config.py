"""The online run's view of the configuration: the same keys, another directory, length and project."""

from pathlib import Path
from typing import Any

from ..checkpoint.critic_provenance import read_critic_data
from ..config.train import ConfigError, PI05RLTrainConfig
from ..configuration_pi05_rl import PI05RLConfig
from ..options import ONLINE, RUNS
from ..stored.files import stored_config

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class OnlineTrainConfig(PI05RLTrainConfig):
    """What the learner and its actors read."""

    @staticmethod
    def directory_of(raw: dict[str, Any]) -> Any:
        """:attr:`run_dir` of a configuration that is not decoded yet; None: it names none."""
        return raw.get("output_dir")

    @property
    def reads(self) -> frozenset[str]:
        """The readers (:mod:`..options`) that this run is among."""
        return frozenset({RUNS, ONLINE})

    @property
    def run_dir(self) -> Path:
        """Where the online run writes.

        Raises:
            ConfigError: the configuration names no directory.
        """
        if self.output_dir is None:
            raise ConfigError("output_dir is missing: where shall the online run write?")
        return Path(self.output_dir)

    @property
    def run_name(self) -> str:
        """``job_name``, unless it is missing or an offline run's own."""
        name = super().run_name
        return "pi05_rl_online" if name == "pi05_rl_offline" else name

    @property
    def tag(self) -> str:
        """What begins a console line of the learner."""
        return "[LEARNER]"

    @property
    def keeps_processors(self) -> bool:
        """The critic and the policy of one of our checkpoints are asked as they learnt."""
        checkpoint = self.policy.pi05_checkpoint
        return checkpoint is not None and isinstance(stored_config(checkpoint), PI05RLConfig)

    @property
    def checkpoint_freq(self) -> int:
        """Optimization steps between checkpoints."""
        return self.save_freq

    @property
    def total_steps(self) -> int:
        """Optimization steps of the run."""
        return self.policy.online_steps

    @property
    def critic_steps(self) -> int:
        """How many steps the actor waits: none behind critics that have learnt, and labelled."""
        return 0 if self.policy.advantage_labels == "once" else super().critic_steps

    @property
    def labels_arrivals(self) -> bool:
        """Whether an episode is labelled when it arrives, as the offline data were; else in each batch anew."""
        policy = self.policy
        return policy.advantage_labels == "once" and policy.uses_advantage and policy.trains_critic

    def check_phases(self, *, fresh: bool) -> None:
        """The critics that label have learnt before; those of a run that goes on are its own.

        Raises:
            ConfigError: they have not.
        """
        checkpoint = self.policy.pi05_checkpoint
        if fresh and self.labels_itself and (checkpoint is None or read_critic_data(checkpoint) is None):
            raise ConfigError(
                f"policy.pi05_checkpoint {checkpoint} has no critic that has learnt, so nothing can label the data: "
                "train one first (pi05-rl offline), or set policy.advantage_labels=running (each batch is labelled "
                "by the critic of the moment)"
            )

    @property
    def wandb_project(self) -> str | None:
        """W&B project of the run."""
        return self.wandb.project

    def validate(self, device_key: str | None = "learner_device") -> None:
        """Check what does not need data, learner or hardware.

        Raises:
            ConfigError: something is missing or impossible.
        """
        super().validate(device_key)
        _ = self.run_dir
        if self.dataset.labeling is not None and self.policy.advantage_labels != "once":
            raise ConfigError(
                "dataset.labeling labels the offline data, but policy.advantage_labels=running takes an online run's "
                "labels from the critic of the moment: set the one to null, or the other to once"
            )
        if self.policy.critic_early_stop is not None:
            raise ConfigError("policy.critic_early_stop needs held-out data, which never grows; set it to null")
