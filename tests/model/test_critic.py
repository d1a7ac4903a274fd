"""The critics: cross-fitting over folds, and the bootstrapped target."""

import copy
import math

import pytest
import torch
from double import assert_same
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d
from tiny import CAMERAS, make_algorithm, make_batch

from lerobot_policy_pi05_rl.data.batch import FOLD, N_STEP_DISCOUNT, N_STEP_REWARD, RETURN, TASK_INDEX, n_step_key
from lerobot_policy_pi05_rl.data.episodes import Episode, assign_folds
from lerobot_policy_pi05_rl.data.sources import DatasetError
from lerobot_policy_pi05_rl.model.cache import CriticFeatures
from lerobot_policy_pi05_rl.model.critic import pool_images
from lerobot_policy_pi05_rl.returns import Outcome

N = 3
OBSERVATION = (*CAMERAS, "observation.language.tokens", "observation.language.attention_mask")


def with_n_step(batch: dict, *, n: int = N, seed: int = 50, discount: float = 0.9) -> dict:
    """``batch`` with drawn frames ``n`` steps later; the last sample's lies past the episode's end."""
    size = len(batch[RETURN])
    later = make_batch(seed, size)
    weights = torch.full((size,), discount**n)
    weights[-1] = 0.0
    return {
        **batch,
        **{n_step_key(n, key): later[key] for key in OBSERVATION},
        n_step_key(n, N_STEP_REWARD): -0.1 * torch.rand(size, generator=torch.Generator().manual_seed(seed)),
        n_step_key(n, N_STEP_DISCOUNT): weights,
    }


def critic_gradients(algorithm, batch) -> list[float]:
    """The gradient's norm of each critic under the critic's loss alone."""
    algorithm.policy.zero_grad()
    features, later = algorithm.policy.critic_features(batch), algorithm.losses.bootstrap_features(batch)
    loss, _, _ = algorithm.losses.critic_loss(features, later, batch)
    loss.backward()
    members = algorithm.policy.model.critic.members
    return [math.sqrt(sum(float(p.grad.square().sum()) for p in member.parameters())) for member in members]


def random_heads(algorithm) -> None:
    """Critics that differ (they are all copies of the actor at the start)."""
    torch.manual_seed(5)
    for member in algorithm.policy.model.critic.members:
        torch.nn.init.normal_(member.head.weight, std=0.3)


# ── What it reads ────────────────────────────────────────────────────────────────────────────────────────────────


def test_pooled_images_are_the_means_of_squares_in_reading_order_and_the_prompt_stays():
    rows = torch.arange(4.0)[:, None] * 10 + torch.arange(4.0)  # of one 4 × 4 grid
    states = torch.cat([rows.flatten(), 100 + rows.flatten(), torch.tensor([7.0, 8.0, 9.0])])[None, :, None]
    mask = torch.ones(1, 35, dtype=torch.bool)
    mask[:, 16:32] = mask[:, 34] = False  # no second camera; the prompt is padded
    pooled = pool_images(CriticFeatures(states, mask), cameras=2, grid=4, side=2)
    assert pooled.states[0, :4, 0].tolist() == [5.5, 7.5, 25.5, 27.5]
    assert pooled.states[0, 4:, 0].tolist() == [105.5, 107.5, 125.5, 127.5, 7.0, 8.0, 9.0]
    assert pooled.mask[0].tolist() == [True] * 4 + [False] * 4 + [True, True, False]


def test_the_critic_reads_pooled_images_where_the_configuration_says_so():
    lengths = []
    for side in (1, 2):
        policy = make_algorithm(critic_image_pooling=side).policy
        lengths.append(policy.critic_features(make_batch()).states.shape[1])
    assert lengths == [2 * 4 + 9, 2 * 1 + 9]  # 32 pixels in patches of 16, two cameras, nine tokens


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_prefix_and_queries_one_behind_the_other_equal_one_joint_pass(checkpointing):
    """LeRobot's own tower over both blocks at once gives the same logits and gradients."""
    algorithm = make_algorithm(gradient_checkpointing=checkpointing)
    random_heads(algorithm)
    critic = algorithm.policy.model.critic.members[0]
    embs, mask = torch.randn(3, 10, 64, generator=torch.Generator().manual_seed(0)), torch.ones(3, 10).bool()
    mask[0, 7:] = mask[1, :4] = False
    queries = critic.queries.expand(3, -1, -1)
    both = torch.cat([mask, mask.new_ones(3, queries.shape[1])], dim=1)
    block = torch.zeros_like(both)
    block[:, mask.shape[1]] = True

    def gradients(logits: torch.Tensor) -> dict[str, torch.Tensor]:
        critic.zero_grad()
        logits.sin().sum().backward()
        return {name: parameter.grad.clone() for name, parameter in critic.named_parameters()}

    joint = critic.backbone(
        inputs_embeds=torch.cat([embs, queries], dim=1),
        attention_mask=prepare_attention_masks_4d(make_att_2d_masks(both, block)),
        position_ids=torch.cumsum(both, dim=1) - 1,
        use_cache=False,
    ).last_hidden_state[:, mask.shape[1] :]
    expected = critic.head(joint.flatten(1))
    logits = critic(embs, mask, algorithm.policy.model.language_model)
    assert_same(logits, expected)
    expected_gradients = gradients(expected)
    for name, gradient in gradients(logits).items():
        assert_same(gradient, expected_gradients[name], msg=name)


