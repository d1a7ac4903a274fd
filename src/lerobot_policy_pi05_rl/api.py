"""What the verbs of the command line do, to be called from Python.

    from lerobot_policy_pi05_rl import api

    config = api.TrainConfig(
        dataset=api.DatasetConfig(repo_id="me/pick", root="data/pick"),
        policy=api.PolicyConfig(pi05_checkpoint="lerobot/pi05_base"),
        output_dir_offline="outputs/pick",
    )
    checkpoint = api.train_offline(config)
    page = api.report("outputs/pick")

A configuration is built of dataclasses, or read from a file by :func:`load_config`, and is never changed. Bad input is
a :class:`UserError`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from . import plugin  # noqa: F401 - registers with LeRobot
from .config.actor import ActorConfig, ReplayConfig
from .config.file import load_config
from .config.train import OfflineDatasetConfig as DatasetConfig
from .config.train import OfflineWandBConfig as WandBConfig
from .config.train import PI05RLTrainConfig as TrainConfig
from .configuration_pi05_rl import PI05RLConfig as PolicyConfig
from .errors import UserError
from .labels import command as labels_command
from .labels.command import LabelingResult
from .labels.options import LabelOptions, check_options
from .labels.outcomes import format_ranges
from .offline_learner import train_offline as train
from .plan.command import plan
from .plan.compute import Plan
from .report.build import report
from .returns import RewardConfig

__all__ = [
    "ActorConfig",
    "DatasetConfig",
    "LabelingResult",
    "Plan",
    "PolicyConfig",
    "ReplayConfig",
    "RewardConfig",
    "TrainConfig",
    "UserError",
    "WandBConfig",
    "label",
    "load_config",
    "plan",
    "report",
    "train_offline",
]


def train_offline(config: TrainConfig) -> Path:
    """Train ``config.policy.offline_steps`` steps; returns the last checkpoint's directory.

    What LeRobot's tools load (``from_pretrained``, ``lerobot-eval``) is its ``pretrained_model`` folder. SIGINT and
    SIGTERM finish the step, save and return.

    Raises:
        UserError: bad input; nothing of an earlier run is lost.
    """
    return train(config)


def label(
    config: TrainConfig,
    *,
    name: str | None = None,
    checkpoint: str | Path | None = None,
    values_from: str | None = None,
    baseline: Literal["success", "all"] | None = None,
    horizon: float | None = None,
    gae_lambda: float | None = None,
    n_step: int | Literal["none"] | None = None,
    smoothing: float | None = None,
    positive_fraction: float | None = None,
    success: Sequence[int] = (),
    failure: Sequence[int] = (),
    outcomes: str | Path | None = None,
    of: str | None = None,
) -> LabelingResult | None:
    """A critic's values of the configuration's datasets, and the advantages and tags that follow, as side-cars.

    Args:
        name: of the labeling; None: the run's name and step.
        checkpoint: of the critic; None: the newest of ``config``'s run, else ``config.policy.pi05_checkpoint``.
        values_from: take the values of this labeling; no network runs.
        baseline: what a return is compared with: the critic's expectation of a success, or its value.
        horizon: advantages over so many steps as this share of the task's longest episode has.
        gae_lambda: advantages of the λ-return (GAE) instead.
        n_step: advantages over so many steps, or "none": to the episode's end; None: the configuration's.
        smoothing: their mean over this share of the task's longest episode; 0: none; None: the configuration's.
        positive_fraction: share of positive frames; None: the configuration's.
        success, failure: episodes of the first dataset whose outcome is set.
        outcomes: a CSV file of outcomes: episode_index,outcome[,dataset].
        of: ``success`` and ``failure`` speak of this one of the additional datasets.

    Returns:
        None where outcomes were set and there is no critic yet.

    Raises:
        UserError: bad input; no labeling of before is changed.
    """
    options = LabelOptions(
        name=name,
        checkpoint=None if checkpoint is None else str(checkpoint),
        from_name=values_from,
        n_step=None if n_step == "none" else n_step,
        n_step_given=n_step is not None,
        gae_lambda=gae_lambda,
        baseline=baseline,
        horizon=horizon,
        smoothing=smoothing,
        fraction=positive_fraction,
        success=format_ranges(sorted(set(success))) or None,
        failure=format_ranges(sorted(set(failure))) or None,
        outcomes=None if outcomes is None else str(outcomes),
        of=of,
    )
    check_options(options)
    return labels_command.label(config, options, None)
