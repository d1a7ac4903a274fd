"""Outcomes, returns, thresholds, tags and value targets, against numbers computed by hand."""

import json
import pickle

import numpy as np
import pytest
import torch

from lerobot_policy_pi05_rl.advantage import advantage_tags, awr_weights, tag_columns
from lerobot_policy_pi05_rl.data.labeling import advantages
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.model.critic import ValueBins
from lerobot_policy_pi05_rl.returns import (
    Outcome,
    RewardConfig,
    dataset_rewards,
    discounted_returns,
    episode_advantages,
    episode_outcome,
    n_step_returns,
    share_of_task,
    smoothed,
    steps_to_success_rewards,
)
from lerobot_policy_pi05_rl.thresholds import AdvantageThresholds, positive_fractions, task_thresholds

NAN = float("nan")
TASK_0 = torch.tensor([0])
YES, NO = np.array([False, True]), np.array([False, False])


@pytest.mark.parametrize("outcome", Outcome)
def test_an_outcome_is_its_name_as_text_wherever_it_goes(outcome):
    name = outcome.value
    assert outcome == name and {name: 1}[outcome] == 1 and f"{outcome}" == str(outcome) == name
    assert [other for other in Outcome if other != name] == [other for other in Outcome if other is not outcome]
    assert json.loads(json.dumps({outcome: outcome})) == {name: name}
    assert pickle.loads(pickle.dumps(outcome)) is outcome is Outcome(name)  # the loader's processes compare by `is`
    assert (np.array([outcome, "other"]) == name).tolist() == [True, False]


@pytest.mark.parametrize(
    ("sources", "outcome"),
    [
        ({"cut_off": YES, "success": NO, "reward": np.array([0.0, 1.0])}, Outcome.TRUNCATED),
        ({"cut_off": YES, "success": YES}, Outcome.TRUNCATED),
        ({"cut_off": np.array([True, False]), "success": YES}, Outcome.SUCCESS),
        ({"cut_off": NO, "success": NO}, Outcome.FAILURE),
        ({"success": NO, "reward": np.array([0.0, 1.0]), "truncated": YES}, Outcome.FAILURE),
        ({"success": np.array([True, False]), "truncated": YES}, Outcome.SUCCESS),
        ({"reward": np.array([0.0, 1.0]), "truncated": YES}, Outcome.SUCCESS),
        ({"reward": np.array([1.0, 0.0]), "truncated": YES}, Outcome.TRUNCATED),
        ({"reward": np.array([1.0, -1.0]), "truncated": np.array([True, False])}, None),
        ({"reward": np.array([0.0, 0.0])}, None),
        ({}, None),
    ],
)
def test_the_outcome_comes_from_cut_off_then_success_then_last_reward_then_truncation(sources, outcome):
    assert episode_outcome(**sources) is outcome


@pytest.mark.parametrize("change", [{"source": "sparse"}, {"unlabelled": "truncated"}])
def test_a_reward_configuration_with_an_unknown_choice_names_its_key(change):
    with pytest.raises(ValueError, match=f"reward.{next(iter(change))}"):
        RewardConfig(**change)


def steps_to_success_returns(length, outcome, task_length):
    return discounted_returns(steps_to_success_rewards(length, outcome, task_length), discount=1.0)


def test_returns_count_the_steps_to_success_in_units_of_twice_the_longest_episode():
    success = steps_to_success_returns(3, Outcome.SUCCESS, task_length=5)
    failure = steps_to_success_returns(4, Outcome.FAILURE, task_length=5)
    assert success.dtype == failure.dtype == np.float32
    np.testing.assert_allclose(success, [-0.2, -0.1, 0.0])
    np.testing.assert_allclose(failure, [-0.8, -0.7, -0.6, -0.5], rtol=1e-6)
    # the longest failure spans the support exactly, and its last step is level with no success
    np.testing.assert_allclose(steps_to_success_returns(5, Outcome.FAILURE, 5)[[0, -1]], [-0.9, -0.5], rtol=1e-6)
    assert steps_to_success_returns(5, Outcome.SUCCESS, 5).min() > failure.max()


