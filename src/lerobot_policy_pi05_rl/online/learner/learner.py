"""The online learner: trains while actors collect, from the checkpoint that offline pretraining left.

pi05-rl learner CONFIG [--key=value …]
python -m lerobot_policy_pi05_rl.online.learner CONFIG [--key=value …]
"""

import logging
import os
import time
import uuid
from pathlib import Path

import torch
from lerobot.common.train_utils import should_save_checkpoint

from ...checkpoint.critic_provenance import critic_data
from ...checkpoint.resume import check_data, data_state
from ...checkpoint.saver import CheckpointSaver
from ...checkpoint.write import link_last, load_training_state
from ...config.train import ConfigError
from ...data.dataset import OfflineData
from ...offline_learner import HeldOut, announce, find_checkpoint, log_window, make_run_dir, save, throughput
from ...recap import RecapAlgorithm
from ...runtime.progress import StopSignal, progress_bar
from ...training.build import prepare
from ...training.metrics import MetricsWindow, MetricsWriter
from ..config import OnlineTrainConfig
from ..replay.labels import ReplayLabels
from ..replay.replay import Replay
from ..transport.inbox import Inbox
from ..transport.security import check_binding
from ..transport.server import LearnerServer
from ..transport.weights import WeightsBox, pack_weights, pushed_tensors
from .batches import OnlineBatches
from .intake import Intake
from .monitoring import Monitor
from .setup import actor_setup, check_fit, episode_spec, open_replay

logger = logging.getLogger(__name__)

OWN_ENTRIES = ("checkpoints", "replay", "inbox", "metrics.jsonl")  # actors may write to output_dir too
IDLE_S = 0.05
WAITING_LOG_S = 30.0


def train_online(cfg: OnlineTrainConfig) -> Path:
    """Train ``cfg.policy.online_steps`` steps and return the last checkpoint's directory.

    SIGINT and SIGTERM finish the step, save and return.

    Raises:
        UserError: bad input; nothing of an earlier run is lost.
    """
    cfg.validate()
    check_binding(cfg.policy.actor_learner_config)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("the online learner runs in one process; start it without accelerate launch or torchrun")
    checkpoint = find_checkpoint(cfg, check_unused)
    data, algorithm, processors = prepare(cfg, checkpoint)
    window = MetricsWindow()
    if checkpoint is not None:
        check_data(checkpoint, data, cfg)
        window.load_state_dict(load_training_state(checkpoint, algorithm))
    check_fit(cfg, data)
    make_run_dir(cfg)
    cfg.resume_from = None
    if checkpoint is not None:
        link_last(checkpoint)
    announce(cfg, data, algorithm, checkpoint)
    spec = episode_spec(cfg, data)
    replay = open_replay(cfg, data, spec)
    inbox = Inbox(cfg.run_dir / "inbox", lambda uid: uid in replay)
    box = WeightsBox()
    resumed_step = algorithm.optimization_step if checkpoint else None
    writer = MetricsWriter(cfg, cfg.run_dir, resumed_step=resumed_step)
    monitor = Monitor(cfg, data, algorithm, writer, replay=replay, inbox=inbox, box=box)
    session = uuid.uuid4().hex
    server = LearnerServer(
        cfg.policy.actor_learner_config,
        setup=actor_setup(cfg, data, algorithm, processors, spec, session),
        spec=spec,
        inbox=inbox,
        weights=box,
        on_report=monitor.hear,
        step=lambda: algorithm.optimization_step,
    )
    monitor.watch(server)
    try:
        with Intake(inbox, replay, spec) as intake, server:
            pusher = WeightsPusher(cfg, algorithm, box, session)
            saved = run_loop(cfg, data, algorithm, processors, window, replay, intake, pusher, monitor)
            if algorithm.optimization_step >= cfg.total_steps:
                server.finish()
        monitor.hear_episodes(intake)
        replay.compact()
        logger.info("[LEARNER] %s", monitor.totals())
    finally:
        writer.close()
    return saved or checkpoint or cfg.run_dir


