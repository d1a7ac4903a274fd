"""FSDP: every process holds a part of each parameter, gradient and optimizer state, and gathers a layer to run it.

torch's ``fully_shard`` with the settings of an accelerate configuration file (configs/accelerate/fsdp.yaml).
Checkpoints hold whole tensors, so any number of processes, or one, goes on from them.
"""

from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from .errors import UserError
from .processes import Processes
from .towers import TowerLayer

LAYERS = (TowerLayer.__name__, "SiglipEncoderLayer", "Embedding")  # gathered one at a time; the rest as a whole


class Sharded:
    """A module whose parameters are spread over the processes; its passes gather what they need."""

    def __init__(self, losses: nn.Module, processes: Processes):
        """Shards ``losses`` in place: parameter objects are replaced.

        Raises:
            UserError: the configuration asks for something else.
        """
        check_plugin(processes.fsdp)
        self.losses = losses
        device = next(losses.parameters()).device.type
        settings = {
            "mesh": init_device_mesh(device, (processes.count,)),
            "reshard_after_forward": processes.fsdp.reshard_after_forward,
            "mp_policy": processes.fsdp.mixed_precision_policy or MixedPrecisionPolicy(cast_forward_inputs=False),
            "offload_policy": processes.fsdp.cpu_offload,
        }
        names = processes.fsdp.transformer_cls_names_to_wrap or LAYERS
        for module in list(losses.modules()):
            if type(module).__name__ in names and any(True for _ in module.parameters()):
                fully_shard(module, **settings)
                if isinstance(module, TowerLayer):
                    register_fsdp_forward_method(module, "read")
        del settings["reshard_after_forward"]  # torch keeps what is left over gathered until backward
        fully_shard(losses, **settings)
        register_fsdp_forward_method(losses, "run")

    def __call__(self, *args, train_actor: bool, train_critic: bool, synchronise: bool, **kwargs) -> Any:
        """The module's forward. Gradients of accumulated batches are averaged batch by batch: their parts are kept,
        where waiting for the last batch would keep whole gradients."""
        return self.losses(*args, train_actor=train_actor, **kwargs)


def check_plugin(plugin: FullyShardedDataParallelPlugin) -> None:
    """Refuse what is not done here.

    Raises:
        UserError: FSDP's first version, or checkpointing of activations by FSDP.
    """
    if plugin.fsdp_version != 2:
        raise UserError("fsdp_version is 1 in the accelerate configuration; set fsdp_version: 2")
    if plugin.activation_checkpointing:
        raise UserError(
            "fsdp_activation_checkpointing is true in the accelerate configuration; set it to false and "
            "policy.gradient_checkpointing to true"
        )


def whole(state: Any) -> Any:
    """A nested state with every sharded tensor gathered, on the CPU; every process must call it."""
    return tree_map(lambda value: value.full_tensor().cpu() if isinstance(value, DTensor) else value, state)


def part_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor that belongs to ``parameter``, which may be sharded or not."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    tensor = tensor.to(parameter.device, parameter.dtype)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def optimizer_parts(state_dict: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A whole optimizer's ``state_dict`` → this process's part of it, for ``optimizer.load_state_dict``."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {name: part_like(value, parameters[int(index)]) for name, value in values.items()}
        for index, values in state_dict["state"].items()
    }
    return {**state_dict, "state": state}
