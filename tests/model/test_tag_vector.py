"""The tag as a vector: nothing at first, then what guidance goes beyond; stored, loaded, trained beside an adapter."""

import json

import pytest
import torch
from double import assert_same, in_double
from safetensors.torch import load_file, save_file
from stock import stock_checkpoint
from tiny import batches, make_algorithm, make_batch, model_inputs, randomised, tiny_config, write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.model.weights import ADVANTAGE_EMBEDDING, CheckpointError
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.offline_learner import train_offline

PREFIX = ("images", "img_masks", "tokens", "masks")
STEPS = 3
POSITIVE, NONE = torch.ones(3, dtype=torch.long), torch.full((3,), -1)


@pytest.fixture(scope="module")
def policy():
    with in_double():
        torch.manual_seed(0)
        return randomised(PI05RLPolicy(tiny_config(num_inference_steps=STEPS))).eval()


def encoded(model, inputs):
    return model.encode_prefix(model.embed_observation(*(inputs[name] for name in PREFIX)))


def sample(model, inputs, *, scale=1.0, tags=POSITIVE, **kwargs):
    prefix = [inputs[name] for name in PREFIX]
    return model.sample_actions(*prefix, noise=inputs["noise"], guidance_scale=scale, tags=tags, **kwargs)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.5])
@torch.no_grad()
def test_guidance_follows_its_formula_computed_from_two_separate_passes(policy, scale):
    model, inputs = policy.model, model_inputs()
    prefix, x_t = encoded(model, inputs), inputs["noise"]
    for step in range(STEPS):
        time = torch.full((3,), 1.0 - step / STEPS)
        plain, tagged = model.velocity(prefix, x_t, time), model.velocity(prefix, x_t, time, POSITIVE)
        x_t = x_t - (plain + scale * (tagged - plain)) / STEPS
    guided = sample(model, inputs, scale=scale)
    assert_same(guided, x_t)
    assert scale == 1.0 or (guided - sample(model, inputs)).abs().max() > 1e-3


@pytest.mark.usefixtures("float64")
@torch.no_grad()
def test_each_sample_has_its_own_tag(policy):
    model, inputs = policy.model, model_inputs()
    prefix, args = encoded(model, inputs), (inputs["noise"], inputs["time"])
    mixed = model.velocity(prefix, *args, torch.tensor([1, -1, 0]))
    alone = [model.velocity(prefix, *args, torch.full((3,), tag)) for tag in (1, -1, 0)]
    for row, velocity in enumerate(alone):
        assert_same(mixed[row], velocity[row])
    assert_same(alone[1], model.velocity(prefix, *args))
    assert min((alone[0] - alone[1]).abs().max(), (alone[0] - alone[2]).abs().max()) > 1e-3


@torch.no_grad()
def test_the_prefix_and_the_expert_run_as_often_as_without_a_tag(policy):
    model, counts = policy.model, {"prefix": 0, "expert": 0}
    model.float()
    layers = {
        "prefix": model.language_model.layers[0].self_attn.q_proj,
        "expert": model.paligemma_with_expert.gemma_expert.model.layers[0].mlp,
    }
    handles = [
        layer.register_forward_hook(lambda *_, name=name: counts.update({name: counts[name] + 1}))
        for name, layer in layers.items()
    ]
    sample(model, model_inputs(), scale=2.0)
    for handle in handles:
        handle.remove()
    model.double()
    assert counts == {"prefix": 1, "expert": STEPS}


def test_a_fresh_tag_changes_nothing_bit_for_bit():
    model, inputs = PI05RLPolicy(tiny_config()).eval().model, model_inputs()
    assert not model.advantage_embedding.weight.any()
    plain = sample(model, inputs, tags=None)
    assert torch.equal(sample(model, inputs), plain)
    torch.testing.assert_close(sample(model, inputs, scale=5.0), plain)


def test_positive_samples_alone_move_its_row():
    algorithm = make_algorithm(advantage_labels="running")
    before = algorithm.policy.model.advantage_embedding.weight.detach().clone()
    source = batches()
    for _ in range(3):
        algorithm.update(source)
    after = algorithm.policy.model.advantage_embedding.weight.detach()
    assert (after[1] - before[1]).abs().max() > 1e-3
    torch.testing.assert_close(after[0], before[0], rtol=1e-3, atol=0)  # its weight decays


