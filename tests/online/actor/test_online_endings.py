"""Whatever ends an episode, what is known of its outcome survives; and what ends a run of the actor."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
from actors import FakeClient, FakeEnv, FakeModel, FakePanda, UnreachableError, make_control, make_spec, panda_config

from lerobot_policy_pi05_rl.config.actor import ActorConfig
from lerobot_policy_pi05_rl.demo import online as demo_online
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.online.actor.actor import run_actor
from lerobot_policy_pi05_rl.online.actor.control import Control, Stats
from lerobot_policy_pi05_rl.online.episode import unpack
from lerobot_policy_pi05_rl.returns import Outcome

SUCCEEDS_AT, LENGTH = 1, 4  # step of the success, which does not end the episode; steps in all


class ReportsSuccess(FakeEnv):
    """Succeeds in its second step, or never, and goes on; ``last`` is what its last step says."""

    def __init__(self, succeeds, last=None):
        super().__init__(length=LENGTH, last=last or {"success": False})
        self.succeeds = succeeds

    def step(self, action):
        step = super().step(action)
        succeeded = self.succeeds and self.steps == 1 + SUCCEEDS_AT
        return replace(step, success=step.success or succeeded)


def burst(number):
    raise RuntimeError("burst")


def misfit(number):
    raise UserError("the environment's state is (3,), but the policy reads (4,)")


def interrupt(number):
    raise KeyboardInterrupt


# What ends the episode after LENGTH steps → the outcome if it had succeeded before, and if it had not.
ENDS = {
    "success": (Outcome.SUCCESS, Outcome.SUCCESS),
    "failure": (Outcome.SUCCESS, Outcome.FAILURE),
    "time limit, success reported": (Outcome.SUCCESS, Outcome.FAILURE),
    "time limit, success not reported": (Outcome.SUCCESS, Outcome.TRUNCATED),
    "longest length": (Outcome.SUCCESS, Outcome.TRUNCATED),
    "stop": (Outcome.SUCCESS, Outcome.TRUNCATED),
    "fault": (Outcome.SUCCESS, Outcome.TRUNCATED),
    "broken environment": (Outcome.SUCCESS, Outcome.TRUNCATED),
    "misfit": (Outcome.SUCCESS, Outcome.TRUNCATED),
    "broken model": (Outcome.SUCCESS, Outcome.TRUNCATED),
    "Ctrl-C": (Outcome.SUCCESS, Outcome.TRUNCATED),
}


def play(end, succeeds):
    """(the outcome, steps) of one episode that ends so."""
    last = {
        "success": {"terminated": True, "success": True},
        "failure": {"terminated": True},
        "time limit, success reported": {"truncated": True},
        "time limit, success not reported": {"truncated": True},
    }.get(end)
    env = ReportsSuccess(succeeds, last)
    env.reports_success = end != "time limit, success not reported"
    raises = {"broken environment": burst, "misfit": misfit, "Ctrl-C": interrupt}.get(end)
    env.on_step = lambda number: raises(number) if raises and number == LENGTH else None
    model = FakeModel(size=2, bad=lambda count: end == "fault" and count >= LENGTH // 2)
    actor = ActorConfig(realtime=False, fault_timeout_s=0.05)
    made = make_control(env, model, actor, stopped=lambda: end == "stop" and env.steps == LENGTH, thread=False)
    if end == "broken model":
        model.wait = lambda: burst(0) if model.count == LENGTH // 2 else None
    longest = LENGTH if end == "longest length" else None
    control = Control(env, made.source, made.recorder, actor, made.control._stopped, Stats(), max_steps=longest)
    try:
        outcome = control.play(0).outcome
    except (RuntimeError, UserError, KeyboardInterrupt):  # ends the run; the actor keeps the episode with this
        outcome = control.known_outcome
    return outcome, len(made.recorder)


@pytest.mark.parametrize("succeeds", [True, False])
@pytest.mark.parametrize("end", ENDS)
def test_a_known_outcome_survives_whatever_ends_the_episode(end, succeeds):
    after_success, otherwise = ENDS[end]
    assert play(end, succeeds) == (after_success if succeeds else otherwise, LENGTH)


def test_an_exception_of_the_run_keeps_the_success_that_was_seen(tmp_path, wire, panda_setup):
    env, client = FakePanda(length=9), FakeClient(panda_setup)
    step = env.step

    def failing(action):
        if env.steps == 3:
            raise UserError("the environment's state is (3,), but the policy reads (4,)")
        return replace(step(action), success=env.steps == 2)

    env.step = failing
    with pytest.raises(UserError, match="state is"):
        run_actor(panda_config(tmp_path, panda_setup), client=client, environment=env)
    waiting = [path.read_bytes() for path in (tmp_path / "run" / "actors" / "arm").glob("*.safetensors")]
    (episode,) = [unpack(data, make_spec(panda_setup)) for data in [*waiting, *(data for _, data in client.received)]]
    assert episode.outcome is Outcome.SUCCESS and len(episode) == 3


class DoneClient(FakeClient):
    """Its learner sends weights, then either has made all its steps or is gone."""

    def __init__(self, setup, finished):
        super().__init__(setup)
        self.finished, self.streams = finished, 0

    def stream_weights(self, session, known_version):
        yield from super().stream_weights(session, known_version)
        error = UnreachableError("the learner has stopped")
        error.finished = self.finished
        self.streams += 1
        self.away |= self.streams == 1 and not self.finished
        raise error


def test_an_actor_ends_with_a_learner_that_has_made_all_its_steps(tmp_path, wire, panda_setup, caplog):
    caplog.set_level("INFO")
    env, client = FakePanda(length=3), DoneClient(panda_setup, finished=True)
    run_actor(panda_config(tmp_path, panda_setup, actor={"episodes": 10**6}), client=client, environment=env)
    assert env.closed and "The learner has made all its steps; this actor ends, too" in caplog.text
    kept = len(client.received) + len(list((tmp_path / "run" / "actors" / "arm").glob("*.safetensors")))
    assert kept == env.resets  # the episode it was in was played to its end


def test_an_actor_outlives_a_learner_that_has_died(tmp_path, wire, panda_setup, caplog):
    caplog.set_level("INFO")
    env, client = FakePanda(length=3), DoneClient(panda_setup, finished=False)
    cfg = panda_config(tmp_path, panda_setup, actor={"episodes": 3, "inference": "sync"})
    env.on_step = lambda number: setattr(client, "away", client.away and env.resets < 3)
    run_actor(cfg, client=client, environment=env)
    assert env.resets == 3 and "this actor ends, too" not in caplog.text


@pytest.mark.parametrize(("code", "ending_s", "fails"), [(0, 60.0, False), (1, 60.0, True), (0, 0.0, True)])
def test_the_demo_tells_an_actor_that_is_done_from_one_that_failed(tmp_path, monkeypatch, code, ending_s, fails):
    """It ends before its learner's process: with code 0 and a learner that follows soon, all is well."""
    monkeypatch.setattr(demo_online, "POLL_S", 0.01)
    monkeypatch.setattr(demo_online, "ENDING_S", ending_s)
    (tmp_path / "actor_online.log").write_text("the last line")
    polls = iter([None] * 3 + [0] * 9)
    processes = {
        "learner": SimpleNamespace(poll=lambda: next(polls)),
        "actor": SimpleNamespace(poll=lambda: code),
    }
    args = SimpleNamespace(output=tmp_path)
    with pytest.raises(UserError, match="ended before its learner") if fails else nullcontext():
        demo_online.follow(args, "online", processes)
