"""Outcomes set by hand, in ``<dataset_root>.labels/outcomes.csv`` beside the first dataset, and what has none yet."""

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ..config.resolve import changed, resolved
from ..config.train import ConfigError, PI05RLTrainConfig
from ..data.compatibility import renamed_sources
from ..data.dataset import read_sources
from ..data.episodes import label_episodes
from ..data.labeling import frame_columns
from ..data.outcomes import known_outcomes
from ..data.sources import (
    DatasetError,
    Source,
    check_outcome_file_datasets,
    outcomes_path,
    read_outcome_file,
)
from ..returns import Outcome
from ..runtime.files import replacing
from .options import LabelOptions

logger = logging.getLogger(__name__)

Outcomes = dict[int, Outcome]


def unless_to_come(outcome_file: str | None, sources: list[Source]) -> str | None:
    """The configuration's outcome file; None where it is the one that this verb writes, and is not there yet."""
    own = outcomes_path(sources[0])
    to_come = outcome_file is not None and Path(outcome_file).resolve() == own.resolve() and not own.is_file()
    return None if to_come else outcome_file


def outcome_sources(cfg: PI05RLTrainConfig) -> list[Source]:
    """The datasets as far as outcomes need them: neither pictures nor what the policy reads.

    Raises:
        UserError: a dataset is missing or damaged.
    """
    columns = read_sources(cfg.dataset, cfg.rename_map, cfg.tolerance_s, pictures=False)
    return renamed_sources(cfg.rename_map, columns, acts=cfg.env is not None)


def unlabelled_columns(cfg: PI05RLTrainConfig) -> tuple[dict[str, np.ndarray], int]:
    """The columns of the first dataset's labeling that need no critic, and how many of its episodes have no outcome:
    those count as ``reward.unlabelled`` says, under ``error`` as truncated. Returns and rewards are NaN.

    Raises:
        UserError: a dataset is missing or damaged.
    """
    cfg = resolved(cfg, device_key=None)
    sources = outcome_sources(cfg)
    outcome_file = set_outcomes(LabelOptions(), sources, cfg.reward.outcome_file)
    reward = changed(cfg.reward, outcome_file=outcome_file)
    labels = label_episodes(sources, reward, cfg.policy, needs_returns=False)
    return frame_columns(0, sources[0], labels), known_outcomes(sources[0], outcome_file, primary=True).count(None)


def parse_ranges(text: str) -> list[int]:
    """``0-3,7`` → [0, 1, 2, 3, 7].

    Raises:
        ConfigError: it is written otherwise, or a range runs backwards.
    """
    numbers = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"{part!r} is not an episode or a range of episodes; write them as 0-40,52")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return numbers


