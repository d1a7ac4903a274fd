"""What an advantage means to the actor: tags, weights, and the policy extractions that choose among them.

A policy extraction says what is drawn, which tag and weight each sample gets, what is asked for at inference, and what
all that needs. It is one class, found by the name that ``policy.policy_extraction`` holds; ``docs/extending.md`` adds
one. Source of ``conditioning``: RECAP (arXiv 2511.14759), section IV-C.

This module stands below the configuration, which asks its extraction whether a critic trains and refuses a name that
nobody registered. Everybody else takes the extraction from the configuration (``PI05RLConfig.extraction``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .errors import DatasetError, UserError
from .returns import Outcome
from .thresholds import AdvantageThresholds

TAG_NEGATIVE, TAG_POSITIVE, TAG_NONE = 0, 1, -1
TAGS = {"positive": TAG_POSITIVE, "negative": TAG_NEGATIVE}  # names as in `policy.inference_advantage`
EARLIER_NAMES = {"draws": "repetitions"}  # of a policy extraction's methods: nobody would ask one of these


# ── Tags and weights ─────────────────────────────────────────────────────────────────────────────────────────────


def advantage_tags(advantages: Tensor, thresholds: Tensor, *, interventions: Tensor) -> Tensor:
    """(B,) tags: 1 positive (A > ε), 0 negative, −1 none.

    A human's correction is always positive (RECAP, section IV-C). No tag where the advantage or the threshold
    is unknown.
    """
    tags = (advantages > thresholds).long()
    tags[advantages.isnan() | thresholds.isnan()] = TAG_NONE
    tags[interventions] = TAG_POSITIVE
    return tags


def tag_columns(columns: dict[str, np.ndarray], thresholds: Mapping[str, float]) -> dict[str, np.ndarray]:
    """A labeling's columns with ``tag`` and ``positive`` under these thresholds, by :func:`advantage_tags`' rule."""
    tags = np.full(len(columns["task"]), TAG_NONE, dtype=np.int8)
    for task, threshold in thresholds.items():
        rows = (columns["task"] == task) & ~np.isnan(columns["advantage"])
        tags[rows] = columns["advantage"][rows] > threshold
    tags[columns["intervention"]] = TAG_POSITIVE
    return {**columns, "tag": tags, "positive": tags == TAG_POSITIVE}


def awr_weights(advantages: Tensor, std: Tensor, *, temperature: float, max_weight: float) -> Tensor:
    """(B,) ``exp(A / (temperature · std))``, at most ``max_weight`` (AWR, arXiv 1910.00177); 0 where A or the
    deviation of the task's advantages is unknown: such a sample is worth nothing yet."""
    weights = torch.exp(advantages / (temperature * std.clamp(min=1e-6))).clamp(max=max_weight)
    return weights.nan_to_num(nan=0.0)


@dataclass(frozen=True)
class SampleLabels:
    """What is known of a batch's samples when an extraction tags and weighs them."""

    advantages: Tensor  # (B,) float, in units of the return; NaN where unknown
    tags: Tensor  # (B,) int64 of the three TAG_ values; a correction is positive
    corrected: Tensor  # (B,) bool, a human's correction
    hidden: Tensor  # (B,) bool, the tag is to be hidden (`policy.advantage_dropout`)
    task_index: Tensor  # (B,) int64, on the CPU
    thresholds: AdvantageThresholds
    precomputed: bool  # advantages and tags are those of a labeling

    @classmethod
    def of(
        cls,
        advantages: Tensor,
        task_index: Tensor,
        thresholds: AdvantageThresholds,
        *,
        corrected: Tensor,
        hidden: Tensor,
        precomputed_tags: Tensor | None,
    ) -> "SampleLabels":
        """``precomputed_tags``: (B,) those of a labeling, which win over the thresholds; corrections win over both."""
        on_cpu = task_index.cpu()
        tags = advantage_tags(advantages, thresholds[on_cpu].to(advantages.device), interventions=corrected)
        if precomputed_tags is not None:
            tags = torch.where(corrected, TAG_POSITIVE, precomputed_tags)
        return cls(advantages, tags, corrected, hidden, on_cpu, thresholds, precomputed_tags is not None)

    @property
    def advantage_std(self) -> Tensor:
        """(B,) standard deviation of the recent advantages of each sample's task; NaN while too few are known."""
        return self.thresholds.std(self.task_index).to(self.advantages.device)


