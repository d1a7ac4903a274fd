"""The processes that read samples ahead."""

import signal
from typing import Any, NamedTuple

import torch


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
            "worker_init_fn": _ignore_interrupts,
        }


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the main process decides when the workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
