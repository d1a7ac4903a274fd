"""The actor, with a client that stands for the learner and a tiny policy or none."""

import contextlib
import logging
import os
import signal
import threading
import time
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import torch
from actors import (
    CAMERA,
    NAMES,
    FakeClient,
    FakeEnv,
    FakeModel,
    FakePanda,
    RefusedError,
    RestartedClient,
    UnreachableError,
    decoded,
    environment_of,
    make_control,
    make_spec,
    panda_config,
)

from lerobot_policy_pi05_rl.config.actor import ActorConfig
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.online.actor.actor import run_actor
from lerobot_policy_pi05_rl.online.actor.chunk_model import Weights
from lerobot_policy_pi05_rl.online.actor.control import time_limit_outcome
from lerobot_policy_pi05_rl.online.actor.recorder import Recorder
from lerobot_policy_pi05_rl.online.actor.safety import (
    ActionLimits,
    UnsafeActionError,
    check_limits,
    hold_action,
)
from lerobot_policy_pi05_rl.online.actor.setup import SetupError, choose_task, read_processors
from lerobot_policy_pi05_rl.online.actor.threads import WeightsThread
from lerobot_policy_pi05_rl.online.episode import EpisodeSpec, decode_picture, unpack
from lerobot_policy_pi05_rl.online.transport.spool import Sender, Spool, uid_of
from lerobot_policy_pi05_rl.returns import Outcome

# Limits


def test_an_action_is_clamped_then_limited_to_a_step_from_the_last():
    actor = ActorConfig(action_clamp_limits={"x": [-1, 1]}, max_action_step={"x": 0.25, "y": 2})
    limits = ActionLimits.of(actor, NAMES)
    assert limits.apply(np.array([5, 50, 500]), None).tolist() == [1, 50, 500]
    assert limits.apply(np.array([5, -50, 500]), np.zeros(3)).tolist() == [0.25, -2, 500]
    for bad in (np.array([np.nan, 0, 0]), np.array([np.inf, 0, 0]), np.zeros(2)):
        with pytest.raises(UnsafeActionError):
            limits.apply(bad, None)
    with pytest.raises(ConfigError, match="no action is called w; there are x, y, z"):
        ActionLimits.of(ActorConfig(max_action_step={"w": 1}), NAMES)
    held = hold_action(NAMES, {"y": 0.5}, np.array([1, 2, 3]))
    assert held.tolist() == [1, 0.5, 3]


def test_a_real_robot_without_limits_is_refused():
    clamps = {name: [-1.0, 1.0] for name in NAMES}
    cases = [
        (ActorConfig(), None, NAMES),
        (ActorConfig(action_clamp_limits=clamps), None, NAMES),
        (ActorConfig(action_clamp_limits=clamps, max_action_step={"x": 1}), None, ["y", "z"]),
        (ActorConfig(max_action_step=dict.fromkeys(NAMES, 1)), 5.0, NAMES),
        (ActorConfig(action_clamp_limits=clamps, max_action_step=dict.fromkeys(NAMES, 1)), None, []),
        (ActorConfig(action_clamp_limits=clamps), 5.0, []),
        (ActorConfig(allow_unlimited_actions=True), None, []),
    ]
    for actor, relative, named in cases:
        limits = ActionLimits.of(actor, NAMES)
        if not named:
            check_limits(actor, limits, relative)
            continue
        with pytest.raises(ConfigError, match=", ".join(named)):
            check_limits(actor, limits, relative)


# Episodes


def test_no_step_before_the_first_chunk():
    env, stop = FakeEnv(), threading.Event()
    made = make_control(env, FakeModel(), weights=None, stopped=stop.is_set)
    played = threading.Thread(target=made.control.play, args=(0,))
    played.start()
    time.sleep(0.2)
    assert env.resets == 1 and not env.executed
    made.source.stage(Weights(3, {}))
    played.join(20)
    assert len(env.executed) == 5
    assert made.recorder.finish(Outcome.SUCCESS, {}).policy_version.tolist() == [3] * 5
    made.chunks.stop()


@pytest.mark.parametrize("on_fault", ["hold", "stop"])
def test_a_chunk_with_nan_is_held_then_cut_off(on_fault):
    env = FakeEnv(length=10**6)
    actor = ActorConfig(on_fault=on_fault, fault_timeout_s=0.2, hold_action={"z": -1.0})
    made = make_control(env, FakeModel(bad=lambda count: count >= 1), actor)
    ending = made.control.play(0)
    made.chunks.stop()
    assert ending.outcome is Outcome.TRUNCATED and "NaN" in ending.why
    assert np.isfinite(env.executed).all() and {int(action[0]) for action in env.executed} == {0}
    if on_fault == "hold":
        held = [action.tolist() for action in env.executed[-made.stats.held :]]
        assert made.stats.held and held == held[-1:] * len(held) and held[-1][2] == -1.0