def format_ranges(numbers: list[int]) -> str:
    """The inverse of :func:`parse_ranges`, for sorted numbers."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def given_outcomes(
    sources: list[Source], *, success: str | None, failure: str | None, csv: str | None, of: str | None = None
) -> list[Outcomes]:
    """Per source the outcomes that the command line gives; the lists speak of dataset ``of``, by default the first.

    Raises:
        ConfigError, DatasetError: an episode or ``of`` does not exist, or an episode is given two outcomes.
    """
    check_outcome_file_datasets(csv, sources)
    names = [source.name for source in sources]
    if of is not None and of not in names:
        raise DatasetError(
            f"--of names the dataset {of}, which is not one of {', '.join(names)}; list it in "
            "dataset.additional_offline_dataset_paths"
        )
    subject = 0 if of is None else names.index(of)
    given = [read_outcome_file(csv, source, primary=number == 0) for number, source in enumerate(sources)]
    source = sources[subject]
    known = set(source.columns["episode_index"][source.starts].tolist())
    for option, text, outcome in (("--success", success, Outcome.SUCCESS), ("--failure", failure, Outcome.FAILURE)):
        episodes = parse_ranges(text or "")
        unknown = [episode for episode in episodes if episode not in known]
        if unknown:
            raise DatasetError(
                f"{option} names episode {format_ranges(unknown)}, but dataset {source.name} has "
                f"{format_ranges(sorted(known))}"
            )
        twice = [episode for episode in episodes if given[subject].get(episode, outcome) is not outcome]
        if twice:
            raise ConfigError(
                f"{option} gives episode {format_ranges(twice)} another outcome than --success or --outcomes does; "
                "name each episode once"
            )
        given[subject] |= dict.fromkeys(episodes, outcome)
    return given


def set_outcomes(options: LabelOptions, sources: list[Source], outcome_file: str | None) -> str | None:
    """Write the outcomes that the command line gives over those of ``outcome_file``; returns the outcome file of this
    command."""
    path, named = outcomes_path(sources[0]), outcome_file
    outcome_file = unless_to_come(outcome_file, sources)
    if options.gives_outcomes:
        given = given_outcomes(
            sources, success=options.success, failure=options.failure, csv=options.outcomes, of=options.of
        )
        write_outcomes(sources, given, outcome_file)
        print(use_with(path, named))
        return str(path)
    if outcome_file is None and path.is_file():
        logger.info("[LABEL] Outcomes set by hand are used; train with --reward.outcome_file=%s", path)
        return str(path)
    return outcome_file


def use_with(path: Path, outcome_file: str | None) -> str:
    """How a run reads the outcomes in ``path``, where the configuration names ``outcome_file``."""
    reads = outcome_file is not None and Path(outcome_file).resolve() == path.resolve()
    return f"The configuration reads {path}" if reads else f"Train with them: --reward.outcome_file={path}"


def write_outcomes(sources: list[Source], given: list[Outcomes], outcome_file: str | None) -> Path:
    """Put the given outcomes over those of ``outcome_file`` over those set before, and write them all.

    Returns:
        The outcome file.
    """
    merged = [before | now for before, now in zip(earlier_outcomes(sources, outcome_file), given, strict=True)]
    path = save_outcomes(sources, merged)
    logger.info("[LABEL] %d outcomes set, %d in %s", sum(map(len, given)), sum(map(len, merged)), path)
    return path


def earlier_outcomes(sources: list[Source], outcome_file: str | None) -> list[Outcomes]:
    """Per source those of ``outcome_file`` over those that this verb has set before.

    Raises:
        DatasetError: one of the files is not what it should be.
    """
    own = outcomes_path(sources[0])
    files = [str(own) if own.is_file() else None, outcome_file]
    found: list[Outcomes] = []
    for number, source in enumerate(sources):
        before, over = (read_outcome_file(file, source, primary=number == 0) for file in files)
        found.append(before | over)
    return found


def save_outcomes(sources: list[Source], outcomes: list[Outcomes]) -> Path:
    """Write these outcomes of each source, and no others, whole or not at all; returns the file."""
    path, rows = outcomes_path(sources[0]), []
    for number, (source, own) in enumerate(zip(sources, outcomes, strict=True)):
        rows += [(episode, own[episode].value, source.name if number else None) for episode in sorted(own)]
    table = pd.DataFrame(rows, columns=["episode_index", "outcome", "dataset"])
    if table["dataset"].isna().all():
        table = table.drop(columns="dataset")
    with replacing(path) as aside:
        table.to_csv(aside, index=False)
    return path


def describe_unlabelled(sources: list[Source], outcome_file: str | None) -> list[str]:
    """Per dataset one line with the episodes whose outcome nothing tells."""
    lines = []
    for number, source in enumerate(sources):
        outcomes = known_outcomes(source, outcome_file, primary=number == 0)
        episodes = source.columns["episode_index"][source.starts].tolist()
        unknown = sorted(e for e, outcome in zip(episodes, outcomes, strict=True) if outcome is None)
        cut = sorted(e for e, outcome in zip(episodes, outcomes, strict=True) if outcome is Outcome.TRUNCATED)
        line = f"{source.name}: {len(unknown)} of {len(episodes)} episodes have no outcome"
        line += f": {format_ranges(unknown)}" if unknown else ""
        lines.append(line + (f"; cut by a time limit: {format_ranges(cut)}" if cut else ""))
    return lines
