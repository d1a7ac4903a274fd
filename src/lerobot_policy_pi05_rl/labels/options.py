"""The command line of ``pi05-rl label``."""

import argparse
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from ..config.train import ConfigError, PI05RLTrainConfig
from ..configuration_pi05_rl import BASELINES
from ..data.episodes import LabelledEpisodes
from ..returns import share_of_task

logger = logging.getLogger(__name__)

EARLIER_LAMBDA = "--trace"  # what --gae-lambda was called


@dataclass(frozen=True)
class LabelOptions:
    """What is not a key of the configuration."""

    name: str | None = None
    checkpoint: str | None = None
    from_name: str | None = None
    baseline: str | None = None
    n_step: int | None = None
    n_step_given: bool = False
    gae_lambda: float | None = None
    horizon: float | None = None
    smoothing: float | None = None
    fraction: float | None = None
    success: str | None = None
    failure: str | None = None
    outcomes: str | None = None
    of: str | None = None
    list_unlabelled: bool = False
    browser: bool = False
    port: int | None = None

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
    parser.add_argument("--baseline")
    parser.add_argument("--gae-lambda", EARLIER_LAMBDA, dest="gae_lambda", type=float)
    parser.add_argument("--horizon", type=float)
    parser.add_argument("--smoothing", type=float)
    parser.add_argument("--positive-fraction", dest="fraction", type=float)
    parser.add_argument("--list-unlabelled", action="store_true")
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--port", type=int)
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
    if options.port is not None and not options.browser:
        raise ConfigError("--port is that of the page; give --browser, too")
    if options.port is not None and not 0 <= options.port < 2**16:
        raise ConfigError(f"--port must be from 0 (any that is free) to {2**16 - 1}, got {options.port}")
    if options.browser and options.list_unlabelled:
        raise ConfigError("--browser and --list-unlabelled exclude each other; the page has a filter for them")
    if options.from_name is not None and options.name is None and not options.browser:
        raise ConfigError("--from needs --name: what the derived labeling is called")
    if options.from_name is not None and options.checkpoint is not None:
        raise ConfigError("--from takes the values of a labeling and --checkpoint those of a critic; give one")
    if options.of is not None and options.success is None and options.failure is None:
        raise ConfigError("--of says which dataset --success and --failure speak of; give one of them")
    if options.baseline is not None and options.baseline not in BASELINES:
        raise ConfigError(f"--baseline must be one of {', '.join(BASELINES)}; got {options.baseline!r}")
    if options.n_step is not None and options.n_step < 1:
        raise ConfigError(f"--n-step takes a number of steps, at least 1, or none; got {options.n_step}")
    estimators = {"--n-step": options.n_step_given, "--gae-lambda": options.gae_lambda, "--horizon": options.horizon}
    given = [flag for flag, value in estimators.items() if value not in (None, False)]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other")
    shares = {
        "--gae-lambda": options.gae_lambda,
        "--horizon": options.horizon,
        "--smoothing": options.smoothing,
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


@dataclass(frozen=True)
class Estimator:
    """How advantages follow from values: of ``n_steps`` and ``gae_lambdas`` one at most is given; neither is G − V."""

    baseline: str  # what V is: success | all (policy.advantage_baseline)
    n_steps: dict[str, int] | None  # task → N
    gae_lambdas: dict[str, float] | None  # task → λ
    horizon: float | None  # share of the task's longest episode that N follows from
    smoothing: dict[str, int] | None  # task → over how many steps the mean is taken
    smoothing_share: float | None

    def __str__(self) -> str:
        parts = ["G − V"]
        if self.gae_lambdas is not None:
            parts = [f"λ-return, λ = {_each(self.gae_lambdas)}"]
        if self.n_steps is not None:
            parts = [f"{_each(self.n_steps)} steps, then the critic"]
        if self.horizon is not None:
            parts[0] += f" ({self.horizon:g} of the task's longest episode)"
        if self.baseline == "success":
            parts.append("V of a success")
        if self.smoothing is not None:
            parts.append(f"mean over {_each(self.smoothing)} steps ({self.smoothing_share:g})")
        return "; ".join(parts)


def _each(of_task: Mapping[str, float]) -> str:
    return ", ".join(f"{value:g}" for value in dict.fromkeys(of_task.values()))


def choose_estimator(options: LabelOptions, cfg: PI05RLTrainConfig, labels: LabelledEpisodes) -> Estimator:
    """What the command says, else the policy's ``advantage_n_step``, else its ``advantage_horizon``; baseline and
    smoothing as the command or the policy says."""
    policy, baseline = cfg.policy, options.baseline or cfg.baseline
    lengths = dict(zip(labels.tasks, labels.task_lengths.tolist(), strict=True))
    share = policy.advantage_smoothing if options.smoothing is None else options.smoothing
    smoothing = {task: share_of_task(share, length) for task, length in lengths.items()} if share else None
    n_steps, gae_lambdas, horizon = None, None, options.horizon
    if options.gae_lambda is not None:
        gae_lambdas = dict.fromkeys(lengths, options.gae_lambda)
    elif options.n_step_given:
        n_steps = None if options.n_step is None else dict.fromkeys(lengths, options.n_step)
    elif horizon is None:
        n_steps = None if policy.advantage_n_step is None else dict.fromkeys(lengths, policy.advantage_n_step)
        horizon = policy.label_horizon
    if horizon is not None:
        n_steps = {task: share_of_task(horizon, length) for task, length in lengths.items()}
    return Estimator(baseline, n_steps, gae_lambdas, horizon, smoothing, share or None)
