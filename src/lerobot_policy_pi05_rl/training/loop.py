"""The training loop of both learners: step, log window, held-out evaluation, saving, stopping, progress.

Each learner adds a :class:`Feed`: its batches, and what happens between two steps.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from lerobot.common.train_utils import should_save_checkpoint

from ..cards.model import OnlineEpisodes
from ..checkpoint.critic_provenance import critic_data
from ..checkpoint.resume import data_state
from ..checkpoint.saver import CheckpointSaver
from ..data.batch import Batch
from ..data.loaders import make_held_out_loader, make_probe_loader
from ..recap import RecapAlgorithm
from ..runtime.progress import progress_bar
from .card import checkpoint_card
from .evaluation import evaluate
from .metrics import EVAL, MetricsWriter, NoWriter
from .start import Run

logger = logging.getLogger(__name__)


class TimedBatches(Protocol):
    """An iterator of collated batches that knows how long it was waited for."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def flush(self) -> float:
        """Seconds waited since the last call."""
        ...


class Feed:
    """Batches, and what happens between two steps: here nothing."""

    def __init__(self, batches: TimedBatches):
        self.batches = batches

    def ready(self) -> bool:
        """Called before each step. False: there is nothing to learn from yet; the loop asks again."""
        return True

    def news(self) -> tuple[dict[str, float], str]:
        """What is logged beside training's own numbers, and those of it that a person looks at."""
        return {}, ""

    def online(self) -> OnlineEpisodes | None:
        """What actors have sent, for the card of a checkpoint; here there are none."""
        return None

    def close(self) -> None:
        """Called behind the last step."""


def train(
    run: Run, feed: Feed, writer: MetricsWriter | NoWriter, *, desc: str = "Offline", until: int | None = None
) -> Path | None:
    """Take the steps that are left, of the run or ``until`` this one; returns the last checkpoint that was written.

    A signal (``run.stop``) finishes the step, saves and returns. All processes stop, and save, behind the same step.
    """
    cfg, algorithm, processes = run.cfg, run.algorithm, run.algorithm.processes
    total, saved, saved_step = until or cfg.total_steps, None, algorithm.optimization_step
    device = next(algorithm.policy.parameters()).device
    held_out, stopping = HeldOut(run, total), False
    saver = CheckpointSaver(
        cfg.run_dir,
        cfg.total_steps,
        in_background=cfg.save_in_background,
        keep_last=cfg.keep_last_checkpoints,
        upload_to=cfg.policy.repo_id if cfg.save_checkpoint_to_hub else None,
        private=cfg.policy.private,
        config=run.record(writer.wandb_run_id),
        processors=run.processors,
        critic_data=critic_data(run.data, cfg.reward),
        data_state=data_state(run.data),
        num_processes=processes.count,
        writes=processes.is_main,
    )
    with saver, progress_bar(total, saved_step, desc=desc, shown=processes.is_main) as bar:
        speed = Speed(run)
        while algorithm.optimization_step < total and not stopping:
            saver.check()
            with speed.paused():
                ready = feed.ready()
            if ready:
                stats = algorithm.update(feed.batches)
            stopping = processes.any(run.stop.requested, device)  # read once: a later signal acts behind the next step
            if not ready:
                continue
            step = algorithm.optimization_step
            run.window.add(stats.to_log_dict())
            speed.steps += 1
            bar.update()
            if step % max(1, cfg.log_freq) == 0 or step == total:
                log_window(run, writer, speed.flush(feed.batches), *feed.news())
            with speed.paused():
                held_out.evaluate_if_due(algorithm, writer)
            if step == total and algorithm.early_stopping is not None:
                algorithm.early_stopping.restore_best()  # the best critic labels, and lies in the last checkpoint
            if cfg.save_checkpoint and should_save_checkpoint(step, cfg.checkpoint_freq, total):
                saved, saved_step = save(run, saver, writer, feed), step
        if stopping and cfg.save_checkpoint and algorithm.optimization_step > saved_step:
            saved = save(run, saver, writer, feed)
        feed.close()
    if stopping and algorithm.optimization_step < total:
        logger.info("%s Stopped at step %d; resume=true goes on from there", cfg.tag, algorithm.optimization_step)
    return saved