def test_tasks_of_different_lengths_have_their_own_unit():
    short, long = (steps_to_success_returns(2, Outcome.SUCCESS, task_length=n) for n in (2, 20))
    np.testing.assert_allclose(short, [-0.25, 0.0])
    np.testing.assert_allclose(long, [-0.025, 0.0])


def test_a_truncated_episodes_steps_cost_as_any_others():
    np.testing.assert_allclose(steps_to_success_rewards(4, Outcome.TRUNCATED, task_length=5), [-0.1] * 4)


def test_rewards_and_discounted_returns_of_the_dataset_by_hand():
    column = np.array([1.0, 0.0, 2.0])
    scale = dict(reward_normalization_constant=4.0, terminal_failure_reward=-6.0)
    success = dataset_rewards(column, Outcome.SUCCESS, **scale)
    failure = dataset_rewards(column, Outcome.FAILURE, **scale)
    np.testing.assert_allclose(success, [0.25, 0.0, 0.5])
    np.testing.assert_allclose(failure, [0.25, 0.0, -1.0])  # (2 − 6) / 4
    np.testing.assert_allclose(dataset_rewards(column, Outcome.TRUNCATED, **scale), success)
    # 0.5; 0 + 0.5·0.5 = 0.25; 0.25 + 0.5·0.25 = 0.375
    np.testing.assert_allclose(discounted_returns(success, discount=0.5), [0.375, 0.25, 0.5])
    np.testing.assert_allclose(discounted_returns(failure, discount=0.5), [0.0, -0.5, -1.0])
    np.testing.assert_array_equal(column, [1.0, 0.0, 2.0])  # the dataset's column is not written to


# ── Advantages ───────────────────────────────────────────────────────────────────────────────────────────────────


def drawn_episode(length=9, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=length).astype(np.float32), rng.normal(size=length).astype(np.float32)


# Columns are float32 by design: what is compared below passed a few roundings of 2^-24 of numbers below 10, 2e-6 at
# most; NumPy adds them one by one, in the same order everywhere.


