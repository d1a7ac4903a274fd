"""The processes that read samples ahead."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

STOPPING = {signal.SIGINT, signal.SIGTERM}


class Workers(NamedTuple):
    """How many there are, how many batches each reads ahead, and how they are started."""

    count: int
    prefetch_factor: int | None
    context: str | None  # fork | spawn | forkserver

    @property
    def loader_kwargs(self) -> dict[str, Any]:
        """What a DataLoader needs to read with them."""
        generator = torch.Generator()  # of the loader's own: it draws from the run's random state otherwise
        if self.count == 0:
            return {"generator": generator}
        return {
            "generator": generator,
            "num_workers": self.count,
            "prefetch_factor": self.prefetch_factor,
            "multiprocessing_context": self.context,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": _begin_work,
        }


class Loader(DataLoader):
    """torch's, whose workers no signal to the whole process group ends while they start.

    A spawned worker imports for seconds, in which Ctrl-C would end it, and this process would wait for ever to hand it
    its data. The signals are blocked in what is started meanwhile, and reach this process at the latest once all have
    begun.
    """

    def __iter__(self) -> Iterator:
        if self.num_workers == 0:
            return super().__iter__()
        with _held_back(STOPPING):
            return super().__iter__()


@contextmanager
def _held_back(signals: set[signal.Signals]) -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # started later, beside the first worker, it would unblock both
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_work(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the main process decides when the workers end. What came while this one
    started was not for it alone; from now on it can be ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        while signal.SIGTERM in signal.sigpending():
            signal.sigwait({signal.SIGTERM})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    torch.set_num_threads(1)
