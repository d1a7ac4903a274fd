"""One episode's stream into memory: how much may come, whether it is whole, and an end to streams that stall."""

import contextlib
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc

from ..episode import is_uid
from .learner_pb2 import EpisodeChunk, EpisodeHeader
from .security import SLOWEST_BYTES_S, printable


class RefusalError(Exception):
    """Why a call is not answered, and gRPC's code for it."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        self.code, self.reason = code, printable(reason, 500)
        super().__init__(self.reason)


class CutOffError(Exception):
    """The stream ended before all of the episode had come."""


@dataclass
class Transfer:
    """A stream that is being received."""

    context: grpc.ServicerContext
    peer: str  # its address, which a cancelled context has forgotten
    actor: str = "an actor"
    size: int = 0  # declared bytes
    received: int = 0  # bytes
    began: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)  # when bytes last came
    given_up: str = ""  # why it was cancelled


class Watchdog:
    """Cancels transfers that bring no byte for ``stall_s`` seconds, or so few that they would hardly end, and knows
    whether all of them hold more than ``memory_bytes``."""

    def __init__(self, stall_s: float, memory_bytes: int) -> None:
        self.stall_s, self.memory_bytes = stall_s, memory_bytes
        self._lock = threading.Lock()
        self._transfers: dict[int, Transfer] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stalled-transfers", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @contextlib.contextmanager
    def watching(self, transfer: Transfer) -> Iterator[None]:
        """Watch the transfer while the block runs."""
        with self._lock:
            self._transfers[id(transfer)] = transfer
        try:
            yield
        finally:
            with self._lock:
                del self._transfers[id(transfer)]

    def room(self) -> bool:
        """Whether memory is left for what comes next. What was announced does not count: an actor that announces much
        and sends nothing takes nobody's place."""
        with self._lock:
            return sum(transfer.received for transfer in self._transfers.values()) <= self.memory_bytes

    def _watch(self) -> None:
        while not self._stop.wait(self.stall_s / 4):
            now = time.monotonic()
            with self._lock:
                for transfer in self._transfers.values():
                    if not transfer.given_up and (reason := self._hopeless(transfer, now)):
                        transfer.given_up = reason
                        transfer.context.cancel()

    def _hopeless(self, transfer: Transfer, now: float) -> str:
        if now - transfer.moved > self.stall_s:
            return f"nothing came for {self.stall_s:g} s"
        if now - transfer.began > self.stall_s + transfer.received / SLOWEST_BYTES_S:
            return f"it came slower than {SLOWEST_BYTES_S} bytes a second"
        return ""


def receive(
    chunks: Iterator[EpisodeChunk],
    transfer: Transfer,
    max_bytes: int,
    known: Callable[[str], bool],
    room: Callable[[], bool],
) -> tuple[EpisodeHeader, bytes | None]:
    """The header and the bytes it announces; None for the bytes of a known episode, which are not read.

    Args:
        max_bytes: of an episode.
        known: whether the episode of this uid need not come.
        room: whether there is memory for more.

    Raises:
        RefusalError: too much, damaged, or without a header.
        CutOffError: too little, whoever is to blame: gRPC may show a lost connection as an ordinary end.
    """
    chunk = _next(chunks)
    if chunk is None:
        raise CutOffError
    if not chunk.HasField("header"):
        raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "its first chunk has no header")
    header = chunk.header
    transfer.actor, transfer.size = printable(header.actor) or transfer.actor, header.bytes
    if not is_uid(header.uid):
        raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "its uid is not 32 hexadecimal digits")
    if header.bytes > max_bytes:
        raise RefusalError(
            grpc.StatusCode.RESOURCE_EXHAUSTED, f"{header.bytes} bytes are declared; at most {max_bytes} are taken"
        )
    if known(header.uid):
        return header, None
    parts, crc = [], 0
    while chunk is not None:
        transfer.received += len(chunk.data)
        if transfer.received > header.bytes:
            raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, f"more came than the {header.bytes} bytes declared")
        if not room():
            raise RefusalError(grpc.StatusCode.UNAVAILABLE, "too much is being received at once; send it again")
        crc = zlib.crc32(chunk.data, crc)
        parts.append(chunk.data)
        if chunk.data:
            transfer.moved = time.monotonic()
        chunk = _next(chunks)
    if transfer.received < header.bytes:
        raise CutOffError
    if crc != header.crc32:  # damage on the way, which sending again repairs
        raise RefusalError(grpc.StatusCode.DATA_LOSS, "its checksum is wrong")
    return header, b"".join(parts)


def _next(chunks: Iterator[EpisodeChunk]) -> EpisodeChunk | None:
    """The next chunk; None at the end."""
    try:
        return next(chunks, None)
    except grpc.RpcError as error:
        raise CutOffError from error
