"""What ``actor.action_clamp_limits`` and ``actor.max_action_step`` would cut off the recorded actions.

A policy learns to act as was recorded. Limits that are narrower than the data (ones in other units, for example) would
bend what it does on the robot, and nobody would see it in training.
"""

import logging
from collections.abc import Sequence

import numpy as np
from lerobot.utils.constants import ACTION

from ..config.actor import ActorConfig
from .names import dimension_names
from .sources import Source

logger = logging.getLogger(__name__)

TOLERATED = 0.001  # share of the frames that a limit may cut without a word: a person's twitch


def warn_of_clipping(actor: ActorConfig, sources: Sequence[Source], tag: str) -> None:
    """A warning for each limit that would cut more than one in a thousand of a dataset's recorded actions."""
    if not (actor.action_clamp_limits or actor.max_action_step):
        return
    for source in sources:
        names = dimension_names(source.features[ACTION])
        limited = {*(actor.action_clamp_limits or {}), *actor.max_action_step}
        if names is None:
            names = [str(index) for index in range(source.recorded(ACTION).shape[1])]
        if unknown := sorted(limited - set(names)):
            logger.warning(
                "%s The limits of %s are not compared with dataset %s, whose actions are %s",
                tag,
                ", ".join(unknown),
                source.name,
                ", ".join(names),
            )
        actions = source.alignment.scaled(ACTION, source.recorded(ACTION))
        for text in clipping_texts(actor, names, actions, source.starts):
            logger.warning("%s %s (dataset %s)", tag, text, source.name)


def recorded_steps(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(N, D) float64: how far each frame lies from the one before it in its episode; 0 in the episode's first.

    Args:
        values: (N, D) state or action as recorded, episode after episode.
        starts: (episodes,) the first row of each.
    """
    found = np.abs(np.diff(values.astype(np.float64), axis=0, prepend=values[:1]))
    found[starts] = 0.0
    return found


def clipping_texts(actor: ActorConfig, names: Sequence[str], actions: np.ndarray, starts: np.ndarray) -> list[str]:
    """One sentence for each limit that cuts too much.

    Args:
        names: (A,) of the actions.
        actions: (N, A) as recorded, episode after episode.
        starts: (episodes,) the first row of each.
    """
    texts, every = [], np.delete(recorded_steps(actions, starts), starts, axis=0)
    for index, name in enumerate(names):
        values = actions[:, index].astype(np.float64)
        if name in (actor.action_clamp_limits or {}):
            least, greatest = actor.action_clamp_limits[name]
            share = float(np.mean((values < least) | (values > greatest)))
            if share > TOLERATED:
                texts.append(
                    f"actor.action_clamp_limits cuts {share:.1%} of the recorded actions of {name}: they run from "
                    f"{values.min():.4g} to {values.max():.4g}, the limits from {least:.4g} to {greatest:.4g}"
                )
        if name in actor.max_action_step:
            steps = every[:, index]
            share = float(np.mean(steps > actor.max_action_step[name])) if len(steps) else 0.0
            if share > TOLERATED:
                texts.append(
                    f"actor.max_action_step cuts {share:.1%} of the recorded steps of {name}: they are up to "
                    f"{steps.max():.4g} (99 % at most {np.quantile(steps, 0.99):.4g}), the limit is "
                    f"{actor.max_action_step[name]:.4g}"
                )
    return texts


def clipping_texts_of_statistics(
    actor: ActorConfig, names: Sequence[str], stats: dict[str, np.ndarray] | None
) -> list[str]:
    """The same where only the recorded actions' statistics are known, of a checkpoint's preprocessor.

    Args:
        names: (A,) of the actions.
        stats: statistic → (A,), of absolute actions; None: unknown.
    """
    low, high = next(
        ((low, high) for low, high in (("q01", "q99"), ("min", "max")) if stats and low in stats and high in stats),
        (None, None),
    )
    if low is None or not actor.action_clamp_limits:
        return []
    texts = []
    for name, least, greatest in zip(names, np.ravel(stats[low]), np.ravel(stats[high]), strict=False):
        bounds = actor.action_clamp_limits.get(name)
        if bounds is not None and (least < bounds[0] or greatest > bounds[1]):
            texts.append(
                f"actor.action_clamp_limits cuts what the policy learnt of {name}: the recorded actions run from "
                f"{float(least):.4g} ({low}) to {float(greatest):.4g} ({high}), the limits from {bounds[0]:.4g} to "
                f"{bounds[1]:.4g}"
            )
    return texts
