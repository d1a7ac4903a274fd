"""Encoding a video leaves the scheduling of the process alone.

SVT-AV1, LeRobot's default codec, gives real-time priority (SCHED_FIFO, 99) to the thread that opens it and to its own
threads wherever it may, which is as root, in most containers (https://gitlab.com/AOMediaCodec/SVT-AV1).
Threads and processes that are started later inherit it: trainer, control loop and data workers then wait for an
encoder, or for each other.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_THREADS = "/proc/self/task"  # Linux; elsewhere SVT-AV1 changes nothing


@contextmanager
def unchanged_scheduling() -> Iterator[Callable[[], None]]:
    """On leaving, every thread of the process is scheduled as before, a new one as the calling one was.

    Yields:
        A function that does so at once: an encoder's threads start with its first picture.
    """
    if not os.path.isdir(_THREADS):
        yield lambda: None
        return
    own, before = _policy(0), {thread: _policy(thread) for thread in _threads()}

    def restore() -> None:
        for thread in _threads():
            wanted = before.get(thread, own)
            if wanted is not None and _policy(thread) not in (wanted, None):
                _set(thread, *wanted)

    try:
        yield restore
    finally:
        restore()


def _threads() -> list[int]:
    return [int(name) for name in os.listdir(_THREADS)]


def _policy(thread: int) -> tuple[int, int] | None:
    """Policy and priority; None: the thread has ended."""
    try:
        return os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority
    except ProcessLookupError:
        return None


def _set(thread: int, policy: int, priority: int) -> None:
    try:
        os.sched_setscheduler(thread, policy, os.sched_param(priority))
    except ProcessLookupError:
        return
