"""The processes that read ahead for a DataLoader."""

import signal
from typing import Any

import torch

from ..config.train import PI05RLTrainConfig


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the main process decides when the workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def worker_kwargs(cfg: PI05RLTrainConfig) -> dict[str, Any]:
    """What a DataLoader needs to read ahead with ``cfg.num_workers`` processes."""
    generator = torch.Generator()  # of the loader's own: it draws from the run's random state otherwise
    if cfg.num_workers == 0:
        return {"generator": generator}
    return {
        "generator": generator,
        "num_workers": cfg.num_workers,
        "prefetch_factor": cfg.prefetch_factor,
        "multiprocessing_context": cfg.dataloader_multiprocessing_context,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _ignore_interrupts,
    }
