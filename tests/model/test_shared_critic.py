"""The critic on the actor's own prefix states (use_separate_critic=false)."""

import pytest
import torch
from double import assert_same
from tiny import batches, encode_prefix, make_algorithm, make_batch, tiny_config

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.model.critic import SharedValueCritic, ValueBins
from lerobot_policy_pi05_rl.model.network import PI05RLPytorch
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy


def shared(**overrides):
    return make_algorithm(use_separate_critic=False, critic_llm_depth=1, **overrides)


def layer_runs(algorithm) -> list[list[int]]:
    """Per language layer of the actor, the lengths of the sequences that run through its key projection."""
    runs = []
    for layer in algorithm.policy.model.language_model.layers:
        lengths: list[int] = []
        layer.self_attn.k_proj.register_forward_hook(lambda _, args, __, kept=lengths: kept.append(args[0].shape[1]))
        runs.append(lengths)
    return runs


def test_a_step_reads_the_prefix_once_for_both_and_a_critics_step_no_further_than_its_layer():
    algorithm = shared(critic_warmup_steps=1)
    runs, iterator = layer_runs(algorithm), batches()
    prefix = algorithm.policy.embed_observation(make_batch()).embs.shape[1]
    algorithm.update(iterator)  # the critic alone
    assert runs == [[prefix], [], []]
    for lengths in runs:
        lengths.clear()
    algorithm.update(iterator)
    assert runs == [[prefix]] * 3


@pytest.mark.usefixtures("float64")
def test_the_critic_reads_the_same_states_in_training_and_when_it_is_asked():
    algorithm, batch = shared(critic_folds=2), make_batch()
    policy = algorithm.policy
    for member in policy.model.critic.members:
        torch.nn.init.normal_(member.head.weight)
    features = policy.model.critic_features(policy.embed_observation(batch), encode_prefix(policy, batch))
    assert not features.states.requires_grad
    logits = policy.model.critic_logits(features)
    assert_same(policy.model.critic.bins.value(logits).detach(), policy.predict_values(batch))
    assert policy.predict_values(batch).std() > 1e-4
    deeper = encode_prefix(policy, batch)
    assert not torch.equal(policy.embed_observation(batch).embs, deeper.hidden_states), "one layer lies between"


def test_the_critic_learns_and_its_loss_never_reaches_the_actor():
    algorithm, batch = shared(), make_batch()
    policy = algorithm.policy
    torch.nn.init.normal_(policy.model.critic.members[0].head.weight)
    policy.zero_grad()
    prefix = policy.embed_observation(batch)
    features = policy.model.critic_features(prefix, policy.model.encode_prefix(prefix))
    algorithm.losses.critic_loss(features, {}, batch)[0].backward()
    touched = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {name for name, _ in policy.named_parameters() if ".critic." in name}


@pytest.mark.usefixtures("float64")
def test_padding_is_not_read():
    bins = ValueBins(11, -1.0, 0.0, 0.75)
    torch.manual_seed(0)
    critic = SharedValueCritic(16, num_queries=2, bins=bins)
    torch.nn.init.normal_(critic.head.weight)
    states, mask = torch.randn(2, 5, 16), torch.tensor([[True] * 5, [True, True, True, False, False]])
    changed = states.clone()
    changed[1, 3:] = 9.0
    assert_same(critic(states, mask, None), critic(changed, mask, None))
    assert not torch.equal(critic(states, mask, None), critic(changed, torch.ones_like(mask), None))


def test_it_is_stored_and_loaded(tmp_path):
    algorithm = shared(critic_folds=2)
    for _ in range(2):
        algorithm.update(batches())
    policy, batch = algorithm.policy, make_batch()
    policy.save_pretrained(tmp_path)
    again = PI05RLPolicy.from_pretrained(tmp_path)
    assert isinstance(again.model.critic.members[1], SharedValueCritic)
    torch.testing.assert_close(again.predict_values(batch), policy.eval().predict_values(batch))


def test_the_last_layer_cannot_be_read():
    with pytest.raises(ValueError, match=r"critic_llm_depth must be below llm_depth \(3\)"):
        tiny_config(use_separate_critic=False, critic_llm_depth=3)


def test_at_full_size_it_has_a_quarter_of_the_separate_critics_parameters():
    sizes = []
    for separate in (True, False):
        with torch.device("meta"):
            model = PI05RLPytorch(PI05RLConfig(device="cpu", use_separate_critic=separate))
        sizes.append(sum(parameter.numel() for parameter in model.critic.parameters()))
    assert sizes[1] < 0.25 * sizes[0]
