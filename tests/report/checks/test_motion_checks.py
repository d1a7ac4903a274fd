"""Pauses, jumps, stops and dead dimensions: a planted one is found where it was planted, and none elsewhere."""

import numpy as np
import pytest
from drawn import drawn, rows_of, with_values

from lerobot_policy_pi05_rl.data.action_limits import recorded_steps
from lerobot_policy_pi05_rl.report.checks.finding import Verdict
from lerobot_policy_pi05_rl.report.checks.motion import (
    find_jumps,
    jumps,
    pauses,
    saturation,
    speeds,
    still_dimensions,
    still_frames,
)

CHECKS = (pauses, jumps, saturation, still_dimensions)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("count", [20, 1])
def test_a_clean_recording_is_ok(check, count):
    found = check(drawn(count))
    assert found.verdict is Verdict.OK and not found.advice


def test_steps_stay_in_their_episode():
    values = np.array([[0.0], [1.0], [50.0], [50.5]])
    assert recorded_steps(values, np.array([0, 2])).ravel().tolist() == [0, 1, 0, 0.5]


def held(recording, first: int, length: int):
    """State and action of every episode stand still from its frame ``first`` on."""
    for key in ("state", "action"):
        values = getattr(recording, key).values.copy()
        for start in recording.starts.tolist():
            values[start + first : start + first + length] = values[start + first]
        recording = with_values(recording, key, values)
    return recording


def test_a_robot_that_waits_is_seen():
    recording = held(drawn(), 5, 21)
    found = pauses(recording)
    assert found.verdict is Verdict.LOOK and found.value == pytest.approx(
        20 * 20 / len(recording.timestamps), rel=0.05
    )
    still = still_frames(recording)
    assert still[recording.starts[3] + 6 : recording.starts[3] + 26].all()


def test_an_action_that_moves_on_is_no_pause():
    recording = drawn()
    values = recording.state.values.copy()
    values[:, :] = values[0]
    recording = with_values(recording, "state", values)
    assert pauses(recording).value < 0.1
    assert not speeds(recording.state, recording.starts).any()


def jumping(recording, key: str, *episodes: int):
    """A joint leaps in the frame 11 of these episodes, and stays there."""
    values = getattr(recording, key).values.copy()
    for episode in episodes:
        rows = rows_of(recording, episode)
        values[rows.start + 11 : rows.stop, 1] += 4
    return with_values(recording, key, values)


@pytest.mark.parametrize("key", ["state", "action"])
def test_a_jump_is_found_where_it_is(key):
    found = jumps(jumping(drawn(), key, 7))
    assert found.verdict is Verdict.LOOK and found.value == 1 / 20
    assert "1 step(s)" in found.text and "in episode 7;" in found.text
    assert "lift goes" in found.text and "(11 of episode 7)" in found.text


def test_many_jumps_harm():
    found = jumps(jumping(drawn(), "action", 3, 7, 15))
    assert found.verdict is Verdict.HARMS and "in episodes 3,7,15;" in found.text


def test_what_a_joint_does_in_most_episodes_is_no_jump():
    recording = drawn()
    assert recording.action.values[:, 2].max() == 1  # the gripper snaps shut in one frame
    assert find_jumps(recording, recording.action) == ([], 0)


def test_a_joint_at_its_stop_is_found_and_a_gripper_is_not():
    recording = drawn()
    values = np.clip(recording.action.values, -0.5, 0.5)
    found = saturation(with_values(recording, "action", values))
    assert found.verdict is Verdict.LOOK and "action pan" in found.text and "gripper" not in found.text
    assert found.value > 0.25


def test_a_command_of_two_values_is_not_at_its_stop():
    recording = drawn()
    values = np.sign(recording.action.values)
    assert saturation(with_values(recording, "action", values)).verdict is Verdict.OK


@pytest.mark.parametrize(("dimensions", "verdict"), [([1], Verdict.LOOK), ([0, 1, 2], Verdict.HARMS)])
def test_a_dead_dimension_is_named(dimensions, verdict):
    recording = drawn()
    values = recording.action.values.copy()
    values[:, dimensions] = 57.3
    found = still_dimensions(with_values(recording, "action", values))
    assert found.verdict is verdict and found.value == len(dimensions)
    assert "action " in found.text and "lift" in found.text and "observation.state" not in found.text
    for check in CHECKS:
        assert np.isfinite(check(with_values(recording, "action", values)).value)
