"""Outcomes, returns, thresholds, tags and value targets, against numbers computed by hand."""

import numpy as np
import pytest
import torch

from lerobot_policy_pi05_rl.critic import ValueBins
from lerobot_policy_pi05_rl.returns import (
    AdvantageThresholds,
    Outcome,
    RewardConfig,
    advantage_tags,
    discounted_returns,
    episode_outcome,
    steps_to_success_returns,
)

NAN = float("nan")
TASK_0 = torch.tensor([0])
YES, NO = np.array([False, True]), np.array([False, False])


@pytest.mark.parametrize(
    ("sources", "outcome"),
    [
        ({"given": Outcome.FAILURE, "success": YES, "reward": np.array([0.0, 1.0])}, Outcome.FAILURE),
        ({"given": Outcome.TRUNCATED, "success": YES}, Outcome.TRUNCATED),
        ({"success": NO, "reward": np.array([0.0, 1.0]), "truncated": YES}, Outcome.FAILURE),
        ({"success": np.array([True, False]), "truncated": YES}, Outcome.SUCCESS),
        ({"reward": np.array([0.0, 1.0]), "truncated": YES}, Outcome.SUCCESS),
        ({"reward": np.array([1.0, 0.0]), "truncated": YES}, Outcome.TRUNCATED),
        ({"reward": np.array([1.0, -1.0]), "truncated": np.array([True, False])}, None),
        ({"reward": np.array([0.0, 0.0])}, None),
        ({}, None),
    ],
)
def test_the_outcome_comes_from_file_then_success_then_last_reward_then_truncation(sources, outcome):
    assert episode_outcome(**sources) is outcome


@pytest.mark.parametrize("change", [{"source": "sparse"}, {"unlabelled": "truncated"}])
def test_a_reward_configuration_with_an_unknown_choice_names_its_key(change):
    with pytest.raises(ValueError, match=f"reward.{next(iter(change))}"):
        RewardConfig(**change)


def test_returns_count_the_steps_to_success_in_units_of_twice_the_longest_episode():
    success = steps_to_success_returns(3, Outcome.SUCCESS, task_length=5)
    failure = steps_to_success_returns(4, Outcome.FAILURE, task_length=5)
    assert success.dtype == failure.dtype == np.float32
    np.testing.assert_allclose(success, [-0.2, -0.1, 0.0])
    np.testing.assert_allclose(failure, [-0.8, -0.7, -0.6, -0.5])
    # the longest failure spans the support exactly, and its last step is level with no success
    np.testing.assert_allclose(steps_to_success_returns(5, Outcome.FAILURE, 5)[[0, -1]], [-0.9, -0.5])
    assert steps_to_success_returns(5, Outcome.SUCCESS, 5).min() > failure.max()


def test_tasks_of_different_lengths_have_their_own_unit():
    short, long = (steps_to_success_returns(2, Outcome.SUCCESS, task_length=n) for n in (2, 20))
    np.testing.assert_allclose(short, [-0.25, 0.0])
    np.testing.assert_allclose(long, [-0.025, 0.0])


def test_a_truncated_episode_has_no_return():
    returns = steps_to_success_returns(4, Outcome.TRUNCATED, task_length=5)
    assert returns.shape == (4,)
    assert np.isnan(returns).all()


def test_discounted_returns_by_hand():
    rewards = np.array([1.0, 0.0, 2.0])
    common = dict(discount=0.5, reward_normalization_constant=4.0, terminal_failure_reward=-6.0)
    # 2/4 = 0.5; 0 + 0.5·0.5 = 0.25; 0.25 + 0.5·0.25 = 0.375
    np.testing.assert_allclose(discounted_returns(rewards, Outcome.SUCCESS, **common), [0.375, 0.25, 0.5])
    # the failure's last reward is 2 − 6 = −4: −1; −0.5; 0.25 − 0.25 = 0
    np.testing.assert_allclose(discounted_returns(rewards, Outcome.FAILURE, **common), [0.0, -0.5, -1.0])
    np.testing.assert_array_equal(rewards, [1.0, 0.0, 2.0])  # the dataset's column is not written to


def test_thresholds_give_every_task_the_asked_fraction_whatever_its_scale():
    thresholds = AdvantageThresholds(2, positive_fraction=0.3, window=1000)
    advantages = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    tasks = torch.arange(2000) % 2
    advantages[tasks == 1] = 10 * advantages[tasks == 1] - 3
    thresholds.update(tasks, advantages)
    positive = advantages > thresholds[tasks]
    for task in (0, 1):
        assert positive[tasks == task].float().mean() == pytest.approx(0.3, abs=1e-3)


def test_a_task_has_no_threshold_before_it_has_enough_advantages():
    thresholds = AdvantageThresholds(2, positive_fraction=0.5, window=100, min_count=4)
    thresholds.update(torch.zeros(5, dtype=torch.long), torch.tensor([1.0, NAN, 2.0, NAN, 3.0]))  # NaNs do not count
    assert thresholds[torch.tensor([0, 1])].isnan().all()
    thresholds.update(TASK_0, torch.tensor([4.0]))
    values = thresholds[torch.tensor([0, 1, 0])]
    assert values[[0, 2]].tolist() == [2.5, 2.5]
    assert values[1].isnan()


