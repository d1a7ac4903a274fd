"""Offline pretraining of policy and critic: dataset in, checkpoint out.

pi05-rl offline CONFIG [--key=value …]
python -m lerobot_policy_pi05_rl.offline_learner CONFIG [--key=value …]
accelerate launch --num_processes=N -m lerobot_policy_pi05_rl.offline_learner CONFIG [--key=value …]
"""

import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lerobot.common.train_utils import should_save_checkpoint

from .checkpoint.critic_provenance import critic_data
from .checkpoint.resume import check_config, check_data, checkpoint_to_resume, data_state
from .checkpoint.saver import CheckpointSaver
from .checkpoint.write import link_last, load_training_state
from .config.train import ConfigError, PI05RLTrainConfig
from .data.action_limits import say_what_limits_cut
from .data.dataset import OfflineData
from .data.loaders import make_held_out_loader, make_probe_loader, make_train_loader
from .distributed.fsdp import check_fsdp
from .distributed.processes import Processes, start_processes, told_once
from .recap import RecapAlgorithm
from .runtime.progress import StopSignal, TimedIterator, progress_bar
from .training.build import prepare
from .training.evaluation import evaluate
from .training.metrics import MetricsWindow, MetricsWriter, NoWriter

logger = logging.getLogger(__name__)


def train_offline(cfg: PI05RLTrainConfig) -> Path:
    """Train ``cfg.policy.offline_steps`` steps and return the last checkpoint's directory.

    SIGINT and SIGTERM finish the step, save and return.

    Raises:
        UserError: bad input; nothing of an earlier run is lost.
    """
    cfg.validate()
    processes = start_processes(cfg.policy.learner_device or cfg.policy.device)
    with told_once(processes):
        return train_in(processes, cfg)


def train_in(processes: Processes, cfg: PI05RLTrainConfig) -> Path:
    """:func:`train_offline` as one of ``processes``; the main one alone writes and speaks."""
    if not processes.is_main:
        logging.getLogger().setLevel(logging.ERROR)
    processes.once(partial(check_fsdp, processes.fsdp, cfg))
    checkpoint = processes.once(partial(find_checkpoint, cfg))
    data, algorithm, processors = prepare(cfg, checkpoint, processes)
    window, first_step = MetricsWindow(), 0
    if checkpoint is not None:
        processes.once(partial(check_data, checkpoint, data, cfg))
        window.load_state_dict(load_training_state(checkpoint, algorithm))
        first_step = algorithm.optimization_step
    processes.once(partial(make_run_dir, cfg))
    cfg.resume_from = None  # done; a checkpoint's train_config.json must not send a later resume back again
    if checkpoint is not None and processes.is_main:  # before metrics.jsonl is cut there: a kill must not lose lines
        link_last(checkpoint)
    announce(cfg, data, algorithm, checkpoint)
    resumed_step = first_step if checkpoint else None
    writer = MetricsWriter(cfg, cfg.run_dir, resumed_step=resumed_step) if processes.is_main else NoWriter()
    try:
        saved = run_loop(cfg, data, algorithm, processors, window, writer)
    finally:
        writer.close()
    processes.wait()  # a process that ends early would end the others
    return saved or checkpoint or cfg.run_dir


def make_run_dir(cfg: PI05RLTrainConfig) -> None:
    """Create the output directory.

    Raises:
        ConfigError: it cannot be.
    """
    try:
        cfg.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the output directory {cfg.run_dir} cannot be created: {error.strerror}") from error


