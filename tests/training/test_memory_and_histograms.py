"""Memory that does not suffice ends in one line; histograms of whatever a batch holds."""

import math
import re
import shlex

import numpy as np
import pytest
import torch
from tiny import write_config

from lerobot_policy_pi05_rl import cli
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.errors import is_out_of_memory
from lerobot_policy_pi05_rl.offline_learner import train_offline
from lerobot_policy_pi05_rl.plan import card as plan_card
from lerobot_policy_pi05_rl.plan import command as plan_command
from lerobot_policy_pi05_rl.plan.gpus import USABLE
from lerobot_policy_pi05_rl.plan.report import gib
from lerobot_policy_pi05_rl.training.metrics import histogram


@pytest.mark.parametrize(
    ("values", "bins"),
    [
        ([0.3, 0.3], 1),
        (np.float32(-0.37) + np.arange(6, dtype=np.float32) * np.float32(3e-8), 1),  # a few units in the last place
        ([1e30, 1e30 * (1 + 1e-7)], 1),
        ([-3e38, 3e38], 2),
        ([0.0, 5e-324], 1),
        ([0.5], 1),
        (np.linspace(-1, 1, 640), 64),
    ],
)
def test_a_histogram_counts_every_value(values, bins):
    values = np.asarray(values, dtype=np.float64)
    counts, edges = histogram(values)
    assert counts.sum() == len(values) and (counts > 0).sum() == bins
    assert len(edges) == 65 and (np.diff(edges) > 0).all()
    assert edges[0] <= values.min() and values.max() <= edges[-1]


def test_a_histogram_is_numpys_where_values_differ():
    values = np.random.default_rng(0).normal(size=100)
    counts, edges = histogram(values)
    expected = np.histogram(values, bins=64)
    assert np.array_equal(counts, expected[0]) and np.array_equal(edges, expected[1])


@pytest.mark.usefixtures("logging_as_before")
def test_memory_that_does_not_suffice_is_one_line_whose_advice_works(tmp_path, mixed_dataset, capsys):
    path = write_config(tmp_path / "run.json", mixed_dataset, tmp_path / "run")
    with pytest.raises(SystemExit) as exit_:
        cli.main(["offline", str(path), f"--policy.vocab_size={10**13}"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert exit_.value.code == 2 and last.startswith("pi05-rl: error: memory does not suffice: ")
    assert not (tmp_path / "run").exists()

    counted = re.search(r"plan counts ([\d.]+) GiB for a step \(weights ([\d.]+), [^)]*\); [^;]+: ([\d.]+)", last)
    needs, weights, least = (float(number) for number in counted.groups())
    assert weights > 4 * 10**13 * 64 / 2**30 * 0.99 and weights < needs and least < needs  # the embedding, fp32

    command = shlex.split(last.partition("of what: ")[2].partition(". Less")[0])
    assert command[0] == "pi05-rl"
    with pytest.raises(SystemExit) as exit_:
        cli.main(command[1:])
    assert exit_.value.code == 0 and "parameters" in capsys.readouterr().out.lower()

    keys = ("--policy.gradient_checkpointing=true", "--policy.dtype=bfloat16", "--policy.train_expert_only=true")
    assert all(key in last for key in keys)
    cfg = load_config(path, [*keys, "--batch_size=1", "--policy.gradient_accumulation_steps=4"])
    assert cfg.policy.gradient_checkpointing and cfg.policy.dtype == "bfloat16" and cfg.policy.train_expert_only


@pytest.fixture
def tiny_run(tmp_path, mixed_dataset):
    """A configuration, and what plan counts of each change to it."""
    path = write_config(tmp_path / "run.json", mixed_dataset, tmp_path / "run", batch_size=16)
    counted = plan_command.plan(load_config(path, []), card=1)
    assert len(counted.changes) > 4 and min(counted.changes.values()) < counted.memory["peak"]
    return path, counted


def test_out_of_memory_on_a_card_names_what_it_has_and_the_flags_that_fit(tiny_run, monkeypatch):
    """A card between the change that needs least and the others stands for one that is not here."""
    path, counted = tiny_run
    peaks = sorted(set(counted.changes.values()))
    for card, holds in ((peaks[0] + 1, 1), (peaks[1] + 1, 2), (peaks[0] - 1, 0)):
        monkeypatch.setattr(plan_command, "card_memory", lambda device, card=card: math.ceil(card / USABLE))
        line = plan_command.describe_memory([str(path)])
        assert re.match(
            r"plan counts \S+ GiB for a step \(.*\); the card has \S+ GiB, of which tensors can fill \S+; ", line
        )
        fit = [flags for flags, peak in counted.changes.items() if peak <= card]
        assert len(fit) >= holds
        named = re.findall(r"(--[^;:]+(?:=[^;:]+)?): [\d.]+", line.partition("least first: ")[2])
        assert named == fit  # in the order of the changes, which is that of what they change
        assert line.endswith("no change that it knows fits") == (not fit)


def test_of_shards_a_shards_memory_is_told(tiny_run, monkeypatch):
    arguments = [str(tiny_run[0]), "--policy.vocab_size=9000000"]  # gigabytes
    config = load_config(arguments[0], arguments[1:])
    whole, shard = (plan_command.plan(config, processes=4, fsdp=fsdp).memory for fsdp in (False, True))
    assert 0.1 * 2**30 < shard["optimizer"] < whole["optimizer"] / 3
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert f"optimizer {gib(whole['optimizer'])}," in plan_command.describe_memory(arguments)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert f"optimizer {gib(shard['optimizer'])}," in plan_command.describe_memory(arguments)


def test_before_the_first_step_a_card_that_is_too_small_is_a_warning(tiny_run, tmp_path, monkeypatch, caplog):
    path, counted = tiny_run
    peak = counted.memory["peak"]
    for card, warns in ((math.ceil(peak / USABLE) - 2, True), (math.ceil(peak / USABLE) + 2, False)):
        monkeypatch.setattr(plan_card, "card_memory", lambda device, card=card: card)
        caplog.clear()
        with caplog.at_level("WARNING"):
            train_offline(
                load_config(path, [f"--output_dir_offline={tmp_path / str(card)}", "--policy.offline_steps=2"])
            )
        assert ("will probably run out of memory" in caplog.text) == warns


def test_only_memory_is_taken_for_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
