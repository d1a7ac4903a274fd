"""The processes of one run: what they gather, what one of them does for all, and how gradients are averaged.

Started by ``accelerate launch`` or ``torch.distributed.run``, which set the environment that accelerate reads;
without it a run is one process and nothing here does anything.
"""

import atexit
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import FullyShardedDataParallelPlugin, broadcast_object_list, gather, gather_object, reduce
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError

logger = logging.getLogger(__name__)

# How long a process waits for the others. They wait while one saves or decodes a frame cache; a process that dies is
# noticed by its closed connection and by the launcher, not by this.
TIMEOUT = timedelta(hours=24)
# At the end of a process: gloo's threads need the interpreter to drop the tensors of the last collective, and abort
# the process where it is already going ("exception not rethrown"). Destroying the group does not stop them all:
# DistributedDataParallel keeps a reference. https://github.com/pytorch/pytorch/issues/190489
GRACE_S = 0.2


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    count: int = 1
    fsdp: FullyShardedDataParallelPlugin | None = None  # accelerate's configuration; None: every process holds it all

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """(B, …) of each process → (count · B, …) of all, in the order of their ranks."""
        return rows if self.count == 1 else gather(rows.contiguous())

    def gather_list[T](self, values: list[T]) -> list[T]:
        """The lists of all processes behind one another."""
        return values if self.count == 1 else gather_object(values)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, the same on all of them."""
        return values if self.count == 1 else reduce(values, "mean")

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether it holds in any process."""
        return here if self.count == 1 else bool(reduce(torch.tensor(float(here), device=device), "sum"))

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            torch.distributed.barrier()

    def once(self, function: Callable[[], Any]) -> Any:
        """What ``function`` returns in the main process, which alone runs it.

        Raises:
            UserError: the main process's; the others end silently.
        """
        if self.count == 1:
            return function()
        said: list = [None, False]
        error = None
        if self.is_main:
            try:
                said[0] = function()
            except UserError as raised:
                error, said[1] = raised, True
        broadcast_object_list(said)
        if error is not None:
            raise error
        if said[1]:
            raise SystemExit(2)
        return said[0]

    def main_first(self, function: Callable[[], Any]) -> Any:
        """What ``function`` returns here; it runs in the main process before it does in the others, so that files it
        makes are made once.

        Raises:
            UserError: as :meth:`once`.
        """
        own: list = []
        self.once(lambda: own.append(function()))
        return own[0] if own else function()


ALONE = Processes()  # a run of one process


def launched() -> tuple[int, bool]:
    """How many processes the launcher starts, and whether its configuration asks for FSDP."""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return int(os.environ.get("WORLD_SIZE", "1")), fsdp


def start_processes(device: str | None) -> Processes:
    """Join the others that the launcher started; alone, nothing happens.

    Args:
        device: the policy's; on GPUs each process of a machine takes one of its own.
    """
    count, wanted = launched()
    if count == 1:
        return Processes()
    accelerator = Accelerator(
        cpu=device is not None and torch.device(device).type == "cpu",
        mixed_precision="no",  # the policy's dtype says what computes in bf16
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no" and accelerator.is_main_process:
        logger.warning(
            "mixed_precision of the accelerate configuration has no effect: policy.dtype says what computes"
        )
    atexit.unregister(give_way)  # once, however often a process joins
    atexit.register(give_way)
    # accelerate knows FSDP on accelerators alone; torch's own runs on CPUs as well, with the same configuration.
    plugin = FullyShardedDataParallelPlugin() if wanted else None
    return Processes(accelerator.process_index, accelerator.num_processes, plugin)


def give_way() -> None:
    """Leave the interpreter to gloo's threads, before it ends."""
    time.sleep(GRACE_S)


def lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone (gloo raises plain RuntimeErrors)."""
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class Replicated:
    """A module of which every process holds a copy, and gradients that are averaged while backward goes on.

    Two of torch's wrappers, one inside the other: the inner one averages the gradients of the critic, the outer one
    the actor's. A step of the critic alone goes through the inner one, and nothing of the actor is sent.
    """

    def __init__(self, losses: nn.Module, groups: dict[str, list[nn.Parameter]]):
        """``groups``: the parameters that train, "actor" and "critic"."""
        self.critic = _replicate(losses, only=groups["critic"]) if groups["critic"] else None
        inner = losses if self.critic is None else self.critic
        self.both = _replicate(inner, only=groups["actor"]) if groups["actor"] else inner

    def __call__(self, *args, train_actor: bool, train_critic: bool, synchronise: bool, **kwargs) -> Any:
        """The module's forward; gradients of its backward stay this process's own unless ``synchronise``."""
        outer = self.both if train_actor or self.critic is None else self.critic
        wrappers = {id(wrapper): wrapper for wrapper in (outer, self.critic) if wrapper is not None}
        quiet = [
            wrapper
            for wrapper in wrappers.values()
            if not synchronise or (wrapper is self.critic and not train_critic)
        ]
        with contextlib.ExitStack() as stack:
            for wrapper in quiet:
                stack.enter_context(wrapper.no_sync())
            return outer(*args, train_actor=train_actor, **kwargs)


def _replicate(module: nn.Module, *, only: list[nn.Parameter]) -> DistributedDataParallel:
    """``module`` in torch's wrapper, which takes care of these parameters alone."""
    chosen = {id(parameter) for parameter in only}
    others = [name for name, parameter in module.named_parameters() if id(parameter) not in chosen]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, others)
    device = only[0].device
    return DistributedDataParallel(
        module,
        device_ids=None if device.type == "cpu" else [device],
        broadcast_buffers=False,  # constants
        gradient_as_bucket_view=True,  # gradients lie in memory once
    )


@contextlib.contextmanager
def lost_peer_as_user_error(processes: Processes) -> Iterator[None]:
    """Where another process is gone, this one's broken connection is not the error to show.

    Raises:
        UserError: a collective failed.
    """
    try:
        yield
    except Exception as error:
        if processes.count > 1 and lost_peer(error):
            raise UserError(
                f"process {processes.rank} stopped: another process of the run is gone; its error is above or below"
            ) from error
        raise
