"""From a configuration to a run that can take its next step: the same for both learners."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from lerobot.utils.random_utils import set_seed

from ..checkpoint.resume import check_config, check_data, checkpoint_to_resume, read_train_config
from ..checkpoint.write import link_last, load_training_state
from ..config.encoding import encoded
from ..config.resolve import changed, recorded
from ..config.train import ConfigError, PI05RLTrainConfig
from ..data.action_limits import warn_of_clipping
from ..data.dataset import OfflineData, open_offline_data
from ..data.labeling import RUN_LABELS, read_meta
from ..distributed.processes import ALONE, Processes
from ..processor_pi05_rl import Processors, check_prompt_lengths
from ..recap import RecapAlgorithm, RecapConfig
from ..runtime.progress import StopSignal
from .build import make_policy, make_preprocess, make_processors
from .metrics import MetricsWindow, MetricsWriter

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A run between two steps."""

    cfg: PI05RLTrainConfig  # with the policy's features; nobody writes to it
    data: OfflineData
    algorithm: RecapAlgorithm
    processors: Processors  # before and after the policy
    window: MetricsWindow
    checkpoint: Path | None  # the one it goes on from
    stop: StopSignal = field(default_factory=StopSignal)  # one for all phases: a signal between two is not lost

    @property
    def resumed_step(self) -> int | None:
        """The step it goes on from; None: it is a fresh one."""
        return self.algorithm.optimization_step if self.checkpoint else None

    def record(self, wandb_run_id: str | None) -> PI05RLTrainConfig:
        """What checkpoints and W&B are told of the configuration."""
        return recorded(self.cfg, self.algorithm.policy.config, wandb_run_id=wandb_run_id)


def check_empty(run_dir: Path) -> None:
    """A fresh offline run has its directory to itself.

    Raises:
        ConfigError: something is there.
    """
    if run_dir.exists() and any(run_dir.iterdir()):
        raise ConfigError(
            f"the output directory {run_dir} already exists. Set resume=true to go on with its run, or choose "
            "another output_dir_offline"
        )


def find_checkpoint(cfg: PI05RLTrainConfig, check_unused: Callable[[Path], None] = check_empty) -> Path | None:
    """The checkpoint to resume from, or None for a fresh run.

    Args:
        check_unused: raises where a fresh run would write into another one.

    Raises:
        ConfigError: the output directory holds another run and ``resume`` is false, or the configuration is of another
            run than the checkpoint.
        CheckpointError: the checkpoint is damaged.
    """
    if cfg.run_dir.exists() and not cfg.run_dir.is_dir():
        raise ConfigError(f"the output directory {cfg.run_dir} is a file")
    if not cfg.resume:
        check_unused(cfg.run_dir)
        return None
    checkpoint = checkpoint_to_resume(cfg.run_dir, cfg.resume_from)
    if checkpoint is None:
        logger.warning("%s resume=true, but %s has no checkpoint: starting a fresh run", cfg.tag, cfg.run_dir)
    elif "advantage_labels" not in _stored_policy(checkpoint):
        raise ConfigError(
            f"an earlier version began the run in {cfg.run_dir}, which cannot go on: it knew neither labels that are "
            "made once nor the tag as a vector. Start a run from what it learnt: "
            f"--policy.pi05_checkpoint={checkpoint / PRETRAINED_MODEL_DIR} and another output_dir_offline"
        )
    else:
        check_config(checkpoint, encoded(cfg), cfg.reads)
    return checkpoint


def _stored_policy(checkpoint: Path) -> dict[str, Any]:
    return read_train_config(checkpoint, lambda stored: dict(stored["policy"]))


def settled(cfg: PI05RLTrainConfig, checkpoint: Path | None) -> PI05RLTrainConfig:
    """``cfg`` with how long the actor waits; a run that goes on does as it began.

    Raises:
        ConfigError: as :meth:`~..config.train.PI05RLTrainConfig.check_phases`.
    """
    policy = cfg.policy
    if checkpoint is not None:
        stored = _stored_policy(checkpoint)
        if policy.critic_warmup_steps is None:
            policy = changed(policy, critic_warmup_steps=stored.get("critic_warmup_steps"))
        if policy.advantage_baseline is None:  # which earlier versions did not know
            policy = changed(policy, advantage_baseline=stored.get("advantage_baseline", "all"))
        cfg = changed(cfg, policy=policy)
    cfg.check_phases(fresh=checkpoint is None)
    return changed(cfg, policy=changed(policy, critic_warmup_steps=cfg.critic_steps))


