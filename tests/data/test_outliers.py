"""Values far beyond all others: wrong ones are found with their place, right ones are left alone."""

import numpy as np
import pytest

from lerobot_policy_pi05_rl.data.bad_values import outliers

STARTS, ENDS = np.array([0, 300, 600]), np.array([300, 600, 900])


def column(change) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(900, 2))
    change(values[:, 0])
    return values


def spike(values):
    values[303] = 1e6


def small_spike(values):
    values[303] = -700.0


def spikes(values):
    values[[5, 303, 304, 899]] = 1e6, -1e5, -1e5, 2e3


def many_spikes(values):
    values[::150] = 65535.0


def sentinel(values):
    values[400:407] = 65535.0


def gripper(values):
    values[:] = 1.0
    values[[100, 400, 401, 402, 899]] = 0.0


def noisy_gripper(values):
    values[:] = 100 + 0.01 * values
    values[400:407] = 0.0


def moved_once(values):
    values[:] *= 1e-4
    values[300:310] = np.linspace(0.0, 0.8, 10)


def moved_far_once(values):
    values[:] *= 1e-6
    values[320:380] += 2.0 * np.sin(np.linspace(0, np.pi, 60))


def lone_glitch_of_a_joint_that_never_moves(values):
    values[:] = 0.0
    values[7] = 1e6


def heavy_tailed(values):
    values[:] = np.random.default_rng(1).laplace(size=900) ** 3


def another_place_in_each_episode(values):
    values[:] += 1000.0 * np.repeat(np.arange(3), 300)


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (spike, [303]),
        (small_spike, [303]),
        (spikes, [5, 303, 304, 899]),
        (many_spikes, list(range(0, 900, 150))),
        (sentinel, list(range(400, 407))),
        (gripper, []),
        (noisy_gripper, []),
        (moved_once, []),
        (moved_far_once, []),
        (lone_glitch_of_a_joint_that_never_moves, []),
        (heavy_tailed, []),
        (another_place_in_each_episode, []),
    ],
)
def test_wrong_values_are_found_and_right_ones_left_alone(change, rows):
    found = outliers(column(change).astype(np.float32), STARTS, ENDS)
    assert np.flatnonzero(found[:, 0]).tolist() == rows
    assert not found[:, 1].any()


@pytest.mark.parametrize("count", [12, 38, 57])
def test_a_few_frames_are_enough_to_tell(count):
    values = np.random.default_rng(count).normal(size=(count, 2))
    values[5, 1] = 1e6
    found = outliers(values, np.array([0]), np.array([count]))
    assert np.argwhere(found).tolist() == [[5, 1]]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_frames_have_no_outliers(count):
    assert not outliers(np.array([[0.0], [1e6], [3.0]])[:count], np.array([0]), np.array([count])).any()
