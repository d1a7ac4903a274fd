"""An actor: plays episodes with the learner's newest weights and sends them to it.

pi05-rl actor CONFIG [--key=value …]
python -m lerobot_policy_pi05_rl.online.actor CONFIG [--key=value …]
"""

import logging
import socket
import sys
import time
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.policies.rtc.configuration_rtc import RTCConfig

from ...config.actor import ActorConfig
from ...config.arguments import split_config_path
from ...config.file import load_config
from ...config.resolve import resolved
from ...config.train import ConfigError
from ...data.action_limits import clipping_texts_of_statistics
from ...errors import UserError
from ...model.trainable import pushed_tensors
from ...returns import Outcome
from ...runtime.progress import StopSignal
from ..config import OnlineTrainConfig
from ..transport.client import LearnerClient
from ..transport.spool import Sender, Spool
from .chunk_model import ChunkModel
from .control import SWITCH_S, Control, Ending, Stats
from .environment import ActorEnvironment
from .inference import ChunkSource, ChunkThread
from .recorder import Recorder
from .safety import StalenessCheck, check_names
from .setup import (
    absolute_statistics,
    build_policy,
    check_frozen,
    choose_task,
    decode_policy_config,
    make_environment,
    read_processors,
)
from .threads import Reporter, WeightsThread, wait_for_learner

logger = logging.getLogger(__name__)

DRAIN_S = 60.0  # how long a run that ends waits for its last episodes to be sent
STOPPED_DRAIN_S = 1.0  # the same, of a run that was stopped
JOIN_S = 10.0  # how long the end waits for a chunk that is being computed
MOST_FAILURES = 3  # episodes in a row that the environment broke
UNLIMITED = "--allow_unlimited_actions"


def main(arguments: list[str]) -> int:
    """``pi05-rl actor CONFIG``; returns the exit code.

    Raises:
        UserError: bad input.
    """
    path, overrides = split_config_path([argument for argument in arguments if argument != UNLIMITED], "actor")
    overrides += ["--actor.allow_unlimited_actions=true"] if UNLIMITED in arguments else []
    run_actor(load_config(path, overrides, OnlineTrainConfig))
    return 0


def run_actor(
    cfg: OnlineTrainConfig, *, client: Any | None = None, environment: ActorEnvironment | None = None
) -> None:
    """Play episodes until ``actor.episodes`` are played, the learner has made all its steps, or SIGINT or SIGTERM.

    Args:
        client: talks to the learner; None: a ``LearnerClient`` of ``policy.actor_learner_config``.
        environment: acted in; None: the configuration's. Closed in any case.

    Raises:
        UserError: bad input, a learner that refuses this actor, or an environment that fails again and again.
    """
    cfg = resolved(cfg, "actor_device")
    sys.setswitchinterval(SWITCH_S)
    name = actor_name(cfg.actor.name)
    spool = Spool(cfg.actor.spool_dir or cfg.run_dir / "actors" / name, cfg.actor.spool_gb)
    with ExitStack() as stack, StopSignal() as stop:
        if environment is not None:
            stack.callback(environment.close)
        if client is None:
            client = LearnerClient(cfg.policy.actor_learner_config, name)
        stack.callback(client.close)
        setup = wait_for_learner(client, lambda: stop.requested)
        if setup is None:
            return
        Actor(cfg, name, client, setup, spool, environment, stack, stop).run()


def actor_name(name: str | None) -> str:
    """Of this actor among others; None: the machine's.

    Raises:
        ConfigError: it cannot be the name of a folder.
    """
    name = name or socket.gethostname()
    if name != Path(name).name or name in ("", ".", ".."):
        raise ConfigError(f"actor.name {name!r} is also its folder's name and may hold no path separator")
    return name