def open_data(cfg: PI05RLTrainConfig, checkpoint: Path | None, processes: Processes = ALONE) -> OfflineData:
    """The data as the run reads them behind this checkpoint: as recorded, or under the labels that it has made.

    Raises:
        ConfigError: those labels are gone.
    """
    step = 0 if checkpoint is None else int(checkpoint.name)
    if cfg.labels_itself and step > cfg.critic_steps:
        labels = cfg.run_dir / RUN_LABELS
        if not labels.is_dir():
            raise ConfigError(
                f"the run is at step {step}, but the labels that its critics made at step {cfg.critic_steps} are gone "
                f"({labels}). Put them back, or set resume_from to a checkpoint of that step or before"
            )
        processes.once(partial(check_labels, cfg, labels))
        return open_labelled(cfg, processes)
    return processes.main_first(partial(open_offline_data, cfg))


def check_labels(cfg: PI05RLTrainConfig, labels: Path) -> None:
    """
    Raises:
        ConfigError: the run's labels were made with other settings than it has now.
    """
    differing = label_differences(cfg, labels)
    if differing:
        raise ConfigError(
            f"the labels {labels}, which this run learns from, were made otherwise: {'; '.join(differing)}. "
            f"Resume with those; or derive labels anew (pi05-rl label CONFIG --from {cfg.run_dir} --name NAME) "
            "and start a run of its own from them: dataset.labeling"
        )


def label_differences(cfg: PI05RLTrainConfig, labels: Path) -> list[str]:
    """In words, where a run's labels were made with other settings than those of ``cfg``."""
    policy = cfg.policy
    asked: dict[str, Any] = {
        "policy.advantage_baseline": cfg.baseline,
        "policy.advantage_n_step": policy.advantage_n_step,
        "policy.advantage_horizon": policy.label_horizon,
        "policy.advantage_smoothing": policy.advantage_smoothing,
    }
    made: dict[str, Any] = {}
    for file in sorted(labels.glob("*.parquet")):
        meta = read_meta(file)
        n_steps = set(meta["n_step"].values()) if meta["n_step"] and meta["horizon"] is None else {None}
        made["policy.advantage_baseline"] = meta.get("baseline", "all")
        made["policy.advantage_n_step"] = n_steps.pop()
        made["policy.advantage_horizon"] = meta["horizon"]
        made["policy.advantage_smoothing"] = meta["smoothing_share"] or 0.0
        for task, fraction in meta["positive_fraction"].items():
            key = f"policy.advantage_positive_fraction of {task!r}"
            made[key] = fraction
            asked[key] = policy.advantage_positive_fraction_per_task.get(task, policy.advantage_positive_fraction)
    return [f"{key}: {made[key]} → {asked[key]}" for key in made if made[key] != asked[key]]


def open_labelled(cfg: PI05RLTrainConfig, processes: Processes = ALONE) -> OfflineData:
    """The data under the labels that the run has made."""
    labelled = changed(cfg, dataset=changed(cfg.dataset, labeling=str(cfg.run_dir.absolute())))
    return processes.main_first(partial(open_offline_data, labelled))


def prepare(
    cfg: PI05RLTrainConfig, checkpoint: Path | None, processes: Processes = ALONE
) -> tuple[OfflineData, RecapAlgorithm, Processors]:
    """Data, algorithm and processors of a run, before its first step.

    Args:
        cfg: as :func:`~..config.resolve.resolved` makes it.
        checkpoint: the one to resume; None: a fresh run.
    """
    set_seed(cfg.seed)
    torch.backends.cudnn.deterministic = cfg.cudnn_deterministic
    data = open_data(cfg, checkpoint, processes)
    logger.info("%s Data: %s", cfg.tag, data.description)
    policy = make_policy(data.policy, cfg.peft, checkpoint, tag=cfg.tag)
    processors = make_processors(data, checkpoint, keeps=cfg.keeps_processors, tag=cfg.tag)
    check_prompt_lengths(processors[0], data.labels.tasks, data.policy.robot_state_feature.shape[0])
    algorithm = RecapAlgorithm(
        policy,
        RecapConfig(
            policy_config=data.policy,
            seed=cfg.seed,
            total_steps=cfg.total_steps,
            critic_steps=cfg.critic_steps if cfg.labels_itself else 0,
        ),
        tasks=data.labels.tasks,
        preprocess=make_preprocess(processors[0], next(policy.parameters()).device),
        processes=processes,
    )
    return data, algorithm, processors


