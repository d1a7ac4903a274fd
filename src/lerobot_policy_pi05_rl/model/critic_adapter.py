"""Low-rank adapters through which a critic reads the actor's own language layers: nothing is copied, and the critic's
loss never moves what it reads (LoRA, arXiv 2106.09685, on shared layers)."""

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


class LowRank(nn.Module):
    """x ↦ B A x, 0 at first. Its names are not PEFT's, which would take it for an adapter of the actor."""

    def __init__(self, inputs: int, outputs: int, rank: int):
        super().__init__()
        self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) → (…, outputs)."""
        return self.up(self.down(x))


class LayerAdapter(nn.Module):
    """What one critic adds to each product of one language layer; the layer itself is given with every call."""

    def __init__(self, layer: nn.Module, rank: int):
        super().__init__()
        shared = {name: getattr(layer.self_attn, name) for name in ATTENTION}
        shared |= {name: getattr(layer.mlp, name) for name in MLP}
        for name, linear in shared.items():
            self.add_module(name, LowRank(linear.in_features, linear.out_features, rank))

    def project(self, owner: nn.Module, name: str, x: Tensor) -> Tensor:
        """The product ``name`` of ``owner``, a layer's attention or MLP, and what the critic adds."""
        return apply_detached(getattr(owner, name), x) + getattr(self, name)(x)

    def mlp(self, shared: nn.Module, x: Tensor) -> Tensor:
        """The layer's gated MLP, each product with what the critic adds."""
        hidden = shared.act_fn(self.project(shared, "gate_proj", x)) * self.project(shared, "up_proj", x)
        return self.project(shared, "down_proj", hidden)


def apply_detached(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``module(*args, **kwargs)`` whose gradient reaches the inputs and none of the module's parameters."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return functional_call(module, parameters, args, kwargs)
