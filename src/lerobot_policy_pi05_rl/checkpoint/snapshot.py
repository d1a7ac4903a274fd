"""Everything a checkpoint says of one step, apart from the run's constants, so that writing it can wait."""

import copy
from dataclasses import dataclass
from typing import Any

from lerobot.utils.random_utils import serialize_rng_state
from torch import Tensor
from torch.utils._pytree import tree_map

from ..distributed.fsdp import full_tensors
from ..model.lora import stored_state
from ..recap import RecapAlgorithm


@dataclass(frozen=True)
class Snapshot:
    """The state of one optimization step."""

    step: int
    model: dict[str, Tensor]  # what the checkpoint stores of the policy, by the policy's names
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    rng: dict[str, Tensor]
    recap: dict[str, Tensor]
    metrics: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """About how much disk it takes."""
        state = [value for entry in self.optimizer["state"].values() for value in entry.values()]
        tensors = [*self.model.values(), *self.recap.values(), *state]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


def collect(algorithm: RecapAlgorithm, metrics_state: dict[str, Any], *, copied: bool) -> Snapshot | None:
    """The algorithm's present state; None in the processes that do not write.

    Where parameters are spread over the processes, every one of them must call it.

    Args:
        copied: training goes on before the snapshot is written: tensors that will change are copied to host memory.
            False: the snapshot refers to the live tensors, unless they had to be gathered.
    """
    policy, processes = algorithm.policy, algorithm.processes
    if not processes.is_main and processes.fsdp is None:
        return None
    own = {name: tensor.detach() for name, tensor in stored_state(policy).items()}
    if processes.fsdp is not None:
        model = full_tensors(own, kept=processes.is_main)
        optimizer = full_tensors(algorithm.optimizer.state_dict(), kept=processes.is_main)
    elif copied:
        frozen = {parameter.data_ptr() for parameter in policy.parameters() if not parameter.requires_grad}
        model = {name: tensor if tensor.data_ptr() in frozen else _host(tensor) for name, tensor in own.items()}
        optimizer = _copy(algorithm.optimizer.state_dict())
    else:
        model, optimizer = own, algorithm.optimizer.state_dict()
    recap = algorithm.state_dict()
    if not processes.is_main:
        return None
    return Snapshot(
        step=algorithm.optimization_step,
        model=model,
        optimizer=optimizer,
        scheduler=copy.deepcopy(algorithm.scheduler.state_dict()),
        rng=serialize_rng_state(),
        recap=_copy(recap) if copied else recap,
        metrics=copy.deepcopy(metrics_state),
    )


def _host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _copy(state: Any) -> Any:
    """A nested state with its tensors in host memory, nothing shared with the original."""
    return tree_map(lambda value: _host(value) if isinstance(value, Tensor) else value, state)
