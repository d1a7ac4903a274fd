"""Who saves a run's checkpoints: now or beside the training, on a disk that may be full, and to the Hub."""

import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lerobot.common.train_utils import get_step_checkpoint_dir, push_checkpoint_to_hub
from lerobot.utils.constants import LAST_CHECKPOINT_LINK
from safetensors import SafetensorError

from ..errors import UserError, one_line, typed_line
from ..recap import RecapAlgorithm
from ..stored.files import CheckpointError
from .snapshot import Snapshot, collect
from .write import PARTIAL, hidden, prune, remove_leftovers, write_checkpoint

logger = logging.getLogger(__name__)


class SaveError(UserError):
    """A checkpoint that could not be written."""


class CheckpointSaver:
    """Saves the checkpoints of one run. As a context it ends when the last one is whole.

    With ``save_in_background`` a save takes as long as a copy to host memory; at most one is being written, the next
    one waits for it, and its failure is raised by :meth:`check`, by the next :meth:`save`, or at the end.
    """

    def __init__(
        self,
        run_dir: Path,
        total_steps: int,
        *,
        in_background: bool = False,
        keep_last: int | None = None,
        upload_to: str | None = None,
        private: bool | None = None,
        writes: bool = True,
        **constants: Any,
    ):
        """Args:
        keep_last: how many checkpoints stay; None: all.
        upload_to: the Hub's repository that each is sent to, ``private`` if it is new; None: none is sent.
        writes: false in the processes that only take part in gathering what is spread over all of them.
        constants: the other arguments of :func:`write_checkpoint` that hold for the whole run.
        """
        self.run_dir, self.total_steps, self.constants = run_dir, total_steps, constants
        self.keep_last, self.upload_to, self.private = keep_last, upload_to, private
        self._writer = ThreadPoolExecutor(1, "checkpoint") if in_background else None
        self._in_flight: Future | None = None
        if writes:
            remove_leftovers(run_dir)

    def _directory(self, step: int) -> Path:
        return get_step_checkpoint_dir(self.run_dir, self.total_steps, step)

    def save(self, algorithm: RecapAlgorithm, metrics_state: dict[str, Any]) -> Path:
        """Save the algorithm's present state; the directory is whole now, or when the context ends.

        Every process calls it.

        Raises:
            SaveError: this checkpoint, or the one before, could not be written.
        """
        self._wait()
        snapshot = collect(algorithm, metrics_state, copied=self._writer is not None)
        if snapshot is None:
            return self._directory(algorithm.optimization_step)
        if self._writer is None:
            self._write(snapshot, algorithm.policy)
        else:
            self._in_flight = self._writer.submit(self._write, snapshot, algorithm.policy)
        return self._directory(snapshot.step)

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did. Costs nothing; called every step."""
        if self._in_flight is not None and self._in_flight.done():
            self._wait()

    def _wait(self) -> None:
        if self._in_flight is not None:
            in_flight, self._in_flight = self._in_flight, None
            in_flight.result()

    def __enter__(self) -> "CheckpointSaver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        try:
            if self._in_flight is not None and not self._in_flight.done():
                logger.info("Waiting for the checkpoint that is being written")
            self._wait()
        except UserError as error:
            if kind is None:
                raise
            logger.error("%s", error)  # another error ends the run; this one must be known too
        finally:
            if self._writer is not None:
                self._writer.shutdown()

    def _write(self, snapshot: Snapshot, policy: Any) -> None:
        final = self._directory(snapshot.step)
        try:
            write_checkpoint(snapshot, self.run_dir, policy=policy, total_steps=self.total_steps, **self.constants)
        except (OSError, SafetensorError, CheckpointError) as error:
            raise self._give_up(final, snapshot, error) from error
        try:
            prune(final, self.keep_last)
        except OSError as error:
            logger.warning("An old checkpoint of keep_last_checkpoints could not be deleted: %s", error)
        if self.upload_to is not None:
            upload(final, self.upload_to, private=self.private)

    def _give_up(self, final: Path, snapshot: Snapshot, error: Exception) -> SaveError:
        """Take away what was half written; returns the error that says what happened and what to do."""
        partial, left = hidden(final, PARTIAL), "Nothing half written is left"
        try:
            if partial.exists():
                shutil.rmtree(partial)
        except OSError as another:
            left = f"{partial} could not be removed ({another.strerror})"
        last = final.parent / LAST_CHECKPOINT_LINK
        goes_on = "none was saved before"
        if last.exists():
            goes_on = f"{last.resolve().name} is whole, and --resume=true goes on from it"
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        return SaveError(
            f"the checkpoint {final} cannot be written: {reason}. It takes {size(snapshot.nbytes)}, and "
            f"{size(free_bytes(final))} are free there. {left}; {goes_on}. Make room, or set keep_last_checkpoints "
            "(one more than that many must fit)"
        )


def upload(checkpoint: Path, repo_id: str, *, private: bool | None) -> None:
    """Send a whole checkpoint to ``checkpoints/<step>`` of the Hub repository.

    A failure is one warning: the checkpoint is safe on the disk, and the next one is another attempt."""
    try:
        push_checkpoint_to_hub(checkpoint, repo_id, private=private)
    except Exception as error:  # the Hub's client and the network below it raise a dozen unrelated types
        logger.warning(
            "The checkpoint %s was not uploaded to %s (%s); the run goes on",
            checkpoint.name,
            repo_id,
            typed_line(error),
        )
    else:
        logger.info("The checkpoint %s is on the Hub, in %s", checkpoint.name, repo_id)


def free_bytes(path: Path) -> int:
    """Free disk space where ``path`` would be."""
    existing = next(parent for parent in path.parents if parent.exists())
    return shutil.disk_usage(existing).free


def size(count: int) -> str:
    """Bytes for people: ``18.2 GB``."""
    for unit, least in (("GB", 1e9), ("MB", 1e6)):
        if count >= least:
            return f"{count / least:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
