"""Whether the pictures that the policy reads are where the metadata say, before the first of them is drawn."""

import logging
import math

import numpy as np

from ...errors import DatasetError
from ..pictures.decoding import EXACT
from ..sources import Source
from .columns import Columns
from .folder import missing_file
from .integrity import LEAVE_OUT, off_grid
from .metadata import column_names

logger = logging.getLogger(__name__)


def check_pictures(source: Source, cameras: list[str]) -> None:
    """Files, columns and times of the pictures of ``cameras`` (the policy's names); nothing is decoded.

    Raises:
        DatasetError: a file or a column is missing, or a timestamp does not tell its picture.
    """
    dataset, fps = source.dataset, source.dataset.meta.fps
    own = [source.alignment.own_name(camera) for camera in cameras]
    videos = [camera for camera in own if camera in dataset.meta.video_keys]
    for camera in videos:
        if camera not in source.videos:
            raise DatasetError(
                f"dataset {source.name}: meta/episodes does not say where the videos of {camera} lie (columns "
                f"videos/{camera}/chunk_index, file_index, from_timestamp); copy the dataset anew"
            )
        for index, segment in source.videos[camera].items():
            if not segment.path.is_file():
                raise missing_file(segment.path, index, dataset.repo_id, dataset.root)
    if videos:
        check_times(source.name, source.columns, fps, dataset.tolerance_s)
    images = [camera for camera in own if camera in dataset.meta.image_keys]
    for path in dataset.files if images else ():
        absent = [camera for camera in images if camera not in column_names(path)]
        if absent:
            raise DatasetError(f"dataset {source.name}: {path} has no pictures {absent[0]}; copy the dataset anew")
    if images:
        dataset.hf_dataset  # noqa: B018 - read here, not once in every worker
        found = off_grid(source.columns, fps)
        if found is not None and found[0] > 0.5 / fps:
            logger.warning(
                "[DATA] %s: timestamps are up to %.3g s off frame_index / fps; actions are taken to be 1/%g s apart",
                source.name,
                found[0],
                fps,
            )


def check_times(name: str, columns: Columns, fps: float, tolerance_s: float) -> None:
    """Whether the pictures of a video can be found by the timestamps.

    Raises:
        DatasetError: a timestamp is further from its picture than ``tolerance_s``.
    """
    found = off_grid(columns, fps)
    if found is None or found[0] <= tolerance_s:
        return
    distance, row = found
    where = (
        f"dataset {name}: frame {columns['frame_index'][row]} of episode {columns['episode_index'][row]} has the "
        f"timestamp {columns['timestamp'][row]:.6g} s, {distance:.3g} s from its picture's at {fps:g} frames a second"
    )
    if not np.isfinite(distance):
        raise DatasetError(f"{where}; {LEAVE_OUT}")
    raise DatasetError(f"{where}; tolerance_s is {tolerance_s:g}. {_advice(distance, fps)}")


def _advice(distance: float, fps: float) -> str:
    """The tolerance that covers ``distance`` (s), and what it means (pictures.py)."""
    allowed = f"{math.ceil(distance * 1.01 * 1e5 + 1) / 1e5:g}"
    if float(allowed) <= EXACT / fps:
        return f"No other picture is so near: --tolerance_s={allowed} reads it"
    return (
        f"If the video has one picture per row, --tolerance_s={allowed} reads it: so wide, it lets pictures be found "
        "by counting the episode's rows, not by time"
    )
