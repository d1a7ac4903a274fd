"""Statistics beside numpy's own, and bounds that keep every normalised value small."""

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.lerobot_types import TransitionKey
from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep, create_transition

from lerobot_policy_pi05_rl.data.statistics import (
    LARGEST_NORMALISED,
    QUANTILES,
    differing,
    row_statistics,
    select,
    statistics,
    usable,
)

MODES = [NormalizationMode(name) for name in ("QUANTILES", "QUANTILE10", "MIN_MAX", "MEAN_STD")]


def numpys(values: np.ndarray) -> dict[str, np.ndarray]:
    """The same statistics by numpy alone."""
    ends = {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
    }
    return {**ends, **{name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()}}


@pytest.mark.parametrize("count", [1, 2, 57, 5000])
def test_statistics_are_numpys(count):
    values = np.random.default_rng(count).normal([0.0, 1e4, -3.0], [1.0, 1e-2, 100.0], (count, 3))
    found = row_statistics(values)
    assert found.pop("count").tolist() == [count]
    expected = numpys(values)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(size=20_000),
        np.random.default_rng(1).standard_cauchy(20_000),  # a few bins hold nearly all of it
        np.r_[np.random.default_rng(2).normal(size=19_999), 1e12],
        np.random.default_rng(3).integers(0, 3, 20_000).astype(float),
        np.full(20_000, 0.1),
    ],
)
def test_ranks_are_exact_when_there_are_more_values_than_are_sorted_at_once(values):
    ranks = [0, 1, 199, 200, 10_000, 19_799, 19_998, 19_999]
    blocks = np.array_split(values, 7)
    ordered = np.sort(values)
    found = select(lambda: blocks, ranks, at_once=500)
    assert found == {rank: ordered[rank] for rank in ranks}


def test_no_value_at_all_is_an_error():
    with pytest.raises(ValueError, match="no value"):
        statistics([lambda: [np.empty(0)]])


# ── Bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────


def gripper(values: np.ndarray, rng: np.random.Generator) -> None:
    values[:, 0] = 1.0
    values[:: len(values) // 5, 0] = 0.0  # closed in 0.5 % of the frames


def noisy_gripper(values: np.ndarray, rng: np.random.Generator) -> None:
    values[:, 0] = 100.0 + 0.01 * rng.normal(size=len(values))
    values[:5, 0] = 0.0


def moved_once(values: np.ndarray, rng: np.random.Generator) -> None:
    values[:, 0] = 1e-4 * rng.normal(size=len(values))
    values[100:109, 0] = np.linspace(0, 0.8, 9)


def constant(values: np.ndarray, rng: np.random.Generator) -> None:
    values[:, 0] = 100.1


def rounded_constant(values: np.ndarray, rng: np.random.Generator) -> None:
    values[:, 0] = np.nextafter(np.float32(1.7), np.float32(rng.integers(0, 2) * 9))
    values[::2, 0] = np.float32(1.7)


def zero(values: np.ndarray, rng: np.random.Generator) -> None:
    values[:, 0] = 0.0


def tiny(values: np.ndarray, rng: np.random.Generator) -> None:
    values[:, 0] *= 1e-9


def far_away(values: np.ndarray, rng: np.random.Generator) -> None:
    values[:, 0] = 1e6 + 100 * values[:, 0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shape", [gripper, noisy_gripper, moved_once, constant, rounded_constant, zero, tiny, far_away]
)
def test_what_a_dimension_looks_like_its_normalised_values_are_bounded_and_come_back(shape, mode):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1000, 2))
    shape(values, rng)
    values = values.astype(np.float32)
    stats, reasons = usable(row_statistics(values), mode)
    feature = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
    arguments = (feature, {FeatureType.ACTION: mode}, {"action": stats})
    steps = [step(*arguments, dtype=torch.float64) for step in (NormalizerProcessorStep, UnnormalizerProcessorStep)]
    action = torch.from_numpy(values).double()
    normalised = steps[0](create_transition(action=action))[TransitionKey.ACTION]
    back = steps[1](create_transition(action=normalised))[TransitionKey.ACTION]
    largest = np.sqrt(len(values)) if mode is NormalizationMode.MEAN_STD else LARGEST_NORMALISED
    assert normalised.abs().max() <= largest
    atol = 1e-12 * float(action.abs().max())
    if mode is NormalizationMode.MEAN_STD:  # LeRobot adds 1e-8 to the deviation on the way in alone
        atol += 1e-8 * float(normalised.abs().max())
    torch.testing.assert_close(back, action, rtol=1e-12, atol=atol)
    single = steps[0].to(dtype=torch.float32)(create_transition(action=action.float()))[TransitionKey.ACTION]
    assert single.abs().max() <= largest * 1.01
    assert 1 not in reasons  # a normal dimension beside it keeps its own bounds
    if shape in (constant, rounded_constant, zero):
        assert normalised[:, 0].abs().max() < 0.01
        moved = steps[0](create_transition(action=action + 1e-6))[TransitionKey.ACTION]
        assert (moved - normalised)[:, 0].abs().max() < 0.01  # the robot's noise is none in what the policy reads
    elif mode is not NormalizationMode.MEAN_STD:
        assert normalised[:, 0].max() - normalised[:, 0].min() >= 1.9  # what moves is seen to move


def test_bounds_that_serve_stay_as_they_are():
    stats = row_statistics(np.random.default_rng(0).normal(size=(1000, 3)))
    for mode in (*MODES, NormalizationMode.IDENTITY):
        kept, reasons = usable(stats, mode)
        assert reasons == {} and kept.keys() == stats.keys()
        assert all(np.array_equal(kept[name], stats[name]) for name in stats)


def test_the_reason_names_bounds_and_range():
    values = np.ones((1000, 2))
    values[:4, 1] = 0.0
    _, reasons = usable(row_statistics(values), NormalizationMode.QUANTILES)
    assert reasons[0] == "never moves from 1"
    assert reasons[1] == ("runs from 0 to 1, but its q01 and q99 are 1 and 1: minimum and maximum are used instead")


def test_recorded_statistics_are_compared_where_they_can_be():
    stats = row_statistics(np.random.default_rng(0).normal(size=(1000, 3)))
    mode = NormalizationMode.QUANTILES
    assert differing(stats, stats, mode) == []
    assert differing(stats, {**stats, "q99": stats["q99"] + [0, 1, 0]}, mode) == [1]
    nan = np.array([0.0, np.nan, 0.0])
    for other in ({}, {"q01": stats["q01"]}, {**stats, "q01": nan}, {**stats, "q99": nan[:2]}, {**stats, "q01": "x"}):
        assert differing(stats, other, mode) is None