def test_the_window_forgets_the_oldest_advantages():
    thresholds = AdvantageThresholds(1, positive_fraction=0.5, window=3, min_count=1)
    for value, median in [(100.0, 100.0), (101.0, 100.5), (102.0, 101.0), (1.0, 101.0), (2.0, 2.0), (3.0, 2.0)]:
        thresholds.update(TASK_0, torch.tensor([value]))
        assert thresholds[TASK_0].item() == median


def test_thresholds_restored_from_their_state_go_on_like_the_original():
    original, restored = (AdvantageThresholds(1, positive_fraction=0.5, window=3, min_count=1) for _ in range(2))
    original.update(torch.zeros(4, dtype=torch.long), torch.tensor([9.0, 1.0, 2.0, 3.0]))
    state = original.state_dict()
    restored.load_state_dict(state)
    for value in (7.0, 8.0):
        for thresholds in (original, restored):
            thresholds.update(TASK_0, torch.tensor([value]))
        assert restored[TASK_0].item() == original[TASK_0].item()
    assert restored[TASK_0].item() == 7.0  # of 3, 7, 8
    assert state["advantage_counts"].item() == 4  # the saved state is a copy


def test_tags_are_positive_above_the_threshold_or_for_a_correction_and_absent_where_unknown_or_dropped():
    cases = [  # advantage, threshold, intervention, dropped → tag
        (0.2, 0.1, False, False, 1),
        (0.1, 0.1, False, False, 0),
        (0.0, 0.1, False, False, 0),
        (0.0, 0.1, True, False, 1),
        (NAN, 0.1, True, False, 1),
        (0.0, NAN, True, False, 1),
        (NAN, 0.1, False, False, -1),
        (0.2, NAN, False, False, -1),
        (0.2, 0.1, False, True, -1),
        (0.2, 0.1, True, True, -1),
    ]
    advantages, thresholds, interventions, dropped, tags = map(torch.tensor, zip(*cases, strict=True))
    result = advantage_tags(advantages, thresholds, interventions=interventions, dropped=dropped)
    assert result.tolist() == tags.tolist()


def test_two_hot_targets_by_hand():
    bins = ValueBins(4, -1.0, 0.0, 0.0)  # centres −0.875, −0.625, −0.375, −0.125
    target = bins.target(torch.tensor([-0.625, -0.5625, 0.0, -1.0]))
    expected = [[0, 1, 0, 0], [0, 0.75, 0.25, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    torch.testing.assert_close(target, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(("sigma_ratio", "tolerance"), [(0.0, 1e-6), (0.75, 1.0)])
def test_targets_are_distributions_whose_mean_is_the_return(sigma_ratio, tolerance):
    bins = ValueBins(21, -1.0, 0.0, sigma_ratio)
    inside = torch.linspace(float(bins.centers[0]), float(bins.centers[-1]), 57)
    target = bins.target(inside)
    assert (target >= 0).all()
    torch.testing.assert_close(target.sum(dim=1), torch.ones(57))
    error = (target @ bins.centers - inside).abs()
    assert error.max() <= tolerance * (bins.width if sigma_ratio else 1.0)
    ends = bins.target(torch.tensor([-1.0, 0.0]))  # the support's ends are legal returns
    torch.testing.assert_close(ends.sum(dim=1), torch.ones(2))
    assert (ends @ bins.centers - torch.tensor([-1.0, 0.0])).abs().max() <= bins.width


def test_hl_gauss_targets_are_the_gaussians_mass_in_each_bin():
    bins = ValueBins(4, -2.0, 2.0, 1.0)  # edges −2 … 2, σ = 1
    inside, half = 0.3413447, 0.1359051  # Φ(1) − Φ(0), Φ(2) − Φ(1)
    expected = torch.tensor([[half, inside, inside, half]]) / (2 * (inside + half))
    torch.testing.assert_close(bins.target(torch.tensor([0.0])), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma_ratio", [0.0, 0.75])
def test_the_cross_entropy_is_least_at_the_target(sigma_ratio):
    bins = ValueBins(21, -1.0, 0.0, sigma_ratio)
    returns = torch.tensor([-0.93, -0.49, -0.04])
    best_logits = (bins.target(returns) + 1e-12).log()
    best = bins.cross_entropy(best_logits, returns)
    noise = torch.randn(20, 3, 21, generator=torch.Generator().manual_seed(0))
    for step in noise:
        assert (bins.cross_entropy(best_logits + step, returns) > best).all()
    logits = best_logits.clone().requires_grad_()
    bins.cross_entropy(logits, returns).sum().backward()
    assert logits.grad.abs().max() < 1e-5


def test_the_value_is_the_mean_of_the_bin_centres_under_the_logits():
    bins = ValueBins(4, -1.0, 0.0, 0.75)
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0], [0.0, np.log(3.0), -1e9, -1e9]])
    # −0.5; −0.875; (−0.875 + 3·−0.625) / 4 = −0.6875
    torch.testing.assert_close(bins.value(logits), torch.tensor([-0.5, -0.875, -0.6875]))
    assert bins.value(logits.bfloat16()).dtype == torch.float32
