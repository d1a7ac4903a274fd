"""The most and the least advantageous moments as film strips: a few pictures around each, as JPEGs inside the page."""

import base64
import io
from typing import Any

import pandas as pd
from PIL import Image

from ..data.labeling import OF_A_FAILURE
from ..data.pictures.stored_frames import DatasetFrames
from .labels import LabelingTable, ending
from .statistics import evenly_spaced, extreme_moments
from .svg import number

MOMENTS = 3  # of each kind
STRIP_FRAMES = 6
STRIP_BEFORE = 2  # frames before the moment, the others after it: an action shows in what follows
SPACING_S = 0.3  # between neighbouring frames
CELL_WIDTH = 176  # px, two for each that is shown
MOST_CAMERAS = 2


def cameras(pictures: DatasetFrames) -> str:
    """Which cameras a strip shows, in words."""
    names = " above, ".join(camera.rsplit(".", 1)[-1] for camera in pictures.cameras[:MOST_CAMERAS])
    return names + (" below" if len(pictures.cameras) > 1 else "")


def moments(labeling: LabelingTable, pictures: DatasetFrames, fps: float) -> list[tuple[str, list[dict[str, Any]]]]:
    """Heading → the moments with the most and with the least advantage, at most one of an episode in each list.

    Where every frame of a failure has the same advantage, the least is looked for among the other episodes.
    """
    frames = labeling.frames
    if not pictures.cameras or not frames["advantage"].notna().any():
        return []
    least, judged = "Least advantageous", frames[frames["advantage"] > OF_A_FAILURE]
    if labeling.baseline == "success" and len(judged):
        least = "Least advantageous, failed episodes apart"
    else:
        judged = frames
    strips = {
        title: [
            (moment, strip_rows(frames, moment, fps))
            for _, moment in extreme_moments(candidates, MOMENTS, largest=largest).iterrows()
        ]
        for title, candidates, largest in (("Most advantageous", frames, True), (least, judged, False))
    }
    lowest = min(float(rows["value"].min()) for shown in strips.values() for _, rows in shown)
    return [
        (title, [_strip(labeling, pictures, *strip, lowest, fps) for strip in shown])
        for title, shown in strips.items()
    ]


def film(pictures: DatasetFrames, episode: int, length: int, fps: float) -> list[dict[str, Any]]:
    """What the template shows of a whole episode: evenly spaced frames, up to two cameras above each other."""
    steps = evenly_spaced(length, STRIP_FRAMES).tolist()
    columns = [pictures.read(episode, steps, name) for name in pictures.cameras[:MOST_CAMERAS]]
    return [
        {"jpegs": [jpeg_uri(fitted(picture, CELL_WIDTH)) for picture in cell], "time": number(step / fps, 1)}
        for step, *cell in zip(steps, *columns, strict=True)
    ]


def strip_rows(frames: pd.DataFrame, moment: pd.Series, fps: float) -> pd.DataFrame:
    """The rows of a labeling around its row ``moment``."""
    episode = frames[frames["episode_index"] == moment["episode_index"]].set_index("frame_index", drop=False)
    return episode.loc[strip_steps(int(moment["frame_index"]), len(episode), fps)]


def strip_steps(moment: int, length: int, fps: float) -> list[int]:
    """Frame indices of a strip: evenly spaced, inside the episode, the moment among them."""
    spacing = max(1, round(SPACING_S * fps))
    while spacing > 1 and spacing * (STRIP_FRAMES - 1) >= length:
        spacing -= 1
    steps = [moment + spacing * offset for offset in range(-STRIP_BEFORE, STRIP_FRAMES - STRIP_BEFORE)]
    while steps[0] < 0:
        steps = [step + spacing for step in steps]
    while steps[-1] >= length and steps[0] - spacing >= 0:
        steps = [step - spacing for step in steps]
    return [step for step in steps if 0 <= step < length]


def _strip(
    labeling: LabelingTable, pictures: DatasetFrames, moment: pd.Series, rows: pd.DataFrame, low: float, fps: float
) -> dict[str, Any]:
    """What the template shows of a moment, up to two cameras above each other; a bar is empty at the value ``low``."""
    steps = rows["frame_index"].tolist()
    columns = [pictures.read(int(moment["episode_index"]), steps, name) for name in pictures.cameras[:MOST_CAMERAS]]
    return {
        "episode": moment["episode_index"],
        "step": moment["frame_index"],
        "time": number(moment["frame_index"] / fps, 1),
        "text": _in_words(moment, labeling.baseline),
        "frames": [
            {
                "is_moment": step == moment["frame_index"],
                "jpegs": [jpeg_uri(fitted(picture, CELL_WIDTH)) for picture in cell],
                "time": number(step / fps, 1),
                "value": number(value),
                "width": f"{100.0 if low >= 0 else min(100.0, max(0.0, 100 * (1 - value / low))):.0f}",
            }
            for step, value, *cell in zip(steps, rows["value"].tolist(), *columns, strict=True)
        ],
    }


def _in_words(row: pd.Series, baseline: str) -> str:
    tag = "positive" if row["positive"] else "negative"
    sign = "+" if row["advantage"] > 0 else ""
    of_a_success = f" ({number(row['success_value'])} of a success)" if baseline == "success" else ""
    return (
        f"advantage {sign}{number(float(row['advantage']), 3)}, tagged {tag}; value {number(row['value'])}"
        f"{of_a_success}, return {number(row['return'])}; the episode {ending(row['outcome'])}"
    )


def fitted(picture: Image.Image, width: int) -> Image.Image:
    """Scaled to ``width``; tiny pictures grow by whole factors without blur, so that their pixels stay honest."""
    if picture.width * 2 <= width:
        factor = width // picture.width
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    if picture.width <= width:
        return picture
    return picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)


def jpeg_uri(picture: Image.Image, quality: int = 80) -> str:
    """A ``data:`` URI that needs no file beside the page."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