# ── Cross-fitting ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("target", ["monte_carlo", "td"])
def test_a_critic_learns_nothing_from_its_own_fold_and_all_from_the_others(target):
    algorithm = make_algorithm(critic_folds=3, critic_target=target, n_step=N)
    for own in range(3):
        batch = with_n_step(dict(make_batch(), **{FOLD: torch.full((6,), own)}))
        gradients = critic_gradients(algorithm, batch)
        assert [norm == 0 for norm in gradients] == [k == own for k in range(3)]
    mixed = with_n_step(dict(make_batch(), **{FOLD: torch.arange(6) % 3}))
    assert all(norm > 0 for norm in critic_gradients(algorithm, mixed))


def test_one_sample_of_another_fold_decides_a_critics_gradient():
    """Samples of its own fold change nothing but the divisor, however wrong their returns are."""
    algorithm = make_algorithm(critic_folds=2)
    batch = dict(make_batch(), **{FOLD: torch.tensor([0, 0, 0, 0, 0, 1])})
    first = critic_gradients(algorithm, batch)
    returns = batch[RETURN].clone()
    returns[:5] = -1 - returns[:5]
    second = critic_gradients(algorithm, dict(batch, **{RETURN: returns}))
    assert first[0] == second[0] and first[1] != second[1]


def test_a_sample_is_asked_of_the_critic_that_has_not_seen_it_and_of_all_if_none_has():
    critic = make_algorithm(critic_folds=3).policy.model.critic
    values = torch.arange(12.0).view(4, 3)
    torch.testing.assert_close(
        critic.out_of_fold(values, torch.tensor([2, 0, 1, -1])), torch.tensor([2.0, 3.0, 7.0, 10.0])
    )
    assert critic.learns_from(torch.tensor([2, -1])).tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.usefixtures("float64")
def test_the_update_reads_out_of_fold_values():
    algorithm = make_algorithm(critic_folds=2)
    random_heads(algorithm)
    batch = dict(make_batch(), **{FOLD: torch.tensor([0, 1, 0, 1, -1, -1])})
    all_values = algorithm.policy.predict_values(batch)
    assert (all_values[:, 0] - all_values[:, 1]).abs().min() > 1e-3
    _, values, _ = algorithm.losses.critic_loss(algorithm.policy.critic_features(batch), {}, batch)
    expected = [all_values[row, fold] for row, fold in enumerate([0, 1, 0, 1])]
    assert_same(values[:4], torch.stack(expected))
    assert_same(values[4:], all_values[4:].mean(dim=1))


@pytest.mark.usefixtures("float64")
def test_one_critic_is_the_plain_cross_entropy_over_every_sample():
    algorithm = make_algorithm()
    random_heads(algorithm)
    critic, batch = algorithm.policy.model.critic, make_batch()
    features = algorithm.policy.critic_features(batch)
    logits = critic.members[0](*features, algorithm.policy.model.language_model)
    plain = critic.bins.cross_entropy(logits, batch[RETURN]).mean()
    for fold in (0, -1):
        loss, values, metrics = algorithm.losses.critic_loss(
            features, {}, dict(batch, **{FOLD: torch.full((6,), fold)})
        )
        assert_same(loss, plain)
        assert_same(metrics["loss_critic"], plain.detach())
        assert_same(values, critic.bins.value(logits.detach()))


def episodes(*kinds: tuple[int, str], source: int = 0) -> list[Episode]:
    return [
        Episode(source, number, 10 * number, 10 * number + 10, task, Outcome(outcome))
        for number, (task, outcome) in enumerate(kinds)
    ]


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_are_balanced_over_tasks_and_outcomes(folds):
    """As they are recorded: all successes of a task in a row, then its failures."""
    kinds = [(0, "success")] * 10 + [(0, "failure")] * 7 + [(1, "success")] * 5 + [(1, "failure")] * 8
    found = assign_folds(episodes(*kinds), folds)
    assert sorted(found) == [(0, number) for number in range(30)]
    assert set(found.values()) == set(range(folds))
    for kind in set(kinds):
        counts = [0] * folds
        for number, other in enumerate(kinds):
            counts[found[0, number]] += other == kind
        assert max(counts) - min(counts) <= 1, kind
    assert found == assign_folds(episodes(*kinds)[::-1], folds)  # whatever order they come in


def test_more_folds_than_episodes_are_refused():
    with pytest.raises(DatasetError, match=r"critic_folds is 4, but there are only 3 episodes"):
        assign_folds(episodes((0, "success"), (0, "failure"), (0, "success")), 4)


# ── The bootstrapped target ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=[1, 2])
def td(request):
    """An algorithm whose target critics differ from its critics."""
    algorithm = make_algorithm(critic_target="td", n_step=N, critic_folds=request.param)
    random_heads(algorithm)
    with torch.no_grad():
        for parameter in algorithm.losses.target_critic.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return algorithm