def run_loop(
    cfg: PI05RLTrainConfig,
    data: OfflineData,
    algorithm: RecapAlgorithm,
    processors: tuple,
    window: MetricsWindow,
    writer: MetricsWriter,
) -> Path | None:
    """The loop itself; returns the last checkpoint it wrote."""
    total, saved, processes = cfg.total_steps, None, algorithm.processes
    first, device = algorithm.optimization_step, next(algorithm.policy.parameters()).device
    batches_left = (total - first) * algorithm.batches_per_step
    loader = make_train_loader(cfg, data, batches=batches_left, start=algorithm.sample_position, processes=processes)
    held_out = HeldOut(cfg, data, processes)
    batches = TimedIterator(loader)
    saver = CheckpointSaver(
        cfg,
        processors,
        critic_data=critic_data(cfg, data),
        data_state=data_state(data),
        num_processes=processes.count,
        writes=processes.is_main,
    )
    stop, stopping = StopSignal(), False
    with stop, saver, progress_bar(total, first, shown=processes.is_main) as bar:
        window_start, window_steps = time.perf_counter(), 0
        while algorithm.optimization_step < total and not stopping:
            saver.check()
            stats = algorithm.update(batches)
            # Read once: all processes stop, and save, behind the same step; a later signal acts behind the next one.
            stopping = processes.any(stop.requested, device)
            step = algorithm.optimization_step
            window.add(stats.to_log_dict())
            window_steps += 1
            bar.update()
            if step % max(1, cfg.log_freq) == 0 or step == total:
                seconds = time.perf_counter() - window_start
                speed = throughput(cfg, algorithm, seconds, window_steps, batches.flush())
                log_window(cfg, algorithm, window, writer, speed)
                window_start, window_steps = time.perf_counter(), 0
            window_start += held_out.evaluate_if_due(algorithm, writer)  # the throughput is training's
            if step == total and algorithm.watch is not None:
                algorithm.watch.restore_best()  # the last checkpoint holds the best critic
            if cfg.save_checkpoint and (should_save_checkpoint(step, cfg.checkpoint_freq, total) or stopping):
                saved = save(cfg, saver, algorithm, window, writer)
    if stopping and algorithm.optimization_step < total:
        logger.info("%s Stopped at step %d; resume=true goes on from there", cfg.tag, algorithm.optimization_step)
    return saved


class HeldOut:
    """Evaluates the held-out episodes, where there are any, every ``eval_steps`` steps and behind the last one."""

    def __init__(self, cfg: PI05RLTrainConfig, data: OfflineData, processes: Processes):
        self.cfg, self.data = cfg, data
        self.loader, self.probe = make_held_out_loader(cfg, data, processes), make_probe_loader(cfg, data, processes)

    def evaluate_if_due(self, algorithm: RecapAlgorithm, writer: MetricsWriter) -> float:
        """Tell ``algorithm``, log and console what was found; returns the seconds it took."""
        cfg, step = self.cfg, algorithm.optimization_step
        if self.loader is None or cfg.eval_steps <= 0 or (step % cfg.eval_steps and step != cfg.total_steps):
            return 0.0
        began = time.perf_counter()
        means = evaluate(algorithm, self.loader, self.data.held_out.frames, self.probe)
        algorithm.observe_held_out(means)
        writer.log(step, means, mode="eval")
        logger.info("%s Held out at step %d: %s", cfg.tag, step, summary(means))
        return time.perf_counter() - began


def log_window(
    cfg: PI05RLTrainConfig,
    algorithm: RecapAlgorithm,
    window: MetricsWindow,
    writer: MetricsWriter,
    speed: dict[str, float],
    more: dict[str, float] | None = None,
    more_text: str = "",
) -> None:
    """Write and say what the steps since the last call came to, and begin a new window.

    Args:
        speed: of :func:`throughput`.
        more: what else is written, of which ``more_text`` is said.
    """
    step, means = algorithm.optimization_step, window.flush()
    means["lr_actor"] = algorithm.optimizer.param_groups[0]["lr"]
    writer.log(step, {**means, **speed, **(more or {})})
    writer.log_histograms(step, algorithm.everyones_histograms())
    text = f"{summary({**means, **speed})} {more_text}".rstrip()
    logger.info("%s Optimization step: %d/%d %s", cfg.tag, step, cfg.total_steps, text)


