"""What is answered without torch and LeRobot: help, a misspelt verb, a misspelt key, a missing file; and that nothing
is lost by it."""

import json
import os
import subprocess
import sys

import pytest
import write_configuration
from lerobot.configs.train import TRAIN_CONFIG_NAME
from lerobot.utils import constants
from tiny import write_config

from lerobot_policy_pi05_rl import cli
from lerobot_policy_pi05_rl.command.help import KEYS_OF, VERBS, help_of, own_options
from lerobot_policy_pi05_rl.config import names, reading
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.resolve import resolved
from lerobot_policy_pi05_rl.demo.online import make_parser as demo_parser
from lerobot_policy_pi05_rl.errors import ConfigError
from lerobot_policy_pi05_rl.labels.options import make_parser as label_parser
from lerobot_policy_pi05_rl.online.actor.actor import UNLIMITED
from lerobot_policy_pi05_rl.plan.command import make_parser as plan_parser

HEAVY = ("torch", "lerobot", "transformers", "draccus", "datasets", "pandas")
PROBE = f"""
import atexit, sys
atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
from pi05_rl import main
main()
"""


def pi05_rl(*arguments: object) -> tuple[int, str, str, str]:
    """``pi05-rl ARGUMENTS`` in a process of its own: exit code, stdout, stderr, what it had imported."""
    command = [sys.executable, "-c", PROBE, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    *errors, imported = result.stderr.splitlines()
    return result.returncode, result.stdout, "\n".join(errors), imported


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_needs_neither_torch_nor_lerobot(arguments):
    code, printed, errors, imported = pi05_rl(*arguments)
    assert (code, errors, imported) == (0, "", "[]")
    assert VERBS[arguments[0]] in printed if arguments[0] in VERBS else all(verb in printed for verb in VERBS)


@pytest.mark.parametrize(("verb", "meant"), [("ofline", "offline"), ("demo_online", "demo-online")])
def test_a_misspelt_verb_is_told_at_once_with_the_one_that_was_meant(verb, meant):
    code, _, errors, imported = pi05_rl(verb, "run.json")
    assert (code, imported) == (2, "[]")
    assert errors.startswith(f"pi05-rl: unknown verb {verb!r}; did you mean {meant}?")


@pytest.mark.parametrize("verb", ["offline", "learner", "actor", "label", "cache", "plan"])
def test_a_wrong_configuration_is_told_at_once(tmp_path, verb):
    code, _, errors, imported = pi05_rl(verb, tmp_path / "none.json")
    assert (code, errors, imported) == (
        2,
        f"pi05-rl: error: the configuration file {tmp_path / 'none.json'} does not exist",
        "[]",
    )
    path = write_config(tmp_path / "c.json", tmp_path / "data", tmp_path / "run", policy__critic_lrs=1)
    code, _, errors, imported = pi05_rl(verb, path)
    expected = f"pi05-rl: error: {path}: unknown key policy.critic_lrs; did you mean policy.critic_lr?"
    assert (code, errors, imported) == (2, expected, "[]")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("label --polic.critic_lr=3", "unknown key polic; did you mean policy?"),
        ("label --name x --policy.critic_lrs 3", "unknown key policy.critic_lrs; did you mean policy.critic_lr?"),
        ("label --positive_fraction=.3", "unknown option --positive_fraction; did you mean --positive-fraction?"),
        ("plan --efficency=.3", "unknown option --efficency; did you mean --efficiency?"),
        ("actor --policy.guidance_scal=2", "unknown key policy.guidance_scal; did you mean policy.guidance_scale?"),
        ("demo-online --step 3", "unknown option --step; did you mean --steps?"),
    ],
)
def test_a_misspelt_override_or_option_is_told_at_once(tmp_path, arguments, told):
    verb, *options = arguments.split()
    path = write_config(tmp_path / "c.json", tmp_path / "data", tmp_path / "run")
    code, _, errors, imported = pi05_rl(verb, *([] if verb == "demo-online" else [path]), *options)
    assert (code, errors, imported) == (2, f"pi05-rl: error: {told}", "[]")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("--batch_size=abc", "batch_size: Couldn't parse 'abc' into an int"),
        ("--policy.critic_lr=fast", "policy.critic_lr: Couldn't parse 'fast' into a float"),
        ("--policy.n_step=0", "policy.n_step must be at least 1, got 0"),
        ("--policy.advantage_dropout=1.5", "policy.advantage_dropout must be in [0, 1], got 1.5"),
    ],
)
def test_a_number_that_is_none_or_out_of_its_range_is_told_at_once_as_later(tmp_path, override, told):
    path = write_config(tmp_path / "c.json", tmp_path / "data", tmp_path / "run")
    code, _, errors, imported = pi05_rl("offline", path, override)
    assert (code, errors, imported) == (2, f"pi05-rl: error: {path}: {told}", "[]")
    with pytest.raises(ConfigError) as error:
        resolved(load_config(path, [override]))
    assert str(error.value).removeprefix(f"{path}: ") == told


