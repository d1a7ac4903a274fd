"""Episodes that arrived and are not in the replay yet, on disk, so that a receipt outlives a power cut."""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from ...runtime.files import give_name, sync
from ..episode import is_uid

logger = logging.getLogger(__name__)

_SUFFIX, _PART = ".safetensors", ".part"


class Inbox:
    """A journal of received episodes, one file each; threads may share it."""

    def __init__(self, directory: Path, known: Callable[[str], bool]) -> None:
        """
        Args:
            known: whether the replay has the episode already.
        """
        self.directory, self._known = Path(directory), known
        self.rejected = self.directory / "rejected"
        self.rejected.mkdir(parents=True, exist_ok=True)
        for leftover in self.directory.glob(f"*{_PART}"):
            leftover.unlink()
        self._lock = threading.Lock()
        self._last = max((path.stat().st_mtime_ns for path in self.directory.glob(f"*{_SUFFIX}")), default=0)

    def __contains__(self, uid: str) -> bool:
        """Whether the episode needs no sending: it waits here, was rejected, or is in the replay."""
        if not is_uid(uid):
            return False
        name = uid + _SUFFIX
        return (self.directory / name).exists() or (self.rejected / name).exists() or self._known(uid)

    def __len__(self) -> int:
        return len(self.pending())

    def store(self, uid: str, data: bytes) -> bool:
        """Keep an episode for good; False: it was here already.

        Raises:
            ValueError: ``uid`` is not 32 hexadecimal digits.
            OSError: the disk is full or broken; nothing is stored.
        """
        path = self._path(uid)
        with self._lock:
            if uid in self:
                return False
            self._last = arrived = max(time.time_ns(), self._last + 1)
        part = self.directory / f"{uid}.{uuid.uuid4().hex}{_PART}"  # the same episode may be on its way twice
        try:
            part.write_bytes(data)
            os.utime(part, ns=(arrived, arrived))
            sync(part)  # here, where other threads need not wait for it
            with self._lock:
                if uid in self:
                    return False
                give_name(part, path)
        finally:
            part.unlink(missing_ok=True)
        return True

    def pending(self) -> list[Path]:
        """The files that wait, in the order in which they arrived."""
        arrivals = []
        for path in self.directory.glob(f"*{_SUFFIX}"):
            try:
                arrivals.append((path.stat().st_mtime_ns, path))
            except FileNotFoundError:  # another thread has just removed it
                continue
        return [path for _, path in sorted(arrivals)]

    def remove(self, uid: str) -> None:
        """Forget an episode that the replay has now.

        Raises:
            FileNotFoundError: it is not here.
        """
        self._path(uid).unlink()
        sync(self.directory)

    def reject(self, uid: str, reason: str) -> None:
        """Put aside an episode that the replay cannot take.

        Raises:
            FileNotFoundError: it is not here.
        """
        target = self.rejected / f"{uid}{_SUFFIX}"
        give_name(self._path(uid), target)
        logger.warning("[LEARNER] Rejected the episode %s: %s. It is kept in %s", uid, reason, target)

    def _path(self, uid: str) -> Path:
        if not is_uid(uid):
            raise ValueError(f"not an episode's uid: {uid[:80]!r}")
        return self.directory / f"{uid}{_SUFFIX}"