def test_a_frozen_camera_is_held_then_cut_off():
    env = FakeEnv(length=10**6, real_robot=True, frozen_from=10)
    made = make_control(env, FakeModel(), ActorConfig(stale_observation_s=0.2, fault_timeout_s=0.2))
    ending = made.control.play(0)
    made.chunks.stop()
    assert ending.outcome is Outcome.TRUNCATED and "pictures of observation.images.front" in ending.why
    assert made.stats.held > 0


def test_an_old_observation_is_refused():
    model = FakeModel()
    made = make_control(FakeEnv(real_robot=True), model, ActorConfig(stale_observation_s=0.05), thread=False)
    made.source.publish(FakeEnv()._observe(), intervened=False)
    time.sleep(0.1)
    assert made.source.next_action() is None
    assert "s old" in made.source.fault and model.count == 0


@pytest.mark.parametrize(
    ("last", "time_limit", "reports_success", "outcome"),
    [
        ({"terminated": True, "success": True}, "auto", True, Outcome.SUCCESS),
        ({"truncated": True, "success": True}, "auto", True, Outcome.SUCCESS),
        ({"terminated": True}, "auto", False, Outcome.FAILURE),
        ({"truncated": True}, "auto", True, Outcome.FAILURE),
        ({"truncated": True}, "auto", False, Outcome.TRUNCATED),
        ({"truncated": True}, "failure", False, Outcome.FAILURE),
        ({"truncated": True}, "truncated", True, Outcome.TRUNCATED),
        ({"terminated": True, "rerecord": True}, "auto", True, None),
    ],
)
def test_outcomes(last, time_limit, reports_success, outcome):
    env = FakeEnv(length=3, last=last, reports_success=reports_success)
    made = make_control(env, FakeModel(), ActorConfig(realtime=False, time_limit=time_limit), thread=False)
    assert made.control.play(0).outcome is outcome
    assert len(env.executed) == 3


def test_a_failing_environment_cuts_the_episode_off():
    env = FakeEnv()
    env.fails_at = 2
    made = make_control(env, FakeModel(), thread=False)
    ending = made.control.play(0)
    assert ending.broken and ending.outcome is Outcome.TRUNCATED and "the simulator burst" in ending.why
    assert len(made.recorder) == 2


def test_what_a_person_does_is_stored_and_continues_no_plan():
    env, model = FakeEnv(length=9, human=(3, 4, 5)), FakeModel(size=2)
    made = make_control(env, model, threshold=1, thread=True)
    made.control.play(0)
    made.chunks.stop()
    episode = made.recorder.finish(Outcome.SUCCESS, {})
    assert episode.intervention.tolist() == [False] * 3 + [True] * 3 + [False] * 3
    assert (episode.action[3:6] == 7).all() and (episode.action[:3] != 7).any()
    assert episode.state[:, 0].tolist() == list(range(9))  # what was seen before each step
    assert decode_picture(episode.pictures[CAMERA][4]).shape == (16, 16, 3)


def test_weights_change_between_chunks_only():
    env, model = FakeEnv(length=40), FakeModel(wait=lambda: time.sleep(0.005))
    made = make_control(env, model, weights=0)
    env.on_step = lambda number: made.source.stage(Weights(number, {}))
    made.control.play(0)
    made.chunks.stop()
    episode = made.recorder.finish(Outcome.SUCCESS, {})
    assert not model.torn and len(set(episode.policy_version)) > 1
    assert episode.policy_version.tolist() == episode.action[:, 2].astype(int).tolist()  # each action's own weights


def test_a_slow_model_never_stops_the_loop():
    release = threading.Semaphore(1)
    env, model = FakeEnv(length=60), FakeModel(size=6, wait=release.acquire)
    made = make_control(env, model, ActorConfig())
    env.on_step = lambda number: release.release() if number % 15 == 14 else None  # 300 ms at 50 steps a second
    ending = made.control.play(0)
    made.chunks.stop()
    release.release()
    assert ending.outcome is Outcome.SUCCESS and len(env.executed) == 60
    assert made.stats.held >= 15 and model.count >= 4
    assert model.left_overs[0] is None and any(left is not None for left in model.left_overs[1:])
    # No action of a chunk is skipped: as many as were executed while it was computed are dropped, and no more.
    chunk1 = [int(action[1]) for action in env.executed if int(action[0]) == 1]
    assert chunk1[0] <= 3


