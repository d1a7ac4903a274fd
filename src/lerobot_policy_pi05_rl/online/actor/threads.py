"""What an actor does with the learner beside its control loop: receive weights, report how it is doing."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from ...errors import UserError
from ..transport.client import Refused, Unreachable
from ..transport.weights import unpack_weights
from .chunk_model import Weights
from .inference import ChunkSource
from .setup import SetupError, acts_alike

logger = logging.getLogger(__name__)

RETRY_S, LOG_EVERY_S, REPORT_EVERY_S = 0.5, 5.0, 5.0


def wait_for_learner(client: Any, stopped: Callable[[], bool]) -> Any | None:
    """The learner's ``ActorSetup``, once it can be reached; None: the actor was stopped first.

    Raises:
        Refused: the learner does not take this actor.
    """
    said = 0.0
    while not stopped():
        try:
            return client.join()
        except Unreachable as error:
            if time.monotonic() - said >= LOG_EVERY_S:
                said = time.monotonic()
                logger.info("[ACTOR] Waiting for the learner: %s", error)
            time.sleep(RETRY_S)
    return None


class WeightsThread(threading.Thread):
    """Receives weights and stages them; joins again when the learner was away or has started anew.

    Args:
        setup: the ``ActorSetup`` of the join.
        shapes: of every tensor that is pushed.
    """

    def __init__(self, client: Any, setup: Any, shapes: dict[str, torch.Size], source: ChunkSource):
        super().__init__(name="weights", daemon=True)
        self._client, self._setup, self._shapes, self._source = client, setup, shapes, source
        self._halt = threading.Event()
        self._known = -1
        self.newest = -1  # version that was received last
        self.error: Exception | None = None
        self.finished = False  # the learner has made all its steps and needs no more episodes

    @property
    def session(self) -> str:
        """Of the learner's present start."""
        return self._setup.session

    def run(self) -> None:
        while not self._halt.is_set():
            try:
                self._receive()
            except (Unreachable, Refused) as error:
                if getattr(error, "finished", False):
                    self.finished = True
                    return
                # A learner that has started anew refuses the session of the old one: the join tells.
                logger.debug("[ACTOR] No weights for now: %s", error)
                self._halt.wait(RETRY_S)
                try:
                    self._join_again()
                except Unreachable:
                    continue
                except UserError as fatal:
                    self.error = fatal
                    return
            except Exception as error:  # the control loop must end its episode and say it
                self.error = error
                return
            else:
                self._halt.wait(RETRY_S)

    def _receive(self) -> None:
        for header, data in self._client.stream_weights(self.session, self._known):
            if self._halt.is_set():
                return
            if header.session != self.session:
                self._join_again()  # the learner has started anew: is its policy the same?
            if header.session != self.session:
                continue
            tensors = unpack_weights(data, self._shapes)
            if self.newest < 0:
                logger.info("[ACTOR] First weights: step %d of the learner", header.version)
            self._source.stage(Weights(header.version, tensors))
            self._known = self.newest = header.version

    def _join_again(self) -> None:
        setup = self._client.join()
        if setup.session == self.session:
            return
        same = acts_alike(setup.policy_config, self._setup.policy_config)
        same = same and setup.processors == self._setup.processors
        if not same or setup.frozen_fingerprint != self._setup.frozen_fingerprint:
            raise SetupError("the learner has started anew with another policy; start the actor anew, too")
        logger.info("[ACTOR] The learner has started anew; going on with its session %s", setup.session)
        self._setup, self._known = setup, -1

    def stop(self) -> None:
        """End; a wait for the next weights ends with the client's connection."""
        self._halt.set()


class Reporter(threading.Thread):
    """Tells the learner every few seconds how the actor is doing.

    Args:
        numbers: what to tell.
        session: of the learner's present start.
    """

    def __init__(self, client: Any, session: Callable[[], str], numbers: Callable[[], dict[str, float]]):
        super().__init__(name="reporter", daemon=True)
        self._client, self._session, self._numbers = client, session, numbers
        self._halt = threading.Event()
        self.learner_step: int | None = None

    def run(self) -> None:
        while not self._halt.wait(REPORT_EVERY_S):
            try:
                self.report()
            except Unreachable as error:
                logger.debug("[ACTOR] The learner cannot be reached for a report: %s", error)
            except Refused as error:
                logger.warning("[ACTOR] The learner refuses a report: %s", error)

    def report(self) -> None:
        """Tell it now.

        Raises:
            Unreachable, Refused: of the client.
        """
        receipt = self._client.report(self._session(), self._numbers())
        self.learner_step = getattr(receipt, "optimization_step", self.learner_step)

    def stop(self) -> None:
        """End."""
        self._halt.set()
