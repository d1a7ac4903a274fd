"""The actor's side of the connection to the learner."""

import contextlib
import logging
import threading
import zlib
from collections.abc import Iterable, Iterator
from importlib.metadata import version

import grpc

from ...configuration_pi05_rl import ActorLearnerConfig
from ...errors import UserError
from . import learner_pb2 as pb
from .security import CHUNK_BYTES, FINISHED, SLOWEST_BYTES_S, load_token, open_channel, token_metadata
from .service import LearnerStub
from .weights import buffer

logger = logging.getLogger(__name__)

ANSWER_S = 30.0  # deadline of a short call
JOIN_S = 120.0
FINAL = (  # trying again would end the same way
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
)


class Unreachable(Exception):  # noqa: N818
    """The learner does not answer, or failed on this call; it may later, unless it has ``finished``."""

    def __init__(self, reason: str, *, finished: bool = False) -> None:
        self.finished = finished  # it has made all its steps, and said so
        super().__init__(reason)


class Refused(UserError):  # noqa: N818
    """The learner answered no, and will again."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(f"the learner refused: {reason}")


class LearnerClient:
    """Calls to the learner; threads may share it. Each raises :class:`Unreachable` or :class:`Refused`."""

    def __init__(self, connection: ActorLearnerConfig, actor: str) -> None:
        """
        Raises:
            ConfigError: the address needs a secret or TLS that is not configured.
        """
        self.actor = actor
        self._metadata = token_metadata(load_token(connection))
        self._channel = open_channel(connection)
        self._stub = LearnerStub(self._channel)
        self._lock = threading.Lock()
        self._closed = False
        self._streams: set[grpc.Call] = set()

    def join(self) -> pb.ActorSetup:
        """How the learner's policy reads the world."""
        hello = pb.Hello(actor=self.actor, version=version("lerobot_policy_pi05_rl"))
        with self._translated():
            chunks = self._stub.Join(hello, timeout=JOIN_S, metadata=self._metadata)
            return pb.ActorSetup.FromString(b"".join(chunk.data for chunk in chunks))

    def known(self, uids: Iterable[str]) -> set[str]:
        """Those of the episodes that the learner has."""
        with self._translated():
            ids = pb.EpisodeIds(uids=list(uids))
            return set(self._stub.KnownEpisodes(ids, timeout=ANSWER_S, metadata=self._metadata).uids)

    def send(self, data: bytes, uid: str) -> pb.EpisodeReceipt:
        """Send a packed episode; with the receipt the learner has it for good."""
        header = pb.EpisodeHeader(uid=uid, actor=self.actor, bytes=len(data), crc32=zlib.crc32(data))
        with self._translated():
            return self._stub.SendEpisode(
                episode_chunks(header, data),
                timeout=ANSWER_S + len(data) / SLOWEST_BYTES_S,
                metadata=self._metadata,
            )

    def report(self, session: str, numbers: dict[str, float]) -> pb.ReportReceipt:
        """Tell the learner how the actor is doing."""
        message = pb.ActorReport(actor=self.actor, session=session, numbers=numbers)
        with self._translated():
            return self._stub.Report(message, timeout=ANSWER_S, metadata=self._metadata)

    def stream_weights(self, session: str, known_version: int) -> Iterator[tuple[pb.WeightsHeader, memoryview]]:
        """Each version newer than ``known_version`` (-1: none) of ``session``, whole and undamaged, without end.

        A damaged version is dropped with a line in the log; the next one follows by itself.

        Raises:
            Unreachable: also when the learner stops or :meth:`close` is called.
        """
        finished = False
        request = pb.WeightsRequest(actor=self.actor, session=session, known_version=known_version)
        with self._translated():
            call = self._stub.StreamWeights(request, metadata=self._metadata)
            with self._lock:
                self._streams.add(call)
            try:
                yield from assemble(call)
                finished = any(tuple(pair) == FINISHED for pair in call.trailing_metadata() or ())
            finally:
                call.cancel()
                with self._lock:
                    self._streams.discard(call)
        raise Unreachable("the learner has stopped", finished=finished)

    def close(self) -> None:
        """End all calls."""
        with self._lock:
            self._closed, streams = True, list(self._streams)
        for call in streams:
            call.cancel()
        self._channel.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """gRPC's errors as ours."""
        try:
            yield
        except grpc.RpcError as error:
            if error.code() in FINAL:
                raise Refused(error.code(), error.details() or error.code().name) from error
            raise Unreachable(f"{error.code().name}: {error.details()}") from error
        except ValueError as error:
            if not self._closed:
                raise
            raise Unreachable("the connection is closed") from error


def episode_chunks(header: pb.EpisodeHeader, data: bytes) -> Iterator[pb.EpisodeChunk]:
    """The messages that carry an episode."""
    yield pb.EpisodeChunk(header=header)
    view = memoryview(data)
    for start in range(0, len(view), CHUNK_BYTES):
        yield pb.EpisodeChunk(data=bytes(view[start : start + CHUNK_BYTES]))


def assemble(chunks: Iterable[pb.WeightsChunk]) -> Iterator[tuple[pb.WeightsHeader, memoryview]]:
    """Whole versions out of chunks; those that are damaged are dropped with a line in the log.

    Each is filled piece by piece into memory of its size: joining gigabytes would keep Python's lock, for which the
    control loop waits.
    """
    header, data, filled, crc = None, buffer(0), 0, 0
    for chunk in chunks:
        if chunk.HasField("header"):
            if header is not None:
                _drop(header, f"{filled} bytes came")
            header, data, filled, crc = chunk.header, buffer(chunk.header.bytes), 0, 0
        if header is None:
            continue  # the rest of a version that was dropped
        end = filled + len(chunk.data)
        if end > len(data):
            _drop(header, "more came than declared")
            header = None
            continue
        data[filled:end] = chunk.data
        filled, crc = end, zlib.crc32(chunk.data, crc)
        if filled < len(data):
            continue
        if crc == header.crc32:
            yield header, data
        else:
            _drop(header, "the checksum is wrong")
        header, data = None, buffer(0)


def _drop(header: pb.WeightsHeader, reason: str) -> None:
    logger.warning("[ACTOR] Dropped damaged weights, version %d of %d bytes: %s", header.version, header.bytes, reason)
