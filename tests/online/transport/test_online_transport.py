"""Learner and actor over a real socket: what arrives, what is refused, and that the server goes on serving."""

import dataclasses
import errno
import json
import logging
import os
import pickle
import re
import shutil
import socket
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from lerobot.configs.default import PeftConfig
from safetensors.torch import load, save

from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.configuration_pi05_rl import ActorLearnerConfig
from lerobot_policy_pi05_rl.model.lora import add_adapter
from lerobot_policy_pi05_rl.model.trainable import pushed_tensors, select_trainable
from lerobot_policy_pi05_rl.model.weights import CRITIC_PREFIX
from lerobot_policy_pi05_rl.online.episode import Episode, EpisodeSpec, encode_picture, new_uid, pack, unpack
from lerobot_policy_pi05_rl.online.transport import learner_pb2 as pb
from lerobot_policy_pi05_rl.online.transport.client import (
    LearnerClient,
    Refused,
    Unreachable,
    assemble,
    episode_chunks,
)
from lerobot_policy_pi05_rl.online.transport.inbox import Inbox
from lerobot_policy_pi05_rl.online.transport.security import check_binding, load_token
from lerobot_policy_pi05_rl.online.transport.server import LearnerServer
from lerobot_policy_pi05_rl.online.transport.service import LearnerStub
from lerobot_policy_pi05_rl.online.transport.weights import (
    BadWeightsError,
    WeightsBox,
    apply_weights,
    frozen_fingerprint,
    pack_weights,
    unpack_weights,
)
from lerobot_policy_pi05_rl.returns import Outcome

CAMERA = "observation.images.front"
SPEC = EpisodeSpec(
    state_dim=4,
    action_dim=3,
    cameras={CAMERA: (32, 24)},
    tasks=("pick the cube",),
    fps=10,
    max_frames=100,
    max_bytes=1 << 20,
)
WAIT_S = 60.0  # far above what anything here takes


def make_episode(length: int = 5, **changes) -> Episode:
    rng = np.random.default_rng(0)
    size = changes.pop("size", (32, 24))
    values = {
        "uid": new_uid(),
        "actor": "arm",
        "task": "pick the cube",
        "outcome": Outcome.SUCCESS,
        "state": rng.normal(size=(length, 4)).astype(np.float32),
        "action": rng.normal(size=(length, 3)).astype(np.float32),
        "reward": rng.normal(size=length).astype(np.float32),
        "intervention": np.arange(length) >= 3,
        "policy_version": np.arange(length),
        "pictures": {
            CAMERA: [encode_picture(rng.integers(0, 255, (*size, 3), dtype=np.uint8), 90) for _ in range(length)]
        },
        "started": 12.5,
        "report": {"hz": 9.5},
    }
    return Episode(**{**values, **changes})


class Learner:
    """A server on a free port, and what it was given."""

    def __init__(self, folder: Path, **connection) -> None:
        self.inbox = Inbox(folder / "inbox", known=lambda uid: uid in self.replay)
        self.replay: set[str] = set()
        self.weights = WeightsBox()
        self.setup = pb.ActorSetup(session="s", policy_config="x" * 3_000_000, frozen_fingerprint="f" * 64)
        self.reports: list[tuple[str, dict[str, float]]] = []
        self.connection = ActorLearnerConfig(**{"learner_port": 0, **connection})

    @contextmanager
    def serving(self, **options) -> Iterator[LearnerServer]:
        callbacks = {
            "on_report": lambda actor, numbers: self.reports.append((actor, numbers)),
            "step": lambda: 7,
        }
        with LearnerServer(
            self.connection,
            setup=self.setup,
            spec=SPEC,
            inbox=self.inbox,
            weights=self.weights,
            **{**callbacks, **options},
        ) as server:
            self.connection = dataclasses.replace(self.connection, learner_port=server.port)
            yield server

    @contextmanager
    def client(self, **connection) -> Iterator[LearnerClient]:
        client = LearnerClient(dataclasses.replace(self.connection, **connection), "arm")
        try:
            yield client
        finally:
            client.close()

    @contextmanager
    def stub(self) -> Iterator[LearnerStub]:
        with grpc.insecure_channel(f"127.0.0.1:{self.connection.learner_port}") as channel:
            yield LearnerStub(channel)


