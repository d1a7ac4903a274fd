"""Learning curves from a run's ``metrics.jsonl``: training and held-out numbers over optimization steps."""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from .svg import Axis, Plot, axis_around

CURVE_POINTS = 200
MARKED_POINTS = 30  # up to as many held-out measurements get a marker each

Series = list[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """One chart: a training metric and its held-out sibling, whichever exist."""

    title: str
    y_label: str
    caption: str
    train: str | None
    held_out: str | None
    include: tuple[float, ...] = ()


CURVES = (
    Curve(
        "Critic loss",
        "cross-entropy (nats)",
        "Lower is better; if the held-out line rises while the training line falls, the critic memorises. While the "
        "policy trains, positive samples are drawn more often and weighed back: the training line is noisy there.",
        "loss_critic",
        "eval/loss_critic",
    ),
    Curve(
        "Actor loss",
        "flow-matching loss",
        "Lower is better; a widening gap between the two lines is overfitting to the training episodes.",
        "loss_actor",
        "eval/loss_actor_none",
    ),
    Curve(
        "Value follows return",
        "Spearman correlation",
        "Rank correlation of value and return in held-out episodes: 1 is a perfect order, 0 is none.",
        None,
        "eval/spearman_value_return",
        (0.0, 1.0),
    ),
    Curve(
        "Value tells outcomes apart",
        "AUC, success against failure",
        "The chance that a held-out success is valued above a held-out failure: 1 is perfect, 0.5 is a coin.",
        None,
        "eval/auc_value_outcome",
        (0.0, 1.0),
    ),
    Curve(
        "Grip of the tag",
        "effect of the tag on actions",
        "How far the actions move between the positive tag and none; at 0 the policy ignores the tag.",
        None,
        "eval/tag_grip",
        (0.0,),
    ),
    Curve(
        "Frames tagged positive",
        "share of samples drawn",
        "How many of the samples drawn are tagged positive; near the fraction that was asked for, or, under a "
        "labeling, as many more as advantage_positive_weight draws them more often.",
        "advantage_positive_fraction",
        None,
        (0.0, 1.0),
    ),
    Curve(
        "Online success",
        "share of episodes",
        "Success of the actors' episodes that arrived between two lines of the log.",
        "episode_success_mean",
        None,
        (0.0, 1.0),
    ),
    Curve(
        "Online episode length",
        "control steps",
        "Mean length of the actors' episodes; of a policy that succeeds, shorter is faster.",
        "episode_length_mean",
        None,
        (0.0,),
    ),
    Curve(
        "Interventions",
        "share of steps",
        "Steps of the actors' episodes at which a person acted; it falls as the policy learns.",
        "intervention_rate_mean",
        None,
        (0.0, 1.0),
    ),
)


def curve_chart(curve: Curve, metrics: dict[str, Series]) -> Markup:
    """Training as a solid line, held-out dashed with markers."""
    train, held_out = (thinned(metrics.get(name or "", [])) for name in (curve.train, curve.held_out))
    steps = [step for step, _ in train + held_out]
    last = max(max(steps), 1)
    plot = Plot(
        Axis("optimization step", 0.0, last, 5, whole=True),
        axis_around(curve.y_label, [y for _, y in train + held_out], include=curve.include, most_ticks=7),
        curve.title,
        right=20,
    )
    for points, kind in ((train, "train"), (held_out, "held-out")):
        xs, ys = [step for step, _ in points], [value for _, value in points]
        plot.line(xs, ys, f"curve {kind}")
        if len(points) == 1 or (kind == "held-out" and len(points) <= MARKED_POINTS):
            plot.points(xs, ys, f"dot {kind}")
    return plot.render(f"curve-{(curve.train or curve.held_out or '').replace('/', '-')}")


def thinned(points: Series, most: int = CURVE_POINTS) -> Series:
    """Means of neighbouring points where there are too many to draw."""
    if len(points) <= most:
        return points
    parts = np.array_split(np.array(points, dtype=float), most)
    return [(round(float(part[:, 0].mean())), float(np.mean(part[:, 1]))) for part in parts]
