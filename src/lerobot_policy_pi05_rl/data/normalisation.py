"""What a run normalises with: true statistics of the frames it trains on, from the columns in memory.

Every frame of the training episodes counts once, however often it is drawn (weights, positive frames): bounds say how
far values reach, not how often they come. Recorded statistics (``meta/stats.json``) are only compared.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from lerobot.configs import NormalizationMode
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from ..configuration_pi05_rl import PI05RLConfig
from .episodes import Episode
from .relative import relative_mask
from .sources import DatasetError, Source
from .statistics import BOUNDS, Blocks, Stats, differing, row_statistics, statistics, usable

logger = logging.getLogger(__name__)

KINDS = {OBS_STATE: "STATE", ACTION: "ACTION"}  # what the policy reads and writes → its key of normalization_mapping
MANY = 4  # of a list of dimensions, so many are named


def mode_of(policy: PI05RLConfig, key: str) -> NormalizationMode:
    """How the values of ``key`` are normalised."""
    return NormalizationMode(policy.normalization_mapping.get(KINDS.get(key, "VISUAL"), NormalizationMode.IDENTITY))


def normalisation_statistics(
    policy: PI05RLConfig, sources: list[Source], episodes: list[Episode], cameras: list[str], *, pooled: bool
) -> dict[str, Stats]:
    """What the processors get: statistics of the frames of ``episodes``, of all sources together or, where each is
    brought to the first one's scale (not ``pooled``), of the first; with bounds that serve
    (:func:`~.statistics.usable`).

    Raises:
        DatasetError: pictures are to be normalised with recorded statistics, and there are none.
    """
    used = list(range(len(sources))) if pooled else [0]
    present = [number for number in used if any(episode.source == number for episode in episodes)] or used
    stats: dict[str, Stats] = {}
    for key in KINDS:
        mode = mode_of(policy, key)
        relative = key == ACTION and policy.use_relative_actions
        found = feature_statistics(policy, key, [(sources[n], _rows(sources[n], episodes, n)) for n in present])
        stats[key], reasons = usable(found, mode)
        if reasons:
            lines = "; ".join(f"dimension {d} {reason}" for d, reason in reasons.items())
            logger.info("[DATA] Normalising %s%s: %s", "relative " if relative else "", key, lines)
        if relative or mode not in BOUNDS:
            continue
        for number in present:
            rows = _rows(sources[number], episodes, number)
            own = found if len(present) == 1 else row_statistics(sources[number].recorded(key)[rows])
            _compare_with_recorded(sources[number], key, own, mode)
    return {**stats, **_visual_statistics(policy, [sources[number] for number in used], cameras)}


def feature_statistics(policy: PI05RLConfig, key: str, parts: list[tuple[Source, np.ndarray]]) -> Stats:
    """Statistics of the policy's ``key`` over rows of sources, as recorded; of relative actions if it has them.

    Args:
        parts: of each source, the rows that count.
    """
    if key == ACTION and policy.use_relative_actions:
        width = parts[0][0].recorded(ACTION).shape[1]
        mask = relative_mask(policy, width)
        return statistics([_relative_blocks(parts, d, bool(mask[d]), policy.chunk_size) for d in range(width)])
    return statistics([_column_blocks(parts, key, d) for d in range(parts[0][0].recorded(key).shape[1])])


def _column_blocks(parts: list[tuple[Source, np.ndarray]], key: str, dimension: int) -> Blocks:
    return lambda: (source.recorded(key)[rows, dimension] for source, rows in parts)


def _relative_blocks(
    parts: list[tuple[Source, np.ndarray]], dimension: int, relative: bool, chunk_size: int
) -> Blocks:
    """``a[t+k] − s[t]`` over the rows t and the steps k of a chunk that are trained: behind an episode's end is only
    padding. A dimension that stays absolute is taken from the same steps."""

    def blocks() -> Iterator[np.ndarray]:
        for source, rows in parts:
            last = source.ends[np.searchsorted(source.ends, rows, side="right")] - 1
            actions = source.recorded(ACTION)[:, dimension].astype(np.float64)
            start = source.recorded(OBS_STATE)[rows, dimension].astype(np.float64) if relative else np.zeros(len(rows))
            for ahead in source.alignment.frame_offset(np.arange(chunk_size)):
                within = rows + ahead <= last
                yield actions[rows[within] + ahead] - start[within]

    return blocks


def _rows(source: Source, episodes: list[Episode], number: int) -> np.ndarray:
    """The rows of the episodes that are of source ``number``, each once."""
    return np.concatenate(
        [np.arange(episode.start, episode.end) for episode in episodes if episode.source == number]
        or [np.arange(len(source.columns["index"]))]
    )


def _compare_with_recorded(source: Source, key: str, found: Stats, mode: NormalizationMode) -> None:
    """Say once where the recorded statistics, which other tools use, are not those of the data."""
    apart = differing(found, (source.stats or {}).get(key) or {}, mode)
    if apart:
        low, high = BOUNDS[mode]
        d = apart[0]
        recorded = {name: np.asarray(source.stats[key][name], dtype=np.float64).reshape(-1)[d] for name in (low, high)}
        logger.info(  # every dataset of LeRobot's has such; nothing is to be done
            "[DATA] %s: the recorded statistics of %s (meta/stats.json) are not the data's in %s: %s and %s are %.4g "
            "and %.4g there, truly %.4g and %.4g. The true ones are used",
            source.name,
            key,
            named_dimensions(apart),
            low,
            high,
            recorded[low],
            recorded[high],
            found[low][d],
            found[high][d],
        )


def named_dimensions(dimensions: list[int]) -> str:
    """``dimension 3``, or ``dimensions 0, 2 and 5 more``."""
    if len(dimensions) == 1:
        return f"dimension {dimensions[0]}"
    text = ", ".join(map(str, dimensions[:MANY]))
    more = f" and {len(dimensions) - MANY} more" if len(dimensions) > MANY else ""
    return f"dimensions {text}{more}"


def differences(stats: Mapping[str, Stats], others: Mapping[str, Any], policy: PI05RLConfig) -> list[str]:
    """In words, where ``others`` (a checkpoint's statistics) are far from ``stats``; empty: nowhere."""
    found = []
    for key in KINDS:
        mode = mode_of(policy, key)
        if mode in BOUNDS and key in stats:
            apart = differing(stats[key], others.get(key) or {}, mode)
            if apart:
                found.append(f"{named_dimensions(apart)} of {key}")
    return found


def _visual_statistics(policy: PI05RLConfig, sources: list[Source], cameras: list[str]) -> dict[str, Stats]:
    """The recorded statistics of the cameras, where ``normalization_mapping.VISUAL`` needs any; π0.5's is IDENTITY.

    Of several datasets, mean and deviation are pooled and other bounds reach around all of them.

    Raises:
        DatasetError: a dataset has none that can be used.
    """
    mode = mode_of(policy, OBS_IMAGES)
    if mode not in BOUNDS:
        return {}
    names, stats = BOUNDS[mode], {}
    frames = np.array([len(source.columns["index"]) for source in sources], dtype=np.float64)
    for camera in cameras:
        low, high = np.stack([_recorded_of_camera(source, camera, policy, mode) for source in sources], axis=1)
        if mode is NormalizationMode.MEAN_STD:
            mean = np.average(low, axis=0, weights=frames)
            variance = np.average(high**2 + (low - mean) ** 2, axis=0, weights=frames)
            low, high = mean, np.sqrt(variance)
        else:
            low, high = low.min(axis=0), high.max(axis=0)
        stats[camera] = {name: values.reshape(-1, 1, 1) for name, values in zip(names, (low, high), strict=True)}
    return stats


def _recorded_of_camera(source: Source, camera: str, policy: PI05RLConfig, mode: NormalizationMode) -> np.ndarray:
    """(2, C) the recorded bounds of a camera."""
    names, channels = BOUNDS[mode], policy.image_features[camera].shape[0]
    try:
        own = (source.stats or {})[camera]
        bounds = np.stack([np.asarray(own[name], dtype=np.float64).reshape(channels) for name in names])
    except (KeyError, TypeError, ValueError):
        bounds = np.full((2, channels), np.nan)
    if not np.isfinite(bounds).all():
        raise DatasetError(
            f"dataset {source.name} has no recorded statistics {' and '.join(names)} of {camera} (meta/stats.json), "
            f"which policy.normalization_mapping.VISUAL={mode.value} needs; set "
            "policy.normalization_mapping.VISUAL=IDENTITY, which is π0.5's own"
        )
    return bounds
