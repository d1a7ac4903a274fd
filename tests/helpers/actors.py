"""What an actor speaks to, in place of a learner, a policy and a robot."""

import json
import threading
from types import SimpleNamespace

import grpc
import numpy as np
import torch
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.utils.constants import OBS_STATE

from lerobot_policy_pi05_rl.config.actor import ActorConfig
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.online.actor.chunk_model import Weights
from lerobot_policy_pi05_rl.online.actor.control import Control, Stats
from lerobot_policy_pi05_rl.online.actor.environment import ActorEnvironment, Step
from lerobot_policy_pi05_rl.online.actor.inference import ChunkSource, ChunkThread
from lerobot_policy_pi05_rl.online.actor.recorder import Recorder
from lerobot_policy_pi05_rl.online.actor.safety import StalenessCheck
from lerobot_policy_pi05_rl.online.actor.setup import decode_policy_config, make_environment
from lerobot_policy_pi05_rl.online.config import OnlineTrainConfig
from lerobot_policy_pi05_rl.online.episode import EpisodeSpec
from lerobot_policy_pi05_rl.online.transport.client import Refused
from lerobot_policy_pi05_rl.online.transport.client import Unreachable as UnreachableError

NAMES = ["x", "y", "z"]
CAMERA = "observation.images.front"
PANDA_CAMERAS = ("observation.images.front", "observation.images.wrist")


def environment_of(cfg, features: dict, action_names: list[str]) -> ActorEnvironment:
    """The environment of a configuration."""
    return make_environment(cfg.env, cfg.actor, features, action_names, rename_map=cfg.rename_map)


def decoded(setup, cfg) -> PI05RLConfig:
    """What an actor of a configuration makes of the learner's policy configuration."""
    adapts, inference = cfg.peft is not None, cfg.actor.inference
    return decode_policy_config(setup.policy_config, cfg.policy, adapts=adapts, inference=inference)


class RefusedError(Refused):
    """A learner's no, in words of its own."""

    def __init__(self, reason, code=grpc.StatusCode.INVALID_ARGUMENT):
        self.code = code
        UserError.__init__(self, reason)


class FakeClient:
    """A learner that keeps what it is sent; ``fails`` says at which calls it is away."""

    def __init__(self, setup=None, fails=lambda call: False):
        self.setup, self._fails = setup, fails
        self.calls, self.received, self.closed, self.away = 0, [], False, False
        self.reports, self.joins, self.versions = [], 0, [140]
        self.deaf = False  # takes an episode, but its receipt is lost
        self.news = threading.Event()

    def _call(self):
        self.calls += 1
        if self.away or self._fails(self.calls):
            raise UnreachableError("no route")

    def join(self):
        self._call()
        self.joins += 1
        return self.setup

    def known(self, uids):
        self._call()
        return {uid for uid in uids if uid in {other for other, _ in self.received}}

    def send(self, data, uid):
        if self.deaf:
            self.received.append((uid, data))
        self._call()
        if data == b"refuse me":
            raise RefusedError("not the policy's features")
        self.received.append((uid, data))

    def stream_weights(self, session, known_version):
        for version in self.versions:
            if version > known_version:
                yield SimpleNamespace(session=session, version=version), 0.01
        self.news.wait(0.2)

    def report(self, session, numbers):
        self.reports.append(numbers)

    def close(self):
        self.closed = True


class FakeModel:
    """Chunks that count: row k of the n-th chunk is (n, k, version)."""

    def __init__(self, size=6, wait=lambda: None, bad=lambda count: False):
        self.size, self.wait, self.bad = size, wait, bad
        self.count, self.version, self.left_overs, self.busy = 0, -1.0, [], False
        self.policy = SimpleNamespace(config=SimpleNamespace(chunk_size=size, n_action_steps=size))
        self.torn = False

    def load(self, weights):
        self.torn |= self.busy
        self.version = float(weights.version)

    def compute(self, observation, delay, left_over, left_over_actions):
        self.busy, version = True, self.version
        self.wait()
        self.torn |= version != self.version
        rows = torch.tensor([[float(self.count), float(k), self.version] for k in range(self.size)])
        rows = rows * float("nan") if self.bad(self.count) else rows
        self.count += 1
        self.left_overs.append(None if left_over is None else len(left_over))
        self.busy = False
        return rows, rows


