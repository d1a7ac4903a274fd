"""The actor's weights on their way from the learner: which tensors, as what bytes, and the newest for all streams."""

import contextlib
import hashlib
import json
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...stored.files import CRITIC_PREFIX

if TYPE_CHECKING:
    from ...modeling_pi05_rl import PI05RLPolicy

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class BadWeightsError(UserError):
    """Weights that do not fit the actor's policy; nothing of them is applied."""


@dataclass(frozen=True)
class WeightsMessage:
    """One version of the weights."""

    session: str
    version: int  # the learner's optimization step
    data: bytes | bytearray | memoryview  # one safetensors file
    crc32: int


def pack_weights(tensors: dict[str, Tensor], dtype: torch.dtype) -> memoryview:
    """One safetensors file in host memory.

    Written by hand rather than with safetensors.torch.save: each tensor is copied once, from its device, cast on the
    way, and without Python's lock, for which the training waits.
    """
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    start = 8 + len(text)
    data = buffer(start + offset)
    data[:start] = len(text).to_bytes(8, "little") + text
    for name, tensor in tensors.items():
        if tensor.numel():
            begin = start + header[name]["data_offsets"][0]
            target = torch.frombuffer(data, dtype=dtype, count=tensor.numel(), offset=begin)
            target.view(tensor.shape).copy_(tensor.detach())
    return data


def buffer(size: int) -> memoryview:
    """Memory of so many bytes, whatever they are. A bytearray would be zeroed, under Python's lock: half a second a
    gigabyte in which neither the training nor the control loop moves."""
    return memoryview(np.empty(size, dtype=np.uint8))


def unpack_weights(data: bytearray | memoryview, expected: dict[str, torch.Size]) -> dict[str, Tensor]:
    """:func:`pack_weights` backwards. The tensors share ``data``'s memory.

    Args:
        expected: name → shape, all that must be there.

    Raises:
        BadWeightsError: with the first thing that is wrong.
    """
    header, start = _header(data)
    if header.keys() != expected.keys():
        odd = sorted(header.keys() ^ expected.keys())
        raise BadWeightsError(
            f"the weights are not those of the actor's policy: {', '.join(odd[:3])} missing or unknown"
        )
    tensors = {}
    for name, shape in expected.items():
        dtype, found, (begin, end) = header[name]
        if found != tuple(shape):
            raise BadWeightsError(f"{name} is {found}, not {tuple(shape)}")
        if not (0 <= begin <= end <= len(data) - start and end - begin == shape.numel() * dtype.itemsize):
            raise BadWeightsError(f"the weights are not a safetensors file ({name} lies outside)")
        if (start + begin) % dtype.itemsize:
            raise BadWeightsError(f"the weights are not aligned in their file ({name})")
        if not shape.numel():
            tensors[name] = torch.empty(shape, dtype=dtype)
            continue
        tensor = torch.frombuffer(data, dtype=dtype, count=shape.numel(), offset=start + begin).view(shape)
        if not bool(torch.isfinite(tensor).all()):
            raise BadWeightsError(f"{name} holds NaN or infinity")
        tensors[name] = tensor
    return tensors


def apply_weights(policy: "PI05RLPolicy", tensors: dict[str, Tensor]) -> None:
    """Copy :func:`unpack_weights`' tensors into the policy, cast to its dtype, in place.

    Raises:
        KeyError: a name is not the policy's; nothing is copied.
    """
    parameters = dict(policy.named_parameters())
    targets = {name: parameters[name] for name in tensors}
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(tensors[name])


def frozen_fingerprint(policy: "PI05RLPolicy", pushed_names: set[str]) -> str:
    """What tells two actors apart that act with the same pushed weights: a hash of the others' contents, of what is
    pushed by name and shape, and of an adapter's scaling, which is no weight; "" if all weights are pushed."""
    state = policy.state_dict(keep_vars=True)
    pushed = {id(state[name]) for name in pushed_names}  # by identity: tied tensors have two names
    digest, frozen = hashlib.sha256(), 0
    for name, tensor in sorted(state.items()):
        if name.startswith(CRITIC_PREFIX) or id(tensor) in pushed:
            continue
        # One may hold in bf16 what the other holds in fp32 (model/precision.py).
        alike = tensor.detach().to(torch.bfloat16) if tensor.is_floating_point() else tensor.detach()
        content = alike.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(f"{name} {tuple(tensor.shape)} {zlib.crc32(content):08x}\n".encode())
        frozen += 1
    for name in sorted(pushed_names):
        digest.update(f"{name} {tuple(state[name].shape)}\n".encode())
    for name, module in policy.named_modules():
        if isinstance(scaling := getattr(module, "scaling", None), dict):  # of a layer that PEFT has adapted
            digest.update(f"{name} {scaling}\n".encode())
    return digest.hexdigest() if frozen else ""


class WeightsBox:
    """The newest weights, for as many streams as there are; threads share it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._message: WeightsMessage | None = None
        self._listeners = 0
        self.pushes = 0  # versions that went out whole, counted per actor
        self.bytes_sent = 0

    @property
    def listeners(self) -> int:
        """Open streams: whether anybody waits for weights."""
        return self._listeners

    def publish(self, session: str, version: int, data: bytes | bytearray | memoryview) -> None:
        """Replace the newest weights. ``data`` must not change afterwards."""
        message = WeightsMessage(session, version, data, zlib.crc32(data))
        with self._changed:
            self._message = message
            self._changed.notify_all()

    def wait_newer(self, session: str, known_version: int, timeout: float) -> WeightsMessage | None:
        """The newest weights as soon as they are of another session or a later version; None after ``timeout``
        seconds."""

        def is_newer() -> bool:
            newest = self._message
            return newest is not None and (newest.session != session or newest.version > known_version)

        with self._changed:
            return self._message if self._changed.wait_for(is_newer, timeout) else None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Count one more stream while the block runs."""
        with self._changed:
            self._listeners += 1
        try:
            yield
        finally:
            with self._changed:
                self._listeners -= 1

    def count_push(self, size: int) -> None:
        """One version of ``size`` bytes went out."""
        with self._changed:
            self.pushes += 1
            self.bytes_sent += size


def _header(data: bytearray | memoryview) -> tuple[dict[str, tuple[torch.dtype, tuple[int, ...], list[int]]], int]:
    """Name → (dtype, shape, [begin, end]) of a safetensors file, and where its tensors start."""
    size = int.from_bytes(data[:8], "little")
    try:
        if not 2 <= size <= len(data) - 8:
            raise ValueError(f"a header of {size} bytes")
        entries = json.loads(bytes(data[8 : 8 + size]))
        header = {}
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            begin, end = (int(offset) for offset in entry["data_offsets"])
            header[name] = (_DTYPES[entry["dtype"]], tuple(int(length) for length in entry["shape"]), [begin, end])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadWeightsError(f"the weights are not a safetensors file ({type(error).__name__})") from error
    return header, 8 + size
