"""Outcomes and lengths: what RL needs is found missing, and a recording that has it is let be."""

from dataclasses import replace

import numpy as np
import pytest
from drawn import drawn

from lerobot_policy_pi05_rl.report.checks.finding import Finding, Verdict, judge, summary
from lerobot_policy_pi05_rl.report.checks.outcomes import lengths, outcomes, spread
from lerobot_policy_pi05_rl.report.checks.recording import UNKNOWN, Recording, numbered


def ended(*names: str) -> Recording:
    return replace(drawn(len(names)), outcomes=list(names))


def lasting(recording: Recording, frames: list[int]) -> Recording:
    ends = np.cumsum(frames)
    return replace(recording, starts=ends - frames, ends=ends)


def test_a_clean_recording_is_ok():
    recording = drawn()
    found = [outcomes(recording), lengths(recording), spread(recording)]
    assert [each.verdict for each in found] == [Verdict.OK] * 3
    assert found[0].value == pytest.approx(7 / 20) and "7 of 20 episodes failed" in found[0].text
    assert not any(each.advice for each in found)


@pytest.mark.parametrize(
    ("names", "verdict", "value", "said"),
    [
        (["success"] * 9, Verdict.HARMS, 0.0, "pi05-rl label tiny.json --failure"),
        (["failure"] * 9, Verdict.HARMS, 1.0, "pi05-rl label tiny.json --success"),
        (["success"] * 9 + ["failure"] * 4, Verdict.LOOK, 4 / 13, "fewer than 5"),
        (["success"] * 9 + ["failure"] * 5 + ["truncated"], Verdict.OK, 5 / 14, "1 more were cut"),
        (["success", UNKNOWN, UNKNOWN, "failure"], Verdict.HARMS, 0.5, "have no outcome (episodes 1-2)"),
        ([UNKNOWN] * 3, Verdict.HARMS, 1.0, "`pi05-rl label tiny.json --browser`"),
        (["truncated"] * 3, Verdict.HARMS, 0.0, "all 3 episodes were cut"),
    ],
)
def test_outcomes_that_leave_nothing_to_tell_apart(names, verdict, value, said):
    found = outcomes(ended(*names))
    assert found.verdict is verdict and found.value == pytest.approx(value) and said in found.line


def test_a_task_without_failures_is_named():
    recording = drawn(20)
    tasks = ["pick" if outcome == "failure" else "push" for outcome in recording.outcomes]
    tasks[1] = "pick"  # a success
    found = outcomes(replace(recording, tasks=tasks))
    assert found.verdict is Verdict.LOOK and "“push”" in found.text and "pick" not in found.text


@pytest.mark.parametrize(("longest", "verdict"), [(190, Verdict.OK), (410, Verdict.LOOK)])
def test_an_episode_that_sets_the_unit_of_all_returns(longest, verdict):
    found = lengths(lasting(drawn(9), [40] * 8 + [longest]))
    assert found.verdict is verdict and found.value == longest / 40 and "episode (8)" in found.text


def test_successes_that_are_alike_and_failures_that_are_not():
    recording = drawn(12)
    frames = [20 * (number + 1) if outcome == "failure" else 40 for number, outcome in enumerate(recording.outcomes)]
    found = spread(lasting(recording, frames))
    assert found.verdict is Verdict.LOOK and found.value == 1.0
    assert spread(ended("failure", "success", "failure")).verdict is Verdict.LOOK


def test_the_least_mixed_task_counts():
    recording = replace(drawn(8), tasks=["pick"] * 4 + ["push"] * 4, outcomes=["success"] * 8)
    found = spread(lasting(recording, [10, 20, 30, 40, 50, 50, 50, 50]))
    assert found.verdict is Verdict.LOOK and "“push”" in found.text


def test_a_line_begins_with_its_verdict_and_ends_with_what_to_do():
    found = Finding("lids", Verdict.HARMS, 1.0, "one is closed", "open it")
    assert found.line == "harms RL  lids: one is closed → open it"
    assert Finding("lids", Verdict.OK, 0.0, "none is closed").line == "ok        lids: none is closed"
    assert summary([found, found]) == "2 checks: 2 harm RL, 0 to look at, 0 ok"


def test_bounds_belong_to_the_better_verdict():
    verdicts = [judge(value, look=1, harms=2) for value in (1, 1.1, 2, 2.1, float("nan"))]
    assert verdicts == [Verdict.OK, Verdict.LOOK, Verdict.LOOK, Verdict.HARMS, Verdict.OK]


def test_many_episodes_are_named_in_short():
    assert numbered([3]) == "episode 3" and numbered([4, 3, 7]) == "episodes 3-4,7"
    assert numbered(range(0, 40, 2)) == "episodes 0,2,4,6,8,10,12,14,… (20 in all)"
