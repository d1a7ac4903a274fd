"""The online learner: trains while actors collect, from the checkpoint that offline pretraining left.

pi05-rl learner CONFIG [--key=value …]
python -m lerobot_policy_pi05_rl.online.learner CONFIG [--key=value …]
"""

import logging
import os
import uuid
from dataclasses import replace
from pathlib import Path

from ...checkpoint.critic_provenance import read_critic_data
from ...config.arguments import split_config_path
from ...config.file import load_config
from ...config.resolve import resolved
from ...config.train import ConfigError
from ...errors import UserError
from ...labels.own_run import label_run
from ...labels.values import Interrupted
from ...plan.card import warn_of_memory
from ...training.loop import train
from ...training.start import Run, make_writer, open_labelled, start
from ..config import OnlineTrainConfig
from ..transport.inbox import Inbox
from ..transport.security import check_binding
from ..transport.server import LearnerServer
from ..transport.weights import WeightsBox
from .episode_video import EpisodeVideos
from .feed import OnlineFeed, WeightsPusher
from .intake import Intake
from .monitoring import Monitor
from .setup import actor_setup, check_compatible, episode_spec, open_replay

logger = logging.getLogger(__name__)

OWN_ENTRIES = ("checkpoints", "replay", "inbox", "metrics.jsonl")  # actors may write to output_dir too


def main(arguments: list[str]) -> int:
    """``pi05-rl learner CONFIG``; returns the exit code.

    Raises:
        UserError: bad input.
    """
    path, overrides = split_config_path(arguments, "learner")
    checkpoint = train_online(load_config(path, overrides, OnlineTrainConfig))
    logger.info("[LEARNER] Done: %s", checkpoint)
    return 0


def train_online(cfg: OnlineTrainConfig) -> Path:
    """Train ``cfg.policy.online_steps`` steps and return the last checkpoint's directory.

    SIGINT and SIGTERM finish the step, save and return.

    Raises:
        UserError: bad input; nothing of an earlier run is lost.
    """
    cfg = resolved(cfg)
    check_binding(cfg.policy.actor_learner_config)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("the online learner runs in one process; start it without accelerate launch or torchrun")
    run = start(cfg, check_unused=check_unused, check_compatible=check_compatible)
    with run.stop:
        return train_in(labelled(run))


def train_in(run: Run) -> Path:
    """:func:`train_online` from its first step on."""
    cfg, data, algorithm, processors = run.cfg, run.data, run.algorithm, run.processors
    warn_of_memory(cfg, algorithm.processes)
    spec = episode_spec(data, cfg.replay, fps=cfg.env.fps)
    replay = open_replay(cfg, data, spec)
    inbox = Inbox(cfg.run_dir / "inbox", lambda uid: uid in replay)
    box = WeightsBox()
    writer = make_writer(run)
    videos = EpisodeVideos(cfg.run_dir / "videos", data, algorithm, reward=cfg.reward, fps=cfg.env.fps)
    monitor = Monitor(algorithm, writer, videos, replay=replay, inbox=inbox, box=box)
    session = uuid.uuid4().hex
    server = LearnerServer(
        cfg.policy.actor_learner_config,
        setup=actor_setup(data, algorithm, processors, spec, session),
        spec=spec,
        inbox=inbox,
        weights=box,
        on_report=monitor.on_report,
        step=lambda: algorithm.optimization_step,
    )
    monitor.attach(server)
    try:
        with Intake(inbox, replay, spec) as intake, server:
            feed = OnlineFeed(run, replay, intake, WeightsPusher(algorithm, box, session), monitor)
            saved = train(run, feed, writer, desc="Online")
            if algorithm.optimization_step >= cfg.total_steps:
                server.finish()
        monitor.log_new_episodes(intake)
        replay.compact()
        logger.info("[LEARNER] %s", monitor.totals())
    finally:
        writer.close()
    return saved or run.checkpoint or cfg.run_dir


def labelled(run: Run) -> Run:
    """The run with its offline data under labels: those of the critics that it starts from, unless it has some.

    Raises:
        UserError: a signal came; the same command goes on from there.
    """
    cfg = run.cfg
    if not cfg.labels_itself or run.checkpoint is not None:
        return run
    critic = cfg.policy.pi05_checkpoint
    try:
        label_run(run, critic, read_critic_data(critic))
    except Interrupted as stopped:
        raise UserError(
            f"stopped while the offline data were labelled: {stopped}; the same command goes on"
        ) from stopped
    return replace(run, data=open_labelled(cfg, run.algorithm.processes))


def check_unused(run_dir: Path) -> None:
    """A fresh learner goes on with nothing of another one; its actors may have been there before it.

    Raises:
        ConfigError: the output directory holds a learner's run.
    """
    found = [name for name in OWN_ENTRIES if (run_dir / name).exists()]
    if found:
        raise ConfigError(
            f"the output directory {run_dir} already holds a learner's {', '.join(found)}. Set resume=true to "
            "go on with its run, or choose another output_dir"
        )