def brute_force(rewards, values, n, discount, terminated):
    """Σ_{k<m} γ^k r_{t+k} + γ^m V(o_{t+m}) − V(o_t), step by step; a truncated episode ends at its last frame."""
    length, advantages = len(rewards), []
    for start in range(length):
        total, steps = 0.0, 0
        last = length if terminated else length - 1
        while steps < n and start + steps < last:
            total += discount**steps * float(rewards[start + steps])
            steps += 1
        if steps == 0:
            advantages.append(np.nan)  # nothing is known of what follows a cut episode's last frame
            continue
        if start + steps < length:
            total += discount**steps * float(values[start + steps])
        advantages.append(total - float(values[start]))
    return advantages


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("n", [1, 3, 8, 9, 50])
def test_n_step_advantages_equal_their_sums_written_out(n, discount, terminated):
    rewards, values = drawn_episode()
    result = episode_advantages(None, rewards, values, n_step=n, discount=discount, terminated=terminated)
    expected = brute_force(rewards, values, n, discount, terminated)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_a_lambda_of_one_and_any_n_beyond_the_end_are_the_return_less_the_value(discount):
    rewards, values = drawn_episode()
    returns = discounted_returns(rewards, discount=discount)
    common = dict(discount=discount, terminated=True)
    plain = episode_advantages(returns, rewards, values, **common)
    np.testing.assert_array_equal(plain, returns - values)
    for choice in ({"gae_lambda": 1.0}, {"n_step": 9}, {"n_step": 400}):
        np.testing.assert_allclose(
            episode_advantages(returns, rewards, values, **choice, **common), plain, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_a_lambda_mixes_the_n_step_advantages_exponentially_and_zero_is_one_step(discount):
    rewards, values = drawn_episode()
    common = dict(discount=discount, terminated=True)
    steps = [episode_advantages(None, rewards, values, n_step=n, **common) for n in range(1, 60)]
    mixed = sum(0.3 * 0.7**k * advantages for k, advantages in enumerate(steps))  # (1 − λ) Σ λ^(n−1) A^(n)
    np.testing.assert_allclose(
        episode_advantages(None, rewards, values, gae_lambda=0.7, **common), mixed, rtol=1e-4, atol=1e-5
    )
    one_step = episode_advantages(None, rewards, values, gae_lambda=0.0, **common)
    np.testing.assert_allclose(one_step, steps[0], atol=1e-6)


@pytest.mark.parametrize(("length", "steps"), [(40, 10), (400, 100), (5, 1), (2, 1)])
def test_a_share_of_a_task_is_at_least_one_step(length, steps):
    assert share_of_task(0.25, length) == steps


def test_a_smoothed_advantage_is_the_mean_of_those_around_it_inside_the_episode():
    advantages = np.array([1, 2, 3, 4, 5, np.nan], dtype=np.float32)
    np.testing.assert_allclose(smoothed(advantages, 3), [1.5, 2, 3, 4, 4.5, np.nan])
    np.testing.assert_allclose(smoothed(advantages, 1), advantages)
    np.testing.assert_allclose(smoothed(advantages, 100)[:5], 3.0)
    drawn = np.random.default_rng(0).normal(size=40).astype(np.float32)
    written_out = [
        drawn[max(0, t - 4) : t + 4].mean() for t in range(40)
    ]  # an even window: one more before than behind
    np.testing.assert_allclose(smoothed(drawn, 8), written_out, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 4, 20])
def test_n_step_returns_never_leave_their_episode_and_bootstrap_unless_the_end_is_reached(n):
    rewards, frames = np.full(7, -1.0, dtype=np.float32), np.arange(7)
    ended = n_step_returns(rewards, n, discount=0.5, terminated=True)
    cut = n_step_returns(rewards, n, discount=0.5, terminated=False)
    for steps in (ended, cut):
        assert ((frames + steps.offset >= 0) & (frames + steps.offset < 7)).all()
        assert (steps.offset <= n).all()
    inside = frames + n < 7
    assert (ended.offset[inside] == n).all() and (ended.offset[~inside] == 0).all()
    assert (ended.discount[~inside] == 0).all() and not np.isnan(ended.reward).any()
    assert (frames + cut.offset)[~inside].tolist() == [6] * int((~inside).sum())
    np.testing.assert_allclose(cut.discount[:-1], 0.5 ** cut.offset[:-1])
    assert np.isnan(cut.reward).tolist() == [False] * 6 + [True]


def test_the_last_frame_of_a_cut_episode_has_no_advantage_whatever_the_rule():
    rewards, values = drawn_episode()
    unknown = np.full(9, np.nan, dtype=np.float32)
    cut = dict(discount=1.0, terminated=False)
    assert np.isnan(episode_advantages(unknown, rewards, values, **cut)).all()
    for choice in ({"n_step": 1}, {"n_step": 100}, {"gae_lambda": 0.5}):
        result = episode_advantages(unknown, rewards, values, **choice, **cut)
        assert np.isnan(result).tolist() == [False] * 8 + [True], choice