# ── Policy extractions ───────────────────────────────────────────────────────────────────────────────────────────


class PolicyExtraction:
    """What the policy learns from which sample. A subclass overrides what differs from cloning all samples alike.

    Attributes:
        config: the policy's fields (``PI05RLConfig``).
    """

    shows_tag: ClassVar[bool] = False  # samples carry a tag, and inference asks for one
    needs_outcomes: ClassVar[bool] = True  # every episode has an outcome, or the run does not begin
    needs_labeling: ClassVar[bool] = False  # `dataset.labeling` must name one
    kept: ClassVar[str] = "kept"  # what an episode is that :meth:`keeps` says yes to, in an error's words
    _known: ClassVar[dict[str, type["PolicyExtraction"]]] = {}

    def __init__(self, config: Any):
        self.config = config

    @classmethod
    def register[E: type](cls, name: str) -> Callable[[E], E]:
        """Class decorator: ``policy.policy_extraction`` finds the class under ``name`` from then on.

        Raises:
            ValueError: another class has the name.
            UserError: the class overrides a method under a name of before.
        """

        def add(extraction: E) -> E:
            for earlier, now in EARLIER_NAMES.items():
                if hasattr(extraction, earlier):
                    raise UserError(f"{extraction.__qualname__}.{earlier} is never asked: it is called {now} now")
            taken = cls._known.get(name)
            if taken is not None and taken.__qualname__ != extraction.__qualname__:  # a module run again is welcome
                raise ValueError(f"the policy extraction {name!r} is {taken.__qualname__} already")
            cls._known[name] = extraction
            return extraction

        return add

    @property
    def needs_advantage(self) -> bool:
        """Whether it reads advantages: a critic trains beside the policy, or ``dataset.labeling`` has them."""
        return True

    def keeps(self, outcome: Outcome) -> bool:
        """Whether episodes that ended so are learnt from at all, by the critic neither."""
        return True

    def repetitions(self, tags: np.ndarray, advantages: np.ndarray) -> np.ndarray | None:
        """How often an epoch repeats each frame, (N,), 0: never; None: all once. Asked only where there is a labeling.
        The critic's loss takes it back.

        Args:
            tags: (N,) int8 of the labeling, of all frames that are learnt from.
            advantages: (N,) float32, likewise; NaN where unknown.
        """
        return None

    def tags(self, labels: SampleLabels) -> Tensor | None:
        """(B,) the tag that the actor is shown of each sample, TAG_NONE: none; None: it is shown no tag at all."""
        return None

    def weights(self, labels: SampleLabels) -> Tensor | None:
        """(B,) what each sample counts in the actor's loss; None: all alike."""
        return None

    def inference_tag(self) -> int | None:
        """The tag that is asked for when the policy acts; None: none."""
        return TAGS.get(self.config.inference_advantage) if self.shows_tag else None


OF_YOUR_OWN = "One of your own is known once its module is imported (docs/extending.md)"


def extraction_names() -> tuple[str, ...]:
    """Of all that are registered: those below, and those of the modules that were imported."""
    return tuple(PolicyExtraction._known)


def find_extraction(name: str) -> type[PolicyExtraction]:
    """The class that is registered under ``name``.

    Raises:
        UserError: none is; it lists those that are.
    """
    if name not in PolicyExtraction._known:
        raise UserError(
            f"policy.policy_extraction must be one of {', '.join(extraction_names())}; got {name!r}. {OF_YOUR_OWN}"
        )
    return PolicyExtraction._known[name]


