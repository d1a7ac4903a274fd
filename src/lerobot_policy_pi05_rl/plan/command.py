"""The command line of ``pi05-rl plan``."""

import argparse
import json
from dataclasses import asdict

from rich.console import Console

from ..config.arguments import split_config_path
from ..config.file import load_config
from ..config.train import ConfigError
from .compute import make_plan
from .gpus import EFFICIENCY
from .report import gib, print_plan
from .setup import make_setup


def main(arguments: list[str]) -> int:
    """Plan the run of a configuration and print it.

    Raises:
        UserError: bad input.
    """
    parser = argparse.ArgumentParser(prog="pi05-rl plan", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--cameras", type=int)
    parser.add_argument("--text", type=int)
    parser.add_argument("--efficiency", type=float, default=EFFICIENCY)
    parser.add_argument("--json", action="store_true")
    try:
        options, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    if not 0 < options.efficiency <= 1:
        raise ConfigError(f"--efficiency must be above 0 and at most 1, got {options.efficiency}")
    path, overrides = split_config_path(rest, "plan")
    setup = make_setup(load_config(path, overrides), cameras=options.cameras, text_tokens=options.text)
    plan = make_plan(setup, efficiency=options.efficiency)
    if options.json:
        print(json.dumps(asdict(plan), indent=2))
    else:
        print_plan(plan, Console())
    return 0


def memory_in_words(arguments: list[str]) -> str:
    """One line: the bytes of a step of the run that ``arguments`` configure, and the single changes that need less,
    the best first.

    Raises:
        UserError: bad input, or a run that is not counted.
    """
    path, overrides = split_config_path(arguments, "plan")
    plan = make_plan(make_setup(load_config(path, overrides)))
    parts = ", ".join(
        f"{name} {gib(plan.memory[name])}" for name in ("weights", "gradients", "optimizer", "activations")
    )
    less = sorted((peak, change) for change, peak in plan.changes.items() if peak < plan.memory["peak"])
    changes = "".join(f"; {change}: {gib(peak)}" for peak, change in less)
    return f"plan counts {gib(plan.memory['peak'])} GiB for a step ({parts}){changes}"
