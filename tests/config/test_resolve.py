"""The configuration is no blackboard: nobody writes to one that he was given, in the sources and in a run."""

import ast
from dataclasses import fields
from pathlib import Path

import draccus
import pytest
from recordings import MIXED_EPISODES, make_dataset
from tiny import write_config

import lerobot_policy_pi05_rl
from lerobot_policy_pi05_rl import api
from lerobot_policy_pi05_rl.config.train import PI05RLTrainConfig
from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.plan.command import plan

ROOT = Path(lerobot_policy_pi05_rl.__file__).parent
NAMES = {"cfg", "config", "policy_config", "policy_cfg", "env_cfg"}  # what a configuration is called
SECTIONS = {field.name for field in fields(PI05RLTrainConfig)} | {"policy"}
FIELDS = {field.name for field in (*fields(PI05RLTrainConfig), *fields(PI05RLConfig))}
# Who writes to one, and what: a network's own, which LeRobot's protocol has for an adapter, its base and what is asked
# for at inference; and those of transformers' towers, which are copies.
WRITERS = {
    ("model/lora.py", "pretrained_path"),
    ("model/lora.py", "use_peft"),
    ("modeling_pi05_rl.py", "inference_advantage"),
    ("model/critic.py", "num_hidden_layers"),
    ("model/critic.py", "vocab_size"),
    ("model/critic.py", "pad_token_id"),
    ("model/towers.py", "compile_mode"),
    ("model/towers.py", "setattr"),
}


def chain(node: ast.expr) -> list[str]:
    """``a.b["c"].d`` → a, b, d."""
    if isinstance(node, ast.Attribute):
        return [*chain(node.value), node.attr]
    if isinstance(node, ast.Subscript):
        return chain(node.value)
    return [node.id] if isinstance(node, ast.Name) else [""]


def is_configuration(owner: list[str], name: str | None = None) -> bool:
    """Whether a chain of names leads to a configuration or one of its sections, of which ``name`` is a field."""
    named = not NAMES.isdisjoint(owner) and "torch" not in owner  # torch._dynamo.config is none of ours
    return named or (owner[-1] in SECTIONS and name in {None, *FIELDS})


def writes(tree: ast.AST) -> list[str]:
    """The attributes of configurations that a module assigns, deletes, or sets by name."""
    found = []
    methods = {
        node: owner
        for owner in ast.walk(tree)
        if isinstance(owner, ast.ClassDef) and owner.name.endswith("Config")
        for node in ast.walk(owner)
        if isinstance(node, ast.FunctionDef) and node.name != "__post_init__"
    }
    of_configurations = {node for method in methods for node in ast.walk(method)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            *owner, name = chain(node)
            own = owner[:1] == ["self"] and node in of_configurations
            if owner and (own or is_configuration(owner, name)):
                found.append(name)
        if isinstance(node, ast.Call) and node.args and is_configuration(chain(node.args[0])):
            found += {"setattr", "__setattr__", "vars"} & {chain(node.func)[-1]}
    return found


MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
MODULES.remove("config/resolve.py")  # the one place, which makes the changed copies


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path)
def test_no_module_writes_to_a_configuration(path):
    found = {(path, name) for name in writes(ast.parse((ROOT / path).read_text()))}
    assert found <= WRITERS
    assert {writer for writer in WRITERS if writer[0] == path} <= found, "nobody writes this any more"


@pytest.mark.parametrize(
    "line",
    [
        "cfg.seed = 1",
        "run.cfg.policy.device = 'cpu'",
        "policy.device = 'cpu'",
        "cfg.wandb.run_id, x = 1, 2",
        "self.config.rename_map['a'] = 'b'",
        "cfg.batch_size *= 2",
        "del cfg.peft",
        "setattr(cfg.policy, name, 1)",
        "setattr(policy, name, 1)",
        "vars(config).update(a=1)",
        "object.__setattr__(config, 'seed', 1)",
        "class RunConfig:\n def validate(self):\n  self.job_name = 'x'",
    ],
)
def test_a_write_is_found(line):
    assert writes(ast.parse(line))


@pytest.mark.parametrize("line", ["self.cfg = cfg", "cfg = changed(cfg, seed=1)", "policy.adapter = adapter"])
def test_what_is_no_write_is_not(line):
    assert not writes(ast.parse(line))


@pytest.mark.parametrize("kind", ["all weights", "adapter"])
def test_the_callers_configuration_stays_as_it_was(tmp_path, kind):
    make_dataset(tmp_path / "data", MIXED_EPISODES)  # its own: labelings lie beside it

    def configured(**changes) -> api.TrainConfig:
        changes = {"policy__offline_steps": 1, **changes}
        return api.load_config(write_config(tmp_path / "c.json", tmp_path / "data", tmp_path / "run", **changes))

    def unchanged(call, config):
        before = draccus.encode(config)
        result = call(config)
        assert draccus.encode(config) == before
        return result

    changes = {"policy__learner_device": "cpu"}
    if kind == "adapter":
        base = unchanged(api.train_offline, configured(output_dir_offline=str(tmp_path / "base"), **changes))
        changes |= {"policy__pi05_checkpoint": str(base / "pretrained_model"), "peft__r": 2}
    unchanged(api.train_offline, configured(**changes))
    unchanged(api.train_offline, configured(**changes, resume=True, resume_from=1))
    unchanged(lambda config: api.label(config, name="one"), configured(**changes))
    if kind != "adapter":  # which is not counted yet
        unchanged(plan, configured(**changes))
