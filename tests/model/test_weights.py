"""Weights load completely or not at all; a stock π0.5 gets a critic that starts from its actor."""

import pytest
import torch
from lerobot.policies.factory import make_policy
from safetensors.torch import save_file
from stock import stock_checkpoint
from tiny import tiny_config

from lerobot_policy_pi05_rl.model.weights import CheckpointError
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy


@pytest.mark.parametrize(("prefix", "tied"), [("model.", False), ("", False), ("model.", True)])
def test_a_stock_checkpoint_loads_whole_and_the_critic_starts_from_the_actor(tmp_path, caplog, prefix, tied):
    source = stock_checkpoint(tmp_path / "pi05", prefix=prefix, tied=tied)
    with caplog.at_level("INFO"):
        policy = PI05RLPolicy.from_pretrained(tmp_path / "pi05", config=tiny_config())
    loaded = policy.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in source.state_dict().items())
    layers = policy.model.critic.members[0].backbone.layers
    for critic_layer, actor_layer in zip(layers, policy.model.language_model.layers, strict=False):
        pairs = zip(critic_layer.parameters(), actor_layer.parameters(), strict=True)
        assert all(torch.equal(a, b) and a is not b for a, b in pairs)
    assert "has no critic" in caplog.text
    assert not policy.training


def test_our_checkpoint_restores_the_critic_or_leaves_it_out(tmp_path, tiny_policy):
    tiny_policy.save_pretrained(tmp_path)
    stored = tiny_policy.state_dict()
    loaded = PI05RLPolicy.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == stored.keys() and all(torch.equal(loaded[name], stored[name]) for name in stored)
    actor = PI05RLPolicy.from_pretrained(tmp_path, load_critic=False).state_dict()
    assert actor.keys() == {name for name in stored if "critic" not in name}
    assert all(torch.equal(actor[name], stored[name]) for name in actor)


def test_lerobots_factory_starts_from_a_stock_checkpoint(tmp_path):
    """`lerobot-train --policy.type=pi05_rl --policy.pi05_checkpoint=…` must not train random weights."""
    source = stock_checkpoint(tmp_path / "pi05")
    config = tiny_config(pi05_checkpoint=str(tmp_path / "pi05"))
    from lerobot_policy_pi05_rl.demo.env_config import PandaPickCubeEnv

    config.input_features = {}
    config.image_resolution = (32, 32)
    policy = make_policy(config, env_cfg=PandaPickCubeEnv())
    assert torch.equal(policy.model.action_in_proj.weight, source.model.action_in_proj.weight)


def test_a_stock_directory_without_our_configuration_says_what_to_do(tmp_path):
    stock_checkpoint(tmp_path / "pi05")
    with pytest.raises((ValueError, CheckpointError), match="pi05"):
        PI05RLPolicy.from_pretrained(tmp_path / "pi05")


def test_nothing_is_changed_when_one_tensor_does_not_fit(tmp_path, tiny_policy):
    tensors = {name: tensor.clone() for name, tensor in tiny_policy.state_dict().items()}
    tensors["model.action_in_proj.weight"] = torch.randn(3, 3)
    save_file(tensors, tmp_path / "model.safetensors")
    policy = PI05RLPolicy(tiny_config())
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    from lerobot_policy_pi05_rl.model.weights import load_policy_weights, locate

    with pytest.raises(CheckpointError, match=r"action_in_proj\.weight: \(3, 3\) in the file, \(32, 8\) here"):
        load_policy_weights(policy, locate(tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
