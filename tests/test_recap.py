"""The update: what trains and what does not, how often each network runs, what the schedule means."""

import math

import pytest
import torch
from double import assert_same
from tiny import CAMERAS, batches, encode_prefix, make_algorithm, make_batch, tiny_config

from lerobot_policy_pi05_rl.data.batch import ACTION_IS_PAD, POSITION, RETURN
from lerobot_policy_pi05_rl.model.trainable import select_trainable
from lerobot_policy_pi05_rl.noise import sample_noise
from lerobot_policy_pi05_rl.recap import RecapAlgorithm

PARTS = {
    "vision tower": "vision_tower.",
    "projector": "multi_modal_projector.",
    "token embedding": "embed_tokens.",
    "first language layer": "language_model.layers.0.",
    "second language layer": "language_model.layers.1.",
    "last language layer's keys": "language_model.layers.2.self_attn.k_proj",
    "expert": "gemma_expert.",
    "action in": "action_in_proj.",
    "action out": "action_out_proj.",
    "time": "time_mlp_",
    "critic layers": "critic.members.0.backbone.layers.",
    "critic queries": "critic.members.0.queries",
    "critic head": "critic.members.0.head.",
}


def part_parameters(policy, part: str):
    return {name: p for name, p in policy.named_parameters() if part in name}


def moved_parts(algorithm: RecapAlgorithm, steps: int = 2) -> set[str]:
    before = {name: p.detach().clone() for name, p in algorithm.policy.named_parameters()}
    iterator = batches()
    for _ in range(steps):
        algorithm.update(iterator)
    now = dict(algorithm.policy.named_parameters())
    moved = set()
    for label, part in PARTS.items():
        names = part_parameters(algorithm.policy, part)
        assert names, f"no parameter of the {label}"
        if any(not torch.equal(before[name], now[name]) for name in names):
            moved.add(label)
    return moved


def test_every_part_meant_to_train_gets_a_gradient_and_moves():
    algorithm = make_algorithm()
    trained = [p for group in algorithm.parameters.values() for p in group]
    iterator = batches()
    for _ in range(2):
        loss, _, _ = algorithm.losses(
            batch := next(iterator), sample_noise(3, batch[POSITION], algorithm.policy.config), train_actor=True
        )
        loss.backward()
    names = {id(p): name for name, p in algorithm.policy.named_parameters()}
    without = [names[id(p)] for p in trained if p.grad is None or not p.grad.any()]
    assert without == []
    algorithm.optimizer.zero_grad()
    assert moved_parts(algorithm) == set(PARTS)


@pytest.mark.parametrize(
    ("overrides", "frozen"),
    [
        ({"freeze_vision_encoder": True}, {"vision tower"}),
        (
            {"train_expert_only": True},
            {
                "vision tower",
                "projector",
                "token embedding",
                "first language layer",
                "second language layer",
                "last language layer's keys",
            },
        ),
        ({"train_language_from_layer": 2}, {"token embedding", "first language layer", "second language layer"}),
        ({"policy_extraction": "none"}, {"critic layers", "critic queries", "critic head"}),
    ],
)
def test_each_frozen_part_stays(overrides, frozen):
    algorithm = make_algorithm(**overrides)
    assert moved_parts(algorithm) == set(PARTS) - frozen
    held = {id(p) for group in algorithm.optimizer.param_groups for p in group["params"]}
    for label in frozen:
        for name, parameter in part_parameters(algorithm.policy, PARTS[label]).items():
            assert id(parameter) not in held, f"{name} is frozen but has optimizer state"


def test_what_only_serves_unread_outputs_has_no_gradient_anyway():
    """select_trainable freezes the last language layer's MLP and queries: check that nothing is lost."""
    algorithm = make_algorithm()
    trained = {id(p) for group in algorithm.parameters.values() for p in group}
    policy = algorithm.policy.requires_grad_(True)
    batch = make_batch()
    algorithm.losses(make_batch(100), sample_noise(3, batch[POSITION], policy.config), train_actor=True)
    loss, _, _ = algorithm.losses(batch, sample_noise(3, batch[POSITION], policy.config), train_actor=True)
    loss.backward()
    left_out = {n: p for n, p in policy.named_parameters() if id(p) not in trained}
    assert left_out, "nothing is frozen"
    assert [n for n, p in left_out.items() if p.grad is not None and p.grad.any()] == []


