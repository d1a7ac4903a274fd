"""What a critic's values are worth, for training log and report: pure functions over columns, one entry per frame.

Sources: rank correlation and AUC (Mann and Whitney 1947) by average ranks; the calibration error bins frames as Guo
et al. 2017 (arXiv 1706.04599) do.
"""

import numpy as np
import pandas as pd

LEAST_EPISODES = 5  # of each outcome; below, the AUC is a matter of one or two episodes


def spearman_per_episode(values: np.ndarray, returns: np.ndarray, episodes: np.ndarray) -> float:
    """Mean over episodes of the rank correlation of V and G; 0 for an episode whose values are all the same.

    Args:
        values, returns, episodes: (frames,); frames with a NaN return, and episodes with fewer than three others,
            are left out. NaN if none is left.
    """
    known = ~np.isnan(returns)
    correlations = []
    for episode in np.unique(episodes[known]):
        rows = known & (episodes == episode)
        if rows.sum() >= 3 and np.ptp(returns[rows]) > 0:
            ranks = _ranks(values[rows]), _ranks(returns[rows])
            correlations.append(np.corrcoef(*ranks)[0, 1] if np.ptp(values[rows]) > 0 else 0.0)
    return float(np.mean(correlations)) if correlations else float("nan")


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive's score is above a negative's, ties counting half; NaN when a class is missing.

    Args:
        scores: (N,) one per episode; positive: (N,) bool.
    """
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if ones == 0 or zeros == 0:
        return float("nan")
    return float((_ranks(scores)[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def calibration_error(values: np.ndarray, returns: np.ndarray, *, bins: int = 10) -> float:
    """Expected ``|mean V − mean G|`` over bins of equally many frames, ordered by V; NaN returns are left out."""
    known = ~np.isnan(returns)
    values, returns = values[known], returns[known]
    if not len(values):
        return float("nan")
    parts = [part for part in np.array_split(np.argsort(values, kind="stable"), bins) if len(part)]
    errors = [abs(values[part].mean() - returns[part].mean()) * len(part) for part in parts]
    return float(sum(errors) / len(values))


def middle_frames(episodes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Indices of the frame of each episode that is nearest to its middle.

    Args:
        episodes: (frames,) ids; places: (frames,) how far into its episode a frame lies, in [0, 1].
    """
    each = [np.flatnonzero(episodes == episode) for episode in np.unique(episodes)]
    return np.array([rows[np.argmin(np.abs(places[rows] - 0.5))] for rows in each], dtype=int)


def _ranks(values: np.ndarray) -> np.ndarray:
    return pd.Series(values).rank().to_numpy()
