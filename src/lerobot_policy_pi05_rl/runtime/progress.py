"""What a training loop needs around it: stop signals, a progress bar, the time spent waiting for data."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..data.batch import Batch

logger = logging.getLogger(__name__)


class TimedIterator:
    """Iterates a loader once and adds up the seconds spent waiting for it."""

    def __init__(self, loader: DataLoader):
        self._loader, self._iterator, self._seconds = loader, None, 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        if self._iterator is None:
            self._iterator = iter(self._loader)
        batch = next(self._iterator)
        self._seconds += time.perf_counter() - start
        return batch

    def flush(self) -> float:
        """Seconds waited since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a request to stop after the step; a second one acts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        logger.warning("%s: finishing the step, then saving", signal.Signals(number).name)
        self.requested = True
        for number_, handler in self._previous.items():
            signal.signal(number_, handler)


@contextmanager
def progress_bar(
    total: int, done: int, *, desc: str = "Offline", unit: str = "step", shown: bool = True
) -> Iterator[tqdm]:
    """A bar with ETA on a terminal, log lines above it; no bar in a log file, or if it is not ``shown``."""
    disable = None if shown else True
    with logging_redirect_tqdm(), tqdm(total=total, initial=done, desc=desc, unit=unit, disable=disable) as bar:
        yield bar
