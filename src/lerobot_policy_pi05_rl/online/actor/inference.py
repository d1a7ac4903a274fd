"""Chunks of actions from the newest observation, beside the control loop or inside it."""

import logging
import math
import threading
import time

import numpy as np
import torch
from lerobot.policies.rtc import ActionQueue, LatencyTracker
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from torch import Tensor

from .chunk_model import ChunkModel, Weights
from .environment import Observation
from .safety import StalenessCheck

logger = logging.getLogger(__name__)

IDLE_S = 0.005


class ChunkSource:
    """Queued actions, the weights that made them, and what stands against acting.

    The control loop publishes observations and takes actions; :meth:`work` computes, in a :class:`ChunkThread` or, if
    ``inline``, when the loop asks for an action and none is left. New weights wait, staged by whoever receives
    them, for the next episode, or for the next chunk if what is queued outlasts their loading.

    Args:
        model: computes.
        rtc: LeRobot's real-time chunking; disabled: chunks are executed one after the other.
        fps: control steps per second.
        threshold: a chunk is computed once so many actions or fewer are left.
        horizon: actions of a chunk that are queued.
        staleness: refuses observations; None where time stands still between steps.
        inline: compute in the control loop.
    """

    def __init__(
        self,
        model: ChunkModel,
        rtc: RTCConfig,
        fps: float,
        *,
        threshold: int,
        horizon: int,
        staleness: StalenessCheck | None = None,
        inline: bool = False,
    ):
        self._model, self._rtc, self._fps = model, rtc, fps
        self._threshold, self._horizon, self._staleness, self.inline = threshold, horizon, staleness, inline
        self._queue, self._latency = ActionQueue(rtc), LatencyTracker()
        self._lock = threading.Lock()
        self._computing = threading.Lock()  # whoever loads weights or computes a chunk
        self._seen: tuple[Observation, float, int] | None = None  # when, and which action follows it
        self._taken = 0  # actions that were handed out
        self._chunk: tuple[Tensor, Tensor, int] | None = None  # normalised, executed; which action its first one is
        self._epoch = 0  # a chunk that was begun in an earlier one is forgotten
        self._overruled = False  # a person acted since the newest chunk was begun
        self._due = False  # a chunk is, and the observation to compute it from is there
        self._staged: Weights | None = None
        self._weights: Weights | None = None
        self._load_s = 0.0  # how long the last weights took to load
        self._frozen: str | None = None  # a camera
        self._stale: str | None = None  # the newest observation, when a chunk was to be computed from it
        self._refused: str | None = None  # the last chunk
        self.error: Exception | None = None
        self.chunks = self.bad_chunks = 0

    # Of the thread that receives weights

    def stage(self, weights: Weights) -> None:
        """Act with these as soon as nothing waits for it; an older version that still waits is forgotten."""
        self._staged = weights

    # Of the control loop

    @property
    def has_weights(self) -> bool:
        """Whether the learner has sent any; nothing is computed before."""
        return self._weights is not None or self._staged is not None

    @property
    def version(self) -> int:
        """Of the weights that compute; -1: none yet."""
        return -1 if self._weights is None else self._weights.version

    @property
    def weights_age_s(self) -> float:
        """Seconds since the weights that compute were received."""
        return 0.0 if self._weights is None else time.monotonic() - self._weights.received

    @property
    def queued(self) -> int:
        """Actions left."""
        return self._queue.qsize()

    @property
    def latency_s(self) -> float:
        """What nearly every chunk takes at most, in seconds."""
        return float(self._latency.p95() or 0.0)

    @property
    def fault(self) -> str | None:
        """What stands against acting now; None: nothing."""
        return self._frozen or self._stale or self._refused

    def begin_episode(self) -> None:
        """Forget the last episode's actions, also those of a chunk that is being computed, and load staged weights.

        Before the reset: what is observed afterwards would be too old once they are loaded.
        """
        with self._lock:
            self._seen, self._due = None, False
            self._frozen = self._stale = self._refused = None
            self._forget()
        if self._staleness is not None:
            self._staleness.reset()
        with self._computing:  # a chunk of the last episode ends first
            self._load_staged()

    def publish(self, observation: Observation, intervened: bool) -> None:
        """Show the newest observation.

        Args:
            intervened: a person acted in the step that led to it; a chunk that continues no plan is due then.
        """
        now = time.monotonic()
        frozen = None if self._staleness is None else self._staleness.update(observation, now)
        with self._lock:
            self._seen, self._frozen = (observation, now, self._taken), frozen
            self._overruled |= intervened
            self._due = self._needs_chunk()  # asked here: later, an action is under way, and the observation older
            if frozen:
                self._forget()

    def next_action(self) -> tuple[np.ndarray, int] | None:
        """((A,) float32, the version of the weights that made it), or None: there is nothing to execute."""
        if self.inline and (self._overruled or self._queue.empty()):
            self.work()
        if self.error is not None:
            raise self.error
        with self._lock:
            row = None if self.fault else self._queue.get()
            self._taken += row is not None
        return None if row is None else (row[:-1].float().numpy(), int(row[-1]))

    # Of the thread that computes

    def work(self) -> bool:
        """Compute a chunk if one is needed; whether it did."""
        with self._computing:
            return self._work()

    def _work(self) -> bool:
        with self._lock:
            if not (self._due and self.has_weights and self._needs_chunk()) or self._frozen:
                return False
            # Weights that take longer than the queue lasts wait for the next episode: the robot would stand still.
            outlasts = self._queue.qsize() >= int(self._load_s * self._fps)
        if outlasts or self._weights is None:
            self._load_staged()  # may take a while, so the observation is picked afterwards
        with self._lock:
            if self._seen is None:
                return False
            observation, at, first = self._seen
            epoch, executing, overruled = self._epoch, self._taken - first, self._overruled
            left_over, left_over_actions = (None, None) if overruled else self._left_over(first)
            began = time.monotonic()
            self._stale = None if self._staleness is None else self._staleness.too_old(began - at)
            if self._stale:
                self._forget()
                return False  # until there is a newer one
            self._overruled = self._due = False
        delay = executing + math.ceil(self.latency_s * self._fps)
        original, actions = self._model.compute(observation, delay, left_over, left_over_actions)
        self.chunks += 1
        if self.chunks > 1:  # the first one warms up
            self._latency.add(time.monotonic() - began)
        if not (torch.isfinite(original).all() and torch.isfinite(actions).all()):
            self.bad_chunks += 1
            self._refuse(epoch, f"the policy's chunk holds NaN or infinity (weights of step {self.version})")
            return True
        original, actions = original[: self._horizon], actions[: self._horizon]
        version = torch.full((len(actions), 1), float(self.version)).double()
        with self._lock:
            if epoch == self._epoch and not self._frozen:
                self._refused = None
                if overruled:
                    self._queue.clear()
                # Exactly as many actions as were executed meanwhile; while the robot stood still, none were.
                passed = self._taken - first if self._rtc.enabled else 0
                self._queue.merge(original, torch.cat([actions.double(), version], dim=1), passed)
                self._chunk = original, actions, first
                # Whether another one is due is asked of the next observation: the newest one may be old by now.
                self._due &= self._queue.empty()
        return True

    def _needs_chunk(self) -> bool:
        return self._overruled or self._queue.qsize() <= self._threshold

    def _left_over(self, first: int) -> tuple[Tensor | None, Tensor | None]:
        """What is planned from action number ``first`` on, the one that follows the observation. It may be under way:
        an observation is older than the queue while the environment steps."""
        if self._chunk is None or not self._rtc.enabled:
            return None, None
        original, actions, start = self._chunk
        return original[first - start :], actions[first - start :]

    def _forget(self) -> None:
        """Whatever is planned, also by the chunk that is being computed."""
        self._epoch += 1
        self._chunk, self._overruled = None, False
        self._queue.clear()

    def _load_staged(self) -> None:
        staged = self._staged
        if staged is not None and staged is not self._weights:
            began = time.monotonic()
            self._model.load(staged)
            self._weights, self._load_s = staged, time.monotonic() - began

    def _refuse(self, epoch: int, reason: str) -> None:
        with self._lock:
            if epoch == self._epoch:
                self._refused, self._due = reason, True
                self._forget()


class ChunkThread(threading.Thread):
    """Lets a :class:`ChunkSource` work beside the control loop, which hears of an exception at its next action."""

    def __init__(self, source: ChunkSource):
        super().__init__(name="chunks", daemon=True)
        self._source, self._halt = source, threading.Event()

    def run(self) -> None:
        while not self._halt.is_set():
            try:
                if not self._source.work():
                    self._halt.wait(IDLE_S)
            except Exception as error:  # whatever it is, the control loop must end its episode and say it
                self._source.error = error
                return

    def stop(self) -> None:
        """End after the chunk that is being computed."""
        self._halt.set()