class Actor:
    """Everything of one run, built from the learner's ``setup``; whatever is opened is closed by ``stack``."""

    def __init__(
        self,
        cfg: OnlineTrainConfig,
        name: str,
        client: Any,
        setup: Any,
        spool: Spool,
        environment: ActorEnvironment | None,
        stack: ExitStack,
        stop: StopSignal,
    ):
        self._cfg, self._name, self._spool, self._stop, self._stack = cfg, name, spool, stop, stack
        config = decode_policy_config(
            setup.policy_config, cfg.policy, adapts=cfg.peft is not None, inference=cfg.actor.inference
        )
        processors = read_processors(dict(setup.processors), config)
        policy = build_policy(config, cfg.peft)
        shapes = {key: tensor.shape for key, tensor in pushed_tensors(policy).items()}
        check_frozen(policy, list(shapes), setup.frozen_fingerprint)
        if environment is None:
            features = {**config.input_features, **config.output_features}
            environment = make_environment(
                cfg.env, cfg.actor, features, list(setup.action_names), rename_map=cfg.rename_map
            )
            stack.callback(environment.close)
        said = clipping_texts_of_statistics(cfg.actor, environment.action_names, absolute_statistics(processors[0]))
        for text in said:
            logger.warning("[ACTOR] %s", text)
        check_names("actor.hold_action", cfg.actor.hold_action, environment.action_names)
        if abs(environment.fps - setup.fps) > 1e-3:
            raise ConfigError(
                f"env.fps is {environment.fps:g}, but the learner's data has {setup.fps:g} steps a second"
            )
        task = choose_task(cfg.policy.task, environment.task, list(setup.tasks))
        self._env, self._stats = environment, Stats()
        self._recorder = Recorder(name, task, cfg.actor.jpeg_quality)
        stack.callback(self._recorder.close)
        self._source = make_source(cfg.actor, ChunkModel(policy, processors, task), environment)
        self._weights = WeightsThread(client, setup, shapes, self._source)
        self._sender = Sender(spool, client)
        self._reporter = Reporter(client, lambda: self._weights.session, self.numbers)
        self._began = time.monotonic()
        self._control = Control(
            environment,
            self._source,
            self._recorder,
            cfg.actor,
            lambda: stop.requested,
            self._stats,
            max_steps=setup.max_episode_frames or None,
        )

    def run(self) -> None:
        """Play until the run is over; finished episodes are in the spool then, and sent if the learner is there."""
        threads = [self._weights, self._sender, self._reporter]
        if not self._source.inline:
            threads.append(ChunkThread(self._source))
        for thread in threads:
            thread.start()
            self._stack.callback(thread.stop)
        if not self._source.inline:
            self._stack.callback(threads[-1].join, JOIN_S)
            self._stack.callback(threads[-1].stop)
        logger.info("[ACTOR] %s acts: %s", self._name, self._env.task)
        failures, number, wanted = 0, 0, self._cfg.actor.episodes
        origin = [self._cfg.seed, zlib.crc32(self._name.encode()), time.time_ns()]  # no start plays another's episodes
        while not self._over and (wanted is None or self._stats.episodes < wanted):
            if not self._wait_for_weights():
                break
            number += 1
            seed = int(np.random.SeedSequence([*origin, number]).generate_state(1)[0])
            ending = self._play(seed)
            failures = failures + 1 if ending.broken else 0
            if failures == MOST_FAILURES:
                raise UserError(
                    f"the environment failed, or gave nothing to act on, in {failures} episodes in a row: {ending.why}"
                )
            if self._spool.full:
                raise UserError(
                    f"more than {self._spool.capacity_gb:g} GB of episodes wait in {self._spool.folder}; start the "
                    "learner and the actor again to send them, or raise actor.spool_gb"
                )
        stopping = self._stop.requested
        if self._weights.finished and not stopping:
            logger.info("[ACTOR] The learner has made all its steps; this actor ends, too")
        if left := self._sender.drain(
            STOPPED_DRAIN_S if self._over else DRAIN_S, lambda: self._stop.requested > stopping
        ):
            logger.warning("[ACTOR] %d episodes wait in %s; the next start sends them", left, self._spool.folder)

    @property
    def _over(self) -> bool:
        """Whether no further episode is begun: somebody stopped the actor, or the learner needs none."""
        return self._stop.requested or self._weights.finished

    def _wait_for_weights(self) -> bool:
        said = time.monotonic()
        while self._weights.error is None:
            if self._source.has_weights:
                return True
            if self._over:
                return False
            if time.monotonic() - said > 5:
                said = time.monotonic()
                logger.info("[ACTOR] Waiting for the learner's first weights")
            time.sleep(0.01)
        raise self._weights.error

    def _play(self, seed: int) -> Ending:
        """One episode, into the spool."""
        held = self._stats.held
        ending = None
        try:
            ending = self._control.play(seed)
        finally:  # an exception ends the run, but loses neither steps nor what is known of their outcome
            failed = Ending(self._control.known_outcome, "the actor failed", broken=True)
            self._keep(ending or failed, self._stats.held - held)
        return ending

    def _keep(self, ending: Ending, held: int) -> None:
        recorder, stats = self._recorder, self._stats
        if ending.outcome is None or not len(recorder):
            stats.dropped += 1
            logger.info("[ACTOR] Episode dropped after %d steps: %s", len(recorder), ending.why)
            return
        stats.episodes += 1
        stats.successes += ending.outcome is Outcome.SUCCESS
        report = {
            "steps": float(len(recorder)),
            "return": recorder.total_reward,
            "intervention_rate": recorder.intervention_rate,
            "held": float(held),
        }
        episode = recorder.finish(ending.outcome, report)
        self._spool.put(episode)
        self._sender.wake()
        what = ending.outcome.value if ending.why == ending.outcome.value else f"{ending.outcome.value} ({ending.why})"
        logger.info(
            "[ACTOR] Episode %d: %s after %d steps, return %g, interventions %.2f, weights of step %d, uid %s",
            stats.episodes,
            what,
            len(recorder),
            recorder.total_reward,
            recorder.intervention_rate,
            recorder.last_version,
            episode.uid,
        )

    def numbers(self) -> dict[str, float]:
        """How the actor is doing, for the learner's log; times in seconds."""
        stats, source = self._stats, self._source
        newest = max(self._weights.newest, self._reporter.learner_step or 0)
        return {
            "steps": float(stats.steps),
            "steps_per_s": stats.steps / max(1e-9, time.monotonic() - self._began),
            "policy_version": float(source.version),
            "policy_age_s": source.weights_age_s,
            "policy_age_steps": float(max(0, newest - source.version)),
            "queued_actions": float(source.queued),
            "chunk_latency_p95_s": source.latency_s,
            "bad_chunks": float(source.bad_chunks),
            "spooled_episodes": float(len(self._spool.waiting())),
            "sent_episodes": float(self._sender.sent),
            "refused_episodes": float(self._sender.refused_count),
            "control_period_p50_s": stats.percentile(50),
            "control_period_p99_s": stats.percentile(99),
            "held_steps": float(stats.held),
            "episodes": float(stats.episodes),
            "dropped_episodes": float(stats.dropped),
            "success_rate": stats.successes / max(1, stats.episodes),
            "intervention_rate": stats.interventions / max(1, stats.steps),
        }


def make_source(actor: ActorConfig, model: ChunkModel, environment: ActorEnvironment) -> ChunkSource:
    """The chunks as ``actor.inference`` wants them."""
    config, staleness = model.policy.config, None
    if environment.real_robot:
        staleness = StalenessCheck(actor.stale_observation_s, check_pictures=True)
    if actor.inference == "sync":
        rtc = RTCConfig(enabled=False)
        return ChunkSource(
            model, rtc, environment.fps, threshold=0, horizon=config.n_action_steps, staleness=staleness, inline=True
        )
    threshold = config.chunk_size // 2 if actor.queue_threshold is None else actor.queue_threshold
    rtc = config.rtc_config
    horizon = config.chunk_size if rtc.enabled else config.n_action_steps
    return ChunkSource(model, rtc, environment.fps, threshold=threshold, horizon=horizon, staleness=staleness)