# ── Thresholds, tags, weights ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fractions", [[0.3, 0.3], [0.1, 0.6]])
def test_thresholds_give_every_task_the_asked_fraction_whatever_its_length_and_scale(fractions):
    """The second task has ten times the frames and ten times the spread of the first, and another mean."""
    thresholds = AdvantageThresholds(fractions, window=4000)
    g = torch.Generator().manual_seed(0)
    tasks = (torch.arange(4400) % 11 > 0).long()
    advantages = torch.randn(4400, generator=g)
    advantages[tasks == 1] = 10 * advantages[tasks == 1] - 3
    for part in torch.randperm(4400, generator=g).split(32):  # as batches bring them
        thresholds.update(tasks[part], advantages[part])
    tags = advantage_tags(advantages, thresholds[tasks], interventions=torch.zeros(4400, dtype=torch.bool))
    for task, fraction in enumerate(fractions):
        assert (tags[tasks == task] == 1).float().mean() == pytest.approx(fraction, abs=5e-3)


def test_a_fraction_of_nothing_tags_nothing_and_of_all_nearly_all():
    thresholds = AdvantageThresholds([0.0, 1.0], window=100)
    tasks, advantages = torch.arange(200) % 2, torch.randn(200, generator=torch.Generator().manual_seed(0))
    thresholds.update(tasks, advantages)
    positive = advantages > thresholds[tasks]
    assert not positive[tasks == 0].any()
    assert int((~positive[tasks == 1]).sum()) == 1  # the least one equals its own quantile


def test_each_task_has_the_default_fraction_or_its_own_and_an_unknown_task_is_named():
    assert positive_fractions(["a", "b"], 0.3, {"b": 0.5}) == [0.3, 0.5]
    with pytest.raises(UserError, match=r"no task 'c'.*'a', 'b'"):
        positive_fractions(["a", "b"], 0.3, {"c": 0.5})


def test_a_task_has_no_threshold_before_it_has_enough_advantages():
    thresholds = AdvantageThresholds([0.5, 0.5], window=100, min_count=4)
    thresholds.update(torch.zeros(5, dtype=torch.long), torch.tensor([1.0, NAN, 2.0, NAN, 3.0]))  # NaNs do not count
    assert thresholds[torch.tensor([0, 1])].isnan().all()
    thresholds.update(TASK_0, torch.tensor([4.0]))
    values = thresholds[torch.tensor([0, 1, 0])]
    assert values[[0, 2]].tolist() == [2.5, 2.5]
    assert values[1].isnan()


def test_the_window_forgets_the_oldest_advantages():
    thresholds = AdvantageThresholds([0.5], window=3, min_count=1)
    for value, median in [(100.0, 100.0), (101.0, 100.5), (102.0, 101.0), (1.0, 101.0), (2.0, 2.0), (3.0, 2.0)]:
        thresholds.update(TASK_0, torch.tensor([value]))
        assert thresholds[TASK_0].item() == median


def test_thresholds_restored_from_their_state_go_on_like_the_original():
    original, restored = (AdvantageThresholds([0.5], window=3, min_count=1) for _ in range(2))
    original.update(torch.zeros(4, dtype=torch.long), torch.tensor([9.0, 1.0, 2.0, 3.0]))
    state = original.state_dict()
    restored.load_state_dict(state)
    for value in (7.0, 8.0):
        for thresholds in (original, restored):
            thresholds.update(TASK_0, torch.tensor([value]))
        assert restored[TASK_0].item() == original[TASK_0].item()
    assert restored[TASK_0].item() == 7.0  # of 3, 7, 8
    assert state["advantage_counts"].item() == 4  # the saved state is a copy


def test_tags_are_positive_above_the_threshold_or_for_a_correction_and_absent_where_unknown():
    cases = [  # advantage, threshold, intervention → tag
        (0.2, 0.1, False, 1),
        (0.1, 0.1, False, 0),
        (0.0, 0.1, False, 0),
        (0.0, 0.1, True, 1),
        (NAN, 0.1, True, 1),
        (0.0, NAN, True, 1),
        (NAN, 0.1, False, -1),
        (0.2, NAN, False, -1),
    ]
    advantages, thresholds, interventions, tags = map(torch.tensor, zip(*cases, strict=True))
    assert advantage_tags(advantages, thresholds, interventions=interventions).tolist() == tags.tolist()


