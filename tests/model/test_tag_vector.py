"""The tag as a vector: nothing at first, then what guidance goes beyond; stored, loaded, trained beside an adapter."""

import json

import pytest
import torch
from double import assert_same, in_double
from safetensors.torch import load_file, save_file
from stock import stock_checkpoint
from tiny import batches, make_algorithm, model_inputs, randomised, tiny_config, write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.model.weights import ADVANTAGE_EMBEDDING, CheckpointError
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.offline_learner import train_offline

PREFIX = ("images", "img_masks", "tokens", "masks")
POSITIVE = torch.ones(3, dtype=torch.long)


@pytest.fixture(scope="module")
def policy():
    with in_double():
        torch.manual_seed(0)
        return randomised(PI05RLPolicy(tiny_config())).eval()


def encoded(model, inputs):
    return model.encode_prefix(model.embed_observation(*(inputs[name] for name in PREFIX)))


def sample(model, inputs, *, scale=1.0, tags=POSITIVE, **kwargs):
    prefix = [inputs[name] for name in PREFIX]
    return model.sample_actions(*prefix, noise=inputs["noise"], guidance_scale=scale, tags=tags, **kwargs)


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


def without_it(folder, **changes) -> PI05RLPolicy:
    """A checkpoint as earlier versions wrote it, whose tag was text; or one that is damaged."""
    torch.manual_seed(0)
    policy = randomised(PI05RLPolicy(tiny_config())).eval()
    policy.save_pretrained(folder)
    file, settings = folder / "model.safetensors", folder / "config.json"
    save_file({key: value for key, value in load_file(file).items() if key != ADVANTAGE_EMBEDDING}, file)
    settings.write_text(json.dumps(json.loads(settings.read_text()) | changes))
    return policy


@pytest.mark.parametrize("extraction", ["conditioning", "their.own:Extraction"])
def test_a_checkpoint_that_was_shown_tags_and_has_no_vector_is_refused(tmp_path, mixed_dataset, extraction):
    without_it(tmp_path / "recap", policy_extraction=extraction)
    with pytest.raises(CheckpointError, match=r"trained it, with the tag as text, or it is damaged"):
        PI05RLPolicy.from_pretrained(tmp_path / "recap", config=tiny_config())
    config = write_config(tmp_path / "run.json", mixed_dataset, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"recap/model\.safetensors has no model\.advantage_embedding\.weight"):
        train_offline(load_config(config, [f"--policy.pi05_checkpoint={tmp_path / 'recap'}"]))
    assert not (tmp_path / "run").exists()


@torch.no_grad()
def test_a_cloned_checkpoint_of_an_earlier_version_acts_as_it_did_and_gets_the_vector(tmp_path, caplog):
    policy = without_it(tmp_path, policy_extraction="none")
    with caplog.at_level("INFO"):
        loaded = PI05RLPolicy.from_pretrained(tmp_path)
    assert "no advantage tag: its vector is 0" in caplog.text and not loaded.model.advantage_embedding.weight.any()
    inputs = model_inputs()
    assert torch.equal(sample(loaded.model, inputs, tags=None), sample(policy.model, inputs, tags=None))


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