def run_loop(
    cfg: OnlineTrainConfig,
    data: OfflineData,
    algorithm: RecapAlgorithm,
    processors: tuple,
    window: MetricsWindow,
    replay: Replay,
    intake: Intake,
    pusher: "WeightsPusher",
    monitor: Monitor,
) -> Path | None:
    """The loop itself; returns the last checkpoint it wrote."""
    total, saved, writer = cfg.total_steps, None, monitor.writer
    batches, labels = OnlineBatches(cfg, data, start=algorithm.sample_position), ReplayLabels(cfg, data)
    saver = CheckpointSaver(cfg, processors, critic_data=critic_data(cfg, data), data_state=data_state(data))
    held_out = HeldOut(cfg, data, algorithm.processes)
    shown = -1  # episodes received when the batches were last shown the replay
    saved_step, said = algorithm.optimization_step, 0.0
    stop = StopSignal()
    with stop, saver, progress_bar(total, algorithm.optimization_step, desc="Online") as bar:
        window_start, window_steps = time.perf_counter(), 0
        while algorithm.optimization_step < total and not stop.requested:
            saver.check()
            intake.check()
            pusher.push_if_due()
            monitor.hear_episodes(intake)
            if not may_update(cfg, replay, algorithm.optimization_step):
                if time.perf_counter() - said > WAITING_LOG_S:
                    said = time.perf_counter()
                    logger.info("[LEARNER] Waiting for episodes: %s", monitor.totals())
                began = time.perf_counter()
                time.sleep(IDLE_S)
                window_start += time.perf_counter() - began  # the throughput is training's
                continue
            if replay.episodes_received != shown:
                shown = replay.episodes_received
                batches.show(labels.frames(replay.source()))
            stats = algorithm.update(batches)
            step = algorithm.optimization_step
            window.add(stats.to_log_dict())
            window_steps += 1
            bar.update()
            if step % max(1, cfg.log_freq) == 0 or step == total:
                seconds = time.perf_counter() - window_start
                speed = throughput(cfg, algorithm, seconds, window_steps, batches.flush())
                online = monitor.flush()
                log_window(cfg, algorithm, window, writer, speed, online, monitor.summary(online))
                window_start, window_steps = time.perf_counter(), 0
            window_start += held_out.evaluate_if_due(algorithm, monitor.writer)
            if cfg.save_checkpoint and should_save_checkpoint(step, cfg.checkpoint_freq, total):
                saved, saved_step = save(cfg, saver, algorithm, window, writer), step
        if stop.requested and cfg.save_checkpoint and algorithm.optimization_step > saved_step:
            saved = save(cfg, saver, algorithm, window, writer)
        batches.close()
        pusher.push()  # the actors end with the last weights
    if stop.requested:
        logger.info("[LEARNER] Stopped at step %d; resume=true goes on from there", algorithm.optimization_step)
    return saved


def may_update(cfg: OnlineTrainConfig, replay: Replay, step: int) -> bool:
    """Whether there is enough to learn from: enough transitions at all, and enough for so many updates."""
    received = replay.transitions_received
    if len(replay) < max(1, cfg.policy.online_step_before_learning):
        return False
    limit = cfg.policy.online_updates_per_transition
    return limit is None or step < limit * received


class WeightsPusher:
    """Hands the actor's weights to the actors every so many seconds, if they have changed and somebody listens."""

    def __init__(self, cfg: OnlineTrainConfig, algorithm: RecapAlgorithm, box: WeightsBox, session: str):
        connection = cfg.policy.actor_learner_config
        self.algorithm, self.box, self.session = algorithm, box, session
        self.period = connection.policy_parameters_push_frequency
        self.dtype = getattr(torch, connection.push_dtype or cfg.policy.dtype)
        self._pushed, self._last = -1, 0.0
        self.push()  # an actor may act at once

    def push_if_due(self) -> None:
        """Copy the weights if it is time, they are new, and an actor would take them."""
        if time.perf_counter() - self._last >= self.period and self.box.listeners:
            self.push()

    def push(self) -> None:
        """Copy the weights if they are new."""
        self._last = time.perf_counter()
        if self.algorithm.optimization_step != self._pushed:
            self._pushed = self.algorithm.optimization_step
            data = pack_weights(pushed_tensors(self.algorithm.policy), self.dtype)
            self.box.publish(self.session, self._pushed, data)


def check_unused(cfg: OnlineTrainConfig) -> None:
    """A fresh learner goes on with nothing of another one; its actors may have been there before it.

    Raises:
        ConfigError: the output directory holds a learner's run.
    """
    found = [name for name in OWN_ENTRIES if (cfg.run_dir / name).exists()]
    if found:
        raise ConfigError(
            f"the output directory {cfg.run_dir} already holds a learner's {', '.join(found)}. Set resume=true to "
            "go on with its run, or choose another output_dir"
        )