def test_awr_weights_by_hand():
    advantages = torch.tensor([0.0, 0.5, -1.0, 100.0, NAN, 0.5])
    std = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, NAN])
    weights = awr_weights(advantages, std, temperature=2.0, max_weight=20.0)
    expected = [1.0, np.exp(0.5), np.exp(-1.0), 20.0, 0.0, 0.0]  # exp(A / (2 · 0.5)), capped; 0 where unknown
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float32))


def test_the_spread_of_advantages_is_each_tasks_own():
    thresholds = AdvantageThresholds([0.5, 0.5], window=4, min_count=2)
    thresholds.update(torch.tensor([0, 0, 1]), torch.tensor([1.0, 3.0, 9.0]))
    std = thresholds.std(torch.tensor([1, 0]))
    assert std[1].item() == 1.0 and std[0].isnan()


# ── Value targets ────────────────────────────────────────────────────────────────────────────────────────────────


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


@pytest.mark.parametrize("share", [1.0, 0.5, 0.05])
def test_the_value_of_a_success_knows_nothing_of_how_likely_it_is(share):
    """The mean above −1/2 of a distribution that mixes failures in; next to no success is the middle of theirs."""
    bins = ValueBins(201, -1.0, 0.0, 0.75)
    successes, failures = bins.target(torch.tensor([-0.1])), bins.target(torch.tensor([-0.9]))
    logits = (share * successes + (1 - share) * failures).log()
    assert float(bins.success_value(logits)[0]) == pytest.approx(-0.1, abs=2e-4 / share)
    assert float(bins.success_value(failures.log())[0]) == pytest.approx(-0.25, abs=1e-3)


def test_under_the_baseline_of_a_success_no_frame_of_a_failure_is_positive_whatever_the_fraction():
    """Not near its end either, where its return rises because a time limit comes near; and a success is compared with
    successes alone."""
    length, rng = 30, np.random.default_rng(0)
    columns: dict[str, list] = {key: [] for key in ("index", "episode_index", "task", "outcome", "reward", "return")}
    for episode, outcome in enumerate([Outcome.SUCCESS, Outcome.FAILURE, Outcome.SUCCESS, Outcome.FAILURE]):
        steps = length if outcome is Outcome.FAILURE else length - 10
        rewards = steps_to_success_rewards(steps, outcome, length)
        columns["reward"].append(rewards)
        columns["return"].append(discounted_returns(rewards, discount=1.0))
        columns["index"].append(np.arange(steps))
        columns["episode_index"].append(np.full(steps, episode))
        columns["task"].append(np.full(steps, "t", dtype=object))
        columns["outcome"].append(np.full(steps, outcome.value, dtype=object))
    table = {key: np.concatenate(parts) for key, parts in columns.items()}
    count, success = len(table["index"]), table["outcome"] == "success"
    table["value"] = rng.uniform(-1.0, 0.0, count).astype(np.float32)
    table["success_value"] = rng.uniform(-0.5, 0.0, count).astype(np.float32)
    for estimator in ({}, {"n_steps": {"t": 5}}, {"gae_lambdas": {"t": 0.9}}):
        found = advantages(table, baseline="success", discount=1.0, **estimator)
        assert (found[~success] == -1.0).all() and found[success].min() > -1.0, estimator
        labelled = {**table, "advantage": found, "intervention": np.zeros(count, dtype=bool)}
        for fraction in (0.2, 0.9):
            positive = tag_columns(labelled, task_thresholds([labelled], {"t": fraction}))["positive"]
            assert not positive[~success].any() and positive[success].any()
        before = advantages(table, discount=1.0, **estimator)
        assert before[~success].max() > 0.0, "which is what plain values give"
    lucky = advantages({**table, "success_value": table["return"]}, baseline="success", n_steps={"t": 5}, discount=1.0)
    np.testing.assert_allclose(lucky[success], 0.0, atol=1e-6)
