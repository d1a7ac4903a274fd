"""Time stamps, the lag from action to state, and episodes that come twice."""

from dataclasses import replace

import numpy as np
import pytest
from drawn import FPS, drawn, rows_of, with_values

from lerobot_policy_pi05_rl.report.checks.duplicates import duplicates, groups
from lerobot_policy_pi05_rl.report.checks.finding import Verdict
from lerobot_policy_pi05_rl.report.checks.timing import find_lag, lag, timestamps

TOLERANCE_S = 1e-4


def test_even_time_stamps_are_ok():
    found = timestamps(drawn(), TOLERANCE_S)
    assert found.verdict is Verdict.OK and found.value < 1e-4
    long = replace(drawn(1), timestamps=(np.arange(30) / FPS + 36_000).astype(np.float32))  # ten hours: float32 rounds
    assert timestamps(long, TOLERANCE_S).verdict is Verdict.OK


def test_uneven_time_stamps_are_measured_in_frames():
    recording = drawn()
    times = recording.timestamps.copy()
    times[rows_of(recording, 4).start + 3 : rows_of(recording, 4).stop] += 0.05  # half a frame late from there on
    found = timestamps(replace(recording, timestamps=times), TOLERANCE_S)
    assert found.verdict is Verdict.LOOK and found.value == pytest.approx(0.5, abs=1e-3)


def test_time_stamps_that_a_run_refuses_harm():
    times = drawn().timestamps.copy()
    times[3] = np.nan
    found = timestamps(replace(drawn(), timestamps=times), TOLERANCE_S, "it is no number")
    assert found.verdict is Verdict.HARMS and np.isinf(found.value) and "it is no number" in found.line


@pytest.mark.parametrize("frames", [0, 1, 2, 3])
def test_the_lag_is_that_which_was_drawn(frames):
    recording = drawn(lag=frames)
    noisy = with_values(recording, "state", recording.state.values + 0.01 * np.random.default_rng(1).normal(size=3))
    found = find_lag(noisy)
    assert found.best == frames and found.dimensions == ["pan", "lift", "gripper"]
    assert lag(noisy, found).verdict is Verdict.OK and lag(noisy, found).value == frames


def test_a_slow_robot_is_looked_at():
    found = lag(drawn(lag=5), find_lag(drawn(lag=5)))
    assert found.verdict is Verdict.LOOK and found.value == 5 and "0.50 s" in found.text


def test_an_action_behind_its_state_harms():
    recording = drawn(lag=-2)
    found = lag(recording, find_lag(recording))
    assert found.verdict is Verdict.HARMS and found.value == -2 and "2 frame(s) after the state" in found.text


def test_a_copy_of_the_state_is_no_action():
    recording = drawn(lag=0)
    found = lag(recording, find_lag(recording))
    assert found.verdict is Verdict.LOOK and "copy of the state" in found.text


def test_only_dimensions_of_the_same_name_are_compared():
    recording = drawn()
    renamed = replace(recording, action=replace(recording.action, labels=["x", "lift", "z"]))
    assert find_lag(renamed).dimensions == ["lift"]
    strangers = replace(recording, action=replace(recording.action, labels=["x", "y", "z"]))
    assert find_lag(strangers) is None and lag(strangers, None).verdict is Verdict.OK
    nameless = replace(
        recording,
        state=replace(recording.state, labels=["0", "1", "2"], named=False),
        action=replace(recording.action, labels=["0", "1", "2"], named=False),
    )
    assert find_lag(nameless).best == find_lag(recording).best
    wider = replace(nameless.state, labels=["0", "1", "2", "3"], values=np.tile(recording.state.values[:, :1], 4))
    assert find_lag(replace(nameless, state=wider)) is None


def test_differences_are_not_compared_with_positions():
    recording = drawn()
    recording = with_values(recording, "action", np.random.default_rng(0).normal(size=recording.action.values.shape))
    found = lag(recording, find_lag(recording))
    assert found.verdict is Verdict.OK and np.isnan(found.value) and "do not follow" in found.text


def test_an_episode_of_one_frame_has_no_lag():
    one = drawn(1)
    one = replace(one, ends=np.array([1]), timestamps=one.timestamps[:1])
    one = with_values(with_values(one, "state", one.state.values[:1]), "action", one.action.values[:1])
    assert find_lag(one) is None and timestamps(one, TOLERANCE_S).verdict is Verdict.OK


def test_an_episode_that_comes_twice_is_named():
    recording = drawn()
    assert groups(recording) == [] and duplicates(recording).verdict is Verdict.OK
    first, again = rows_of(recording, 0), rows_of(drawn(), 0)
    states, actions = recording.state.values.copy(), recording.action.values.copy()
    again = slice(rows_of(recording, 12).start, rows_of(recording, 12).start + 30)
    states[again], actions[again] = states[first], actions[first]
    recording = with_values(with_values(recording, "state", states), "action", actions)
    assert groups(recording) == []  # the twelfth is longer
    ends = recording.ends.copy()
    ends[12] = recording.starts[12] + 30
    found = duplicates(replace(recording, ends=ends))
    assert groups(replace(recording, ends=ends)) == [[0, 12]]
    assert found.verdict is Verdict.HARMS and found.value == 1 / 20 and "episode 12" in found.text