@pytest.fixture
def learner(tmp_path, monkeypatch, caplog) -> Learner:
    monkeypatch.delenv("PI05_RL_TOKEN", raising=False)
    caplog.set_level(logging.INFO)
    return Learner(tmp_path)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def reaches(client: LearnerClient) -> bool:
    try:
        client.join()
    except Unreachable:
        return False
    return True


def assert_serves(learner: Learner, **connection) -> None:
    """A good episode still gets through."""
    data = pack(episode := make_episode())
    with learner.client(**connection) as client:
        assert not client.send(data, episode.uid).known_before
    assert episode.uid in {path.stem for path in learner.inbox.pending()}


def refusals(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.message.startswith("[LEARNER] Refused")]


def header_of(data: bytes, of: str, **changes) -> pb.EpisodeHeader:
    values = {"uid": of, "actor": "arm", "bytes": len(data), "crc32": zlib.crc32(data)}
    return pb.EpisodeHeader(**{**values, **changes})


# Episodes


def test_an_episode_survives_the_way():
    sent = make_episode()
    got = unpack(pack(sent), SPEC)
    for field in dataclasses.fields(Episode):
        if isinstance(value := getattr(sent, field.name), np.ndarray):
            np.testing.assert_array_equal(getattr(got, field.name), value)
        else:
            assert getattr(got, field.name) == value


def test_join_known_report(learner):
    with learner.serving() as server, learner.client() as client:
        assert client.join() == learner.setup
        learner.replay.add(old := new_uid())
        assert client.known([old, new_uid(), "../../etc/passwd"]) == {old}
        assert client.report("s", {"hz": 9.5}).optimization_step == 7
        assert learner.reports == [("arm", {"hz": 9.5})]
        assert server.actors.keys() == {"arm"}


def test_an_episode_is_stored_once_however_often_it_comes(learner):
    data = pack(episode := make_episode())
    with learner.serving() as server, learner.client() as client:
        with ThreadPoolExecutor(8) as pool:
            receipts = list(pool.map(lambda _: client.send(data, episode.uid), range(8)))
        assert sorted(receipt.known_before for receipt in receipts) == [False] + [True] * 7
        assert client.send(data, episode.uid).known_before
        assert [path.stem for path in learner.inbox.pending()] == [episode.uid]
        assert (server.received, server.duplicates, server.refused) == (1, 8, 0)
        assert [path.read_bytes() for path in learner.inbox.pending()] == [data]
        # also when it has moved on into the replay
        learner.replay.add(episode.uid)
        learner.inbox.remove(episode.uid)
        assert client.send(data, episode.uid).known_before
        assert len(learner.inbox) == 0


def altered(change: Callable[[dict[str, torch.Tensor]], None]) -> bytes:
    """A packed episode with other tensors."""
    data = pack(make_episode())
    tensors = load(data)
    change(tensors)
    size = int.from_bytes(data[:8], "little")
    return save(tensors, metadata=json.loads(data[8 : 8 + size])["__metadata__"])


def nan_action() -> bytes:
    action = make_episode().action.copy()
    action[2, 1] = np.nan
    return pack(make_episode(action=action))