def targets_of(algorithm, batch) -> torch.Tensor:
    return algorithm.losses.critic_targets(algorithm.losses.bootstrap_features(batch), batch)


@pytest.mark.usefixtures("float64")
def test_the_target_is_the_reward_and_the_target_critics_discounted_value_of_the_later_frame(td):
    batch = with_n_step(make_batch())
    later = {key: batch[n_step_key(N, key)] for key in OBSERVATION}
    online = td.policy.predict_values(later)
    kept, td.policy.model.critic = td.policy.model.critic, td.losses.target_critic
    values = td.policy.predict_values(later)
    td.policy.model.critic = kept
    assert (values - online).abs().max() > 1e-3
    rewards = batch[n_step_key(N, N_STEP_REWARD)][:, None]
    weights = torch.tensor([0.9**3] * 5 + [0.0])[:, None]
    assert_same(targets_of(td, batch), (rewards + weights * values).clamp(-1, 0))


def test_a_frame_that_reaches_the_end_does_not_bootstrap(td):
    first, second = (with_n_step(make_batch(), seed=seed) for seed in (50, 51))
    second[n_step_key(N, N_STEP_REWARD)] = first[n_step_key(N, N_STEP_REWARD)]
    one, two = targets_of(td, first), targets_of(td, second)
    reward = float(first[n_step_key(N, N_STEP_REWARD)][-1])
    assert one[-1].tolist() == two[-1].tolist() == [pytest.approx(reward)] * one.shape[1]
    assert (one[:-1] != two[:-1]).all()  # the others read their later frame


@pytest.mark.usefixtures("float64")
def test_the_target_stays_inside_the_support_and_an_unknown_reward_teaches_nothing(td):
    batch = with_n_step(make_batch())
    batch[n_step_key(N, N_STEP_REWARD)] = torch.tensor([-5.0, 5.0, -0.1, -0.1, -0.1, math.nan])
    targets = targets_of(td, batch)
    assert (targets[0] == -1).all() and (targets[1] == 0).all() and targets[5].isnan().all()
    gradients = critic_gradients(td, batch)
    batch[CAMERAS[0]] = batch[CAMERAS[0]].clone()
    batch[CAMERAS[0]][5] = 0.0
    assert critic_gradients(td, batch) == pytest.approx(gradients, rel=1e-9)


@pytest.mark.usefixtures("float64")
def test_the_target_critic_moves_by_polyak_alone(td):
    rate = td.policy.config.critic_target_update_weight
    target, online = td.losses.target_critic, td.policy.model.critic
    held = {id(p) for group in td.optimizer.param_groups for p in group["params"]}
    assert not any(id(p) in held or p.requires_grad for p in target.parameters())
    before = copy.deepcopy(target)
    td.update(iter([with_n_step(make_batch())]))
    moved = 0
    for old, now, current in zip(before.parameters(), target.parameters(), online.parameters(), strict=True):
        assert_same(now.detach(), (old + rate * (current - old)).detach())
        moved += not torch.equal(old, now)
    assert moved == len(list(target.parameters()))


def test_the_target_critic_is_training_state_and_not_policy(td):
    td.update(iter([with_n_step(make_batch())]))
    state = td.state_dict()
    assert not any("target" in name for name in td.policy.state_dict())
    other = make_algorithm(critic_target="td", n_step=N, critic_folds=td.policy.config.critic_folds)
    other.load_state_dict(state)
    for ours, theirs in zip(
        td.losses.target_critic.parameters(), other.losses.target_critic.parameters(), strict=True
    ):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)
    assert "target_critic.members.0.head.weight" in state
    assert not any("target" in name for name in make_algorithm().state_dict())


# ── Advantages in the update ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("float64")
def test_n_step_advantages_use_the_same_out_of_fold_critic_at_both_ends():
    algorithm = make_algorithm(critic_folds=2, advantage_n_step=N)
    random_heads(algorithm)
    folds = [0, 1, 0, 1, 0, 1]
    columns = {FOLD: torch.tensor(folds), TASK_INDEX: torch.zeros(6, dtype=torch.long)}
    batch = with_n_step(dict(make_batch(), **columns))
    now = algorithm.policy.predict_values(batch)
    then = algorithm.policy.predict_values({key: batch[n_step_key(N, key)] for key in OBSERVATION})
    rows = torch.arange(6)
    reward, discount = batch[n_step_key(N, N_STEP_REWARD)], batch[n_step_key(N, N_STEP_DISCOUNT)]
    expected = reward + discount * then[rows, folds] - now[rows, folds]
    later = algorithm.losses.bootstrap_features(batch)
    _, values, _ = algorithm.losses.critic_loss(algorithm.policy.critic_features(batch), later, batch)
    assert_same(algorithm.losses.advantages(values, later, batch), expected)
    plain = make_algorithm(critic_folds=2)
    assert_same(plain.losses.advantages(values, {}, batch), batch[RETURN] - values)
