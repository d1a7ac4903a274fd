"""What the advantage means to the actor: tags, weights, a filter, or nothing."""

import math

import numpy as np
import pytest
import torch
from double import assert_same
from tiny import batches, encode_prefix, make_algorithm, make_batch, tiny_config

from lerobot_policy_pi05_rl.advantage import SampleLabels
from lerobot_policy_pi05_rl.data.batch import (
    ACTION_IS_PAD,
    INTERVENTION,
    POSITION,
    PRECOMPUTED_ADVANTAGE,
    PRECOMPUTED_TAG,
    RETURN,
)
from lerobot_policy_pi05_rl.noise import sample_noise
from lerobot_policy_pi05_rl.thresholds import AdvantageThresholds

ADVANTAGES = torch.tensor([0.4, -0.2, 0.1, math.nan, -0.3, 0.0])
CORRECTED = torch.tensor([False, False, False, False, True, False])
WINDOW = torch.tensor([-0.3, -0.1, 0.1, 0.3])  # median 0, std √0.05


def tagged(algorithm, **columns):
    """(tags, weights, metrics) of the advantages above under a window filled with ``WINDOW``."""
    algorithm.thresholds.update(torch.zeros(4, dtype=torch.long), WINDOW)
    algorithm.losses.eval()  # the window stays as it is
    batch = dict(make_batch(), **{INTERVENTION: CORRECTED}, **columns)
    return algorithm.losses.tag_and_weigh(ADVANTAGES, batch, sample_noise(3, batch[POSITION], algorithm.policy.config))


def extraction(**overrides):
    return make_algorithm(advantage_positive_fraction=0.5, advantage_dropout=0.0, **overrides)


def test_conditioning_tags_positive_samples_and_a_correction_is_always_one():
    tags, weights, metrics = tagged(extraction(advantage_positive_weight=1.0))
    assert tags.tolist() == [1, -1, 1, -1, 1, -1] and (weights == 1).all()
    _, weights, _ = tagged(extraction(advantage_positive_weight=4.0))
    assert weights.tolist() == [1, 0.25, 1, 0.25, 1, 0.25]
    assert float(metrics["advantage_positive_fraction"]) == 0.5
    hidden, weights, metrics = tagged(
        make_algorithm(advantage_positive_fraction=0.5, advantage_dropout=1.0, advantage_positive_weight=4.0)
    )
    assert (hidden == -1).all() and (weights == 0.25).all(), "all alike: the data as recorded"
    assert float(metrics["advantage_positive_fraction"]) == 0.5  # of the labels, not of the tags shown


@pytest.mark.parametrize("precomputed", [True, False])
@pytest.mark.parametrize(("weight", "dropout"), [(20.0, 0.1), (5.0, 0.4), (1.0, 0.3)])
def test_samples_without_a_tag_follow_the_data_as_recorded(weight, dropout, precomputed):
    """However often a positive frame is drawn, and whatever share of its tags is hidden: exactly, by expectation."""
    config = tiny_config(advantage_positive_weight=weight, advantage_dropout=dropout)
    tags = np.array([1, 0, -1, 1, 0], dtype=np.int8)
    drawn = config.extraction.repetitions(tags, np.zeros(5)) if precomputed else None
    drawn = np.ones(5) if drawn is None else drawn
    mass = np.zeros(5)
    for hidden, chance in ((True, dropout), (False, 1 - dropout)):
        labels = SampleLabels(
            advantages=torch.zeros(5),
            tags=torch.from_numpy(tags).long(),
            corrected=torch.zeros(5, dtype=torch.bool),
            hidden=torch.full((5,), hidden),
            task_index=torch.zeros(5, dtype=torch.long),
            thresholds=AdvantageThresholds([0.5], window=4),
            precomputed=precomputed,
        )
        untagged = config.extraction.tags(labels) == -1
        mass += (drawn * chance) * (untagged * config.extraction.weights(labels)).numpy()
    np.testing.assert_allclose(mass, mass[0], rtol=1e-6)


def test_weighted_cloning_by_hand():
    tags, weights, _ = tagged(extraction(policy_extraction="weighted", awr_temperature=2.0, awr_max_weight=2.2))
    std = 2.0 * math.sqrt(0.05)
    expected = [2.2, math.exp(-0.2 / std), math.exp(0.1 / std), 0.0, 2.2, 1.0]
    assert math.exp(0.4 / std) > 2.2  # the first is at the limit, and so is the correction
    assert tags is None
    torch.testing.assert_close(weights, torch.tensor(expected))  # float32: one exponential of a number below 2


