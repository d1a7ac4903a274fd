"""Everything in float64, for tests that two computations give the same numbers.

In float32 two orders of one sum differ by as much as its condition lets them, and the order is the processor's choice:
what holds to 1e-5 on one machine fails on the next. In float64 a true equality holds to 1e-9 everywhere, and a wrong
formula cannot hide below it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

RTOL, ATOL = 1e-9, 1e-11
ENTRANCES = (torch.tensor, torch.as_tensor, torch.Tensor.to)  # of arrays that NumPy has drawn in float32


def _widened(value: Any) -> Any:
    """float32 → float64: of a tensor, or the type itself."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.dtype is torch.float32 else value
    return torch.float64 if value is torch.float32 else value


class _Double(TorchFunctionMode):
    """Casts to float32, of LeRobot's, transformers' and our code, become casts to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        if func is torch.Tensor.backward:  # what it recomputes under gradient checkpointing as well
            run, ones = torch.autograd.Variable._execution_engine.run_backward, torch.ones_like(args[0])
            with self:
                return run(args[:1], (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True)
        if func in (torch.frombuffer, torch.Tensor.view):  # the bytes of a file
            return func(*args, **(kwargs or {}))
        replaced = [torch.float64 if value is torch.float32 else value for value in args]
        options = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        result = func(*replaced, **options)
        return tree_map(_widened, result) if func in ENTRANCES else result


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    """Networks that are built, tensors that are made and sums that are taken in here are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():
            yield
    finally:
        torch.set_default_dtype(before)


def assert_same(found: Any, expected: Any, *, rtol: float = RTOL, atol: float = ATOL, msg: str | None = None) -> None:
    """The same numbers, computed in float64 on both sides; nested as :func:`torch.testing.assert_close` takes them."""
    tensors = [value for value in torch.utils._pytree.tree_leaves((found, expected))]
    assert all(tensor.dtype is torch.float64 for tensor in tensors), "compare in float64"
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, msg=msg)
