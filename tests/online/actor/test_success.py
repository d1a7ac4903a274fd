"""How environments say that an episode succeeded, and what becomes of it where they do not."""

from enum import Enum

import numpy as np
import pytest
import torch

from lerobot_policy_pi05_rl.config.actor import ActorConfig
from lerobot_policy_pi05_rl.online.actor.control import Control, Stats
from lerobot_policy_pi05_rl.online.actor.success import SuccessReader, parse_success
from lerobot_policy_pi05_rl.returns import Outcome

NAMES = ("is_success", "success", "succeed", "succeeded", "is_successful", "task_success", "next.success", "Success")
YES = [True, 1, 1.0, np.bool_(True), np.float32(1), np.array(True), np.array([1.0]), [True], (1,), "success"]
YES += [torch.tensor(True), torch.tensor([1]), np.array([True], dtype=object), np.array([[True]])]
NO = [False, 0, 0.0, np.bool_(False), np.array(False), np.array([0]), [False], torch.tensor(0.0), "false"]
ODD = [None, float("nan"), -1, 0.5, {"lift": True}, [True, False], "perhaps", np.array([]), torch.ones(3)]


class Event(Enum):
    SUCCESS = "success"


@pytest.mark.parametrize("name", NAMES)
def test_every_spelling_and_form_of_yes_and_no(name):
    for value in YES:
        assert parse_success({name: value, "reward": 0}).success is True, repr(value)
        assert parse_success({"final_info": {name: value}}).success is True, repr(value)
        assert parse_success({"final_info": [{name: value}]}).success is True, repr(value)
    for value in NO:
        assert parse_success({name: value}).success is False, repr(value)
        assert parse_success({"final_info": np.array([{name: value}], dtype=object)}).success is False, repr(value)
    for value in ODD:
        told = parse_success({name: value})
        assert told.success is None and list(told.unparsed) == [name], repr(value)


@pytest.mark.parametrize(
    ("info", "success"),
    [
        ({"is_success": False, "succeed": True}, True),  # any yes counts
        ({Event.SUCCESS: True}, True),
        ({"is_success": True, "_is_success": np.array([False])}, None),  # Gymnasium's mask: not this environment's
        ({"is_success": np.array([True]), "_is_success": np.array([True])}, True),
        ({"is_success": [False], "final_info": {"is_success": [True]}}, True),  # above: of the next episode's reset
        ({"is_success": [False], "final_info": {"steps": [3]}}, None),
        ({"is_success": [True], "final_info": {"steps": [3]}}, True),
        ({"success_rate": 1.0, "grasp_success": True, "successes": 3}, None),  # of something else
        ({}, None),
        ((), None),
    ],
)
def test_what_of_an_info_counts(info, success):
    assert parse_success(info).success is success


def test_one_of_several_environments():
    info = {"success": np.array([False, True]), "_success": np.array([True, True])}
    assert [parse_success(info, index, 2).success for index in (0, 1)] == [False, True]
    info = {"final_info": [None, {"success": True}]}
    assert [parse_success(info, index, 2).success for index in (0, 1)] == [None, True]


def read(reader, info, reward=0.0, terminated=False, truncated=False):
    return reader.read(info, reward=reward, terminated=terminated, truncated=truncated)


def test_a_reward_at_the_end_counts_only_where_nothing_else_is_said(caplog):
    silent = SuccessReader()
    assert read(silent, {"steps": 1}, reward=1.0) is None  # not the end
    assert read(silent, {"steps": 1}, reward=1.0, terminated=True) is True
    assert read(silent, {"steps": 1}, reward=0.0, terminated=True) is None
    assert read(silent, {"steps": 1}, reward=1.0, truncated=True) is None and not silent.reports_success
    assert caplog.text.count("does not say whether an episode succeeded (its info has: steps)") == 1
    telling = SuccessReader()
    assert read(telling, {"success": False}, reward=1.0, terminated=True) is False and telling.reports_success
    assert read(telling, {}, reward=1.0, terminated=True) is False  # it speaks of success when there is one
    unparsed = SuccessReader()
    for _ in range(2):
        assert read(unparsed, {"success": {"lift": True}}, reward=1.0, terminated=True) is None
    assert caplog.text.count("says success=\"{'lift': True}\", which is neither yes nor no") == 1


@pytest.mark.parametrize(
    ("last", "time_limit", "outcome"),
    [
        ({"terminated": True, "success": None}, "auto", Outcome.TRUNCATED),
        ({"terminated": True, "success": None}, "truncated", Outcome.TRUNCATED),
        ({"terminated": True, "success": None}, "failure", Outcome.FAILURE),
        ({"terminated": True, "success": False}, "truncated", Outcome.FAILURE),
        ({"truncated": True, "success": None}, "auto", Outcome.TRUNCATED),
    ],
)
def test_an_episode_of_which_nobody_says_whether_it_succeeded(last, time_limit, outcome):
    from actors import FakeEnv, FakeModel, make_control

    env = FakeEnv(length=3, last=last, reports_success=False)
    actor = ActorConfig(realtime=False, time_limit=time_limit)
    made = make_control(env, FakeModel(), actor, thread=False)
    control = Control(env, made.source, made.recorder, actor, lambda: False, Stats())
    assert control.play(0).outcome is outcome