class FakeEnv:
    """Ends after ``length`` steps as ``last`` says; pictures change unless ``frozen``."""

    fps, task, action_names = 50.0, "pick the cube", NAMES

    def __init__(
        self, length=5, last=None, real_robot=False, reports_success=True, frozen_from=10**9, human=(), limits=None
    ):
        self.length, self.last = length, last or {"terminated": True, "success": True}
        self.real_robot, self.reports_success = real_robot, reports_success
        self.frozen_from, self.human = frozen_from, human
        self.executed, self.resets, self.closed, self.steps = [], 0, False, 0
        self.fails_at, self.on_step = None, lambda number: None
        self.limits = limits

    def _observe(self):
        shade = min(self.steps, self.frozen_from) % 250
        return {CAMERA: np.full((16, 16, 3), shade, np.uint8), OBS_STATE: np.full(4, self.steps, np.float32)}

    def reset(self, seed):
        self.resets, self.steps = self.resets + 1, 0
        return self._observe()

    def step(self, action):
        if self.limits is not None:
            action = self.limits.apply(action, self.executed[-1] if self.executed else None)
        if self.steps == self.fails_at:
            raise RuntimeError("the simulator burst")
        self.on_step(self.steps)
        human = self.steps in self.human
        executed = np.full(3, 7.0, np.float32) if human else action
        self.steps += 1
        self.executed.append(executed)
        ends = self.last if self.steps == self.length else {}
        values = {"terminated": False, "truncated": False, "success": False, **ends}
        return Step(self._observe(), executed, float(bool(values["success"])), intervention=human, **values)

    def close(self):
        self.closed = True


def make_control(env, model, actor=None, *, stopped=lambda: False, weights=140, thread=True, **kwargs):
    """A control loop around fakes; the chunks' thread runs if ``thread``."""
    actor = actor or ActorConfig(realtime=False)
    staleness = StalenessCheck(actor.stale_observation_s, True) if env.real_robot else None
    values = {"threshold": 3, "horizon": model.size, "staleness": staleness, "inline": not thread, **kwargs}
    source = ChunkSource(model, RTCConfig(enabled=thread), env.fps, **values)
    if weights is not None:
        source.stage(Weights(weights, {}))
    recorder = Recorder("arm", env.task, 90)
    control = Control(env, source, recorder, actor, stopped, Stats())
    chunks = ChunkThread(source)
    if thread:
        chunks.start()
    return SimpleNamespace(control=control, source=source, recorder=recorder, chunks=chunks, stats=control._stats)


def make_spec(setup):
    """What that learner takes."""
    return EpisodeSpec(4, 4, dict.fromkeys(PANDA_CAMERAS, (32, 32)), tuple(setup.tasks), 10)


def panda_config(tmp_path, setup, **changes):
    """A configuration for three steps an episode in the demo's simulator."""
    raw = {
        "output_dir": str(tmp_path / "run"),
        "dataset": {"repo_id": "test/tiny", "eval_split": 0.0},
        "policy": {"task": setup.tasks[0], "actor_device": "cpu", "device": "cpu"},
        "env": {"type": "panda_pick_cube", "image_size": 32, "episode_length": 5},
        "actor": {"name": "arm", "episodes": 2, "realtime": False},
    }
    for key, value in changes.items():
        raw.setdefault(key, {}).update(value)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw))
    return load_config(path, kind=OnlineTrainConfig)


class FakePanda(FakeEnv):
    fps, action_names = 10.0, ["delta_x", "delta_y", "delta_z", "gripper"]
    task = "pick up the cube"

    def _observe(self):
        picture = np.full((32, 32, 3), self.steps, np.uint8)
        cameras = {f"observation.images.{name}": picture for name in ("front", "wrist")}
        return {**cameras, OBS_STATE: np.zeros(4, np.float32)}


class RestartedClient(FakeClient):
    """Its learner starts anew, with versions that begin anew, once it has sent its first weights."""

    def stream_weights(self, session, known_version):
        if session == self.setup.session == "second":
            yield SimpleNamespace(session=session, version=2), 0.01
            self.news.wait(0.2)
        elif self.setup.session == "first":
            yield SimpleNamespace(session=session, version=140), 0.01
            self.setup = SimpleNamespace(**{**vars(self.setup), "session": "second"})
            raise UnreachableError("gone")
        else:
            raise RefusedError("another session")
