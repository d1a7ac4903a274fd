"""Critics that read the actor's own first layers through low-rank adapters (critic_adapter_rank)."""

import pytest
import torch
from double import assert_same
from runs import run, step_back
from safetensors.torch import load_file
from tiny import batches, make_algorithm, make_batch, randomised, tiny_config, write_config

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.data.batch import FOLD, POSITION
from lerobot_policy_pi05_rl.model.critic import AdaptedValueCritic
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.noise import sample_noise
from lerobot_policy_pi05_rl.plan.flops import total, training_step_flops
from lerobot_policy_pi05_rl.plan.meta_step import Shape, build, with_cameras

TARGETS = r".*language_model\..*\.(q|k|v|o)_proj"


def adapted(**overrides):
    algorithm = make_algorithm(critic_adapter_rank=4, **overrides)
    randomised(algorithm.policy.model.critic)
    return algorithm


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_that_are_zero_give_what_copied_layers_give(checkpointing):
    """Its layers are the actor's: with nothing added the critic is the one that has copies of them."""
    copied = make_algorithm(gradient_checkpointing=checkpointing).policy
    shared = make_algorithm(critic_adapter_rank=4, gradient_checkpointing=checkpointing).policy
    with torch.no_grad():
        own, copy = (policy.model.critic.members[0] for policy in (shared, copied))
        for name, parameter in own.named_parameters():
            theirs = name.replace("norm", "backbone.norm")
            parameter.zero_() if name.startswith("adapters") else parameter.copy_(copy.get_parameter(theirs))
        shared.model.language_model.load_state_dict(copied.model.language_model.state_dict())
        copied.model.critic.init_from_actor(copied.model.language_model)
    features = copied.critic_features(make_batch())
    assert_same(shared.model.critic_logits(features), copied.model.critic_logits(features))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_its_loss_moves_every_tensor_of_its_own_and_none_of_the_actors(checkpointing):
    algorithm, batch = adapted(critic_folds=2, gradient_checkpointing=checkpointing), make_batch()
    policy, batch[FOLD] = algorithm.policy, torch.arange(len(batch[FOLD])) % 2
    policy.zero_grad()
    algorithm.losses.critic_loss(policy.critic_features(batch), {}, batch)[0].backward()
    touched = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {name for name, _ in policy.named_parameters() if ".critic." in name}


def test_both_losses_of_a_step_give_the_gradients_that_each_gives_alone():
    """One backward serves both, though they read the same layers."""
    algorithm, batch = adapted(), make_batch()
    policy, losses = algorithm.policy, algorithm.losses

    def gradients(*losses_of: torch.Tensor) -> dict[str, torch.Tensor]:
        policy.zero_grad()
        torch.stack(losses_of).sum().backward()
        return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        sampled = sample_noise(0, batch[POSITION], policy.config)
        prefix = policy.embed_observation(batch)
        cache = policy.model.encode_prefix(prefix)
        critic = losses.critic_loss(policy.model.critic_features(prefix, cache), {}, batch)[0]
        return critic, losses.actor_loss(cache, None, batch, sampled)[0]

    together, critic, actor = gradients(*both()), gradients(both()[0]), gradients(both()[1])
    assert together.keys() == critic.keys() | actor.keys() and not critic.keys() & actor.keys()
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, {**critic, **actor}[name], msg=name)


def test_it_is_stored_and_loaded(tmp_path):
    algorithm = adapted(critic_folds=2)
    for _ in range(2):
        algorithm.update(batches())
    policy, batch = algorithm.policy, make_batch()
    policy.save_pretrained(tmp_path)
    again = PI05RLPolicy.from_pretrained(tmp_path)
    assert isinstance(again.model.critic.members[1], AdaptedValueCritic)
    torch.testing.assert_close(again.predict_values(batch), policy.eval().predict_values(batch))


@pytest.mark.parametrize("peft", [None, {"method_type": "LORA", "r": 2, "target_modules": TARGETS}])
def test_a_run_goes_on_bit_for_bit(tmp_path, mixed_dataset, peft):
    """It labels between its two phases; beside an adapter of the actor's it reads what the merged policy reads."""
    torch.manual_seed(0)
    randomised(PI05RLPolicy(tiny_config(critic_adapter_rank=4))).save_pretrained(tmp_path / "start")
    path = write_config(
        tmp_path / "config.json",
        mixed_dataset,
        tmp_path / "run",
        policy__pi05_checkpoint=str(tmp_path / "start"),
        policy__critic_adapter_rank=4,
        save_freq=2,
        **({} if peft is None else {"peft": peft}),
    )
    file = "critic.safetensors" if peft else "model.safetensors"
    whole = load_file(run(path) / "pretrained_model" / file)
    step_back(tmp_path / "run", "000002")
    last = run(path, resume="true") / "pretrained_model"
    resumed = load_file(last / file)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    merged, apart = (PI05RLPolicy.from_pretrained(last, keep_adapter=keep) for keep in (False, True))
    batch = make_batch()
    torch.testing.assert_close(merged.predict_values(batch), apart.predict_values(batch))


def test_at_full_size_a_fold_costs_a_few_megabytes_and_its_step_less_than_layers_of_its_own():
    sizes, flops = {}, {}
    for rank in (0, 16):
        config = with_cameras(
            PI05RLConfig(device="cpu", critic_adapter_rank=rank, policy_extraction="conditioning"), 2
        )
        model = build(config)
        sizes[rank] = sum(parameter.numel() for parameter in model.policy.model.critic.members[0].parameters())
        flops[rank] = total({"critic": training_step_flops(model, Shape(1, 64), train_actor=False)["critic"]})
    assert sizes[16] < 5e6 < 100e6 < sizes[0]
    assert flops[16] < 0.75 * flops[0]


def test_adapters_of_a_shared_critic_are_refused():
    with pytest.raises(ValueError, match=r"policy.critic_adapter_rank .* use_separate_critic"):
        tiny_config(use_separate_critic=False, critic_llm_depth=1, critic_adapter_rank=4)
