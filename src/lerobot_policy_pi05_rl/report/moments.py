"""The section of film strips: the most and the least advantageous moments."""

from typing import Any

import pandas as pd

from .frames import DatasetFrames
from .labels import Labeling, ending
from .statistics import extreme_moments
from .strips import MOST_CAMERAS, Strip, make_strip
from .svg import number

MOMENTS = 3  # of each kind


def cameras(pictures: DatasetFrames) -> str:
    """Which cameras a strip shows, in words."""
    names = " above, ".join(camera.rsplit(".", 1)[-1] for camera in pictures.cameras[:MOST_CAMERAS])
    return names + (" below" if len(pictures.cameras) > 1 else "")


def moments(labeling: Labeling, pictures: DatasetFrames, fps: float) -> list[tuple[str, list[dict[str, Any]]]]:
    """Heading → the moments with the most and with the least advantage, at most one of an episode in each list."""
    frames = labeling.frames
    if not pictures.cameras or not frames["advantage"].notna().any():
        return []
    strips = {
        title: [
            make_strip(pictures, frames, moment, fps)
            for _, moment in extreme_moments(frames, MOMENTS, largest=largest).iterrows()
        ]
        for title, largest in (("Most advantageous", True), ("Least advantageous", False))
    }
    lowest = min(frame.value for shown in strips.values() for strip in shown for frame in strip.frames)
    return [(title, [_moment(strip, lowest, fps) for strip in shown]) for title, shown in strips.items()]


def _moment(strip: Strip, low: float, fps: float) -> dict[str, Any]:
    """``low``: the value at which a bar is empty."""
    row = strip.moment
    return {
        "episode": row["episode_index"],
        "step": row["frame_index"],
        "time": number(row["frame_index"] / fps, 1),
        "text": _in_words(row),
        "frames": [
            {
                "is_moment": frame.is_moment,
                "jpegs": frame.jpegs,
                "time": number(frame.step / fps, 1),
                "value": number(frame.value),
                "width": f"{100.0 if low >= 0 else min(100.0, max(0.0, 100 * (1 - frame.value / low))):.0f}",
            }
            for frame in strip.frames
        ],
    }


def _in_words(row: pd.Series) -> str:
    tag = "positive" if row["positive"] else "negative"
    return (
        f"advantage {signed(row['advantage'])}, tagged {tag}; value {number(row['value'])}, "
        f"return {number(row['return'])}; the episode {ending(row['outcome'])}"
    )


def signed(value: float) -> str:
    """A number with its sign."""
    return ("+" if value > 0 else "") + number(float(value), 3)