def test_gradients_of_critic_and_actor_never_mix():
    algorithm = make_algorithm()
    policy, batch = algorithm.policy, make_batch()
    prefix = policy.embed_observation(batch)
    cache = policy.model.encode_prefix(prefix)
    features = policy.model.critic_features(prefix, cache)
    critic = {id(p) for p in policy.model.critic.parameters()}

    loss, _, _ = algorithm.losses.critic_loss(features, {}, batch)
    loss.backward()
    touched = {id(p) for p in policy.parameters() if p.grad is not None and p.grad.any()}
    assert touched and touched <= critic

    policy.zero_grad()
    tags = torch.tensor([1, 0, -1, 1, 0, -1])
    loss, _ = algorithm.losses.actor_loss(cache, tags, batch, sample_noise(3, batch[POSITION], policy.config))
    loss.backward()
    touched = {id(p) for p in policy.parameters() if p.grad is not None and p.grad.any()}
    assert touched and not touched & critic


def test_each_image_is_seen_once_and_each_language_model_runs_once_a_step():
    algorithm = make_algorithm()
    model, calls = algorithm.policy.model, {"vision": [], "actor": [], "critic": []}

    def count(name, dim=1):
        return lambda _, args, __: calls[name].append(args[0].shape[dim] if args else 1)

    model.vision_tower.vision_model.embeddings.patch_embedding.register_forward_hook(count("vision", dim=0))
    model.language_model.layers[0].self_attn.q_proj.register_forward_hook(count("actor"))
    model.critic.members[0].backbone.layers[0].self_attn.q_proj.register_forward_hook(count("critic"))
    algorithm.update(batches())
    assert calls["vision"] == [6 * len(CAMERAS)]  # every camera of the six samples, in one batch
    prefix = algorithm.policy.embed_observation(make_batch()).embs.shape[1]
    assert calls["actor"] == [prefix]
    read = algorithm.policy.critic_features(make_batch()).states.shape[1]
    assert calls["critic"] == [read, algorithm.policy.config.num_value_queries]


def test_critic_only_steps_leave_the_actor_alone_and_do_not_run_it():
    algorithm = make_algorithm(policy_update_freq=2, critic_warmup_steps=2)
    iterator, runs = batches(), []
    algorithm.policy.model.language_model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: runs.append(1))
    actor_moved, critic_moved = [], []
    for _ in range(6):
        before = {n: p.detach().clone() for n, p in algorithm.policy.named_parameters()}
        algorithm.update(iterator)
        moved = {n for n, p in algorithm.policy.named_parameters() if not torch.equal(p, before[n])}
        actor_moved.append(any("critic" not in n for n in moved))
        critic_moved.append(any("critic" in n for n in moved))
    assert actor_moved == [False, False, True, False, True, False]
    assert all(critic_moved)
    assert len(runs) == 2


def test_utd_ratio_and_accumulation_consume_their_batches():
    algorithm = make_algorithm(utd_ratio=3, gradient_accumulation_steps=2)
    seen = []

    def counted():
        for batch in batches():
            seen.append(int(batch[POSITION][0]))
            yield batch

    algorithm.update(counted())
    assert len(seen) == algorithm.batches_per_step == 6
    assert len(set(seen)) == 6


@pytest.mark.usefixtures("float64")
def test_accumulation_equals_one_large_batch():
    """Two batches of three, accumulated, give the parameters of one batch of six."""
    halves, whole = (
        make_algorithm(gradient_accumulation_steps=2, advantage_dropout=1.0),
        make_algorithm(advantage_dropout=1.0),
    )
    batch = make_batch()
    split = [{k: v[rows] for k, v in batch.items()} for rows in (slice(0, 3), slice(3, 6))]
    halves.update(iter(split))
    whole.update(iter([batch]))
    for (name, a), (_, b) in zip(halves.policy.named_parameters(), whole.policy.named_parameters(), strict=True):
        assert_same(a, b, atol=1e-9, msg=name)  # Adam divides gradients that are nothing but rounding by 1e-8


