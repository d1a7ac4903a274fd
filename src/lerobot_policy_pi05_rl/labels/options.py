"""The command line of ``pi05-rl label``."""

import argparse
import logging
import re
from dataclasses import dataclass
from typing import NoReturn

from ..config.train import ConfigError
from ..configuration_pi05_rl import PI05RLConfig
from ..data.episodes import LabelledEpisodes
from ..returns import gae_lambda_for_horizon

logger = logging.getLogger(__name__)

EARLIER_LAMBDA = "--trace"  # what --gae-lambda was called


@dataclass(frozen=True)
class LabelOptions:
    """What is not a key of the configuration."""

    name: str | None = None
    checkpoint: str | None = None
    from_name: str | None = None
    n_step: int | None = None
    n_step_given: bool = False
    gae_lambda: float | None = None
    horizon: float | None = None
    fraction: float | None = None
    success: str | None = None
    failure: str | None = None
    outcomes: str | None = None
    of: str | None = None
    list_unlabelled: bool = False

    @property
    def gives_outcomes(self) -> bool:
        """Whether outcomes are set by hand."""
        return any(text is not None for text in (self.success, self.failure, self.outcomes))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"pi05-rl label: {message}")


def make_parser() -> argparse.ArgumentParser:
    """The options that ``pi05-rl label --help`` names."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    for name in ("--name", "--checkpoint", "--n-step", "--success", "--failure", "--outcomes", "--of"):
        parser.add_argument(name)
    parser.add_argument("--from", dest="from_name")
    parser.add_argument("--gae-lambda", EARLIER_LAMBDA, dest="gae_lambda", type=float)
    parser.add_argument("--horizon", type=float)
    parser.add_argument("--positive-fraction", dest="fraction", type=float)
    parser.add_argument("--list-unlabelled", action="store_true")
    return parser


def parse_options(arguments: list[str]) -> tuple[LabelOptions, list[str]]:
    """The options, and the rest: the configuration's path and overrides.

    Raises:
        ConfigError: an option has no or an impossible value, or two contradict each other.
    """
    known, rest = make_parser().parse_known_args(arguments)
    if any(argument.partition("=")[0] == EARLIER_LAMBDA for argument in arguments):
        logger.warning("[LABEL] %s is called --gae-lambda now", EARLIER_LAMBDA)
    values = vars(known)
    text = values.pop("n_step")
    options = LabelOptions(**values, n_step=_steps(text), n_step_given=text is not None)
    check_options(options)
    return options, rest


def check_options(options: LabelOptions) -> None:
    """
    Raises:
        ConfigError: an option has an impossible value, or two contradict each other.
    """
    if options.name is not None and not re.fullmatch(r"\w[\w.-]*", options.name):
        raise ConfigError(f"--name {options.name!r} is not a file's name: letters, digits, '_', '-' and '.' only")
    if options.from_name is not None and options.name is None:
        raise ConfigError("--from needs --name: what the derived labeling is called")
    if options.from_name is not None and options.checkpoint is not None:
        raise ConfigError("--from takes the values of a labeling and --checkpoint those of a critic; give one")
    if options.of is not None and options.success is None and options.failure is None:
        raise ConfigError("--of says which dataset --success and --failure speak of; give one of them")
    if options.n_step is not None and options.n_step < 1:
        raise ConfigError(f"--n-step takes a number of steps, at least 1, or none; got {options.n_step}")
    estimators = {"--n-step": options.n_step_given, "--gae-lambda": options.gae_lambda, "--horizon": options.horizon}
    given = [flag for flag, value in estimators.items() if value not in (None, False)]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other")
    shares = {
        "--gae-lambda": options.gae_lambda,
        "--horizon": options.horizon,
        "--positive-fraction": options.fraction,
    }
    for flag, share in shares.items():
        if share is not None and not 0.0 <= share <= 1.0:
            raise ConfigError(f"{flag} must be in [0, 1], got {share}")


def _steps(text: str | None) -> int | None:
    if text is None or text.lower() == "none":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--n-step takes a number of steps, at least 1, or none; got {text!r}")
    return int(text)


def choose_estimator(
    options: LabelOptions, policy: PI05RLConfig, labels: LabelledEpisodes
) -> tuple[int | None, dict[str, float] | None, float | None, str]:
    """N, λ per task (one of the two; neither is G − V), the horizon that λ follows from, and all in words.

    Args:
        policy: its ``advantage_n_step``, else its ``advantage_horizon``, holds if the command says nothing.
    """
    if options.gae_lambda is not None:
        words = f"λ-return, λ = {options.gae_lambda:g}"
        return None, dict.fromkeys(labels.tasks, options.gae_lambda), None, words
    n_step, horizon = options.n_step, options.horizon
    if not options.n_step_given and horizon is None:
        n_step = policy.advantage_n_step
        horizon = policy.advantage_horizon if n_step is None else None
    if n_step is not None:
        return n_step, None, None, f"{n_step} steps, then the critic"
    if horizon is None:
        return None, None, None, "G − V"
    lengths = zip(labels.tasks, labels.task_lengths.tolist(), strict=True)
    gae_lambdas = {task: gae_lambda_for_horizon(horizon, length) for task, length in lengths}
    each = ", ".join(f"{gae_lambda:.3f}" for gae_lambda in gae_lambdas.values())
    return None, gae_lambdas, horizon, f"λ-return over {horizon:g} of the task's longest episode, λ = {each}"
