"""Who may speak to the learner: loopback by itself, any other address with a shared secret and TLS."""

import hmac
import logging
import os
from collections.abc import Callable
from pathlib import Path

import grpc

from ...config.train import ConfigError
from ...configuration_pi05_rl import ActorLearnerConfig
from ..config import LOOPBACK

logger = logging.getLogger(__name__)

KEY = "policy.actor_learner_config"
TOKEN_VARIABLE = "PI05_RL_TOKEN"
CHUNK_BYTES = 1 << 20
FINISHED = ("learner-finished", "1")  # behind the last weights of a learner that has made all its steps
SLOWEST_BYTES_S = 50_000  # an episode that comes slower than this is given up, on both sides
MESSAGE_BYTES = 4 << 20  # larger messages are refused by gRPC before they are read
KEEPALIVE = [  # a peer that answers no ping for so long is gone, whatever its socket says
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
]
SERVER_OPTIONS = [
    *KEEPALIVE,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),  # otherwise two learners would share a port, and actors reach either
]
CLIENT_OPTIONS = [
    *KEEPALIVE,
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_http_proxy", 0),  # a proxy of the web is not on the way to a robot
]


def load_token(connection: ActorLearnerConfig) -> str | None:
    """The shared secret: the text of ``token_file``, else of PI05_RL_TOKEN, else none.

    Raises:
        ConfigError: the file is missing or empty, or the secret cannot travel in a header.
    """
    if connection.token_file:
        path = Path(connection.token_file).expanduser()
        token, source = _read(path, "token_file").decode(errors="replace").strip(), str(path)
        if not token:
            raise ConfigError(f"{KEY}.token_file: {path} is empty; write a long random text into it")
    else:
        token, source = os.environ.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
    if not all("!" <= letter <= "~" for letter in token):
        raise ConfigError(f"the secret in {source} must be one word of ASCII letters, digits and signs")
    return token or None


def check_binding(connection: ActorLearnerConfig) -> None:
    """What the learner needs before it listens.

    Raises:
        ConfigError: another address than loopback without secret, certificate and key; or half of certificate and
            key anywhere.
    """
    missing = [name for name in ("tls_certificate", "tls_key") if not getattr(connection, name)]
    if connection.learner_host in LOOPBACK:
        if len(missing) == 1:
            raise ConfigError(f"{KEY}.{missing[0]} is missing; TLS needs both a certificate and its key")
        return
    if load_token(connection) is None:
        missing.insert(0, "token_file")
    if missing:
        raise ConfigError(
            f"the learner listens on {connection.learner_host}, which others can reach; set "
            f"{', '.join(f'{KEY}.{name}' for name in missing)} (the secret may be in {TOKEN_VARIABLE} instead), "
            f"or learner_host to 127.0.0.1"
        )


def address(connection: ActorLearnerConfig) -> str:
    """host:port as gRPC reads it."""
    host = connection.learner_host
    return f"{f'[{host}]' if ':' in host else host}:{connection.learner_port}"


def bind(server: grpc.Server, connection: ActorLearnerConfig) -> int:
    """Let ``server`` listen on the learner's address and nothing else; with TLS where there is a certificate.

    Returns:
        The port (of port 0: a free one).

    Raises:
        ConfigError: :func:`check_binding`'s, an unreadable file, or an address that cannot be listened on.
    """
    check_binding(connection)
    try:
        if not connection.tls_certificate:
            return server.add_insecure_port(address(connection))
        key = _read(Path(connection.tls_key).expanduser(), "tls_key")
        pair = (key, _read(Path(connection.tls_certificate).expanduser(), "tls_certificate"))
        return server.add_secure_port(address(connection), grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        raise ConfigError(
            f"the learner cannot listen on {address(connection)}: the port is taken by another program, the address "
            f"is not this machine's, or certificate and key are no pair; see {KEY}"
        ) from error


def open_channel(connection: ActorLearnerConfig) -> grpc.Channel:
    """An actor's way to the learner; nothing is sent yet.

    Raises:
        ConfigError: another address than loopback without secret or certificate.
    """
    if connection.learner_host not in LOOPBACK:
        missing = [] if load_token(connection) else ["token_file"]
        missing += [] if connection.tls_certificate else ["tls_certificate"]
        if missing:
            raise ConfigError(
                f"the learner on {connection.learner_host} is reached over a network; set "
                f"{', '.join(f'{KEY}.{name}' for name in missing)} (the secret may be in {TOKEN_VARIABLE} instead)"
            )
    if not connection.tls_certificate:
        return grpc.insecure_channel(address(connection), options=CLIENT_OPTIONS)
    trusted = _read(Path(connection.tls_certificate).expanduser(), "tls_certificate")
    credentials = grpc.ssl_channel_credentials(root_certificates=trusted)
    return grpc.secure_channel(address(connection), credentials, options=CLIENT_OPTIONS)


def token_metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """What a call carries to show the secret."""
    return () if token is None else (("authorization", f"Bearer {token}"),)


class TokenInterceptor(grpc.ServerInterceptor):
    """Refuse calls without the secret before a message of theirs is read."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    def intercept_service(
        self, continuation: Callable, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        given = dict(handler_call_details.invocation_metadata or ()).get("authorization")
        if given is not None and hmac.compare_digest(_bytes(given), self._expected):
            return continuation(handler_call_details)
        reason = "no token" if given is None else "wrong token"
        method = handler_call_details.method.rpartition("/")[2]

        def refuse(_: object, context: grpc.ServicerContext) -> None:
            logger.warning("[LEARNER] Refused %s from %s: %s", printable(method), context.peer(), reason)
            context.abort(grpc.StatusCode.UNAUTHENTICATED, f"{reason}; give the actor the learner's token")

        # Of all handlers this one alone does not read the first message before it is called.
        return grpc.stream_stream_rpc_method_handler(refuse)


def printable(text: str, length: int = 80) -> str:
    """A text from elsewhere, fit for one line of the log."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:length])


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{KEY}.{name}: {path} cannot be read ({error.strerror})") from error
