"""Everything a checkpoint says of one step, apart from the run's constants, so that writing it can wait."""

import copy
from dataclasses import dataclass
from typing import Any

from lerobot.utils.random_utils import serialize_rng_state
from torch import Tensor

from .adapters import stored_state
from .recap import RecapAlgorithm


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


def collect(
    algorithm: RecapAlgorithm,
    metrics_state: dict[str, Any],
    *,
    copied: bool,
    model_state_dict: dict[str, Tensor] | None = None,
    optimizer_state_dict: dict[str, Any] | None = None,
) -> Snapshot:
    """The algorithm's present state.

    Args:
        copied: training goes on before the snapshot is written: tensors that will change are copied to host memory.
            False: the snapshot refers to the live tensors.
        model_state_dict, optimizer_state_dict: full states that the caller has gathered and leaves to the snapshot, as
            those of sharded training; None: the algorithm's own.
    """
    policy = algorithm.policy
    frozen = {id(parameter) for parameter in policy.parameters() if not parameter.requires_grad}
    own = stored_state(policy)
    if model_state_dict is None:
        model = {
            name: _host(tensor) if copied and id(tensor) not in frozen else tensor.detach()
            for name, tensor in own.items()
        }
    else:
        model = {name: model_state_dict[name] for name in own}
    optimizer = optimizer_state_dict
    if optimizer is None:
        optimizer = _copy(algorithm.optimizer.state_dict()) if copied else algorithm.optimizer.state_dict()
    recap = algorithm.state_dict()
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
    if isinstance(state, Tensor):
        return _host(state)
    if isinstance(state, dict):
        return {key: _copy(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_copy(value) for value in state)
    return copy.deepcopy(state)
