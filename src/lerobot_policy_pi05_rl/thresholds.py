"""ε: the advantage above which a task's positive fraction of its advantages lies, in a window or a labeling.

Source: RECAP (arXiv 2511.14759), section IV-C and App. F.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from .errors import UserError


def sets_the_threshold[A: (np.ndarray, Tensor)](advantages: A, corrected: A) -> A:
    """(N,) advantages, (N,) bool corrections by a human → (N,) bool, those that ε is taken from.

    A correction does not count: it is positive whatever its advantage, and its advantage says nothing of the policy.
    Nor does an unknown advantage, NaN. The same rule holds for a window of recent advantages and for a labeling.
    """
    return (advantages == advantages) & ~corrected  # NaN equals nothing


def positive_fractions(tasks: list[str], default: float, per_task: Mapping[str, float]) -> list[float]:
    """The positive fraction of each task: its own if it is given, else the default.

    Raises:
        UserError: a fraction is given for a task that the data does not have.
    """
    unknown = sorted(set(per_task) - set(tasks))
    if unknown:
        raise UserError(
            f"policy.advantage_positive_fraction_per_task: no task {unknown[0]!r} in the data; its tasks are "
            f"{', '.join(map(repr, tasks))}"
        )
    return [per_task.get(task, default) for task in tasks]


class AdvantageThresholds:
    """ε per task: the quantile of the task's recent advantages above which its positive fraction of them lies.

    Holds a window of the last ``window`` advantages of each task on the CPU. Until a task has ``min_count`` of
    them its threshold is NaN, and nothing of it is tagged.
    """

    def __init__(self, positive_fractions: list[float], *, window: int, min_count: int = 64):
        """``positive_fractions``: one per task."""
        self.positive_fractions, self.min_count = positive_fractions, min_count
        self._values = torch.full((len(positive_fractions), window), float("nan"))
        self._counts = torch.zeros(len(positive_fractions), dtype=torch.int64)

    def update(self, task_index: Tensor, advantages: Tensor, corrected: Tensor | None = None) -> None:
        """Append those of the (B,) advantages of tasks (B,) that :func:`sets_the_threshold` takes.

        Args:
            corrected: (B,) bool; None: no human corrected anything.
        """
        corrected = torch.zeros_like(advantages, dtype=torch.bool) if corrected is None else corrected
        counted = sets_the_threshold(advantages, corrected)
        for task, value in zip(task_index[counted].tolist(), advantages[counted].tolist(), strict=True):
            self._values[task, self._counts[task] % self._values.shape[1]] = value
            self._counts[task] += 1

    def __getitem__(self, task_index: Tensor) -> Tensor:
        """(B,) task indices → (B,) thresholds, NaN where too few advantages are known."""
        return self._per_task(task_index, lambda known, task: torch.quantile(known, 1 - self.positive_fractions[task]))

    def std(self, task_index: Tensor) -> Tensor:
        """(B,) task indices → (B,) standard deviations of recent advantages, NaN where too few are known."""
        return self._per_task(task_index, lambda known, _: known.std(correction=0))

    def _per_task(self, task_index: Tensor, statistic: Callable[[Tensor, int], Tensor]) -> Tensor:
        result = torch.full((len(self._counts),), float("nan"))
        for task in task_index.unique().tolist():
            known = self._values[task, : min(int(self._counts[task]), self._values.shape[1])]
            if len(known) >= min(self.min_count, self._values.shape[1]):
                result[task] = statistic(known, task)
        return result[task_index]

    def state_dict(self) -> dict[str, Tensor]:
        """The windows, for the checkpoint."""
        return {"advantage_window": self._values.clone(), "advantage_counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: it is of other tasks or another window.
        """
        for name, own in (("advantage_window", self._values), ("advantage_counts", self._counts)):
            if state[name].shape != own.shape or state[name].dtype != own.dtype:  # copy_ would broadcast and cast
                raise ValueError(f"{name} is {tuple(state[name].shape)}, here {tuple(own.shape)}")
        self._values.copy_(state["advantage_window"])
        self._counts.copy_(state["advantage_counts"])


def task_thresholds(tables: Iterable[dict[str, np.ndarray]], fractions: Mapping[str, float]) -> dict[str, float]:
    """ε per task, over a labeling's tables: the asked fraction of the task's advantages lies above it.

    NaN for a task of which no advantage counts (:func:`sets_the_threshold`).
    """
    known: dict[str, list[np.ndarray]] = {task: [] for task in fractions}
    for columns in tables:
        counts = sets_the_threshold(columns["advantage"], columns["intervention"])
        for task in fractions:
            known[task].append(columns["advantage"][counts & (columns["task"] == task)])
    return {task: upper_threshold(np.concatenate(parts), fractions[task]) for task, parts in known.items()}


def upper_threshold(values: np.ndarray, fraction: float) -> float:
    """The number that ``round(fraction · n)`` of the (n,) float32 values exceed (fewer where values are equal)."""
    if not len(values):
        return float("nan")
    count = round(fraction * len(values))
    if count == len(values):
        return float(np.nextafter(values.min(), np.float32(-np.inf)))
    return float(np.sort(values)[len(values) - count - 1])
