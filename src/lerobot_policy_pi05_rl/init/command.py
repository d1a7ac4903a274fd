"""``pi05-rl init DATASET``: read dataset and machine, choose, write the configuration, say what is missing."""

import argparse
import json
import logging
import math
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import get_token, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from lerobot.utils.constants import POLICY_PREPROCESSOR_DEFAULT_NAME

from ..config.arguments import assign, parse_overrides
from ..config.earlier_keys import ALIASES
from ..config.file import load_config
from ..config.resolve import resolved
from ..config.train import ConfigError, OfflineDatasetConfig, PI05RLTrainConfig
from ..configuration_pi05_rl import TASKS_TOKENIZER, PI05RLConfig
from ..data.dataset import open_sources
from ..errors import UserError
from ..plan.compute import Case, checkpoint_bytes
from ..plan.report import gib
from ..plan.setup import Setup, make_setup
from ..runtime.files import replacing
from ..stored.files import CheckpointError, find_file
from .choices import (
    Choice,
    Keys,
    choose_chunk,
    choose_data,
    choose_robot,
    choose_start,
    choose_steps,
    choose_training,
    missing,
)
from .facts import Facts, Machine, describe, read_facts, read_machine

TOLERANCE_S = PI05RLTrainConfig.tolerance_s


def make_parser() -> argparse.ArgumentParser:
    """The options that ``pi05-rl init --help`` names."""
    parser = argparse.ArgumentParser(prog="pi05-rl init", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--card", type=float)
    return parser


def main(arguments: list[str]) -> int:
    """Run the verb; returns the exit code.

    Raises:
        UserError: bad input; nothing is written.
    """
    try:
        options, rest = make_parser().parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    if not rest or rest[0].startswith("-") or not rest[0].strip():
        raise ConfigError("give a dataset: pi05-rl init DATASET [--output config.json] [--key=value …]")
    if options.card is not None and not options.card > 0:
        raise ConfigError(f"--card must be positive, got {options.card:g}")
    dataset, given = rest[0], dict(parse_overrides([below_env(argument) for argument in rest[1:]]))
    given = {ALIASES.get(key, key): value for key, value in given.items()}
    facts, machine = read_facts(dataset, tolerance_s=TOLERANCE_S), read_machine(options.card)
    output = Path(f"{facts.name}.json") if options.output is None else options.output
    if output.is_dir():
        raise ConfigError(f"--output must be a file, and {output} is a folder")
    if output.exists():
        raise ConfigError(f"{output} exists; choose another --output, or delete it")
    choices = choose(facts, machine, given)
    raw = nested(choices, given)
    with quiet():
        config = decoded(raw)
    try:
        with replacing(output) as aside:
            aside.write_text(json.dumps(raw, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}") from error
    reasons = [choice.reason for choice in choices if choice.reason and not choice.fails]
    print("\n".join(f"- {line}" for line in [*describe(facts), f"planned for {machine.name}", *reasons]))
    problems = [choice.reason for choice in choices if choice.fails]
    problems += [*missing(facts, given, str(output)), *problems_of(config, facts)]
    if problems:
        print("\nWhat is missing:\n" + "\n".join(f"- {line}" for line in problems))
    print(f"\n{output} is written. Next: pi05-rl offline {output}")
    if config.env is not None:
        last = f"--policy.pi05_checkpoint={config.output_dir_offline}/checkpoints/last/pretrained_model"
        print(f"Then, side by side:\npi05-rl learner {output} {last}\npi05-rl actor {output} {last}")
    return 0


def below_env(argument: str) -> str:
    """``--robot.type`` and ``--teleop.type``, as LeRobot's recording takes them, are the environment's."""
    return re.sub(r"^--(robot|teleop)\.", r"--env.\1.", argument)


def choose(facts: Facts, machine: Machine, given: Keys) -> list[Choice]:
    """Everything that the configuration says where the user does not.

    Raises:
        ConfigError: what the user says is no configuration.
    """
    data, robot = choose_data(facts), choose_robot(facts, given)
    with quiet():
        decoded(nested([Choice("", choose_start(True)), *data, *robot], given))
    if twice := [f"--{key}" for key in ("dataset.root", "dataset.repo_id") if key in given]:
        raise ConfigError(f"{twice[0]} names another dataset than the first argument; give one of them, as that")
    if given.get("batch_size", 1) < 1:
        raise ConfigError(f"batch_size must be at least 1, got {given['batch_size']}")
    file = Path(str(given.get("policy.pi05_checkpoint", ""))) / "config.json"
    is_ours = file.is_file() and "critic_folds" in json.loads(file.read_text())
    name = Choice("", {"output_dir_offline": f"outputs/{facts.name}"})
    start = [*data, name, Choice("", choose_start(is_ours)), *([] if is_ours else choose_chunk(facts)), *robot]

    def count(keys: Keys) -> int:
        with quiet():
            config = decoded(nested([*start, Choice("", keys)], given))
            return case_of(setup_of(config, facts)).memory().peak

    training = choose_training(machine, given, count)
    samples = math.prod((training.keys | given)[key] for key in ("batch_size", "policy.gradient_accumulation_steps"))
    return [*start, training, choose_steps(facts, given, samples)]


def nested(choices: list[Choice], given: Keys) -> dict[str, Any]:
    """The configuration file: the choices that are not the defaults, and what the user says in their place."""
    raw: dict[str, Any] = {}
    chosen = {key: value for choice in choices for key, value in choice.keys.items()}
    for key, value in chosen.items():
        if key in given or value != default_of(key):
            assign(raw, key, given.get(key, value))
    for key, value in given.items():
        assign(raw, key, value)
    return raw


def default_of(key: str) -> Any:
    """Of a key, where it is a plain value; else None."""
    section, _, name = key.rpartition(".")
    owner = {"": PI05RLTrainConfig, "policy": PI05RLConfig, "dataset": OfflineDatasetConfig}.get(section)
    return None if name == "type" else getattr(owner, name, None)


def setup_of(config: PI05RLTrainConfig, facts: Facts) -> Setup:
    """As `plan` counts it, which reads the features of a dataset that is here."""
    return make_setup(config, cameras=len(facts.cameras) if facts.root is None else None)


def case_of(setup: Setup) -> Case:
    """Its step, for counting."""
    return Case(setup.config.policy, setup.config.peft, setup.shape)


def decoded(raw: dict[str, Any]) -> PI05RLTrainConfig:
    """What a run makes of it.

    Raises:
        ConfigError: it is no configuration.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(raw))
        try:
            return load_config(path)
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{path}: ", "")) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the console lines of what is read again and again."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def problems_of(config: PI05RLTrainConfig, facts: Facts) -> list[str]:
    """What would stop the run: its data as it reads them, its tokenizer, its disk."""
    found = []
    try:
        if facts.root is not None:  # of the Hub's, videos are downloaded when the run starts
            with quiet():
                open_sources(resolved(config, device_key=None))
    except UserError as error:
        found.append(str(error))
    return found + source_problems(config.policy) + disk_problems(config, facts)


def source_problems(policy: PI05RLConfig) -> list[str]:
    """What the policy starts from and is not here: weights, a tokenizer."""
    start, found = policy.pi05_checkpoint, []
    try:
        if start is not None and find_file(start, "config.json") is None:
            found.append(f"policy.pi05_checkpoint: there is no config.json in {start}")
    except CheckpointError as error:
        found.append(f"policy.pi05_checkpoint: {error}")
    try:
        if lacks_tokenizer(policy):
            found.append(f"the tokenizer {policy.tokenizer} is gated on the Hub: `hf auth login`, once")
    except HFValidationError:
        found.append(f"policy.tokenizer: {policy.tokenizer} is no folder, and no name on the Hub")
    return found


def lacks_tokenizer(policy: PI05RLConfig) -> bool:
    """Whether it is neither here nor to be had without a login."""
    start = Path(str(policy.pi05_checkpoint)) / f"{POLICY_PREPROCESSOR_DEFAULT_NAME}.json"
    if policy.tokenizer == TASKS_TOKENIZER or Path(policy.tokenizer).exists() or start.is_file():
        return False
    return get_token() is None and not isinstance(try_to_load_from_cache(policy.tokenizer, "tokenizer.json"), str)


def disk_problems(config: PI05RLTrainConfig, facts: Facts) -> list[str]:
    """Where the run writes: something is there, or too little room."""
    run_dir, found = Path(config.output_dir_offline), []
    if run_dir.is_dir() and any(run_dir.iterdir()):
        found.append(f"{run_dir} holds a run already: another --output_dir_offline")
    with quiet():
        setup = setup_of(config, facts)
        needed = setup.checkpoints_at_once * checkpoint_bytes(case_of(setup).build())
    disk = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if needed > free:
        text = f"checkpoints take {gib(needed)} GiB of disk at once, and {disk} has {gib(free)}"
        found.append(f"{text}: another --output_dir_offline")
    return found
