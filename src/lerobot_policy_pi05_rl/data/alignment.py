"""How a dataset that names, paces or scales things in its own way is read as if recorded like the first one.

Nothing is rewritten: a source carries its own names, frame rate and scale; samples are translated when they are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from lerobot.configs import NormalizationMode

from .statistics import BOUNDS

Affine = tuple[np.ndarray, np.ndarray]  # (D,) factor, (D,) offset


@dataclass(frozen=True)
class Alignment:
    """From one dataset's recording to the policy's view of it."""

    names: dict[str, str] = field(default_factory=dict)  # the policy's key → the dataset's, where they differ
    rate: float = 1.0  # frames of the dataset per step of the policy
    scale: dict[str, Affine] = field(default_factory=dict)  # key → what its values are multiplied with and moved by

    @property
    def description(self) -> str:
        """What is translated; empty: nothing."""
        parts = [f"{own} as {key}" for key, own in self.names.items()]
        if self.rate != 1.0:
            parts.append(f"actions every {self.rate:g} frames")
        return ", ".join(parts + [f"{key} scaled from its own statistics" for key in self.scale])

    def own_name(self, key: str) -> str:
        """The dataset's name of the policy's ``key``."""
        return self.names.get(key, key)

    def policy_name(self, own: str) -> str:
        """The policy's name of the dataset's ``own``."""
        return next((key for key, name in self.names.items() if name == own), own)

    def scaled(self, key: str, values: np.ndarray) -> np.ndarray:
        """(…, D) recorded values of ``key`` → (…, D) float32 in the first dataset's scale."""
        values = values.astype(np.float32)
        if key not in self.scale:
            return values
        factor, offset = self.scale[key]
        return (values * factor + offset).astype(np.float32)

    def frame_offset(self, steps: int | np.ndarray) -> np.ndarray:
        """The frame that was current ``steps`` policy steps later: a recorded command holds until the next one."""
        return np.floor(np.asarray(steps) * self.rate + 1e-6).astype(np.int64)

    def per_frame(self, per_step: float) -> float:
        """A factor per policy step (a discount, λ) as a factor per frame."""
        return per_step if self.rate == 1.0 else per_step ** (1.0 / self.rate)


def own_names(features: Mapping[str, Any], rename_map: Mapping[str, str]) -> dict[str, str]:
    """The policy's key → the dataset's, for the entries of ``rename_map`` (dataset's → policy's, as LeRobot has it)
    that name one of the dataset's ``features``.

    Raises:
        ValueError: two features would carry one name.
    """
    names: dict[str, str] = {}
    for own, key in rename_map.items():
        if own not in features or own == key:
            continue
        rival = names.get(key, key if key in features and key not in rename_map else None)
        if rival is not None:
            raise ValueError(f"rename_map calls {own} {key}, and {rival} would be {key} too")
        names[key] = own
    return names


def renamed(features: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """``features`` (or statistics) under the policy's names."""
    keys = {own: key for key, own in names.items()}
    return {keys.get(own, own): value for own, value in features.items()}


def affine_to(
    own: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray], mode: NormalizationMode
) -> Affine | None:
    """What takes a dataset's values to where the first dataset's statistics normalise them to what its own would.

    None where ``mode`` normalises nothing. A dimension that never moves in either dataset is only moved.
    """
    if mode not in BOUNDS:
        return None
    low, high = BOUNDS[mode]
    (own_low, own_high), (first_low, first_high) = (
        [np.asarray(stats[name], dtype=np.float64) for name in (low, high)] for stats in (own, first)
    )
    if mode is NormalizationMode.MEAN_STD:
        own_range, first_range = own_high, first_high
    else:
        own_range, first_range = own_high - own_low, first_high - first_low
    moves = (own_range > 1e-8) & (first_range > 1e-8)
    factor = np.where(moves, first_range / np.where(moves, own_range, 1.0), 1.0)
    return factor, first_low - own_low * factor
