"""What the meta device lacks to run a training step as a GPU does: values, autocast, the fused attention kernel."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_COPY, _ITEM = torch.ops.aten._to_copy.default, torch.ops.aten._local_scalar_dense.default
# CUDA autocast's lists (pytorch.org/docs/stable/amp.html), as far as the network's operations are on them.
_HALF = {
    "linear",
    "conv2d",
    "matmul",
    "__matmul__",
    "mm",
    "bmm",
    "baddbmm",
    "scaled_dot_product_attention",
    "multi_head_attention_forward",
}
_FULL = {"layer_norm", "rsqrt", "pow", "softmax", "log_softmax", "mse_loss", "exp", "log"}


class PlaceholderValues(TorchDispatchMode):
    """Answers what a step asks of values that do not exist: a scalar is 1 (true), a copy to the CPU is zeros."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func is _ITEM and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype, device="cpu").item()
        if func is _COPY and args[0].is_meta and torch.device(kwargs.get("device", "meta")).type == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device="cpu")
        return func(*args, **kwargs)


class MetaAutocast(TorchFunctionMode):
    """CUDA's autocast to bf16 on the meta device, whose tensors torch's own autocast passes by.

    Like torch's it casts in front of autograd, so that what backward keeps has the type it has on the GPU, and it
    keeps one bf16 copy of each trainable weight until the region ends.

    Args:
        cached: false: no copy is kept, as where checkpointed layers are computed again.
    """

    def __init__(self, *, cached: bool = True):
        super().__init__()
        self._cached, self._copies = cached, {}

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _HALF:
            args, kwargs = torch.utils._pytree.tree_map(self._half, (args, kwargs))
        elif name in _FULL:
            args, kwargs = torch.utils._pytree.tree_map(_full, (args, kwargs))
        return func(*args, **kwargs)

    def __exit__(self, *exc_info: object) -> None:
        self._copies.clear()
        super().__exit__(*exc_info)

    def _half(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (self._cached and isinstance(value, nn.Parameter) and value.requires_grad):
            return value.to(torch.bfloat16)
        if id(value) not in self._copies:
            self._copies[id(value)] = value.to(torch.bfloat16)
        return self._copies[id(value)]


class FusedAttention(TorchFunctionMode):
    """Attention by the kernel that a GPU takes where a mask is given: the probabilities are never stored.

    On the meta device torch takes attention apart into products of matrices. Those are what to count as FLOPs, and
    not what lies in memory.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") != "scaled_dot_product_attention":
            return func(*args, **kwargs)
        return _memory_efficient(*args, **kwargs)


def _memory_efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention``'s arguments, given to the memory-efficient kernel."""
    if enable_gqa:
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale)[0]


def _full(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
