"""What a dataset and a machine are, as far as a configuration depends on it. Pictures are not opened."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from lerobot.configs import FeatureType
from lerobot.utils.constants import ACTION, OBS_STATE

from ..data.action_limits import recorded_steps
from ..data.named import open_named, outcomes_as_told
from ..data.names import dimension_labels, dimension_names
from ..data.outcomes import intervention_flags
from ..data.sources import Source, outcomes_path
from ..errors import one_line
from ..plan.card import card_memory
from ..returns import Outcome


@dataclass(frozen=True)
class Facts:
    """One LeRobot dataset."""

    repo_id: str
    root: Path | None  # None: what LeRobot keeps of the Hub's
    fps: float
    lengths: list[int]  # frames of each episode
    cameras: dict[str, tuple[int, int]]  # name → height, width
    state: int  # dimensions
    action: int
    tasks: list[str]
    outcomes: dict[str, int]  # outcome → episodes; the unlabelled are not among them
    by_hand: Path  # where outcomes set by hand lie, or will
    unlabelled: list[int] = field(default_factory=list)  # episode_index
    constant: dict[str, list[str]] = field(default_factory=dict)  # column → names of dimensions that never change
    interventions: int = 0  # frames
    limits: dict[str, tuple[float, float, float]] = field(default_factory=dict)  # least, greatest, step

    @property
    def name(self) -> str:
        """Of the dataset, without whose it is."""
        return self.repo_id.rpartition("/")[-1]

    @property
    def frames(self) -> int:
        """Of all episodes."""
        return sum(self.lengths)


@dataclass(frozen=True)
class Machine:
    """Where the run will train."""

    card: int  # bytes of its GPU
    name: str


def read_facts(dataset: str, *, tolerance_s: float) -> Facts:
    """The facts of a local folder or of a repository of the Hub.

    Raises:
        UserError: it is missing, damaged, of another format, or lacks what a policy reads.
    """
    repo_id, folder, source, features = open_named(dataset, tolerance_s=tolerance_s)
    outcomes = outcomes_as_told(source)
    episodes = source.columns["episode_index"][source.starts].tolist()
    names = [outcome.value for outcome in outcomes if outcome is not None]
    return Facts(
        repo_id,
        folder,
        float(source.dataset.meta.fps),
        (source.ends - source.starts).tolist(),
        {key: feature.shape[1:] for key, feature in features.items() if feature.type is FeatureType.VISUAL},
        features[OBS_STATE].shape[0],
        features[ACTION].shape[0],
        sorted(set(source.tasks)),
        {name: names.count(name) for name in (outcome.value for outcome in Outcome) if name in names},
        outcomes_path(source),
        [index for index, outcome in zip(episodes, outcomes, strict=True) if outcome is None],
        {key: constant_dimensions(source, key) for key in (OBS_STATE, ACTION)},
        int(intervention_flags(source).sum()),
        action_limits(source),
    )


def action_limits(source: Source) -> dict[str, tuple[float, float, float]]:
    """Name → the least and the greatest that was recorded of it, and the largest step; empty where actions have no
    names."""
    names, values = dimension_names(source.dataset.meta.features[ACTION]), source.recorded(ACTION).astype(np.float64)
    if names is None or len(names) != values.shape[1]:
        return {}
    steps = recorded_steps(values, source.starts).max(axis=0, initial=0.0)
    found = zip(values.min(axis=0), values.max(axis=0), steps, strict=True)
    return {name: tuple(map(float, limits)) for name, limits in zip(names, found, strict=True)}


def constant_dimensions(source: Source, key: str) -> list[str]:
    """Names, or numbers, of the dimensions of a column that have the same value in every frame."""
    values = source.recorded(key)
    names = dimension_labels(source.dataset.meta.features[key], values.shape[1])
    return [name for name, still in zip(names, (values == values[:1]).all(axis=0), strict=True) if still]


def read_machine(card_gib: float | None) -> Machine:
    """The GPU of this machine, or of that which is asked for; without either the card that most people have."""
    if card_gib is not None:
        return Machine(int(card_gib * 2**30), f"a card of {card_gib:g} GiB, as asked")
    card = card_memory(None)
    if card is not None:
        return Machine(card, torch.cuda.get_device_name())
    return Machine(24 * 2**30, "a card of 24 GiB, since no GPU is here (--card GIB)")


def describe(facts: Facts) -> list[str]:
    """In lines, what there is."""
    seconds = np.array(facts.lengths) / facts.fps
    cameras = ", ".join(f"{name.rsplit('.', 1)[-1]} {h}×{w}" for name, (h, w) in facts.cameras.items())
    tasks = "; ".join(facts.tasks[:3]) + (f" and {len(facts.tasks) - 3} more" if len(facts.tasks) > 3 else "")
    outcomes = ", ".join(f"{count} {name}" for name, count in facts.outcomes.items()) or "none known"
    return [
        f"dataset {facts.root or facts.repo_id}: {len(facts.lengths)} episodes, {facts.frames} frames at "
        f"{facts.fps:g} fps; {seconds.min():.1f} to {seconds.max():.1f} s long, half of them up to "
        f"{np.median(seconds):.1f} s",
        f"cameras {cameras}; state of {facts.state}, action of {facts.action}",
        f"task: {one_line(tasks)}",
        f"outcomes: {outcomes}"
        + (f", {len(facts.unlabelled)} unknown" if facts.unlabelled else "")
        + (f" (with {facts.by_hand})" if facts.by_hand.is_file() else "")
        + (f"; {facts.interventions} frames are a person's corrections" if facts.interventions else ""),
    ]
