"""The command line of ``pi05-rl plan``."""

import argparse
import json
from dataclasses import asdict

from rich.console import Console

from ..cli import split_config_path
from ..config import ConfigError
from ..config_file import load_config
from .compute import make_plan
from .gpus import EFFICIENCY
from .report import print_plan
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