def start(
    cfg: PI05RLTrainConfig,
    processes: Processes = ALONE,
    *,
    check_unused: Callable[[Path], None] = check_empty,
    check_compatible: Callable[[PI05RLTrainConfig, OfflineData], None] = lambda cfg, data: None,
) -> Run:
    """Open the data, build the policy, load the checkpoint that the run goes on from, say what is about to happen.

    Args:
        cfg: as :func:`~..config.resolve.resolved` makes it.
        check_unused: raises where a fresh run would write into another one.
        check_compatible: raises where the data is not this kind of run's.

    Raises:
        UserError: bad input; nothing is written before all of it is checked.
    """
    checkpoint = processes.once(partial(find_checkpoint, cfg, check_unused))
    cfg = processes.once(partial(settled, cfg, checkpoint))
    data, algorithm, processors = prepare(cfg, checkpoint, processes)
    cfg = changed(cfg, policy=data.policy)
    run = Run(cfg, data, algorithm, processors, MetricsWindow(), checkpoint)
    if checkpoint is not None:
        asked = encoded(run.record(cfg.wandb.run_id))
        processes.once(partial(check_data, checkpoint, data, asked, cfg.reads))
        run.window.load_state_dict(load_training_state(checkpoint, algorithm))
    check_compatible(cfg, data)
    processes.once(partial(make_run_dir, cfg.run_dir))
    if checkpoint is not None and processes.is_main:  # before metrics.jsonl is cut there: a kill must not lose lines
        link_last(checkpoint)
    announce(run)
    return run


def make_writer(run: Run) -> MetricsWriter:
    """Where the run's numbers go; lines behind the step it goes on from are forgotten."""
    cfg = run.record(run.cfg.wandb.run_id)
    return MetricsWriter(cfg, cfg.run_dir, project=cfg.wandb_project, resumed_step=run.resumed_step)


def make_run_dir(run_dir: Path) -> None:
    """Create the output directory.

    Raises:
        ConfigError: it cannot be.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the output directory {run_dir} cannot be created: {error.strerror}") from error


def announce(run: Run) -> None:
    """Say what is about to happen, once."""
    cfg, algorithm = run.cfg, run.algorithm
    accumulation, count = cfg.policy.gradient_accumulation_steps, algorithm.processes.count
    logger.info(
        "%s Effective batch size: %d x %d process%s x %d accumulation = %d",
        cfg.tag,
        cfg.batch_size,
        count,
        "" if count == 1 else "es",
        accumulation,
        cfg.batch_size * count * accumulation,
    )
    if algorithm.processes.fsdp is not None:
        logger.info("%s FSDP: each process holds a part of parameters, gradients and optimizer state", cfg.tag)
    total = sum(parameter.numel() for parameter in algorithm.policy.parameters())
    trained = {name: sum(p.numel() for p in params) for name, params in algorithm.parameters.items()}
    logger.info(
        "%s Parameters: %s in all; trainable: %s",
        cfg.tag,
        f"{total:,}",
        {name: f"{number:,}" for name, number in trained.items()},
    )
    if algorithm.processes.is_main:
        warn_of_clipping(cfg.actor, run.data.sources, cfg.tag)
    if cfg.labels_itself and cfg.critic_steps:
        logger.info(
            "%s Phases: critics to step %d, labels of all frames, policy (and critics) to step %d",
            cfg.tag,
            cfg.critic_steps,
            cfg.total_steps,
        )
    logger.info("%s Output directory: %s", cfg.tag, cfg.run_dir)
    if run.checkpoint is not None:
        logger.info("%s Resuming at step %d from %s", cfg.tag, algorithm.optimization_step, run.checkpoint)
