"""Finished episodes wait on the actor's disk until the learner has them: a dead learner loses nothing."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from ...errors import UserError
from ...runtime.files import replacing
from ..episode import Episode, pack
from .client import LearnerClient, Refused, Unreachable

logger = logging.getLogger(__name__)

END, UNFINISHED, REFUSED = ".safetensors", ".partial", "refused"
# The learner refuses the actor, a wrong token for one, and not the episode that it happens to send.
REFUSE_ACTOR = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0


class Spool:
    """A folder of packed episodes, oldest first; what an earlier start of the actor left there is sent, too.

    Args:
        folder: made if it is not there.
        capacity_gb: above so many GB :attr:`full` is true.

    Raises:
        UserError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, capacity_gb: float):
        self.folder, self.capacity_gb = Path(folder), capacity_gb
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for rest in self.folder.glob(f"*{UNFINISHED}"):
                rest.unlink()  # of a process that died while it wrote: never a whole episode
        except OSError as error:
            raise UserError(f"episodes cannot be kept in {self.folder}: {error.strerror or error}") from error

    def put(self, episode: Episode) -> Path:
        """Write the episode so that a power cut leaves all of it or nothing; returns its file.

        Raises:
            UserError: the disk is full or the folder is gone.
        """
        path = self.folder / f"{time.time_ns():020d}-{episode.uid}{END}"
        try:
            with replacing(path, path.with_suffix(UNFINISHED)) as aside:
                aside.write_bytes(pack(episode))
        except OSError as error:
            raise UserError(f"an episode cannot be written to {self.folder}: {error.strerror or error}") from error
        return path

    def waiting(self) -> list[Path]:
        """The episodes not yet sent, oldest first."""
        return sorted(self.folder.glob(f"*{END}"))

    def done(self, path: Path) -> None:
        """The learner has this episode."""
        path.unlink(missing_ok=True)

    def refuse(self, path: Path) -> Path:
        """Put an episode aside that the learner does not take; returns where."""
        aside = self.folder / REFUSED
        aside.mkdir(exist_ok=True)
        return path.rename(aside / path.name)

    @property
    def full(self) -> bool:
        """Whether more waits than the capacity."""
        return sum(map(_size, self.waiting())) > self.capacity_gb * 1e9


def _size(path: Path) -> int:
    """Bytes of a file; 0 once the sender has done with it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def uid_of(path: Path) -> str:
    """The episode's uid, of the name of its file."""
    return path.stem.partition("-")[2]


class Sender(threading.Thread):
    """Sends the spool's episodes, oldest first, each until the learner has it."""

    def __init__(self, spool: Spool, client: LearnerClient):
        super().__init__(name="sender", daemon=True)
        self._spool, self._client = spool, client
        self._halt, self._news = threading.Event(), threading.Event()
        self._ask = True  # a receipt may have been lost: of an earlier start, or with the connection
        self.sent = self.refused_count = self.failed_tries = 0

    def run(self) -> None:
        wait = FIRST_WAIT_S
        while not self._halt.is_set():
            try:
                if not self.send_one():
                    self._news.wait(FIRST_WAIT_S)
                    self._news.clear()
                wait = FIRST_WAIT_S
            except Unreachable as error:
                self.failed_tries += 1
                logger.debug("[ACTOR] The learner cannot be reached for an episode: %s", error)
                self._halt.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
            except (Refused, OSError) as error:  # not of one episode: of this actor, or of the disk
                logger.error("[ACTOR] Episodes cannot be sent and wait in %s: %s", self._spool.folder, error)
                self._halt.wait(LONGEST_WAIT_S)

    def send_one(self) -> bool:
        """Send the oldest episode; False where none waits.

        Raises:
            Unreachable: the learner is away; nothing is lost.
            Refused: the learner does not take this actor; nothing is lost.
        """
        waiting = self._spool.waiting()
        if not waiting:
            return False
        if self._ask:
            known = self._client.known([uid_of(path) for path in waiting])
            self._ask = False
            for path in waiting:
                if uid_of(path) in known:
                    self._spool.done(path)
                    self.sent += 1
            return True
        path = waiting[0]
        self._ask = True  # until the receipt is here: if it is lost, the learner may have the episode all the same
        try:
            self._client.send(path.read_bytes(), uid_of(path))
        except Refused as error:
            if error.code in REFUSE_ACTOR:
                raise
            logger.error(
                "[ACTOR] The learner refuses an episode: %s. It is kept in %s", error, self._spool.refuse(path)
            )
            self.refused_count += 1
        else:
            self._spool.done(path)
            self.sent += 1
        self._ask = False
        return True

    def wake(self) -> None:
        """An episode was put into the spool."""
        self._news.set()

    def drain(self, timeout_s: float, stopped: Callable[[], bool] = lambda: False) -> int:
        """Wait until nothing waits, at most ``timeout_s`` seconds or until ``stopped``; returns how many still do."""
        deadline = time.monotonic() + timeout_s
        while (left := len(self._spool.waiting())) and time.monotonic() < deadline and not stopped():
            self.wake()
            time.sleep(0.02)
        return left

    def stop(self) -> None:
        """End after the episode that is being sent."""
        self._halt.set()
        self._news.set()
