"""The learner's side: takes episodes, hands out weights. Nothing an actor sends may stop it."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import grpc

from ...configuration_pi05_rl import ActorLearnerConfig
from ..episode import BadEpisodeError, EpisodeSpec, unpack
from . import learner_pb2 as pb
from .inbox import Inbox
from .receiving import CutOffError, RefusalError, Transfer, Watchdog, receive
from .security import CHUNK_BYTES, FINISHED, SERVER_OPTIONS, TokenInterceptor, bind, load_token, printable
from .service import serve
from .weights import WeightsBox

logger = logging.getLogger(__name__)

THREADS = 64  # one per open stream
MEMORY_BYTES = 2 << 30  # of all episodes that are being received
MAX_NUMBERS = 1000  # of one report
POLL_S = 0.5  # how soon a stream sees that its actor is gone or the learner stops
GRACE_S = 2.0  # what calls under way have left when the learner stops
FAREWELL_S = 10.0  # how long a learner that is done waits for its actors to hear it


class LearnerServer:
    """The service of ``learner.proto`` while the block runs; several actors at once.

    Attributes:
        port: where it listens.
        received, duplicates, refused: episodes stored; sent again; not taken.
        actors: name → when it was last heard of, seconds since 1970.
    """

    def __init__(
        self,
        connection: ActorLearnerConfig,
        *,
        setup: pb.ActorSetup,
        spec: EpisodeSpec,
        inbox: Inbox,
        weights: WeightsBox,
        on_report: Callable[[str, dict[str, float]], None],
        step: Callable[[], int],
        stall_s: float = 30.0,
    ) -> None:
        """
        Args:
            on_report: called with an actor's name and numbers, from a thread of the server.
            step: the learner's optimization step.
            stall_s: an episode's stream that brings nothing for so many seconds is cancelled.

        Raises:
            ConfigError: the address needs a secret or TLS, or cannot be listened on.
        """
        self.setup, self.spec, self.inbox, self.weights = setup, spec, inbox, weights
        self._on_report, self._step = on_report, step
        self.received = self.duplicates = self.refused = 0
        self.actors: dict[str, float] = {}
        memory = max(MEMORY_BYTES, 2 * spec.max_bytes)  # whatever arrives meanwhile, a whole episode has room
        self._lock, self._stopping, self._watchdog = threading.Lock(), threading.Event(), Watchdog(stall_s, memory)
        self._finished = threading.Event()
        token = load_token(connection)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="learner-server")
        self._server = grpc.server(
            self._pool,
            interceptors=[] if token is None else [TokenInterceptor(token)],
            options=SERVER_OPTIONS,
        )
        serve(self, self._server)
        self._host, self.port = connection.learner_host, bind(self._server, connection)

    def __enter__(self) -> Self:
        self._watchdog.start()
        self._server.start()
        logger.info("[LEARNER] Listening on %s, port %d", self._host, self.port)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._server.stop(GRACE_S).wait()
        self._watchdog.stop()
        self._pool.shutdown(wait=True)  # whoever is storing an episode finishes

    def finish(self) -> None:
        """Tell the actors that the learner has made all its steps, so that they end instead of waiting for another
        start of it."""
        self._finished.set()
        deadline = time.monotonic() + FAREWELL_S
        while self.weights.listeners and time.monotonic() < deadline:
            time.sleep(POLL_S / 10)

    def Join(self, request: pb.Hello, context: grpc.ServicerContext) -> Iterator[pb.Chunk]:  # noqa: N802
        """An actor asks how the policy reads the world."""
        with self._answering("Join", request.actor, context):
            logger.info("[LEARNER] Actor %s joined (%s)", printable(request.actor), context.peer())
            for data in split(self.setup.SerializeToString()):
                yield pb.Chunk(data=data)

    def StreamWeights(  # noqa: N802
        self, request: pb.WeightsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WeightsChunk]:
        """Each newer version until the actor goes or the learner stops."""
        session, version = request.session, request.known_version
        with self._answering("StreamWeights", request.actor, context), self.weights.listening():
            while context.is_active() and not self._stopping.is_set():
                finished = self._finished.is_set()  # asked first: what was published before is sent before
                message = self.weights.wait_newer(session, version, 0.0 if finished else POLL_S)
                if message is None and finished:
                    context.set_trailing_metadata((FINISHED,))
                    return
                if message is None:
                    continue
                session, version, size = message.session, message.version, len(message.data)
                header = pb.WeightsHeader(
                    session=session, version=version, bytes=size, crc32=message.crc32, sent=time.time()
                )
                yield pb.WeightsChunk(header=header)
                for data in split(message.data):
                    yield pb.WeightsChunk(data=data)
                self.weights.count_push(size)
                self._saw(request.actor)

    def KnownEpisodes(self, request: pb.EpisodeIds, context: grpc.ServicerContext) -> pb.EpisodeIds:  # noqa: N802
        """Those of the episodes that need no sending."""
        with self._answering("KnownEpisodes", "", context):
            return pb.EpisodeIds(uids=[uid for uid in request.uids if uid in self.inbox])

    def Report(self, request: pb.ActorReport, context: grpc.ServicerContext) -> pb.ReportReceipt:  # noqa: N802
        """An actor's numbers for the log."""
        with self._answering("Report", request.actor, context):
            if len(request.numbers) > MAX_NUMBERS:
                raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, f"more than {MAX_NUMBERS} numbers")
            self._on_report(printable(request.actor), {printable(name): x for name, x in request.numbers.items()})
            return pb.ReportReceipt(optimization_step=self._step())

    def SendEpisode(  # noqa: N802
        self, request_iterator: Iterator[pb.EpisodeChunk], context: grpc.ServicerContext
    ) -> pb.EpisodeReceipt:
        """Take one episode, all or nothing; the receipt follows when it is on disk."""
        transfer = Transfer(context, context.peer())
        try:
            return self._take(request_iterator, transfer)
        except CutOffError:
            reason = transfer.given_up or "cut off"
            status = grpc.StatusCode.DATA_LOSS  # if the actor hears it at all, it sends again
            reason = f"{reason} after {transfer.received} of {transfer.size} bytes"
        except BadEpisodeError as error:
            status, reason = grpc.StatusCode.INVALID_ARGUMENT, printable(str(error), 500)
        except RefusalError as refusal:
            status, reason = refusal.code, refusal.reason
        except Exception as error:
            logger.exception("[LEARNER] Failed to take an episode from %s (%s)", transfer.actor, transfer.peer)
            context.abort(grpc.StatusCode.INTERNAL, f"the learner failed ({type(error).__name__}); see its log")
        logger.warning("[LEARNER] Refused an episode from %s (%s): %s", transfer.actor, transfer.peer, reason)
        with self._lock:
            self.refused += 1
        context.abort(status, reason)

    def _take(self, chunks: Iterator[pb.EpisodeChunk], transfer: Transfer) -> pb.EpisodeReceipt:
        with self._watchdog.watching(transfer):
            header, data = receive(chunks, transfer, self.spec.max_bytes, self.inbox.__contains__, self._watchdog.room)
        self._saw(header.actor)
        stored = False
        if data is not None:
            episode = unpack(data, self.spec)
            if episode.uid != header.uid:
                raise BadEpisodeError("the uid in its header is not its own")
            stored = self.inbox.store(episode.uid, data)
        with self._lock:
            self.received += stored
            self.duplicates += not stored
        return pb.EpisodeReceipt(uid=header.uid, known_before=not stored)

    @contextlib.contextmanager
    def _answering(self, what: str, actor: str, context: grpc.ServicerContext) -> Iterator[None]:
        """What goes wrong in a call is that call's answer, and a line of the log."""
        self._saw(actor)
        who = printable(actor) or "an actor"
        try:
            yield
            return
        except RefusalError as refusal:
            status, reason = refusal.code, refusal.reason
            logger.warning("[LEARNER] Refused %s of %s (%s): %s", what, who, context.peer(), reason)
        except Exception as error:
            logger.exception("[LEARNER] Failed to answer %s of %s (%s)", what, who, context.peer())
            status, reason = grpc.StatusCode.INTERNAL, f"the learner failed ({type(error).__name__}); see its log"
        context.abort(status, reason)

    def _saw(self, actor: str) -> None:
        if actor:
            with self._lock:
                self.actors[printable(actor)] = time.time()


def split(data: bytes | bytearray | memoryview) -> Iterator[bytes]:
    """Pieces small enough for a message."""
    view = memoryview(data)
    for start in range(0, len(view), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])