@PolicyExtraction.register("conditioning")
class Conditioning(PolicyExtraction):
    """RECAP: all data; positive actions under a tag, all actions without one.

    Guidance goes from what the policy does without a tag to what it does under it and beyond, so the samples without a
    tag must follow the data as recorded (Frans et al. 2025, arXiv 2505.23458), however often a positive one is drawn.
    """

    shows_tag = True

    def repetitions(self, tags: np.ndarray, advantages: np.ndarray) -> np.ndarray | None:
        """Positive frames ``advantage_positive_weight`` times as often."""
        weight = self.config.advantage_positive_weight
        return None if weight == 1 else np.where(tags == TAG_POSITIVE, weight, 1.0)

    def tags(self, labels: SampleLabels) -> Tensor:
        """Of the positive samples, hidden now and then. The others have none."""
        shown = (labels.tags == TAG_POSITIVE) & ~labels.hidden
        return torch.where(shown, TAG_POSITIVE, TAG_NONE)

    def weights(self, labels: SampleLabels) -> Tensor:
        """1 for a shown tag. A hidden one stands for all positive samples among those without a tag, where each frame
        counts alike: it is drawn ``advantage_positive_weight`` times as often, of which ``advantage_dropout`` are
        hidden. Samples whose advantages are not a labeling's are not drawn more often; the others count less instead.
        """
        weight, hidden_share = self.config.advantage_positive_weight, self.config.advantage_dropout
        positive = labels.tags == TAG_POSITIVE
        others = 1.0 if labels.precomputed else 1.0 / weight
        hidden = 1.0 / (weight * hidden_share) if hidden_share else 1.0
        return torch.where(positive, torch.where(labels.hidden, hidden, 1.0), others)

    def inference_tag(self) -> int | None:
        """
        Raises:
            ValueError: the negative one is asked for.
        """
        if self.config.inference_advantage == "negative":
            raise ValueError(
                f"policy.inference_advantage is negative, but under policy_extraction={self.config.policy_extraction} "
                "positive actions alone have a tag: set it to positive or none"
            )
        return super().inference_tag()


@PolicyExtraction.register("weighted")
class Weighted(PolicyExtraction):
    """AWR (arXiv 1910.00177): no tag; a sample weighs the exponential of its advantage."""

    def weights(self, labels: SampleLabels) -> Tensor:
        """A human's correction weighs as much as anything can."""
        most = self.config.awr_max_weight
        weights = awr_weights(
            labels.advantages, labels.advantage_std, temperature=self.config.awr_temperature, max_weight=most
        )
        return torch.where(labels.corrected, most, weights)


@PolicyExtraction.register("filtered")
class Filtered(PolicyExtraction):
    """Cloning of the successful episodes, or of the positive frames (``filter_by``)."""

    kept = "a success"

    @property
    def needs_advantage(self) -> bool:
        """Outcomes alone say which episodes succeeded."""
        return self.config.filter_by == "advantage"

    def keeps(self, outcome: Outcome) -> bool:
        """Successful episodes alone, where outcomes decide."""
        return self.needs_advantage or outcome is Outcome.SUCCESS

    def repetitions(self, tags: np.ndarray, advantages: np.ndarray) -> np.ndarray | None:
        """The positive frames alone; but a critic that trains beside the policy must see the others, too, which then
        do not count in the actor's loss.

        Raises:
            DatasetError: no frame is positive.
        """
        if not self.needs_advantage:
            return None
        if not (tags == TAG_POSITIVE).any():
            raise DatasetError("policy.filter_by is advantage, and the labeling tags no frame positive")
        return None if self.config.train_critic else (tags == TAG_POSITIVE).astype(np.float64)

    def weights(self, labels: SampleLabels) -> Tensor:
        """1 for positive samples, 0 for all others."""
        return (labels.tags == TAG_POSITIVE).float()


@PolicyExtraction.register("none")
class Cloning(PolicyExtraction):
    """Cloning of everything, for comparison."""

    needs_outcomes = False

    @property
    def needs_advantage(self) -> bool:
        """None is read."""
        return False
