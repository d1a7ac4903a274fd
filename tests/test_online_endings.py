"""Whatever ends an episode, what is known of its outcome survives; and what ends a run of the actor."""

from dataclasses import replace

import pytest
from test_online_actor import FakeEnv, FakeModel, make_control

from lerobot_policy_pi05_rl.actor_config import ActorConfig
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.online.control import Control, Stats
from lerobot_policy_pi05_rl.returns import Outcome

SUCCEEDS_AT, LENGTH = 1, 4  # step of the success, which does not end the episode; steps in all


class Judged(FakeEnv):
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
    "time limit, judged": (Outcome.SUCCESS, Outcome.FAILURE),
    "time limit, not judged": (Outcome.SUCCESS, Outcome.TRUNCATED),
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
        "time limit, judged": {"truncated": True},
        "time limit, not judged": {"truncated": True},
    }.get(end)
    env = Judged(succeeds, last)
    env.judges = end != "time limit, not judged"
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
