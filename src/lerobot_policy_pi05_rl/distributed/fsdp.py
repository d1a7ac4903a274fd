"""FSDP: every process holds a shard of each parameter, gradient and optimizer state, and gathers a layer to run it.

torch's ``fully_shard`` with the settings of an accelerate configuration file (configs/accelerate/fsdp.yaml).
Checkpoints hold full tensors, so any number of processes, or one, goes on from them.
"""

from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from ..errors import UserError
from ..losses import RecapLosses
from ..model.towers import TowerLayer
from .processes import Processes

# Gathered one at a time, the last is the language tower's token embedding; the rest is gathered as a whole.
LAYERS = (TowerLayer.__name__, "SiglipEncoderLayer", "GemmaTextScaledWordEmbedding")


class Sharded:
    """A module whose parameters are sharded over the processes; its passes gather what they need."""

    def __init__(self, losses: RecapLosses, processes: Processes):
        """Shards ``losses`` in place: parameter objects are replaced."""
        plugin, policy = processes.fsdp, losses.policy
        self.losses = losses
        settings = {
            "mesh": init_device_mesh(next(losses.parameters()).device.type, (processes.count,)),
            "offload_policy": plugin.cpu_offload,
        }
        fp32 = MixedPrecisionPolicy(cast_forward_inputs=False)
        # The towers' layers travel in the type they compute in: autocast's bf16 copies would stay until backward. The
        # vision tower's norms take no bf16 weights on every device.
        bf16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        names = plugin.transformer_cls_names_to_wrap or LAYERS
        for module in list(losses.modules()):
            if type(module).__name__ in names and any(True for _ in module.parameters()):
                own = isinstance(module, TowerLayer)
                travels = bf16 if own and policy.computes_in_bf16 else fp32
                reshard = plugin.reshard_after_forward
                fully_shard(module, mp_policy=travels, reshard_after_forward=reshard, **settings)
                if own:
                    register_fsdp_forward_method(module, "forward_with_cache")
        fully_shard(losses, mp_policy=fp32, **settings)
        register_fsdp_forward_method(losses, "run")

    def __call__(self, *args, train_actor: bool, train_critic: bool, synchronise: bool, **kwargs) -> Any:
        """The module's forward. Gradients of accumulated batches are averaged batch by batch: their shards are kept,
        where waiting for the last batch would keep full gradients."""
        return self.losses(*args, train_actor=train_actor, **kwargs)


def check_fsdp(plugin: FullyShardedDataParallelPlugin | None, *, compiles: bool) -> None:
    """Refuse what does not go together with FSDP, if that is asked for.

    Raises:
        UserError: FSDP's first version or its own checkpointing of activations; :func:`check_goes_with_fsdp`'s.
    """
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise UserError("fsdp_version is 1 in the accelerate configuration; set fsdp_version: 2")
    if plugin.activation_checkpointing:
        raise UserError(
            "fsdp_activation_checkpointing is true in the accelerate configuration; set it to false and "
            "policy.gradient_checkpointing to true"
        )
    check_goes_with_fsdp(compiles=compiles)


def check_goes_with_fsdp(*, compiles: bool) -> None:
    """Refuse what cannot be sharded.

    Args:
        compiles: layers are compiled.

    Raises:
        UserError: they are.
    """
    if compiles:
        raise UserError("policy.compile_model and FSDP do not go together: set it to false, or launch with ddp.yaml")


def full_tensors(state: Any, *, kept: bool = True) -> Any:
    """A nested state with every sharded tensor gathered, on the CPU; every process must call it.

    Args:
        kept: false: take part alone; tensors are gathered one at a time, and None stands in for each.
    """

    def gather(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()
        return full.to("cpu", copy=True) if kept else None  # what was gathered may be a part of a padded storage

    return tree_map(gather, state)


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's shard of a full tensor that belongs to ``parameter``, which may be sharded or not."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    tensor = tensor.to(parameter.device, parameter.dtype)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def optimizer_shards(state_dict: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A full optimizer ``state_dict`` → this process's shard of it, for ``optimizer.load_state_dict``."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        int(index): {name: shard_like(value, parameters[int(index)]) for name, value in values.items()}
        for index, values in state_dict["state"].items()
    }
    return {**state_dict, "state": state}
