"""Offline pretraining of policy and critic: dataset in, checkpoint out.

pi05-rl offline CONFIG [--key=value …]
python -m lerobot_policy_pi05_rl.offline_learner CONFIG [--key=value …]
accelerate launch --num_processes=N -m lerobot_policy_pi05_rl.offline_learner CONFIG [--key=value …]
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

from lerobot.utils.constants import CHECKPOINTS_DIR, PRETRAINED_MODEL_DIR

from .checkpoint.critic_provenance import critic_data
from .checkpoint.write import last_checkpoint
from .config.arguments import split_config_path
from .config.file import load_config
from .config.resolve import resolved
from .config.train import PI05RLTrainConfig
from .data.loaders import make_train_loader
from .distributed.fsdp import check_fsdp
from .distributed.processes import Processes, lost_peer_as_user_error, start_processes
from .errors import INTERRUPTED
from .labels.own_run import label_run
from .labels.values import Interrupted
from .plan.card import warn_of_memory
from .runtime.progress import TimedIterator
from .training.loop import Feed, train
from .training.metrics import MetricsWriter, NoWriter
from .training.start import Run, make_writer, open_labelled, start

logger = logging.getLogger(__name__)


def train_offline(cfg: PI05RLTrainConfig) -> Path:
    """Train ``cfg.policy.offline_steps`` steps and return the last checkpoint's directory.

    SIGINT and SIGTERM finish the step (or, while labels are made, the batch), save and return.

    Raises:
        UserError: bad input; nothing of an earlier run is lost.
    """
    cfg = resolved(cfg)
    processes = start_processes(cfg.policy.device)
    with lost_peer_as_user_error(processes):
        return train_in(processes, cfg)


def train_in(processes: Processes, cfg: PI05RLTrainConfig) -> Path:
    """:func:`train_offline` as one of ``processes``; the main one alone writes and speaks."""
    if not processes.is_main:
        logging.getLogger().setLevel(logging.ERROR)
    processes.once(partial(check_fsdp, processes.fsdp, compiles=cfg.policy.compile_model))
    run = start(cfg, processes)
    warn_of_memory(run.cfg, processes)
    writer = make_writer(run) if processes.is_main else NoWriter()
    try:
        with run.stop:
            saved = train_phases(run, writer)
    except Interrupted as stopped:
        logger.warning("%s Stopped while labelling: %s; resume=true goes on from there", cfg.tag, stopped)
        saved = last_checkpoint(run.cfg.run_dir)
    finally:
        writer.close()
    processes.wait()  # a process that ends early would end the others
    return saved or run.checkpoint or cfg.run_dir


def train_phases(run: Run, writer: MetricsWriter | NoWriter) -> Path | None:
    """Critics, labels, policy, from wherever the run is; the policy alone where the labels come from elsewhere.

    Returns:
        The last checkpoint that was written, if any was.

    Raises:
        Interrupted: a signal came while the data were labelled.
    """
    cfg, algorithm, saved = run.cfg, run.algorithm, run.checkpoint
    if cfg.labels_itself and algorithm.optimization_step <= cfg.critic_steps:
        last = cfg.critic_steps
        saved = train(run, Feed(training_batches(run, last)), writer, desc="Critics", until=last) or saved
        if algorithm.optimization_step < last:
            return saved
        label_run(run, saved and saved / PRETRAINED_MODEL_DIR, critic_data(run.data, cfg.reward))
        run = replace(run, data=open_labelled(cfg, algorithm.processes))
    return train(run, Feed(training_batches(run, cfg.total_steps)), writer) or saved


def training_batches(run: Run, last: int) -> TimedIterator:
    """This process's part of the batches that are left until step ``last``, in the run's order."""
    algorithm = run.algorithm
    left = (last - algorithm.optimization_step) * algorithm.batches_per_step
    start_at, processes = algorithm.sample_position, algorithm.processes
    return TimedIterator(
        make_train_loader(run.data, batch_size=run.cfg.batch_size, batches=left, start=start_at, processes=processes)
    )


def main(arguments: list[str]) -> int:
    """``pi05-rl offline CONFIG`` (positional or ``--config_path``); returns the exit code.

    That of a run which a signal stopped is not 0, so that no script goes on with what is not finished.
    """
    path, overrides = split_config_path(arguments)
    cfg = load_config(path, overrides)
    checkpoint = train_offline(cfg)
    if checkpoint.parent.name == CHECKPOINTS_DIR and int(checkpoint.name) < cfg.total_steps:
        return INTERRUPTED
    logger.info("[OFFLINE LEARNER] Done: %s", checkpoint)
    return 0


if __name__ == "__main__":
    from .command.run import run_as_script  # start-up: of this way in alone
    from .plan.command import describe_memory

    run_as_script("offline", main, count_memory=describe_memory)