def save(
    cfg: PI05RLTrainConfig,
    saver: CheckpointSaver,
    algorithm: RecapAlgorithm,
    window: MetricsWindow,
    writer: MetricsWriter,
) -> Path:
    """Save a checkpoint of the present step, which must not outlive the lines before it; returns its directory."""
    logger.info("%s Saving checkpoint at step %d", cfg.tag, algorithm.optimization_step)
    writer.sync()
    return saver.save(algorithm, window.state_dict())


def find_checkpoint(
    cfg: PI05RLTrainConfig, check_unused: Callable[[PI05RLTrainConfig], None] | None = None
) -> Path | None:
    """The checkpoint to resume from, or None for a fresh run.

    Args:
        check_unused: raises where a fresh run would write into another one; None: :func:`check_empty`.

    Raises:
        ConfigError: the output directory holds another run and ``resume`` is false, or the configuration is of another
            run than the checkpoint.
        CheckpointError: the checkpoint is damaged.
    """
    if cfg.run_dir.exists() and not cfg.run_dir.is_dir():
        raise ConfigError(f"the output directory {cfg.run_dir} is a file")
    if not cfg.resume:
        (check_unused or check_empty)(cfg)
        return None
    checkpoint = checkpoint_to_resume(cfg.run_dir, cfg.resume_from)
    if checkpoint is None:
        logger.info("%s resume=true, but %s has no checkpoint: starting a fresh run", cfg.tag, cfg.run_dir)
    else:
        check_config(checkpoint, cfg)
    return checkpoint


def check_empty(cfg: PI05RLTrainConfig) -> None:
    """A fresh offline run has its directory to itself.

    Raises:
        ConfigError: something is there.
    """
    if cfg.run_dir.exists() and any(cfg.run_dir.iterdir()):
        raise ConfigError(
            f"the output directory {cfg.run_dir} already exists. Set resume=true to go on with its run, or choose "
            "another output_dir_offline"
        )


def announce(cfg: PI05RLTrainConfig, data: OfflineData, algorithm: RecapAlgorithm, checkpoint: Path | None) -> None:
    """Say what is about to happen, once."""
    accumulation = cfg.policy.gradient_accumulation_steps
    count = algorithm.processes.count
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
        {k: f"{v:,}" for k, v in trained.items()},
    )
    if algorithm.processes.is_main:
        say_what_limits_cut(cfg.actor, data.sources, cfg.tag)
    logger.info("%s Output directory: %s", cfg.tag, cfg.run_dir)
    if checkpoint is not None:
        logger.info("%s Resuming at step %d from %s", cfg.tag, algorithm.optimization_step, checkpoint)


def throughput(
    cfg: PI05RLTrainConfig, algorithm: RecapAlgorithm, seconds: float, steps: int, data_seconds: float
) -> dict[str, float]:
    """samples_per_s of all processes, and seconds per step that this one spent waiting for data and updating; peak
    memory on a GPU."""
    samples = steps * algorithm.batches_per_step * cfg.batch_size * algorithm.processes.count
    speed = {
        "samples_per_s": samples / seconds,
        "data_time": data_seconds / steps,
        "update_time": (seconds - data_seconds) / steps,
    }
    if torch.cuda.is_available():
        speed["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 2**30
    return speed


def summary(values: dict[str, float]) -> str:
    """The scalars a person looks at, short."""
    names = (
        *("loss_critic", "critic_gap", "spearman_value_return", "auc_value_outcome", "calibration_error"),
        *("loss_actor", "loss_actor_positive", "loss_actor_negative", "loss_actor_none", "tag_grip"),
        *("advantage_mean", "advantage_positive_fraction", "samples_per_s"),
    )
    return " ".join(f"{name}={values[name]:.4g}" for name in names if name in values)


if __name__ == "__main__":
    from .cli import main

    main(["offline", *sys.argv[1:]])
