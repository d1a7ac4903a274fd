"""``policy.compile_model``: torch.compile, one layer at a time.

A compiled layer takes its weights and the number of its tokens as inputs, so one graph of each kind serves every
layer, prompt length and batch size: how long compilation takes depends on neither. Training and sampling run the same
layers. Stock π0.5 compiles whole functions instead, which unrolls all layers and all denoising steps into one graph.
"""

import functools
import logging
from collections.abc import Callable

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from ..errors import UserError

logger = logging.getLogger(__name__)

BACKEND = "inductor"
# Kinds of a layer that one process may meet: prefix or tag, last or not, with or without gradient, trainable or
# frozen, batch of one or more, and once more where a length was equal to a width. torch's own limit is 8.
RECOMPILE_LIMIT = 64
# Mode → the same without CUDA graphs: every layer would have to be recorded with its own weights, for every length.
_WITHOUT_CUDA_GRAPHS = {"max-autotune": "max-autotune-no-cudagraphs", "reduce-overhead": "default"}


def check_compiler(device: str) -> None:
    """Compile something small, so that a machine that cannot says so before anything else is done.

    Raises:
        UserError: no C++ compiler (CPU), no Triton (GPU), or one of the wrong kind.
    """
    logger.info("policy.compile_model is true: layers compile where they first run, in the first step above all")
    try:
        torch.compile(_something, backend=BACKEND)(torch.ones(2, device=device))
    except TorchDynamoException as error:
        cause = next(line for line in str(error).splitlines() if line.strip())
        raise UserError(
            f"policy.compile_model is true, but torch.compile does not work on {device}: {cause.strip()}. Install a "
            "C++ compiler (CPU) or Triton (GPU), or set policy.compile_model to false"
        ) from error


def _something(tensor: Tensor) -> Tensor:
    return tensor.sin() + 1


@functools.cache
def compiled(function: Callable, mode: str) -> Callable:
    """``function`` of one layer and its inputs, compiled for every such layer."""
    return torch.compile(function, **_options(mode))


def compile_in_place(layer: nn.Module, mode: str) -> None:
    """The same for a layer that somebody else calls; parameters keep their names."""
    layer.compile(**_options(mode))


def _options(mode: str) -> dict:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    # On a GPU inductor's analysis of coalesced accesses asserts on the backward graph of a layer whose lengths are
    # dynamic, for which it is not made: https://github.com/pytorch/pytorch/issues/197077
    torch._inductor.config.triton.coalesce_tiling_analysis = False
    # fullgraph: a part of a layer that cannot be compiled is an error, not a slow layer.
    return {"backend": BACKEND, "mode": _WITHOUT_CUDA_GRAPHS.get(mode, mode), "dynamic": True, "fullgraph": True}
