"""Film strips: a few pictures around a moment of an episode, as JPEGs inside the page."""

import base64
import io
from dataclasses import dataclass

import pandas as pd
from PIL import Image

from .frames import DatasetFrames

STRIP_FRAMES = 6
STRIP_BEFORE = 2  # frames before the moment, the others after it: an action shows in what follows
SPACING_S = 0.3  # between neighbouring frames
CELL_WIDTH = 176  # px, two for each that is shown
MOST_CAMERAS = 2


@dataclass(frozen=True)
class StripFrame:
    """One picture of a strip."""

    step: int
    value: float
    is_moment: bool
    jpegs: list[str]  # a data: URI per camera


@dataclass(frozen=True)
class Strip:
    """A moment and its surroundings."""

    moment: pd.Series  # the labeling's row
    frames: list[StripFrame]


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


def make_strip(pictures: DatasetFrames, frames: pd.DataFrame, moment: pd.Series, fps: float) -> Strip:
    """The strip around one row of a labeling; up to two cameras above each other."""
    episode = frames[frames["episode_index"] == moment["episode_index"]]
    values = dict(zip(episode["frame_index"], episode["value"], strict=True))
    steps = strip_steps(int(moment["frame_index"]), len(episode), fps)
    rows = [pictures.read(int(moment["episode_index"]), steps, name) for name in pictures.cameras[:MOST_CAMERAS]]
    cells = [[jpeg_uri(fitted(picture, CELL_WIDTH)) for picture in column] for column in zip(*rows, strict=True)]
    return Strip(
        moment,
        [
            StripFrame(step, float(values[step]), step == int(moment["frame_index"]), cell)
            for step, cell in zip(steps, cells, strict=True)
        ],
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
