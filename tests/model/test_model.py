"""The network: equal to stock π0.5 without a tag, and consistent between training and sampling."""

from functools import partial

import pytest
import torch
from double import assert_same
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.modeling_pi05 import PI05Policy, PI05Pytorch, compute_layer_complete
from tiny import CAMERAS, make_batch, model_inputs, randomised, tiny_config

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.model.network import PI05RLPytorch
from lerobot_policy_pi05_rl.model.towers import encode_block
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy

pytestmark = pytest.mark.usefixtures("float64")
PREFIX = ("images", "img_masks", "tokens", "masks")
TRAIN = (*PREFIX, "actions", "noise", "time")


def values(inputs, names):
    return [inputs[name] for name in names]


def test_without_a_tag_loss_and_samples_are_stocks(tiny_policy):
    model, inputs = tiny_policy.model, model_inputs()
    ours = model.forward(*values(inputs, TRAIN))
    stock = PI05Pytorch.forward(model, *values(inputs, TRAIN))  # stock's code on the same weights
    assert_same(ours, stock)  # attention is fused here, eager there

    ours = model.sample_actions(*values(inputs, PREFIX), noise=inputs["noise"], num_steps=3)
    stock = PI05Pytorch.sample_actions(model, *values(inputs, PREFIX), noise=inputs["noise"], num_steps=3)
    assert_same(ours, stock)


def test_a_sample_without_a_tag_equals_stock_beside_tagged_ones(tiny_policy):
    model, inputs = tiny_policy.model, model_inputs()
    prefix = model.encode_prefix(model.embed_observation(*values(inputs, PREFIX)))
    tagged = model.flow_matching_error(prefix, *values(inputs, ("actions", "noise", "time", "tags")))
    stock = PI05Pytorch.forward(model, *values(inputs, TRAIN))
    assert inputs["tags"].tolist() == [-1, 0, 1]
    assert_same(tagged[0], stock[0])
    assert (tagged[1:] - stock[1:]).abs().amax(dim=(1, 2)).min() > 1e-3, "the tag must reach the actions"

    sample = dict(noise=inputs["noise"], num_steps=3)
    tagged = model.sample_actions(*values(inputs, PREFIX), tags=inputs["tags"], **sample)
    stock = PI05Pytorch.sample_actions(model, *values(inputs, PREFIX), **sample)
    assert_same(tagged[0], stock[0])
    assert (tagged[1:] - stock[1:]).abs().amax(dim=(1, 2)).min() > 1e-3


def test_a_camera_that_is_not_there_is_not_embedded_and_changes_nothing(tiny_policy):
    model, batch = tiny_policy.model, make_batch(size=3)
    del batch[CAMERAS[1]]
    prefix = tiny_policy.embed_observation(batch)
    assert prefix.cameras == 1 and prefix.embs.shape[1] == 4 + 9
    images, img_masks = PI05Policy._preprocess_images(tiny_policy, batch)  # stock: black, embedded, masked
    assert len(images) == 2
    text = (batch["observation.language.tokens"], batch["observation.language.attention_mask"])
    noise = model_inputs()["noise"]
    stock = PI05Pytorch.sample_actions(model, images, img_masks, *text, noise=noise, num_steps=3)
    tiny_policy.config.inference_advantage = "none"
    ours = tiny_policy.predict_action_chunk(batch, noise=noise, num_steps=3)
    assert_same(ours, stock[:, :, :3])


def test_training_integrates_to_what_sampling_gives(tiny_policy):
    """Sampling one Euler step from the noise is noise − velocity, the velocity that training regresses."""
    model, inputs = tiny_policy.model, model_inputs()
    prefix = model.encode_prefix(model.embed_observation(*values(inputs, PREFIX)))
    tags, noise = inputs["tags"], inputs["noise"]
    zeros, ones = torch.zeros_like(noise), torch.ones(len(noise))
    error = model.flow_matching_error(prefix, zeros, noise, ones, tags)  # (noise − velocity)²
    sampled = model.sample_actions(*values(inputs, PREFIX), tags=tags, noise=noise, num_steps=1)
    assert_same(sampled.square(), error)


def test_the_prefix_is_read_once_and_without_the_tag(tiny_policy):
    model, inputs = tiny_policy.model, model_inputs()
    prefix = model.embed_observation(*values(inputs, PREFIX))
    lengths = []
    handle = model.language_model.layers[0].mlp.register_forward_pre_hook(
        lambda _, args: lengths.append(args[0].shape[1])
    )
    queried = []
    model.language_model.layers[-1].self_attn.q_proj.register_forward_pre_hook(
        lambda _, args: queried.append(args[0].shape[1])
    )
    cache = model.encode_prefix(prefix)
    velocities = [model.velocity(cache, inputs["noise"], inputs["time"], torch.full((3,), tag)) for tag in (0, 1)]
    handle.remove()
    assert lengths == [prefix.embs.shape[1]]
    assert not queried, "no token that the language tower reads is asked for its last output"
    assert not torch.equal(*velocities)


def test_full_size_has_every_tensor_stock_uses_under_the_same_name():
    with torch.device("meta"):
        ours = PI05RLPytorch(PI05RLConfig(device="cpu"))
        stock = PI05Pytorch(PI05Config(device="cpu"))
    ours_shapes = {k: tuple(v.shape) for k, v in ours.state_dict().items() if not k.startswith("critic.")}
    heads = {"paligemma_with_expert.paligemma.lm_head.weight", "paligemma_with_expert.gemma_expert.lm_head.weight"}
    stock_shapes = {k: tuple(v.shape) for k, v in stock.state_dict().items() if k not in heads}
    assert ours_shapes.pop("advantage_embedding.weight") == (2, 1024)
    assert ours_shapes == stock_shapes
    assert len(stock_shapes) > 500


