"""Who saves a run's checkpoints: now or beside the training, on a disk that may be full, and to the Hub."""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from lerobot.common.train_utils import get_step_checkpoint_dir, push_checkpoint_to_hub
from lerobot.utils.constants import LAST_CHECKPOINT_LINK
from safetensors import SafetensorError

from ..errors import UserError, one_line, typed_line
from ..recap import RecapAlgorithm
from ..stored.files import CheckpointError
from .hub import show_card
from .snapshot import collect
from .write import PARTIAL, finish_checkpoint, hidden, prune, remove_leftovers, write_files

logger = logging.getLogger(__name__)


class SaveError(UserError):
    """A checkpoint that could not be written."""


class CheckpointSaver:
    """Saves the checkpoints of one run. As a context it ends when the last one is whole.

    Training waits until the files are written; they are read back, named and uploaded beside it. With
    ``save_in_background`` it waits for a copy to host memory alone, and they are written beside it, too. At most one
    checkpoint is under way, the next one waits for it, and its failure is raised by :meth:`check`, by the next
    :meth:`save`, or at the end.
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
        constants: the other arguments of :func:`write_files` that hold for the whole run.
        """
        self.run_dir, self.total_steps, self.constants = run_dir, total_steps, constants
        self.keep_last, self.upload_to, self.private = keep_last, upload_to, private
        self.in_background = in_background
        self._beside = ThreadPoolExecutor(1, "checkpoint")
        self._in_flight: Future | None = None
        if writes:
            remove_leftovers(run_dir)

    def _directory(self, step: int) -> Path:
        return get_step_checkpoint_dir(self.run_dir, self.total_steps, step)

    def save(self, algorithm: RecapAlgorithm, metrics_state: dict[str, Any], card: str | None = None) -> Path:
        """Save the algorithm's present state; the directory is whole when the context ends, or at the next save.

        Every process calls it.

        Args:
            card: the text of its README.md, from the process that writes.

        Raises:
            SaveError: this checkpoint, or the one before, could not be written.
        """
        self._wait()
        final = self._directory(algorithm.optimization_step)
        snapshot = collect(algorithm, metrics_state, copied=self.in_background)
        if snapshot is None:
            return final
        size = snapshot.nbytes
        write = partial(write_files, snapshot, final, policy=algorithm.policy, card=card, **self.constants)
        if not self.in_background:
            self._try(write, final, size)
            write = None  # nor is what it refers to held while training goes on
        self._in_flight = self._beside.submit(self._complete, write, final, size)
        return final

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
            if self._in_flight is not None and wait([self._in_flight], timeout=1.0).not_done:
                logger.info("Waiting for the checkpoint that is being written")
            self._wait()
        except UserError as error:
            if kind is None:
                raise
            logger.error("%s", error)  # another error ends the run; this one must be known too
        finally:
            self._beside.shutdown()

    def _complete(self, write: Callable[[], None] | None, final: Path, size: int) -> None:
        if write is not None:
            self._try(write, final, size)
        self._try(partial(finish_checkpoint, final), final, size)
        try:
            prune(final, self.keep_last)
        except OSError as error:
            logger.warning("An old checkpoint of keep_last_checkpoints could not be deleted: %s", error)
        if self.upload_to is not None:
            upload(final, self.upload_to, private=self.private)

    def _try(self, step: Callable[[], None], final: Path, size: int) -> None:
        try:
            step()
        except (OSError, SafetensorError, CheckpointError) as error:
            raise self._give_up(final, size, error) from error

    def _give_up(self, final: Path, size: int, error: Exception) -> SaveError:
        """Take away what was half written; returns the error that says what happened and what to do."""
        written, left = hidden(final, PARTIAL), "Nothing half written is left"
        try:
            if written.exists():
                shutil.rmtree(written)
        except OSError as another:
            left = f"{written} could not be removed ({another.strerror})"
        last = final.parent / LAST_CHECKPOINT_LINK
        goes_on = "none was saved before"
        if last.exists():
            goes_on = f"{last.resolve().name} is whole, and --resume=true goes on from it"
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        return SaveError(
            f"the checkpoint {final} cannot be written: {reason}. It takes {in_words(size)}, and "
            f"{in_words(free_bytes(final))} are free there. {left}; {goes_on}. Make room, or set "
            "keep_last_checkpoints (one more than that many must fit)"
        )


def upload(checkpoint: Path, repo_id: str, *, private: bool | None) -> None:
    """Send a whole checkpoint to ``checkpoints/<step>`` of the Hub repository, and show its card.

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
        show_card(checkpoint, repo_id)


def free_bytes(path: Path) -> int:
    """Free disk space where ``path`` would be."""
    existing = next(parent for parent in path.parents if parent.exists())
    return shutil.disk_usage(existing).free


def in_words(count: int) -> str:
    """Bytes for people: ``18.2 GB``."""
    for unit, least in (("GB", 1e9), ("MB", 1e6)):
        if count >= least:
            return f"{count / least:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