def test_what_the_first_look_lets_pass_is_what_the_configuration_takes(tmp_path):
    """A number as text, a whole number for a fraction, null, and a number of the other learner's."""
    overrides = ["--batch_size='8'", "--policy.critic_lr=1", "--policy.actor_lr=null", "--online_ratio=7"]
    path = write_config(tmp_path / "c.json", tmp_path / "data", tmp_path / "run")
    names.check_file(str(path), overrides)
    assert resolved(load_config(path, overrides)).batch_size == 8
    path.write_text(json.dumps({**json.loads(path.read_text()), "batch_size": "many"}))
    names.check_file(str(path))
    with pytest.raises(ConfigError):
        names.check_file(str(path), [])


def test_every_option_that_a_verb_has_besides_keys_is_known_without_torch():
    parsers = {"label": label_parser(), "plan": plan_parser(), "demo-online": demo_parser()}
    for verb, parser in parsers.items():
        options = [option for action in parser._actions for option in action.option_strings]
        assert sorted(own_options(verb)) == sorted(options)
    assert own_options("actor") == [UNLIMITED]


def test_a_run_by_the_console_script_registers_what_lerobot_looks_up():
    names = ("panda_pick_cube", "pi05_rl")
    code = (
        "from pi05_rl import main\nimport lerobot_policy_pi05_rl, sys\nassert 'torch' not in sys.modules\n"
        "sys.argv[1:] = ['report', '/nowhere']\ntry:\n main()\nexcept SystemExit as end:\n assert end.code == 2\n"
        "from lerobot.configs import PreTrainedConfig\nfrom lerobot.envs import EnvConfig\n"
        "known = {name for kind in (PreTrainedConfig, EnvConfig) for name in kind.get_known_choices()}\n"
        f"missing = set({names!r}) - known\nassert not missing, missing\n"
        "assert lerobot_policy_pi05_rl.PI05RLConfig is PreTrainedConfig.get_choice_class('pi05_rl')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_the_names_known_without_lerobot_are_those_of_the_configuration():
    assert names.FILE.read_text() == write_configuration.names_file(), "make configuration"
    assert reading.TRAIN_CONFIG_NAME == TRAIN_CONFIG_NAME
    for name in ("CHECKPOINTS_DIR", "LAST_CHECKPOINT_LINK", "PRETRAINED_MODEL_DIR"):
        assert getattr(reading, name) == getattr(constants, name)


def test_help_lists_the_keys_that_the_verb_reads_with_their_defaults():
    offline, learner = help_of("offline"), help_of("learner")
    assert "--policy.offline_steps int (default: 10000)" in offline and "offline_steps" not in learner
    assert "--policy.online_steps int (default: 1000000)" in learner and "online_steps" not in offline
    assert "--batch_size int (default: 8)" in offline and "--batch_size int (default: 8)" in learner
    assert "--steps " not in offline, "accepted, and nothing reads it"
    assert "--policy.offline_steps" not in help_of("report") and set(KEYS_OF) < set(VERBS)
    assert all(len(line) <= 119 for verb in VERBS for line in help_of(verb).splitlines())


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"]])
def test_a_reader_that_leaves_is_no_error_of_ours(arguments):
    command = [sys.executable, "-c", "from pi05_rl import main; main()", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_every_verb_has_its_function_and_its_line():
    assert list(cli.MODULES) == list(VERBS)
    assert all(callable(cli.verb_function(verb)) for verb in VERBS)


def test_names_of_mappings_of_the_users_own_are_not_looked_at(tmp_path):
    raw = {
        "env": {"type": "x", "whatever": 1},
        "policy": {"type": "pi05_rl", "advantage_positive_fraction_per_task": {"pick": 0.5}, "num_critics": 2},
        "offline_output_dir": "x",
        "rename_map": {"a": "b"},
        3: "told elsewhere",
    }
    names.check_names(raw)
    raw["policy"]["actor_learner_config"] = {"learner_prt": 1}
    raw["sead"] = 1
    with pytest.raises(ConfigError) as error:
        names.check_names(raw)
    assert str(error.value).split("; ") == [
        "unknown key policy.actor_learner_config.learner_prt",
        "did you mean policy.actor_learner_config.learner_port?",
        "unknown key sead",
        "did you mean seed?",
    ]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"sead": 1}))
    with pytest.raises(ConfigError, match=r"c\.json: unknown key sead; did you mean seed\?"):
        load_config(path)


@pytest.mark.parametrize("way_in", [["pi05_rl", "offline"], ["lerobot_policy_pi05_rl.offline_learner"]])
def test_a_spawned_worker_does_not_import_the_trainer(tmp_path, mixed_dataset, way_in):
    path = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", policy__offline_steps=1, num_workers=1)
    command = [sys.executable, "-m", *way_in, str(path), "--dataloader_multiprocessing_context=spawn"]
    env = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}  # the worker inherits it and says what it imports, too
    result = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)
    assert result.returncode == 0, result.stderr
    imported = [line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if "import time:" in line]
    counts = {name: imported.count(f"lerobot_policy_pi05_rl.{name}") for name in ("data.frames", "recap", "training")}
    assert counts == {"data.frames": 2, "recap": 1, "training": 1}, "by the run and by its worker"