BAD_EPISODES = {
    "pickle": (lambda: pickle.dumps({"state": [1.0]}), "not a safetensors file"),
    "nothing": (lambda: b"", "not a safetensors file"),
    "cut": (lambda: pack(make_episode())[:-10], "not a safetensors file"),
    "shape": (
        lambda: pack(make_episode(state=np.zeros((5, 9), np.float32))),
        r"observation.state is float32 \(5, 9\)",
    ),
    "dtype": (lambda: altered(lambda t: t.update(action=t["action"].double())), "action is float64"),
    "missing": (lambda: altered(lambda t: t.pop("intervention")), "intervention missing or unknown"),
    "NaN": (nan_action, "action holds NaN"),
    "size": (lambda: pack(make_episode(size=(24, 32))), "a picture is 24x32, not 32x24"),
    "no picture": (lambda: pack(make_episode(pictures={CAMERA: [b"GIF89a"] * 5})), "a picture is not JPEG"),
    "task": (lambda: pack(make_episode(task="launch\n[LEARNER] Done")), "the task 'launch"),
    "long": (lambda: pack(make_episode(length=101)), "101 frames"),
    "actor": (lambda: pack(make_episode(actor="arm\n[LEARNER] Done")), "no plain text"),
    "start": (lambda: pack(make_episode(started=float("nan"))), "no time"),
    "another uid": (lambda: pack(make_episode()), "the uid in its header is not its own"),
}


@pytest.mark.parametrize("case", BAD_EPISODES)
def test_a_bad_episode_is_refused_and_the_server_goes_on(case, learner, caplog):
    make, reason = BAD_EPISODES[case]
    with learner.serving() as server:
        with learner.client() as client, pytest.raises(Refused, match=reason) as refused:
            client.send(make(), new_uid())
        assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert server.refused == 1 and len(learner.inbox) == 0
        [line] = refusals(caplog)
        assert line.startswith("[LEARNER] Refused an episode from arm (ipv4:127.0.0.1:") and "\n" not in line
        assert_serves(learner)