@pytest.mark.parametrize("extraction", ["none", "weighted"])
def test_where_no_tag_is_shown_it_stays_zero_and_is_among_what_trains(extraction):
    """So that a run may go on with another extraction."""
    algorithm = make_algorithm(policy_extraction=extraction, advantage_labels="running")
    weight = algorithm.policy.model.advantage_embedding.weight
    torch.nn.init.zeros_(weight)
    algorithm.update(batches())
    assert id(weight) in map(id, algorithm.parameters["actor"]) and not weight.any()


def test_it_is_stored_and_loaded_and_a_pretrained_policy_begins_with_zeros(tmp_path, caplog):
    policy = randomised(PI05RLPolicy(tiny_config()))
    policy.save_pretrained(tmp_path / "ours")
    loaded = PI05RLPolicy.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded.model.advantage_embedding.weight, policy.model.advantage_embedding.weight)
    stock_checkpoint(tmp_path / "pi05")
    with caplog.at_level("INFO"):
        started = PI05RLPolicy.from_pretrained(tmp_path / "pi05", config=tiny_config())
    assert not started.model.advantage_embedding.weight.any() and "no advantage tag: its vector is 0" in caplog.text


def test_a_checkpoint_that_lost_it_is_damaged(tmp_path):
    randomised(PI05RLPolicy(tiny_config())).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if key != ADVANTAGE_EMBEDDING}, file)
    with pytest.raises(CheckpointError, match=r"1 missing \(model\.advantage_embedding\.weight\)"):
        PI05RLPolicy.from_pretrained(tmp_path)


def of_an_earlier_version(folder, **changes):
    """A checkpoint with the tag as text, as versions wrote it that knew no other."""
    torch.manual_seed(0)
    policy = randomised(PI05RLPolicy(tiny_config(advantage_tag="text"))).eval()
    policy.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    del raw["advantage_tag"]
    (folder / "config.json").write_text(json.dumps(raw | changes))
    return policy


def test_a_checkpoint_of_an_earlier_version_keeps_its_tag_as_text(tmp_path, caplog):
    policy = of_an_earlier_version(tmp_path)
    loaded = PI05RLPolicy.from_pretrained(tmp_path)
    assert loaded.config.advantage_tag == "text" and "whose tag is text" in caplog.text
    batch, noise = make_batch(size=3), model_inputs()["noise"]
    chunk = loaded.predict_action_chunk(batch, noise=noise)
    assert torch.equal(chunk, policy.predict_action_chunk(batch, noise=noise))
    loaded.config.inference_advantage = "none"
    assert not torch.equal(chunk, loaded.predict_action_chunk(batch, noise=noise))


def test_a_run_from_such_a_checkpoint_goes_on_with_text_and_a_cloned_one_gets_the_vector(tmp_path, mixed_dataset):
    def config(checkpoint, *overrides):
        path = write_config(tmp_path / "run.json", mixed_dataset, tmp_path / "run")
        return load_config(path, [f"--policy.pi05_checkpoint={checkpoint}", *overrides])

    of_an_earlier_version(tmp_path / "recap")
    of_an_earlier_version(tmp_path / "cloned", policy_extraction="none")
    assert config(tmp_path / "recap").policy.advantage_tag == "text"
    assert config(tmp_path / "cloned").policy.advantage_tag == "vector"
    with pytest.raises(ConfigError, match=r"policy\.advantage_tag is"):
        config(tmp_path / "recap", "--policy.advantage_tag=vector")


def test_it_trains_in_full_beside_an_adapter_and_comes_back(tmp_path, mixed_dataset):
    base = train_offline(
        load_config(write_config(tmp_path / "base.json", mixed_dataset, tmp_path / "base", policy__offline_steps=2))
    )
    changes = {"policy__pi05_checkpoint": str(base / "pretrained_model"), "peft": {"r": 4}}
    path = write_config(tmp_path / "lora.json", mixed_dataset, tmp_path / "lora", **changes)
    checkpoint = train_offline(load_config(path)) / "pretrained_model"
    (stored,) = (
        tensor for key, tensor in load_file(checkpoint / "adapter_model.safetensors").items() if "embedding" in key
    )
    before = load_file(base / "pretrained_model" / "model.safetensors")[ADVANTAGE_EMBEDDING]
    assert not torch.equal(stored[1], before[1])
    merged = PI05RLPolicy.from_pretrained(checkpoint)
    assert torch.equal(merged.model.advantage_embedding.weight, stored)
