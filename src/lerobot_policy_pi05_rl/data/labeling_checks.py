"""Whether a labeling was made under the outcomes and tasks that a run has."""

import logging
from typing import Any

import numpy as np

from .episodes import LabelledEpisodes
from .labeling import Labeling, labeling_outcomes
from .sources import DatasetError, Source, use_outcomes_beside

logger = logging.getLogger(__name__)

MOST_NAMED = 8


def check_labelings(
    labelings: list[Labeling], name: str, sources: list[Source], labels: LabelledEpisodes, outcome_file: str | None
) -> None:
    """Refuse a labeling whose advantages are of other outcomes than the run's; warn where tasks differ.

    Args:
        outcome_file: ``reward.outcome_file`` of the run.

    Raises:
        DatasetError: it names the episodes that differ, and the command that derives the labeling anew.
    """
    for number, (labeling, source) in enumerate(zip(labelings, sources, strict=True)):
        made_under = labeling_outcomes(labeling)
        differing = [
            f"{episode.index} ({made_under[episode.index].value} there, {episode.outcome.value} here)"
            for episode in labels.episodes
            if episode.source == number and made_under[episode.index] is not episode.outcome
        ]
        if differing:
            shown = ", ".join(differing[:MOST_NAMED]) + (", …" if len(differing) > MOST_NAMED else "")
            raise DatasetError(
                f"the labeling {name!r} of dataset {source.name} was made under other outcomes than this run has: "
                f"{len(differing)} episode(s), {shown}. {_advice(labeling, name, sources[0], outcome_file)}"
            )
        tasks = np.array(labels.tasks, dtype=object)[labels.frame_tasks[number]]
        others = int((tasks != labeling.columns["task"]).sum())
        if others:
            logger.warning(
                "the labeling %r of dataset %s was made under other tasks on %d frames, and its thresholds are "
                "theirs; derive it anew: %s",
                name,
                source.name,
                others,
                derive_command(labeling.meta, name, outcome_file),
            )


def _advice(labeling: Labeling, name: str, first: Source, outcome_file: str | None) -> str:
    beside = use_outcomes_beside(first, outcome_file)
    if beside:
        return beside
    command = derive_command(labeling.meta, name, outcome_file)
    return f"Derive it anew under the present outcomes, which needs no network: {command}"


def derive_command(meta: dict[str, Any], name: str, outcome_file: str | None) -> str:
    """The command that derives a labeling anew from its own values, with its own advantage estimator and fraction.

    Args:
        meta: the labeling's.
    """
    words = [f"pi05-rl label CONFIG --from {name} --name {meta.get('name', name)}", _estimator_option(meta)]
    fractions = set(meta.get("positive_fraction", {}).values())
    if len(fractions) == 1:
        words.append(f"--positive-fraction {fractions.pop():g}")
    if outcome_file is not None:
        words.append(f"--reward.outcome_file={outcome_file}")
    return " ".join(word for word in words if word)


def _estimator_option(meta: dict[str, Any]) -> str:
    """Its own; of an older labeling, whose horizon was that of a λ-return, λ where that was one for all tasks."""
    words, gae_lambdas, n_steps = [f"--baseline {meta.get('baseline', 'all')}"], meta.get("trace"), meta.get("n_step")
    if "smoothing_share" in meta:
        words.append(f"--smoothing {meta['smoothing_share'] or 0:g}")
    if gae_lambdas is not None:
        same = len(set(gae_lambdas.values())) == 1
        words += [f"--gae-lambda {next(iter(gae_lambdas.values())):g}"] if same else []
    elif meta.get("horizon") is not None:
        words.append(f"--horizon {meta['horizon']:g}")
    else:
        each = set(n_steps.values()) if isinstance(n_steps, dict) else {n_steps}
        words.append(f"--n-step {each.pop() or 'none'}")
    return " ".join(words)
