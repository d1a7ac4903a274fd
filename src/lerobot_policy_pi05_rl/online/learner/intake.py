"""From the inbox into the replay, beside the training: one thread, one episode at a time, each exactly once."""

import logging
import queue
import threading
import time
from pathlib import Path

from ...errors import UserError
from ..episode import BadEpisodeError, Episode, EpisodeSpec, unpack
from ..replay.replay import Replay
from ..transport.inbox import Inbox

logger = logging.getLogger(__name__)

IDLE_S = 0.05


class Intake:
    """Appends every episode of the inbox to the replay, then takes it from the inbox. A context that ends when
    all that has arrived is stored.

    A crash between the two leaves the episode in both; the replay knows its uid, so it is not stored twice.
    """

    def __init__(self, inbox: Inbox, replay: Replay, spec: EpisodeSpec):
        self.inbox, self.replay, self.spec = inbox, replay, spec
        self.stored: queue.SimpleQueue[Episode] = queue.SimpleQueue()  # for the log, and for videos
        self._failure: UserError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)

    def __enter__(self) -> "Intake":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raise what went wrong in the thread, if anything did.

        Raises:
            UserError: the replay cannot be written; the episodes wait in the inbox.
        """
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while self._failure is None:
            waiting = self.inbox.pending()
            for path in waiting:
                self._take(path)
                if self._failure is not None:
                    return
            if not waiting:
                if self._stop.is_set():
                    return
                time.sleep(IDLE_S)

    def _take(self, path: Path) -> None:
        uid = path.stem
        try:
            episode = unpack(path.read_bytes(), self.spec)
            fresh = self.replay.append(episode)
            self.inbox.remove(uid)
        except BadEpisodeError as error:  # a picture that is damaged inside shows only now
            self.inbox.reject(uid, str(error))
            return
        except Exception as error:  # whatever the encoder, parquet or the disk raise, the main thread must end the run
            logger.exception("[LEARNER] The replay cannot be written")
            self._failure = UserError(
                f"the replay {self.replay.root} cannot be written: {error}. The episodes that have arrived wait in "
                f"{self.inbox.directory}; mend it (a full disk?), then resume=true goes on"
            )
            return
        if fresh:
            self.stored.put(episode)