BAD_HEADERS = {
    "oversized as declared": ({"bytes": SPEC.max_bytes + 1}, grpc.StatusCode.RESOURCE_EXHAUSTED, "at most 1048576"),
    "oversized in fact": ({"bytes": 1000}, grpc.StatusCode.INVALID_ARGUMENT, "more came than the 1000"),
    "short": ({"bytes": 900_000}, grpc.StatusCode.DATA_LOSS, "of 900000 bytes"),
    "damaged": ({"crc32": 1}, grpc.StatusCode.DATA_LOSS, "checksum"),
    "a path for a uid": ({"uid": "../../../tmp/x"}, grpc.StatusCode.INVALID_ARGUMENT, "uid"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_header_that_lies_is_refused(case, learner, caplog):
    changes, code, reason = BAD_HEADERS[case]
    data = pack(episode := make_episode())
    with learner.serving() as server:
        with learner.stub() as stub, pytest.raises(grpc.RpcError) as error:
            stub.SendEpisode(episode_chunks(header_of(data, episode.uid, **changes), data), timeout=WAIT_S)
        assert error.value.code() is code and reason in error.value.details()
        assert server.refused == 1 and len(learner.inbox) == 0
        [line] = refusals(caplog)
        assert reason in line
        assert_serves(learner)


def test_an_oversized_message_and_a_missing_header_are_refused(learner, caplog):
    data = pack(episode := make_episode())
    with learner.serving(), learner.stub() as stub:
        with pytest.raises(grpc.RpcError) as error:
            stub.SendEpisode(iter([pb.EpisodeChunk(data=data)]), timeout=WAIT_S)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        huge = pb.EpisodeChunk(header=header_of(data, episode.uid), data=bytes(5 << 20))
        with pytest.raises(grpc.RpcError) as error:
            stub.SendEpisode(iter([huge]), timeout=WAIT_S)
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        wait_until(lambda: len(refusals(caplog)) == 2)
        assert len(learner.inbox) == 0
        assert_serves(learner)


@pytest.mark.parametrize("by", ["closed channel", "raising generator"])
def test_a_connection_cut_in_an_episode_stores_nothing(by, learner, caplog):
    data = pack(episode := make_episode())
    half = threading.Event()

    def chunks() -> Iterator[pb.EpisodeChunk]:
        yield pb.EpisodeChunk(header=header_of(data, episode.uid))
        yield pb.EpisodeChunk(data=data[: len(data) // 2])
        half.set()
        if by == "raising generator":
            raise RuntimeError("the actor died")
        gone.wait(WAIT_S)

    gone = threading.Event()
    with learner.serving() as server:
        with learner.stub() as stub:
            call = stub.SendEpisode.future(chunks(), timeout=WAIT_S)
            assert half.wait(WAIT_S)
            if by == "raising generator":
                assert call.exception(WAIT_S) is not None
        gone.set()
        wait_until(lambda: server.refused == 1)
        assert "(ipv4:127.0.0.1:" in refusals(caplog)[0] and "cut off after" in refusals(caplog)[0]
        assert list(learner.inbox.directory.iterdir()) == [learner.inbox.rejected]
        with learner.client() as client:
            assert not client.send(data, episode.uid).known_before
            assert client.send(data, episode.uid).known_before
        assert len(learner.inbox) == 1


def test_a_stalled_stream_is_cancelled_while_others_send(learner, caplog):
    data = pack(episode := make_episode())
    over = threading.Event()

    def chunks() -> Iterator[pb.EpisodeChunk]:
        yield pb.EpisodeChunk(header=header_of(data, episode.uid))
        yield pb.EpisodeChunk(data=data[:100])
        over.wait(WAIT_S)

    with learner.serving(stall_s=1.0) as server, learner.stub() as stub:
        call = stub.SendEpisode.future(chunks(), timeout=WAIT_S)
        assert_serves(learner)
        assert call.exception(WAIT_S).code() is grpc.StatusCode.CANCELLED
        over.set()
        wait_until(lambda: server.refused == 1)
        # Which of the two limits is passed first depends on how fast the first hundred bytes came.
        slow = "(nothing came for 1 s|it came slower than 50000 bytes a second)"
        assert re.search(f"{slow} after 100 of", refusals(caplog)[0])
        assert len(learner.inbox) == 1
        with learner.client() as client:
            assert not client.send(data, episode.uid).known_before


def test_a_stream_that_trickles_is_cancelled(learner, caplog):
    data = pack(episode := make_episode())

    def chunks() -> Iterator[pb.EpisodeChunk]:
        yield pb.EpisodeChunk(header=header_of(data, episode.uid))
        for byte in range(1000):
            time.sleep(0.05)
            yield pb.EpisodeChunk(data=data[byte : byte + 1])

    with learner.serving(stall_s=1.0) as server, learner.stub() as stub:
        with pytest.raises(grpc.RpcError):
            stub.SendEpisode(chunks(), timeout=WAIT_S)
        wait_until(lambda: server.refused == 1)
        assert "it came slower than 50000 bytes a second after" in refusals(caplog)[0]


def test_episodes_that_arrive_at_once_share_a_bounded_memory(learner, caplog):
    held, over = pack(first := make_episode()), threading.Event()

    def half() -> Iterator[pb.EpisodeChunk]:
        yield pb.EpisodeChunk(header=header_of(held, first.uid))
        yield pb.EpisodeChunk(data=held[:-1])
        over.wait(WAIT_S)
        yield pb.EpisodeChunk(data=held[-1:])

    data = pack(episode := make_episode())
    with learner.serving() as server, learner.stub() as stub, learner.client() as client:
        server._watchdog.memory_bytes = len(held) + len(data) // 2
        waiting = stub.SendEpisode.future(half(), timeout=WAIT_S)
        wait_until(lambda: any(transfer.received for transfer in server._watchdog._transfers.values()))
        with pytest.raises(Unreachable, match="send it again"):
            client.send(data, episode.uid)
        over.set()
        assert waiting.result(WAIT_S).uid == first.uid
        assert not client.send(data, episode.uid).known_before
    assert "too much is being received at once" in refusals(caplog)[0]


def test_a_failing_learner_keeps_serving(learner, caplog):
    def fail(*_: object) -> None:
        raise RuntimeError("no luck")

    with learner.serving(on_report=fail) as server, learner.client() as client:
        data = pack(episode := make_episode())
        assert not client.send(data, episode.uid).known_before
        with pytest.raises(Unreachable, match="RuntimeError"):
            client.report("s", {})
        shutil.rmtree(learner.inbox.directory)
        data = pack(episode := make_episode())
        with pytest.raises(Unreachable, match="FileNotFoundError"):
            client.send(data, episode.uid)
        learner.inbox.rejected.mkdir(parents=True)
        assert not client.send(data, episode.uid).known_before
        assert (server.received, server.refused) == (2, 0)
    failures = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert [line.split()[1] for line in failures] == ["Failed", "Failed"]


def test_garbage_on_the_socket(learner):
    with learner.serving() as server:
        for garbage in (
            os.urandom(100_000),
            b"GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(999),
        ):
            with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as connection:
                try:
                    connection.sendall(garbage)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
                except OSError as error:  # the learner hung up
                    assert error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)
        assert_serves(learner)


# Who may speak


@pytest.mark.parametrize(("token", "reason"), [(None, "no token"), ("guess", "wrong token")])
def test_a_call_without_the_token_is_refused(token, reason, learner, caplog, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("s3cret\n")
    learner.connection.token_file = str(tmp_path / "token")
    data = pack(episode := make_episode())
    with learner.serving() as server:
        if token is not None:
            monkeypatch.setenv("PI05_RL_TOKEN", token)
        with learner.client(token_file=None) as client:
            calls = [
                client.join,
                lambda: client.known([episode.uid]),
                lambda: client.send(data, episode.uid),
                lambda: next(client.stream_weights("", -1)),
                lambda: client.report("s", {}),
            ]
            for call in calls:
                with pytest.raises(Refused, match=reason) as refused:
                    call()
                assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED
        assert len(refusals(caplog)) == len(calls) and all(line.endswith(reason) for line in refusals(caplog))
        assert not server.actors and not learner.reports and len(learner.inbox) == 0
        assert_serves(learner)
    assert "s3cret" not in caplog.text and "guess" not in caplog.text


def test_the_token(tmp_path, monkeypatch):
    monkeypatch.delenv("PI05_RL_TOKEN", raising=False)
    assert load_token(ActorLearnerConfig()) is None
    monkeypatch.setenv("PI05_RL_TOKEN", ["of", "the", "environment"][-1])
    assert load_token(ActorLearnerConfig()) == "environment"
    file = tmp_path / "token"
    with pytest.raises(ConfigError, match=r"token_file.*cannot be read"):
        load_token(ActorLearnerConfig(token_file=str(file)))
    file.write_text(" \n")
    with pytest.raises(ConfigError, match="empty"):
        load_token(ActorLearnerConfig(token_file=str(file)))
    file.write_text("of the file")
    with pytest.raises(ConfigError, match="one word"):
        load_token(ActorLearnerConfig(token_file=str(file)))
    file.write_text(" file\n")
    assert load_token(ActorLearnerConfig(token_file=str(file))) == "file"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::"])
def test_beyond_loopback_needs_token_and_tls(host, learner, monkeypatch):
    learner.connection.learner_host = host
    with pytest.raises(ConfigError, match=r"token_file, .*tls_certificate, .*tls_key"), learner.serving():
        pass
    with pytest.raises(ConfigError, match=r"token_file, .*tls_certificate"):
        LearnerClient(learner.connection, "arm")
    monkeypatch.setenv("PI05_RL_TOKEN", "s3cret")
    with pytest.raises(ConfigError, match=r"set policy.actor_learner_config.tls_certificate, .*tls_key"):
        check_binding(learner.connection)
    with pytest.raises(ConfigError, match=r"set policy.actor_learner_config.tls_certificate \("):
        LearnerClient(learner.connection, "arm")


def self_signed(folder: Path) -> tuple[str, str]:
    """Paths of a certificate for 127.0.0.1 and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=learner", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return str(certificate), str(key)


def test_tls_with_a_certificate_of_ones_own(learner, tmp_path, monkeypatch):
    certificate, key = self_signed(tmp_path)
    (tmp_path / "other").mkdir()
    another, _ = self_signed(tmp_path / "other")
    monkeypatch.setenv("PI05_RL_TOKEN", "s3cret")
    learner.connection = dataclasses.replace(learner.connection, tls_certificate=certificate, tls_key=key)
    with learner.serving():
        with learner.client() as client:
            assert client.join() == learner.setup
        for trusted in (None, another):
            with learner.client(tls_certificate=trusted) as client, pytest.raises(Unreachable):
                client.join()
        assert_serves(learner, tls_key=None)  # the key is the learner's alone
    with pytest.raises(ConfigError, match="tls_key is missing"):
        check_binding(dataclasses.replace(learner.connection, tls_key=None))


def test_tls_beyond_loopback(learner, tmp_path, monkeypatch):
    certificate, key = self_signed(tmp_path)
    monkeypatch.setenv("PI05_RL_TOKEN", "s3cret")
    learner.connection = dataclasses.replace(
        learner.connection, learner_host="0.0.0.0", tls_certificate=certificate, tls_key=key
    )
    with learner.serving():
        assert_serves(learner, learner_host="127.0.0.1", tls_key=None)


def test_nothing_listens_beyond_loopback(learner):
    listening = "0A"
    with learner.serving() as server:
        found = []
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in Path(table).read_text().splitlines()[1:]:
                local, _, state = line.split()[1:4]
                host, port = local.rsplit(":")
                if state == listening and int(port, 16) == server.port:
                    found.append(host)
    mapped = "0000000000000000FFFF00000100007F"  # 127.0.0.1 as an IPv6 socket shows it
    assert found in (["0100007F"], [mapped])


def test_two_learners_do_not_share_a_port(learner):
    with learner.serving(), pytest.raises(ConfigError, match="taken"), learner.serving():
        pass


# Weights


def test_weights_arrive_with_their_version(learner, tiny_policy):
    tensors = pushed_tensors(tiny_policy)
    with learner.serving(), learner.client() as client:
        assert learner.weights.listeners == 0
        stream = client.stream_weights("", -1)
        first = pack_weights(tensors, torch.float32)
        learner.weights.publish("s", 3, first)
        header, data = next(stream)
        assert (header.session, header.version, data) == ("s", 3, first)
        assert learner.weights.listeners == 1
        learner.weights.publish("s", 5, second := bytes(3_000_001))
        header, data = next(stream)
        assert (header.version, data, header.crc32) == (5, second, zlib.crc32(second))
        learner.weights.publish("resumed", 1, b"x")  # versions count within a session
        assert next(stream)[0].version == 1
        wait_until(lambda: learner.weights.pushes == 3)
        assert learner.weights.bytes_sent == len(first) + len(second) + 1
        stream.close()
        wait_until(lambda: learner.weights.listeners == 0)


def test_a_stream_ends_with_the_learner_and_with_the_client(learner):
    learner.weights.publish("s", 1, b"x")
    with learner.serving(), learner.client() as client, ThreadPoolExecutor(1) as pool:
        stream = client.stream_weights("", -1)
        next(stream)
        waiting = pool.submit(next, stream)
        client.close()
        with pytest.raises(Unreachable):
            waiting.result(WAIT_S)
        with pytest.raises(Unreachable):
            client.known([])
    with learner.client() as client:
        with learner.serving():
            stream = client.stream_weights("", -1)
            next(stream)
        with pytest.raises(Unreachable):
            next(stream)
        with pytest.raises(Unreachable):
            client.join()
        with learner.serving():  # on the same port; the client has to be patient, not new
            wait_until(lambda: reaches(client))
            assert next(client.stream_weights("", -1))[0].version == 1


def test_a_version_that_is_known_is_not_sent(learner):
    learner.weights.publish("s", 4, b"old")
    assert learner.weights.wait_newer("s", 4, 0.0) is None
    assert learner.weights.wait_newer("s", 3, 0.0).version == 4
    with learner.serving(), learner.client() as client:
        stream = client.stream_weights("s", 4)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(next, stream)
            wait_until(lambda: learner.weights.listeners == 1)
            learner.weights.publish("s", 6, b"new")
            assert waiting.result(WAIT_S)[1] == b"new"


def test_damaged_weights_are_dropped(caplog):
    def version(number: int, *pieces: bytes, crc: int | None = None, size: int | None = None):
        whole = b"".join(pieces)
        yield pb.WeightsChunk(
            header=pb.WeightsHeader(
                version=number,
                bytes=len(whole) if size is None else size,
                crc32=zlib.crc32(whole) if crc is None else crc,
            )
        )
        yield from (pb.WeightsChunk(data=piece) for piece in pieces)

    chunks = [
        *version(1, b"good", b"one"),
        *version(2, b"flipped", crc=5),
        *version(3, b"short", size=9),
        *version(4, b"too", b"long", b"by far", size=4),
        *version(5, b"good", b"too"),
    ]
    whole = [(header.version, bytes(data)) for header, data in assemble(chunks)]
    assert whole == [(1, b"goodone"), (5, b"goodtoo")]
    lines = [record.message for record in caplog.records if record.message.startswith("[ACTOR] Dropped damaged")]
    assert [line.partition("version ")[2][0] for line in lines] == ["2", "3", "4"]


def test_pushed_weights_are_those_that_train_without_the_critic(tiny_policy):
    language = tiny_policy.model.language_model
    language.embed_tokens.requires_grad_(False)
    everything = pushed_tensors(tiny_policy)  # random weights are in no checkpoint
    assert not frozen_fingerprint(tiny_policy, set(everything))
    tiny_policy.config.pi05_checkpoint = "base"
    pushed = pushed_tensors(tiny_policy)
    frozen = {name for name, p in tiny_policy.named_parameters() if not p.requires_grad}
    assert pushed and frozen and not any(name.startswith(CRITIC_PREFIX) for name in pushed)
    assert not frozen & pushed.keys()
    critic = {name for name, _ in tiny_policy.named_parameters() if name.startswith(CRITIC_PREFIX)}
    assert pushed.keys() | frozen | critic == {name for name, _ in tiny_policy.named_parameters()}

    before = frozen_fingerprint(tiny_policy, set(pushed))
    with torch.no_grad():
        next(iter(pushed.values())).add_(1)
        tiny_policy.model.critic.requires_grad_(True)
        next(iter(tiny_policy.model.critic.parameters())).add_(1)
    assert frozen_fingerprint(tiny_policy, set(pushed)) == before != ""
    with torch.no_grad():
        language.embed_tokens.weight[0, 0] += 1
    assert frozen_fingerprint(tiny_policy, set(pushed)) != before


def test_of_an_adapter_only_the_adapter_is_pushed(tiny_policy):
    names = {name for name, _ in tiny_policy.named_parameters()}
    tiny_policy.config.pi05_checkpoint = "base"
    add_adapter(tiny_policy, PeftConfig(r=4, target_modules=["q_proj", "v_proj"]), "base")
    select_trainable(tiny_policy)
    pushed = pushed_tensors(tiny_policy)
    assert pushed and not names & pushed.keys()
    assert all(".lora_" in name or ".modules_to_save." in name for name in pushed)
    before = frozen_fingerprint(tiny_policy, set(pushed))
    apply_weights(tiny_policy, {name: tensor + 1 for name, tensor in pushed.items()})
    assert frozen_fingerprint(tiny_policy, set(pushed)) == before != ""
    with pytest.raises(KeyError):
        apply_weights(tiny_policy, {"unknown": torch.zeros(1)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_pack_and_apply(dtype, tiny_policy):
    tensors = {name: tensor.clone() for name, tensor in pushed_tensors(tiny_policy).items()}
    data = pack_weights(tensors, dtype)
    assert {name: tuple(t.shape) for name, t in load(bytes(data)).items()} == {
        name: tuple(t.shape) for name, t in tensors.items()
    }
    got = unpack_weights(data, {name: tensor.shape for name, tensor in tensors.items()})
    with torch.no_grad():
        for parameter in tiny_policy.parameters():
            parameter.zero_()
    apply_weights(tiny_policy, got)
    for name, tensor in pushed_tensors(tiny_policy).items():
        assert tensor.any() and torch.equal(tensor, tensors[name].to(dtype).to(tensor.dtype)), name
    # what safetensors itself writes is read as well
    read = unpack_weights(bytearray(save({"w": torch.ones(2, 3, dtype=dtype)})), {"w": torch.Size((2, 3))})
    assert torch.equal(read["w"], torch.ones(2, 3, dtype=dtype))


def test_weights_that_do_not_fit_are_refused():
    expected = {"w": torch.Size((2, 3))}
    good = pack_weights({"w": torch.ones(2, 3)}, torch.float32)
    cases = {
        "is \\(3, 2\\), not \\(2, 3\\)": pack_weights({"w": torch.ones(3, 2)}, torch.float32),
        "missing or unknown": pack_weights({"v": torch.ones(2, 3)}, torch.float32),
        "NaN": pack_weights({"w": torch.full((2, 3), torch.nan)}, torch.float32),
        "w lies outside": good[:-4],
        r"file \(KeyError": bytearray(save({"w": torch.ones(2, 3, dtype=torch.int64)})),
        r"file \(\w+Error\)": bytearray(pickle.dumps({"w": [1.0]})),
        r"file \(ValueError\)": bytearray(b"abc"),
    }
    for reason, data in cases.items():
        with pytest.raises(BadWeightsError, match=reason):
            unpack_weights(data, expected)
    assert unpack_weights(good, expected)["w"].sum() == 6


# The inbox


def test_the_inbox_keeps_the_order_and_outlives_a_restart(tmp_path, caplog):
    known: set[str] = set()
    inbox = Inbox(tmp_path, known.__contains__)
    uids = sorted((new_uid() for _ in range(6)), reverse=True)  # names do not say the order
    assert all(inbox.store(uid, uid.encode()) for uid in uids)
    (tmp_path / f"{new_uid()}.0.part").write_bytes(b"half")
    inbox = Inbox(tmp_path, known.__contains__)
    assert [path.stem for path in inbox.pending()] == uids and len(inbox) == 6
    assert not list(tmp_path.glob("*.part"))
    assert inbox.pending()[0].read_bytes() == uids[0].encode()
    inbox.remove(uids[0])
    inbox.reject(uids[1], "its pictures are black")
    assert "[LEARNER] Rejected the episode" in caplog.text and "its pictures are black" in caplog.text
    assert [path.stem for path in inbox.pending()] == uids[2:]
    assert not inbox.store(uids[1], b"again") and not inbox.store(uids[2], b"again")
    known.add(uids[0])
    assert not inbox.store(uids[0], b"again")
    with pytest.raises(ValueError, match="uid"):
        inbox.store("../x", b"")


@pytest.mark.parametrize("done", [True, False])
def test_a_learner_says_whether_it_is_done_or_only_gone(learner, done):
    learner.weights.publish("s", 3, b"first")
    ended, versions = [], []

    def listen():
        try:
            for header, _ in client.stream_weights("s", -1):
                versions.append(header.version)
        except Unreachable as error:
            ended.append(error.finished)

    with learner.serving() as server, learner.client() as client:
        listening = threading.Thread(target=listen)
        listening.start()
        wait_until(lambda: versions == [3])
        learner.weights.publish("s", 4, b"last")
        if done:
            server.finish()
            wait_until(lambda: ended)
    listening.join(WAIT_S)
    assert ended == [done] and (versions == [3, 4] or not done)
