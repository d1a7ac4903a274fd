"""FLOPs of a training step by part of the network, forward and backward apart.

A multiplication and an addition count as two. The backward of a product of matrices counts as two products, those of
attention too: kernels that compute its forward again there do work that is not counted.
"""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .meta_step import MetaModel, Shape, backward, forward

ATTENTION = "attention of both towers"  # the towers compute it outside of any module (towers.py)
# Part → what its modules' names hold, the first that fits.
PARTS = {
    "target critic": ("target_critic",),
    "critic": ("critic",),
    "vision tower": ("vision_tower",),
    "action expert": ("gemma_expert", "action_in_proj", "action_out_proj", "time_mlp"),
    "image projection": ("multi_modal_projector",),
    "token embedding": ("embed_tokens",),
    "language tower": ("language_model",),
}
CRITICS = ("critic", "target critic")
Flops = dict[str, dict[str, int]]  # part → "forward" | "backward" → FLOPs


def part_of(name: str) -> str | None:
    """The part that a module or parameter of this full name belongs to; None: no part of its own."""
    return next((part for part, keys in PARTS.items() if any(key in name for key in keys)), None)


def training_step_flops(model: MetaModel, shape: Shape, *, train_actor: bool = True) -> Flops:
    """One step of the package's own losses; checkpointed layers count as often as they run."""

    def step(begin_backward: Callable[[], None]) -> None:
        loss = forward(model, shape, train_actor=train_actor)
        begin_backward()
        backward(model, loss)

    return flops_by_part(model.losses, step)


def flops_by_part(network: nn.Module, step: Callable[[Callable[[], None]], None]) -> Flops:
    """Count what ``step`` runs of ``network``; it calls its argument where the backward begins."""
    flops: Flops = defaultdict(lambda: {"forward": 0, "backward": 0})
    with FlopCounterMode(display=False) as counter, _Attribution(network, counter, flops) as attribution:
        step(attribution.begin_backward)
    return dict(flops)


def total(flops: Flops, phase: str | None = None) -> int:
    """All parts' FLOPs, of ``"forward"``, of ``"backward"`` or of both."""
    return sum(sum(parts.values()) if phase is None else parts[phase] for parts in flops.values())


class _Attribution(TorchDispatchMode):
    """Books each operation's FLOPs on the part whose module runs, in backward on the part whose forward made its node:
    autograd gives both the same sequence number. (``FlopCounterMode``'s own table by module mixes parts up in
    backward, where a module whose inputs need no gradient is never left.)"""

    def __init__(self, network: nn.Module, counter: FlopCounterMode, flops: Flops):
        super().__init__()
        self._network, self._counter, self._flops = network, counter, flops
        self._running: list[str] = []
        self._part_of_node: dict[int, str] = {}
        self._phase, self._hooks = "forward", []

    def begin_backward(self) -> None:
        """From here on everything is backward, layers that are computed again included."""
        self._phase = "backward"

    def __enter__(self) -> "_Attribution":
        # always_call: a checkpointed layer leaves its last module by an exception once it has what backward needs
        for name, module in self._network.named_modules():
            part = part_of(name)
            if part is not None:
                self._hooks += [
                    module.register_forward_pre_hook(lambda *_, part=part: self._running.append(part)),
                    module.register_forward_hook(lambda *_: self._leave(), always_call=True),
                ]
        return super().__enter__()

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        for hook in self._hooks:
            hook.remove()

    def _leave(self) -> None:
        self._running.pop()

    def _running_part(self, node: torch.autograd.graph.Node | None) -> str:
        """Whatever a critic runs is its own, the actor's layers too; in a layer that is computed again the node tells.
        Attention runs in no module of a layer's."""
        recomputed = None if node is None else self._part_of_node.get(node._sequence_nr())
        critic = next((part for part in (*self._running, recomputed) if part in CRITICS), None)
        return critic or (self._running[-1] if self._running else ATTENTION)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        node = torch._C._current_autograd_node()
        if node is None or torch.is_grad_enabled():  # forward; or, below a node, a checkpointed layer once more
            part = self._running_part(node)
            self._part_of_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, part)
        else:
            part = self._part_of_node.get(node._sequence_nr(), ATTENTION)
        before = self._counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        spent = self._counter.get_total_flops() - before
        if spent:
            self._flops[part][self._phase] += spent
        return result
