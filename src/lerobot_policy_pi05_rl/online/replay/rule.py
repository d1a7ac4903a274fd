"""The rule that labelled the offline data, for the episodes that arrive: the same advantages, the same tags."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...advantage import tag_columns
from ...data.alignment import Alignment
from ...data.labeling import Columns, Labeling, advantages
from ...thresholds import task_thresholds


@dataclass(frozen=True)
class LabelRule:
    """How advantages follow from values, and which are positive.

    The thresholds are taken over the offline data and the replay together, as over the datasets of an offline run:
    what is positive is so beside all that is learnt from. The offline data keep the tags that they have.
    """

    baseline: str  # what values are: success | all
    n_steps: dict[str, int] | None  # task → N, in policy steps
    gae_lambdas: dict[str, float] | None  # task → λ
    smoothing: dict[str, int] | None  # task → over how many steps the mean is taken
    discount: float
    fractions: dict[str, float]  # task → share of its advantages that is positive
    offline: list[Columns]  # task, advantage, intervention of the offline data's frames

    @classmethod
    def of(cls, labelings: Iterable[Labeling]) -> "LabelRule":
        """That of the offline data's labelings, which one call has made."""
        labelings = list(labelings)
        metas = [labeling.meta for labeling in labelings]

        def of_tasks[T](key: str) -> dict[str, T] | None:
            found = [meta[key] for meta in metas if meta[key] is not None]
            return {task: value for one in found for task, value in one.items()} if found else None

        return cls(
            metas[0].get("baseline", "all"),
            of_tasks("n_step"),
            of_tasks("trace"),
            of_tasks("smoothing"),
            metas[0]["discount"],
            of_tasks("positive_fraction") or {},
            [{key: labeling.columns[key] for key in ("task", "advantage", "intervention")} for labeling in labelings],
        )

    def advantages(self, columns: Columns, alignment: Alignment | None) -> np.ndarray:
        """(T,) float32 advantages from a labeling's columns; no network runs."""
        return advantages(
            columns,
            baseline=self.baseline,
            n_steps=self.n_steps,
            gae_lambdas=self.gae_lambdas,
            smoothing=self.smoothing,
            discount=self.discount,
            alignment=alignment,
        )

    def tags(self, columns: Columns) -> np.ndarray:
        """(T,) int8 tags of the replay's frames, from their task, advantage and intervention."""
        thresholds = task_thresholds([*self.offline, columns], self.fractions)
        return tag_columns(columns, thresholds)["tag"]