class HeldOut:
    """Evaluates the held-out episodes, where there are any, every ``eval_steps`` steps and behind the ``last`` one."""

    def __init__(self, run: Run, last: int):
        self.last = last
        self.cfg, self.data, processes = run.cfg, run.data, run.algorithm.processes
        read = {"batch_size": self.cfg.batch_size, "most": self.cfg.max_eval_samples, "processes": processes}
        self.loader = make_held_out_loader(self.data, **read)
        self.probe = make_probe_loader(self.data, **read)

    def evaluate_if_due(self, algorithm: RecapAlgorithm, writer: MetricsWriter | NoWriter) -> None:
        """Tell ``algorithm``, log and console what was found."""
        cfg, step = self.cfg, algorithm.optimization_step
        if self.loader is None or cfg.eval_steps <= 0 or (step % cfg.eval_steps and step != self.last):
            return
        means = evaluate(algorithm, self.loader, self.data.held_out.frames, self.probe)
        algorithm.on_evaluate(means)
        writer.log(step, means, mode=EVAL)
        logger.info("%s Held out at step %d: %s", cfg.tag, step, summary(means))


def log_window(
    run: Run, writer: MetricsWriter | NoWriter, speed: dict[str, float], news: dict[str, float], news_text: str
) -> None:
    """Write and say what the steps since the last call came to, and begin a new window."""
    cfg, algorithm = run.cfg, run.algorithm
    step, means = algorithm.optimization_step, run.window.flush()
    means["lr_actor"] = algorithm.optimizer.param_groups[0]["lr"]
    writer.log(step, {**means, **speed, **news})
    writer.log_histograms(step, algorithm.gathered_histograms())
    text = f"{summary({**means, **speed})} {news_text}".rstrip()
    logger.info("%s Optimization step: %d/%d %s", cfg.tag, step, cfg.total_steps, text)


def save(run: Run, saver: CheckpointSaver, writer: MetricsWriter | NoWriter, feed: Feed) -> Path:
    """Save a checkpoint of the present step, which must not outlive the lines before it; returns its directory."""
    logger.info("%s Saving checkpoint at step %d", run.cfg.tag, run.algorithm.optimization_step)
    writer.sync()
    writes = run.algorithm.processes.is_main
    card = checkpoint_card(run, writer.held_out, feed.online()) if writes else None
    return saver.save(run.algorithm, run.window.state_dict(), card)


class Speed:
    """How fast training is: of the steps since the last log line, without what is not training."""

    def __init__(self, run: Run):
        self.samples_per_step = run.algorithm.batches_per_step * run.cfg.batch_size * run.algorithm.processes.count
        self.began, self.steps = time.perf_counter(), 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not counted."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def flush(self, batches: TimedBatches) -> dict[str, float]:
        """samples_per_s of all processes, and seconds per step that this one spent waiting for data and updating; peak
        memory on a GPU. A new window begins."""
        seconds, waited, steps = time.perf_counter() - self.began, batches.flush(), self.steps
        self.began, self.steps = time.perf_counter(), 0
        speed = {
            "samples_per_s": steps * self.samples_per_step / seconds,
            "data_time": waited / steps,
            "update_time": (seconds - waited) / steps,
        }
        if torch.cuda.is_available():
            speed["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 2**30
        return speed


def summary(values: dict[str, float]) -> str:
    """The scalars a person looks at, short."""
    names = (
        *("loss_critic", "critic_gap", "spearman_value_return", "auc_value_outcome", "calibration_error"),
        *("loss_actor", "loss_actor_positive", "loss_actor_none", "tag_grip"),
        *("advantage_mean", "advantage_positive_fraction", "samples_per_s"),
    )
    return " ".join(f"{name}={values[name]:.4g}" for name in names if name in values)
