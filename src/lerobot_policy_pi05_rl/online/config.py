"""The online run's view of the configuration: the same keys, another directory, length and project."""

from pathlib import Path
from typing import Any

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
    def labels_itself(self) -> bool:
        """Never: online, each batch is labelled by the critic of the moment."""
        return False

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
        if self.dataset.labeling is not None:
            raise ConfigError(
                "dataset.labeling labels the offline data alone; online, they come from the critic. Set it to null"
            )
        if self.policy.critic_early_stop is not None:
            raise ConfigError("policy.critic_early_stop needs held-out data, which never grows; set it to null")