def test_gradient_checkpointing_changes_nothing_and_recomputes_each_layer_once():
    inputs, results = model_inputs(), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        policy = randomised(PI05RLPolicy(tiny_config(gradient_checkpointing=checkpointing))).train()
        calls = []
        layer = next(m for n, m in policy.model.vision_tower.named_modules() if n.endswith("layers.0"))
        layer.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss = policy.model.forward(*values(inputs, TRAIN)).mean()
        loss.backward()
        gradient = policy.model.action_in_proj.weight.grad
        vision = next(p.grad for n, p in policy.named_parameters() if n.endswith("patch_embedding.weight"))
        results.append((loss.detach(), gradient, vision, len(calls)))
    (loss, grad, vision, calls), (loss2, grad2, vision2, calls2) = results
    assert torch.equal(loss, loss2)
    assert_same(grad, grad2)
    assert_same(vision, vision2)
    assert (calls, calls2) == (1, 2)  # both cameras at once; each layer is recomputed once


def test_full_size_runs_forward_and_backward_on_the_meta_device():
    """Shapes fit at the sizes users train: 224 pixels, two cameras, 64 text tokens."""
    with torch.device("meta"):
        model = PI05RLPytorch(PI05RLConfig(device="cpu"))
        images = [torch.empty(2, 3, 224, 224) for _ in range(2)]
        img_masks = [torch.ones(2, dtype=torch.bool) for _ in range(2)]
        tokens, masks = torch.ones(2, 64, dtype=torch.long), torch.ones(2, 64, dtype=torch.bool)
        prefix = model.embed_observation(images, img_masks, tokens, masks)
        logits = model.critic_logits(model.critic_features(prefix))
        cache, tags = model.encode_prefix(prefix), torch.ones(2, dtype=torch.long)
        velocity = model.velocity(cache, torch.empty(2, 50, 32), torch.empty(2), tags)
        (logits.sum() + velocity.sum()).backward()
    assert prefix.embs.shape == (2, 2 * 256 + 64, 2048)
    assert logits.shape == (2, 3, 201) and velocity.shape == (2, 50, 32)
    assert model.critic.members[0].queries.grad is not None and model.action_in_proj.weight.grad is not None


def stock_joint_pass(towers, prefix, suffix, mask, positions, cond):
    """Stock's layers in a row, both towers to their ends, then the expert's final norm."""
    language, expert = towers.paligemma.model.language_model, towers.gemma_expert.model
    states = [prefix, suffix]
    for layers in zip(language.layers, expert.layers, strict=True):
        states = compute_layer_complete(
            states, mask, positions, [None, cond], layers=layers, rotary_emb=language.rotary_emb
        )
    return expert.norm(states[1], cond=cond)[0]


def our_passes(towers, prefix, suffix, mask, positions, cond):
    """The prefix, then the suffix that sees it."""
    length, language = prefix.shape[1], towers.paligemma.model.language_model
    keys, stored, _ = encode_block(language, prefix, mask[:, :, :length, :length], positions[:, :length])
    return towers.run_expert(keys, stored, suffix, mask[:, :, length:], positions[:, length:], cond)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 8])
def test_prefix_then_suffix_equals_stocks_joint_layers_forward_and_backward(num_kv_heads):
    torch.manual_seed(0)
    config = tiny_config(num_kv_heads=num_kv_heads)
    towers = randomised(PI05RLPolicy(config)).model.paligemma_with_expert
    valid = torch.ones(2, 13, dtype=torch.bool)
    valid[0, 5:7] = False
    blocks = torch.zeros_like(valid)
    blocks[:, 7] = True
    args = (
        prepare_attention_masks_4d(make_att_2d_masks(valid, blocks)),
        torch.cumsum(valid, dim=1) - 1,
        torch.randn(2, config.expert_width),
    )
    results = []
    for joint in (partial(our_passes, towers), partial(stock_joint_pass, towers)):
        g = torch.Generator().manual_seed(1)
        prefix = torch.randn(2, 7, config.llm_width, generator=g).requires_grad_()
        suffix = torch.randn(2, 6, config.expert_width, generator=g).requires_grad_()
        towers.zero_grad()
        out = joint(prefix, suffix, *args)
        out.square().mean().backward()
        gradients = {name: p.grad for name, p in towers.named_parameters() if p.grad is not None and p.grad.any()}
        results.append((out.detach(), prefix.grad[valid[:, :7]], suffix.grad, gradients))
    (ours, *our_inputs, our_grads), (stocks, *stock_inputs, stock_grads) = results
    assert_same(ours, stocks)
    assert_same(our_inputs, stock_inputs)
    assert our_grads.keys() == stock_grads.keys()
    for name, gradient in our_grads.items():
        assert_same(gradient, stock_grads[name], msg=name)


def test_checkpointed_layers_are_recomputed_once_and_give_the_same_gradients():
    inputs, results = model_inputs(), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = randomised(PI05RLPolicy(tiny_config(gradient_checkpointing=checkpointing))).train().model
        calls = []
        for tower in (model.language_model, model.paligemma_with_expert.gemma_expert.model):
            tower.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        prefix = model.embed_observation(*values(inputs, PREFIX))
        cache = model.encode_prefix(prefix)
        model.flow_matching_error(cache, *values(inputs, ("actions", "noise", "time", "tags"))).mean().backward()
        results.append(({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, len(calls)))
    (plain, calls), (recomputed, calls_again) = results
    assert (calls, calls_again) == (2, 4)  # prefix and actions
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        assert_same(recomputed[name], gradient, msg=name)