def test_filtered_cloning_keeps_positive_frames_and_corrections():
    tags, weights, _ = tagged(extraction(policy_extraction="filtered", filter_by="advantage"))
    assert tags is None and weights.tolist() == [1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("choice", ["conditioning", "filtered"])
def test_precomputed_tags_win_over_the_window_and_corrections_over_them(choice):
    overrides = {} if choice == "conditioning" else {"policy_extraction": "filtered", "filter_by": "advantage"}
    precomputed = torch.tensor([0, 1, -1, 1, 0, 0])
    tags, weights, _ = tagged(extraction(**overrides), **{PRECOMPUTED_TAG: precomputed})
    expected = [0, 1, -1, 1, 1, 0]
    if choice == "conditioning":
        assert tags.tolist() == [1 if tag == 1 else -1 for tag in expected]
    else:
        assert weights.tolist() == [float(tag == 1) for tag in expected]


@pytest.mark.usefixtures("float64")
def test_the_actors_loss_is_the_mean_of_the_weighted_samples():
    algorithm = extraction(policy_extraction="weighted")
    batch, config = make_batch(), algorithm.policy.config
    sampled = sample_noise(3, batch[POSITION], config)
    prefix = encode_prefix(algorithm.policy, batch)
    single = []
    for row in range(6):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        loss, _ = algorithm.losses.actor_loss(
            encode_prefix(algorithm.policy, one), None, one, sample_noise(3, one[POSITION], config)
        )
        single.append(loss)
    weights = torch.tensor([0.0, 2.0, 1.0, 0.5, 0.0, 20.0])
    loss, metrics = algorithm.losses.actor_loss(prefix, None, batch, sampled, weights=weights)
    assert_same(loss, (torch.stack(single) * weights).mean())
    assert_same(metrics["loss_actor"], loss.detach())
    plain, _ = algorithm.losses.actor_loss(prefix, None, batch, sampled)
    assert_same(plain, torch.stack(single).mean())


@pytest.mark.usefixtures("float64")
def test_negative_frames_do_not_reach_a_filtered_actor():
    algorithm = extraction(policy_extraction="filtered", filter_by="advantage")
    algorithm.thresholds.update(torch.zeros(4, dtype=torch.long), WINDOW)
    algorithm.losses.eval()
    batch = dict(make_batch(), **{PRECOMPUTED_ADVANTAGE: ADVANTAGES.nan_to_num(-1.0)})
    batch[ACTION_IS_PAD] = torch.zeros_like(batch[ACTION_IS_PAD])
    sampled = sample_noise(3, batch[POSITION], algorithm.policy.config)

    def actor_loss(rows):
        changed = dict(batch, action=batch["action"].clone())
        changed["action"][rows] += 3.0
        return algorithm.losses(changed, sampled, train_actor=True)[1]["loss_actor"]

    untouched = actor_loss([])
    assert_same(actor_loss([1, 3, 4, 5]), untouched)
    assert abs(actor_loss([0]) - untouched) > 1e-3


@pytest.mark.parametrize("overrides", [{"policy_extraction": "none"}, {"policy_extraction": "filtered"}])
def test_cloning_has_the_plain_flow_loss_and_neither_runs_nor_trains_a_critic(overrides):
    algorithm = make_algorithm(**overrides)
    runs = []
    algorithm.policy.model.critic.register_forward_hook(lambda *_: runs.append(1))
    batch = dict(make_batch(), **{RETURN: torch.full((6,), math.nan)})  # no label is read
    sampled = sample_noise(3, batch[POSITION], algorithm.policy.config)
    loss, metrics, histograms = algorithm.losses(batch, sampled, train_actor=True)
    plain, _ = algorithm.losses.actor_loss(encode_prefix(algorithm.policy, batch), None, batch, sampled)
    assert torch.equal(loss, plain) and set(metrics) == {"loss_actor"} and histograms == {}
    before = {name: p.detach().clone() for name, p in algorithm.policy.model.critic.named_parameters()}
    algorithm.update(batches())
    assert runs == []
    assert all(torch.equal(p, before[name]) for name, p in algorithm.policy.model.critic.named_parameters())
    assert [group["name"] for group in algorithm.optimizer.param_groups] == ["actor"]


@pytest.mark.parametrize("overrides", [{"policy_extraction": "weighted"}, {"policy_extraction": "filtered"}])
def test_weighted_and_filtered_cloning_show_the_actor_no_tag(overrides):
    algorithm = make_algorithm(filter_by="advantage", **overrides)
    tag = torch.nn.init.zeros_(algorithm.policy.model.advantage_embedding.weight)
    iterator = batches()
    for _ in range(3):
        stats = algorithm.update(iterator)
    assert stats.losses["loss_critic"] > 0 and "loss_actor" in stats.losses
    assert not tag.any()
