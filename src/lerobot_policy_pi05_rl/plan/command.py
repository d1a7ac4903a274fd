"""The command line of ``pi05-rl plan``."""

import argparse
import json
from dataclasses import asdict

from rich.console import Console

from ..config.arguments import split_config_path
from ..config.file import load_config
from ..config.train import ConfigError, PI05RLTrainConfig
from ..distributed.processes import launched
from .card import card_memory, describe_card
from .compute import Plan, make_plan
from .gpus import EFFICIENCY, USABLE
from .report import gib, print_plan
from .setup import make_setup


def make_parser() -> argparse.ArgumentParser:
    """The options that ``pi05-rl plan --help`` names."""
    parser = argparse.ArgumentParser(prog="pi05-rl plan", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--cameras", type=int)
    parser.add_argument("--text", type=int)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--efficiency", type=float, default=EFFICIENCY)
    parser.add_argument("--json", action="store_true")
    return parser


def main(arguments: list[str]) -> int:
    """Plan the run of a configuration and print it.

    Raises:
        UserError: bad input.
    """
    try:
        options, rest = make_parser().parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    path, overrides = split_config_path(rest, "plan")
    counted = plan(
        load_config(path, overrides),
        cameras=options.cameras,
        text_tokens=options.text,
        frames=options.frames,
        processes=options.processes,
        fsdp=options.fsdp,
        efficiency=options.efficiency,
    )
    if options.json:
        print(json.dumps(asdict(counted), indent=2))
    else:
        print_plan(counted, Console())
    return 0


def plan(
    config: PI05RLTrainConfig,
    *,
    cameras: int | None = None,
    text_tokens: int | None = None,
    frames: int | None = None,
    processes: int = 1,
    fsdp: bool = False,
    efficiency: float = EFFICIENCY,
    card: int | None = None,
) -> Plan:
    """Count a run's parameters, memory, FLOPs and speed; no weights are read, no step runs, ``config`` stays as it is.

    Args:
        cameras: so many, whatever the dataset has; None: the dataset's, else two.
        text_tokens: of the longest prompt in a batch; None: 64.
        frames: that the run labels; None: the dataset's, else 50,000.
        processes: of the run, a GPU each.
        fsdp: each of them holds a shard of the model (configs/accelerate/fsdp.yaml), not all of it.
        efficiency: the share of a GPU's peak that a step reaches.
        card: bytes of a GPU that a step should fit; where it does not, changes are looked for.

    Raises:
        UserError: the configuration or an argument is impossible.
    """
    if not 0 < efficiency <= 1:
        raise ConfigError(f"--efficiency must be above 0 and at most 1, got {efficiency}")
    setup = make_setup(config, cameras=cameras, text_tokens=text_tokens, frames=frames, processes=processes, fsdp=fsdp)
    return make_plan(setup, efficiency=efficiency, card=card)


def describe_memory(arguments: list[str]) -> str:
    """One line: the bytes of a step of the run that ``arguments`` configure, what the card has, and the flags that
    fit it, those first that change least; without a card the single changes that need less, the best first. Of
    several processes (as launched) what each needs.

    Raises:
        UserError: bad input, or a run that is not counted.
    """
    path, overrides = split_config_path(arguments, "plan")
    config: PI05RLTrainConfig = load_config(path, overrides)
    card = card_memory(config.policy.device)
    processes, fsdp = launched()
    counted = plan(config, card=card, processes=processes, fsdp=fsdp and processes > 1)
    parts = ", ".join(
        f"{name} {gib(counted.memory[name])}" for name in ("weights", "gradients", "optimizer", "activations")
    )
    needs = f"plan counts {gib(counted.memory['peak'])} GiB for a step ({parts})"
    if card is not None:
        fit = [f"{flags}: {gib(peak)}" for flags, peak in counted.changes.items() if peak <= card * USABLE]
        found = "these fit, what changes least first: " + "; ".join(fit) if fit else "no change that it knows fits"
        return f"{needs}; {describe_card(card)}; {found}"
    less = sorted((peak, change) for change, peak in counted.changes.items())
    return needs + "".join(f"; {change}: {gib(peak)}" for peak, change in less)
