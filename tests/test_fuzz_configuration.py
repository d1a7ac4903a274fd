"""Configurations of any keys and values load and open their data, or end in one clear error."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from fuzz import FEW, JUNK, MANY, PLACES, TREE, cases, damage_tree, outcome, unchanged
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.dataset import open_offline_data
from lerobot_policy_pi05_rl.plan.compute import make_plan
from lerobot_policy_pi05_rl.plan.setup import make_setup
from lerobot_policy_pi05_rl.training.start import prepare

# Keys of parts that are absent by default, misspelt ones, and such as other tools have.
MORE_KEYS = (
    *(
        "peft.r",
        "peft.method_type",
        "peft.target_modules",
        "peft.lora_alpha",
        "env.type",
        "env.task",
        "optimizer.type",
    ),
    *("optimizer.lr", "scheduler.type", "policy.rtc_config.enabled", "policy.advantage_positive_fraction_per_task.x"),
    *("policy.ofline_steps", "Policy.offline_steps", "policy", "dataset", "policy.", ".", "dataset.0", "steps.more"),
    *("policy.dataset_stats", "policy.num_critics", "policy.critic_network_kwargs.hidden_dims", "policy.path"),
    *("policy.input_features.observation.state", "policy.normalization_mapping.STATE", "rename_map.action"),
)
# Not varied: they would start processes, draw pictures on a server, or reach for a network.
LEFT_ALONE = ("num_workers", "dataloader_multiprocessing_context", "wandb", "policy.compile_model")


def all_keys(config, prefix: str = "") -> list[str]:
    """The dotted name of every field of nested dataclasses."""
    keys = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        keys += [name, *(all_keys(value, f"{name}.") if dataclasses.is_dataclass(value) else ())]
    return [key for key in keys if not key.startswith(LEFT_ALONE)]


def as_text(value) -> str:
    """A value as it stands behind ``--key=``."""
    return value if isinstance(value, str) else json.dumps(value)


def is_small(policy) -> bool:
    """Whether the network has at most some ten million parameters a layer, in at most a hundred layers."""
    towers = (
        policy.llm_width * max(policy.llm_mlp_dim, policy.vocab_size, 8 * policy.head_dim, policy.llm_width),
        policy.expert_width * max(policy.expert_mlp_dim, 8 * policy.head_dim, policy.expert_width),
        policy.vision_width * max(policy.vision_mlp_dim, policy.vision_width, 3 * policy.vision_patch_size**2),
    )
    return max(towers) < 2e7 and policy.critic_folds * policy.llm_depth * max(towers[0], 1) < 1e9


READ = ("observation.state", "action")
OVERRIDES = st.lists(st.tuples(PLACES, JUNK), max_size=3)
CONFIGURATIONS = st.tuples(st.lists(TREE, max_size=2), OVERRIDES, st.booleans())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, mixed_dataset):
    """(folder, raw configuration, its keys); what a relative path names lies in the folder."""
    folder = tmp_path_factory.mktemp("configurations")
    path = write_config(folder / "run.json", mixed_dataset, folder / "run")
    keys = [*all_keys(load_config(path)), *MORE_KEYS]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder, json.loads(path.read_text()), keys


def check(workplace, dataset: Path, changes, overrides, planned: bool) -> None:
    folder, raw, keys = workplace
    raw = copy.deepcopy(raw)
    for change in copy.deepcopy(changes):
        damage_tree(raw, change)
    path = folder / "run.json"
    path.write_text(json.dumps(raw))
    arguments = [f"--{keys[place % len(keys)]}={as_text(value)}" for place, value in overrides]

    def open_run():
        cfg = load_config(path, arguments)
        cfg.validate()
        cfg.num_workers = 0
        if not is_small(cfg.policy):  # the defaults are a network of 16 GB
            data = open_offline_data(cfg)
            return data, {key: data.train[(0, 0)][key] for key in READ}
        data, _, processors = prepare(cfg, None)
        samples = [data.train[(n, n)] for n in range(min(2, len(data.train)))]
        batch = processors[0](torch.utils.data.default_collate(samples))
        return data, batch

    named = (
        "run.json",
        "the checkpoint ",
        str(dataset),
        "policy.",
        "dataset.",
        "--",
        *(key for key in keys if len(key) > 3),
    )
    with unchanged(dataset):
        opened = outcome(open_run, *named)
        if planned:
            outcome(lambda: make_plan(make_setup(load_config(path, arguments))), *named)
    if opened is not None:
        data, batch = opened
        assert len(data.train) > 0
        for key in READ:
            assert batch[key].isfinite().all(), f"{key} is not finite"


@cases(FEW)
@given(case=CONFIGURATIONS)
@pytest.mark.usefixtures("logging_as_before")
def test_any_configuration(workplace, mixed_dataset, case):
    check(workplace, mixed_dataset, *case)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@cases(MANY)
@given(case=CONFIGURATIONS)
@pytest.mark.usefixtures("logging_as_before")
def test_many_configurations(workplace, mixed_dataset, case):
    check(workplace, mixed_dataset, *case)
