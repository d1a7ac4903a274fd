"""The numbers of the report: pure functions over a labeling's columns."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..training import critic_metrics


def evenly_spaced(length: int, most: int) -> np.ndarray:
    """At most ``most`` row numbers, evenly spaced, the first and last among them."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int)) if length else np.arange(0)


def episode_table(frames: pd.DataFrame, *, by_task: bool = False) -> pd.DataFrame:
    """One row per episode: task, outcome, length (frames), interventions (frames), index ``episode_index``.

    Args:
        by_task: an episode whose task changes has a row for each, with the frames of that task alone.
    """
    groups = frames.groupby(["episode_index", "task"] if by_task else "episode_index", sort=True)
    return pd.DataFrame(
        {
            "task": groups["task"].first(),
            "outcome": groups["outcome"].first(),
            "length": groups.size(),
            "interventions": groups["intervention"].sum().astype(int),
        }
    )


def positive_share(frames: pd.DataFrame) -> float:
    """The share of frames that are tagged positive; NaN without frames."""
    return float(frames["positive"].mean()) if len(frames) else float("nan")


@dataclass(frozen=True)
class CalibrationBin:
    """Frames whose predicted value falls in one bin."""

    low: float
    high: float
    count: int
    mean_value: float
    mean_return: float


def calibration(frames: pd.DataFrame, bins: int = 10) -> list[CalibrationBin]:
    """Predicted value against the mean return, in equally wide bins of the value; empty bins are left out."""
    known = frames[frames["return"].notna() & frames["value"].notna()]
    if known.empty:
        return []
    low, high = float(known["value"].min()), float(known["value"].max())
    edges = np.linspace(low, high if high > low else low + 1e-6, bins + 1)
    which = np.clip(np.searchsorted(edges, known["value"], side="right") - 1, 0, bins - 1)
    return [
        CalibrationBin(
            float(edges[number]),
            float(edges[number + 1]),
            len(rows),
            float(rows["value"].mean()),
            float(rows["return"].mean()),
        )
        for number, rows in known.groupby(which)
    ]


def calibration_error(frames: pd.DataFrame) -> float:
    """As in the training log, over all frames."""
    return critic_metrics.calibration_error(*_values_and_returns(frames))


def spearman(frames: pd.DataFrame) -> float:
    """Rank correlation of value and return, mean over the episodes, as in the training log."""
    return critic_metrics.spearman_per_episode(*_values_and_returns(frames), frames["episode_index"].to_numpy())


def outcome_auc(frames: pd.DataFrame) -> float:
    """The chance that the value at the middle of a success is above that at the middle of a failure."""
    episodes = frames.groupby("episode_index")["index"]
    length = episodes.transform("size") - 1
    place = (frames["index"] - episodes.transform("min")) / length.clip(lower=1)
    middle = frames.iloc[critic_metrics.middle_frames(frames["episode_index"].to_numpy(), place.to_numpy())]
    labelled = middle[middle["outcome"].isin(("success", "failure"))]
    return critic_metrics.auc(labelled["value"].to_numpy(), (labelled["outcome"] == "success").to_numpy())


def few_outcomes(frames: pd.DataFrame) -> str | None:
    """In words, which outcome too few episodes have for an AUC to say anything; None where there are enough."""
    outcomes = frames.groupby("episode_index")["outcome"].first()
    counts = {outcome: int((outcomes == outcome).sum()) for outcome in ("success", "failure")}
    rarest = min(counts, key=counts.__getitem__)
    if counts[rarest] >= critic_metrics.LEAST_EPISODES:
        return None
    plural = {"success": "successes", "failure": "failures"}[rarest]
    return f"{counts[rarest]} {rarest if counts[rarest] == 1 else plural}"


def _values_and_returns(frames: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return frames["value"].to_numpy(), frames["return"].to_numpy()


def extreme_moments(frames: pd.DataFrame, count: int = 3, *, largest: bool) -> pd.DataFrame:
    """The ``count`` rows with the most (or least) advantage, at most one of each episode, most extreme first."""
    known = frames[frames["advantage"].notna()]
    ordered = known.sort_values("advantage", ascending=not largest, kind="stable")
    return ordered.drop_duplicates("episode_index").head(count)