def test_padded_actions_do_not_reach_the_loss():
    algorithm = make_algorithm()
    policy, batch = algorithm.policy, make_batch()
    batch["action"] = batch["action"].clone()
    sampled = sample_noise(3, batch[POSITION], policy.config)
    prefix = encode_prefix(policy, batch)
    # The noisy actions are the network's input, so a padded action may reach other steps through attention; the
    # loss itself must ignore it: with the input fixed, changing the target behind the padding changes nothing.
    fixed = policy.model.velocity
    policy.model.velocity = lambda *args: torch.zeros(6, 6, 8)
    first, _ = algorithm.losses.actor_loss(prefix, None, batch, sampled)
    batch["action"][batch[ACTION_IS_PAD]] += 100
    second, _ = algorithm.losses.actor_loss(prefix, None, batch, sampled)
    batch["action"][~batch[ACTION_IS_PAD]] += 1
    third, _ = algorithm.losses.actor_loss(prefix, None, batch, sampled)
    policy.model.velocity = fixed
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.usefixtures("float64")
def test_unknown_returns_train_no_critic_and_carry_no_tag():
    algorithm = make_algorithm()
    batch = make_batch()
    sampled = sample_noise(3, batch[POSITION], algorithm.policy.config)
    some = dict(batch, **{RETURN: torch.where(torch.arange(6) < 3, batch[RETURN], math.nan)})
    loss, values, _ = algorithm.losses.critic_loss(algorithm.policy.critic_features(some), {}, some)
    first = {k: v[:3] for k, v in batch.items()}
    half, _, _ = algorithm.losses.critic_loss(algorithm.policy.critic_features(first), {}, first)
    assert_same(loss, half / 2)
    tags, _, _ = algorithm.losses.tag_and_weigh(some[RETURN] - values, some, sampled)
    assert (tags[3:] == -1).all()


def test_draws_depend_on_seed_and_position_alone():
    config = tiny_config()
    a = sample_noise(1, torch.tensor([5, 6, 7]), config)
    b = sample_noise(1, torch.tensor([7, 5]), config)
    assert torch.equal(a.noise[0], b.noise[1]) and torch.equal(a.time[2], b.time[0])
    assert not torch.equal(a.noise[0], a.noise[1])
    assert not torch.equal(a.noise[0], sample_noise(2, torch.tensor([5]), config).noise[0])
    many = sample_noise(1, torch.arange(4000), config)
    assert abs(many.dropped.float().mean() - config.advantage_dropout) < 0.03
    assert abs(many.time.mean() - 0.6) < 0.02  # Beta(1.5, 1) has mean 0.6
    assert abs(many.noise.mean()) < 0.01 and abs(many.noise.std() - 1) < 0.01


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_moves_a_weight():
    from lerobot_policy_pi05_rl.errors import UserError

    algorithm = make_algorithm()
    before = {n: p.detach().clone() for n, p in algorithm.policy.named_parameters()}
    batch = make_batch()
    batch["action"] = batch["action"] * math.inf
    with pytest.raises(UserError, match="not finite"):
        algorithm.update(iter([batch]))
    assert all(torch.equal(p, before[n]) for n, p in algorithm.policy.named_parameters())


def test_optimizer_groups_have_their_own_learning_rates():
    algorithm = make_algorithm(actor_lr=3e-4, critic_lr=7e-4, optimizer_weight_decay=0.02)
    groups = {g["name"]: g for g in algorithm.optimizer.param_groups}
    assert groups["actor"]["initial_lr"] == 3e-4 and groups["critic"]["initial_lr"] == 7e-4
    assert {g["weight_decay"] for g in groups.values()} == {0.02}
    assert set(select_trainable(algorithm.policy)) == {"actor", "critic"}
