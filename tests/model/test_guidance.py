"""Sampling under the tag: guidance, real-time chunking, and how often each part runs."""

import pytest
import torch
from double import assert_same, in_double
from lerobot.policies.pi05.modeling_pi05 import PI05Pytorch
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from tiny import make_batch, model_inputs, randomised, tiny_config

from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy

pytestmark = pytest.mark.usefixtures("float64")
PREFIX = ("images", "img_masks", "tokens", "masks")
STEPS = 3
POSITIVE = torch.ones(3, dtype=torch.long)


def make_policy(**overrides) -> PI05RLPolicy:
    torch.manual_seed(0)
    return randomised(PI05RLPolicy(tiny_config(num_inference_steps=STEPS, **overrides))).eval()


def sample(model, inputs, *, scale=1.0, tags=POSITIVE, **kwargs):
    prefix = [inputs[name] for name in PREFIX]
    return model.sample_actions(*prefix, noise=inputs["noise"], guidance_scale=scale, tags=tags, **kwargs)


def two_passes(model, inputs, scale):
    """Guidance as its formula says: two separate passes of the training forward at every step."""
    prefix = model.encode_prefix(model.embed_observation(*(inputs[name] for name in PREFIX)))
    x_t = inputs["noise"]
    for step in range(STEPS):
        time = torch.full((3,), 1.0 - step / STEPS)
        plain, tagged = (model.velocity(prefix, x_t, time, tags) for tags in (None, POSITIVE))
        x_t = x_t - (plain + scale * (tagged - plain)) / STEPS
    return x_t


@pytest.fixture(scope="module")
def policy():
    with in_double():
        return make_policy()


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.5])
@torch.no_grad()
def test_guidance_follows_its_formula_computed_from_two_separate_passes(policy, scale):
    inputs = model_inputs()
    guided = sample(policy.model, inputs, scale=scale)
    assert_same(guided, two_passes(policy.model, inputs, scale))
    assert scale == 1.0 or (guided - sample(policy.model, inputs)).abs().max() > 1e-3


def test_a_scale_of_one_is_plain_conditioning_bit_for_bit_and_zero_forgets_the_tag(policy):
    inputs = model_inputs()
    assert torch.equal(sample(policy.model, inputs, scale=1.0), sample(policy.model, inputs))
    untagged = sample(policy.model, inputs, tags=None)
    assert_same(sample(policy.model, inputs, scale=0.0), untagged)
    assert (sample(policy.model, inputs) - untagged).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_prefix_runs_once_whatever_the_scale_and_the_expert_once_a_step(policy, scale):
    model, lengths, counts = policy.model, [], {"vision": 0, "expert": 0}
    inputs = model_inputs()
    prefix_length = model.embed_observation(*(inputs[name] for name in PREFIX)).embs.shape[1]

    def count(name):
        return lambda *_: counts.update({name: counts[name] + 1})

    handles = [
        model.language_model.layers[0].self_attn.q_proj.register_forward_hook(
            lambda _, args, __: lengths.append(args[0].shape[1])
        ),
        model.vision_tower.register_forward_hook(count("vision")),
        model.paligemma_with_expert.gemma_expert.model.layers[0].mlp.register_forward_hook(count("expert")),
    ]
    sample(model, inputs, scale=scale)
    for handle in handles:
        handle.remove()
    assert lengths == [prefix_length]
    assert counts == {"vision": 1, "expert": STEPS}  # both cameras in one batch


def test_the_policy_reads_scale_and_tag_from_its_configuration(policy):
    batch, noise = make_batch(size=3), model_inputs()["noise"]

    def act(**fields):
        for name, value in {"inference_advantage": "positive", "guidance_scale": 1.0, **fields}.items():
            setattr(policy.config, name, value)
        return policy.predict_action_chunk(batch, noise=noise)

    positive, none = (act(inference_advantage=name) for name in ("positive", "none"))
    assert positive.shape == (3, 6, 3)
    assert (positive - none).abs().max() > 1e-3
    assert torch.equal(act(inference_advantage="none", guidance_scale=2.0), none)
    assert (act(guidance_scale=2.0) - positive).abs().max() > 1e-3
    for choice in ("weighted", "filtered", "none"):  # such a policy has never seen a tag
        policy.config.policy_extraction = choice
        assert torch.equal(act(guidance_scale=2.0), none)
    policy.config.policy_extraction = "conditioning"
    act()


# ── Real-time chunking ───────────────────────────────────────────────────────────────────────────────────────────


RTC = {"inference_delay": 2, "execution_horizon": 5}


def test_real_time_chunking_without_a_tag_is_stocks():
    model, inputs = make_policy(rtc_config=RTCConfig()).model, model_inputs()
    left_over = model_inputs(seed=2)["actions"]
    ours = sample(model, inputs, tags=None, prev_chunk_left_over=left_over, **RTC)
    stock = PI05Pytorch.sample_actions(
        model, *(inputs[name] for name in PREFIX), noise=inputs["noise"], prev_chunk_left_over=left_over, **RTC
    )
    assert_same(ours, stock)
    assert (ours - sample(model, inputs, tags=None)).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_real_time_chunking_joins_the_chunk_in_execution_under_tag_and_guidance(scale):
    policy = make_policy(rtc_config=RTCConfig(), guidance_scale=scale)
    batch, noise = make_batch(size=3), model_inputs()["noise"]
    left_over = torch.zeros(3, 6, 8)
    free = policy.predict_action_chunk(batch, noise=noise)
    joined = policy.predict_action_chunk(batch, noise=noise, prev_chunk_left_over=left_over, **RTC)
    assert joined.shape == (3, 6, 3) and joined.isfinite().all() and not joined.requires_grad
    frozen = RTC["inference_delay"]
    assert joined[:, :frozen].abs().mean() < 0.5 * free[:, :frozen].abs().mean()
    policy.config.inference_advantage = "none"
    untagged = policy.predict_action_chunk(batch, noise=noise, prev_chunk_left_over=left_over, **RTC)
    assert (untagged - joined)[:, frozen:].abs().max() > 1e-3, "the tag must still reach the actions"
    policy.config.inference_advantage, policy.config.guidance_scale = "positive", 1.0 if scale != 1.0 else 2.0
    other = policy.predict_action_chunk(batch, noise=noise, prev_chunk_left_over=left_over, **RTC)
    assert (other - joined).abs().max() > 1e-4, "guidance must still reach the actions"