def test_chunks_in_the_loop():
    env, model = FakeEnv(length=8), FakeModel(size=3)
    made = make_control(env, model, thread=False, threshold=0)
    made.control.play(0)
    assert [action[:2].tolist() for action in env.executed] == [[n // 3, n % 3] for n in range(8)]
    assert model.left_overs == [None] * 3


def test_time_limit_outcome_of_auto():
    assert time_limit_outcome("auto", True) is Outcome.FAILURE


# Spool


def finished(steps=3):
    """A short episode."""
    recorder = Recorder("arm", "pick the cube", 90)
    for number in range(steps):
        recorder.add(FakeEnv()._observe(), np.full(3, number), 0.0, False, 1)
    return recorder.finish(Outcome.SUCCESS, {})


def test_each_episode_arrives_once_over_a_failing_line_and_a_restart(tmp_path):
    uids = []
    spool = Spool(tmp_path / "spool", 1.0)
    for _ in range(4):
        uids.append(uid_of(spool.put(finished())))
    draw = np.random.default_rng(0)
    client = FakeClient(fails=lambda call: call == 2 or (call > 2 and draw.random() < 0.5))
    client.deaf = True
    sender = Sender(spool, client)
    for _ in range(3):
        try:
            sender.send_one()
        except UnreachableError:
            break
    client.deaf = False
    (tmp_path / "spool" / "0-half.partial").write_bytes(b"cut off")
    again = Spool(tmp_path / "spool", 1.0)  # the actor was started anew
    uids.append(uid_of(again.put(finished())))
    sender = Sender(again, client)
    for _ in range(200):
        with contextlib.suppress(UnreachableError):
            if not sender.send_one():
                break
    assert [path.name for path in again.folder.iterdir()] == []
    assert sorted({uid for uid, _ in client.received}) == sorted(uids)
    spec = EpisodeSpec(4, 3, {CAMERA: (16, 16)}, ("pick the cube",), 10)
    assert [unpack(data, spec).uid for _, data in client.received] == [uid for uid, _ in client.received]


def test_a_refused_episode_is_put_aside(tmp_path, caplog):
    spool, client = Spool(tmp_path, 1e-6), FakeClient()
    path = spool.put(finished())
    path.write_bytes(b"refuse me")
    good = uid_of(spool.put(finished()))
    assert spool.full
    sender = Sender(spool, client)
    sender.start()
    assert sender.drain(20) == 0
    sender.stop()
    assert [uid for uid, _ in client.received] == [good]
    assert (tmp_path / "refused" / path.name).exists() and "refuses an episode: not the policy's" in caplog.text


def test_an_actor_that_is_refused_keeps_its_episodes(tmp_path):
    spool, client = Spool(tmp_path, 1.0), FakeClient()
    path = spool.put(finished())
    error = RefusedError("wrong token", grpc.StatusCode.UNAUTHENTICATED)
    client.send = lambda data, uid: (_ for _ in ()).throw(error)
    sender = Sender(spool, client)
    assert sender.send_one()  # asks what is known
    with pytest.raises(RefusedError):
        sender.send_one()
    assert spool.waiting() == [path] and not (tmp_path / "refused").exists()


# The whole actor


@pytest.mark.parametrize(("inference", "realtime"), [("sync", False), ("rtc", False), ("rtc", True)])
def test_the_actor_plays_in_the_simulator(tmp_path, wire, panda_setup, caplog, inference, realtime):
    caplog.set_level(logging.INFO)
    limits = {"max_action_step": {"delta_x": 0.1}, "action_clamp_limits": {"gripper": [-0.5, 0.5]}}
    cfg = panda_config(tmp_path, panda_setup, actor={"inference": inference, "realtime": realtime, **limits})
    client = FakeClient(panda_setup, fails=lambda call: call == 1)
    run_actor(cfg, client=client)
    assert client.closed and len(client.received) == 2 and wire.applied
    spec = make_spec(panda_setup)
    for _, data in client.received:
        episode = unpack(data, spec)
        assert len(episode) == 5 and episode.outcome is Outcome.FAILURE and episode.actor == "arm"
        assert episode.policy_version.tolist() == [140] * 5
        assert (np.abs(np.diff(episode.action[:, 0])) <= 0.1 + 1e-6).all() and (
            np.abs(episode.action[:, 3]) <= 0.5
        ).all()
        assert np.ptp(decode_picture(episode.pictures["observation.images.front"][0])) > 20
    assert "[ACTOR] Episode 2: failure (time limit) after 5 steps" in caplog.text
    assert "weights of step 140" in caplog.text and "Waiting for the learner" in caplog.text
    assert not list((tmp_path / "run" / "actors" / "arm").glob("*.safetensors"))


def test_a_dead_learner_ends_no_episode_and_nothing_is_lost(tmp_path, wire, panda_setup):
    env = FakePanda(length=3)
    client = FakeClient(panda_setup)
    cfg = panda_config(tmp_path, panda_setup, actor={"episodes": 3, "inference": "sync"})

    def die_and_rise(number):
        if env.resets == 1 and number == 1:
            client.away = True
        if env.resets == 3 and number == 1:
            client.away = False

    env.on_step = die_and_rise
    run_actor(cfg, client=client, environment=env)
    assert env.closed and len(env.executed) == 9
    assert len({uid for uid, _ in client.received}) == len(client.received) == 3


def test_a_learner_that_started_anew_is_joined_again(tmp_path, wire, panda_setup):
    env, client = FakePanda(length=3), RestartedClient(panda_setup)
    cfg = panda_config(tmp_path, panda_setup, actor={"episodes": 400, "realtime": True})
    env.fps, panda = 10.0, make_spec(panda_setup)
    stop = threading.Event()

    def until_the_new_weights(number):
        if wire.applied and client.joins >= 2 and len(wire.applied) >= 2 and not stop.is_set():
            stop.set()
            os.kill(os.getpid(), signal.SIGTERM)

    env.on_step = until_the_new_weights
    run_actor(cfg, client=client, environment=env)
    assert stop.is_set() and client.joins == 2
    first = unpack(client.received[0][1], panda)
    assert first.policy_version[0] == 140


def test_weights_of_another_session_are_not_taken_before_its_policy_is_seen(wire, panda_setup):
    staged = []
    client = FakeClient(panda_setup)
    other = SimpleNamespace(**{**vars(panda_setup), "session": "second", "processors": {}})
    client.stream_weights = lambda session, known: iter([(SimpleNamespace(session="second", version=2), 0.01)])
    thread = WeightsThread(client, panda_setup, {}, SimpleNamespace(stage=staged.append))
    client.setup = other
    thread.run()
    assert isinstance(thread.error, SetupError) and not staged


def test_a_learner_with_another_policy_ends_the_actor(tmp_path, wire, panda_setup):
    class Changed(RestartedClient):
        def join(self):
            setup = super().join()
            if self.joins > 1:
                setup.processors = {}
            return setup

    cfg = panda_config(tmp_path, panda_setup, actor={"episodes": 10**6, "inference": "sync"})
    env = FakePanda(length=3)
    with pytest.raises(SetupError, match="another policy"):
        run_actor(cfg, client=Changed(panda_setup), environment=env)
    assert env.closed


def test_an_environment_that_always_fails_ends_the_actor(tmp_path, wire, panda_setup, caplog):
    caplog.set_level(logging.INFO)
    env, client = FakePanda(length=9), FakeClient(panda_setup)
    env.fails_at = 2
    with pytest.raises(UserError, match="3 episodes in a row"):
        run_actor(
            panda_config(tmp_path, panda_setup, actor={"inference": "sync"} | {"episodes": 9}),
            client=client,
            environment=env,
        )
    assert env.closed and caplog.text.count("the environment failed: RuntimeError: the simulator burst") == 3


def test_an_episode_is_no_longer_than_the_learner_takes(tmp_path, wire, panda_setup):
    client = FakeClient(SimpleNamespace(**{**vars(panda_setup), "max_episode_frames": 4}))
    env = FakePanda(length=9)
    run_actor(panda_config(tmp_path, panda_setup), client=client, environment=env)
    episodes = [unpack(data, make_spec(panda_setup)) for _, data in client.received]
    assert [(len(episode), episode.outcome) for episode in episodes] == [(4, Outcome.TRUNCATED)] * 2


def test_a_person_in_a_simulator_is_seen_in_its_info(tmp_path, panda_setup, monkeypatch):
    """LeRobot's gym-hil convention, through a vector environment."""
    from lerobot_policy_pi05_rl.demo.simulator import PandaPickCubeSimulator

    original = PandaPickCubeSimulator.step

    def step(self, action):
        *rest, info = original(self, action)
        human = self._steps == 2 or self._steps == 5
        told = {"is_intervention": human, **({"teleop_action": np.array([1, 2, 3, 4], np.float32)} if human else {})}
        return *rest, {**info, **told}

    monkeypatch.setattr(PandaPickCubeSimulator, "step", step)
    cfg = panda_config(tmp_path, panda_setup)
    config = decoded(panda_setup, cfg)
    env = environment_of(cfg, {**config.input_features, **config.output_features}, [])
    assert env.action_names == ["0", "1", "2", "3"]
    env.reset(0)
    steps = [env.step(np.zeros(4, np.float32)) for _ in range(5)]
    env.close()
    assert [step.intervention for step in steps] == [False, True, False, False, True]
    assert [step.executed.tolist() for step in steps][1::3] == [[1, 2, 3, 4]] * 2
    assert steps[4].truncated and not steps[3].truncated


def test_a_stopped_actor_spools_the_episode_as_cut_off(tmp_path, wire, panda_setup):
    env, client = FakePanda(length=10**6), FakeClient(panda_setup)
    env.on_step = lambda number: os.kill(os.getpid(), signal.SIGTERM) if number == 4 else None
    run_actor(panda_config(tmp_path, panda_setup), client=client, environment=env)
    assert env.closed
    waiting = [path.read_bytes() for path in (tmp_path / "run" / "actors" / "arm").glob("*.safetensors")]
    spec = make_spec(panda_setup)
    (episode,) = [unpack(data, spec) for data in [*waiting, *(data for _, data in client.received)]]
    assert episode.outcome is Outcome.TRUNCATED and len(episode) == 5


def test_what_does_not_fit_the_learner_is_refused(tmp_path, wire, panda_setup):
    cfg = panda_config(tmp_path, panda_setup)
    with pytest.raises(SetupError, match="never sends"):
        run_actor(cfg, client=FakeClient(SimpleNamespace(**{**vars(panda_setup), "frozen_fingerprint": "theirs"})))
    with pytest.raises(ConfigError, match="30 steps a second"):
        run_actor(cfg, client=FakeClient(SimpleNamespace(**{**vars(panda_setup), "fps": 30.0})))
    with pytest.raises(SetupError, match="does not know the task"):
        choose_task("open the door", "", ["pick up the cube"])
    config = decoded(panda_setup, cfg)
    features = {**config.input_features, **config.output_features}
    features["observation.images.top"] = features["observation.images.front"]
    with pytest.raises(ConfigError, match=r"reads observation\.images\.top"):
        env = environment_of(cfg, features, [])
        env.reset(0)
    cfg.env = None
    with pytest.raises(ConfigError, match="env is missing"):
        environment_of(cfg, features, [])
    for files, message in (
        ({"../evil.json": b"{}"}, "plain names"),
        ({"a.pkl": b""}, "JSON and safetensors"),
        ({"a.json": b'{"steps": [{"class": "os.system", "config": {}}]}'}, "class of its own choice"),
        ({"a.json": b"]"}, "no processor configuration"),
    ):
        with pytest.raises(SetupError, match=message):
            read_processors(files, config)


def test_settings_of_acting_are_the_learners_and_an_actor_is_told(tmp_path, panda_setup, caplog):
    cfg = panda_config(tmp_path, panda_setup)
    learners = decoded(panda_setup, cfg)
    for name in ("n_action_steps", "num_inference_steps"):  # of the same file
        setattr(cfg.policy, name, getattr(learners, name))
    caplog.clear()
    decoded(panda_setup, cfg)
    assert "has no effect" not in caplog.text
    cfg.policy.guidance_scale = 2.0
    assert decoded(panda_setup, cfg).guidance_scale == learners.guidance_scale == 5.0
    assert "policy.guidance_scale=2.0 has no effect" in caplog.text


def test_chunks_of_the_tiny_policy_continue_the_last_one(panda_setup, tmp_path, wire):
    """RTC reaches the network: with a plan that is left over, the chunk's start stays near it."""
    from lerobot_policy_pi05_rl.online.actor.chunk_model import ChunkModel

    cfg = panda_config(tmp_path, panda_setup)
    config = decoded(panda_setup, cfg)
    policy = PI05RLPolicy(config, load_critic=False)
    policy.init_rtc_processor()
    model = ChunkModel(policy, read_processors(panda_setup.processors, config), panda_setup.tasks[0])
    observation = FakePanda()._observe()
    plan = torch.full((4, 4), 0.8)
    torch.manual_seed(0)
    free, _ = model.compute(observation, 0, None, None)
    torch.manual_seed(0)
    bound, actions = model.compute(observation, 3, plan, plan)
    assert bound.shape == (6, 4) and actions.shape == (6, 4)
    assert (bound[:3] - 0.8).abs().mean() < (free[:3] - 0.8).abs().mean()
