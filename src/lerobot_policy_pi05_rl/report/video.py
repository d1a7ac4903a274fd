"""Value-overlay videos: the cameras side by side, the critic's value growing beneath, coloured by the tag."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from ..data.pictures.stored_frames import DatasetFrames
from .labels import ending
from .strips import MOST_CAMERAS

PICTURE_HEIGHT = 320  # px
CURVE_HEIGHT = 198
HEADER_HEIGHT = 60
MIN_WIDTH = 480
MARGIN = 60  # left of the curve, for its numbers
BLOCK = 64  # frames decoded at a time
HOLD_S = 1.0  # the last frame stays this long
ENCODERS = ("libx264", "h264", "mpeg4")

BACKGROUND, INK, MUTED, RULE = (18, 22, 27), (231, 234, 238), (163, 173, 185), (52, 60, 71)
TAG_COLOURS = {True: (63, 191, 169), False: (163, 173, 185)}


def write_overlay_video(path: Path, pictures: DatasetFrames, frames: pd.DataFrame, episode: int, fps: float) -> Path:
    """Write the mp4 of one episode.

    Args:
        frames: a labeling's rows, of all episodes.

    Raises:
        UserError: the episode's pictures cannot be read.
    """
    rows = frames[frames["episode_index"] == episode].reset_index(drop=True)
    return write_pictures(path, _camera_pictures(pictures, episode, rows["frame_index"].tolist()), rows, fps)


def write_pictures(path: Path, pictures: Iterable[list[Image.Image]], rows: pd.DataFrame, fps: float) -> Path:
    """Write the mp4 of one episode: for each of its ``rows`` (of a labeling) the cameras' pictures."""
    stream, container = None, av.open(str(path), "w")
    with container:
        for step, cameras in enumerate(pictures):
            picture = draw_overlay(cameras, rows, step, fps)
            stream = stream or _add_stream(container, picture.size, fps)
            repeats = 1 if step + 1 < len(rows) else 1 + round(HOLD_S * fps)
            for _ in range(repeats):
                container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    return path


def draw_overlay(cameras: list[Image.Image], rows: pd.DataFrame, step: int, fps: float) -> Image.Image:
    """One frame of the video at row ``step`` of an episode's ``rows``; even width and height."""
    enlarged = [_enlarged(picture) for picture in cameras]
    pictures_width = sum(picture.width for picture in enlarged) + 8 * (len(enlarged) - 1)
    width = max(MIN_WIDTH, pictures_width + 32)
    width += width % 2
    canvas = Image.new("RGB", (width, HEADER_HEIGHT + PICTURE_HEIGHT + CURVE_HEIGHT), BACKGROUND)
    _draw_header(ImageDraw.Draw(canvas), rows, step, fps, width)
    x = (width - pictures_width) // 2
    for picture in enlarged:
        canvas.paste(picture, (x, HEADER_HEIGHT))
        x += picture.width + 8
    box = (MARGIN, HEADER_HEIGHT + PICTURE_HEIGHT + 34, width - 20, HEADER_HEIGHT + PICTURE_HEIGHT + CURVE_HEIGHT - 46)
    _draw_curve(ImageDraw.Draw(canvas), rows, step, fps, box)
    return canvas


def _draw_header(draw: ImageDraw.ImageDraw, rows: pd.DataFrame, step: int, fps: float, width: int) -> None:
    row = rows.iloc[step]
    tag = "positive" if row["positive"] else "negative"
    by_hand = ", human correction" if row["intervention"] else ""
    draw.text((16, 9), f"Episode {row['episode_index']} {ending(row['outcome'])}", fill=INK, font=_font(17))
    clock = f"{row['frame_index'] / fps:.1f} of {len(rows) / fps:.1f} s"
    draw.text((width - 16, 9), clock, fill=MUTED, font=_font(15), anchor="ra")
    numbers = f"value {_number(row['value'])}   return {_number(row['return'])}"
    draw.text((16, 34), numbers, fill=MUTED, font=_font(15))
    advantage = f"advantage {_number(row['advantage'], 3)}: {tag}{by_hand}"
    draw.text((width - 16, 34), advantage, fill=TAG_COLOURS[bool(row["positive"])], font=_font(15), anchor="ra")


def _draw_curve(
    draw: ImageDraw.ImageDraw, rows: pd.DataFrame, step: int, fps: float, box: tuple[int, int, int, int]
) -> None:
    """The value up to ``step`` on axes that hold the whole episode, positive stretches thick and coloured."""
    left, top, right, bottom = box
    values = rows["value"].to_numpy(float)
    low, high = np.floor(float(np.nanmin(values)) * 10) / 10, 0.0
    xs = left + (right - left) * np.arange(len(rows)) / max(1, len(rows) - 1)
    ys = top + (bottom - top) * (high - values) / max(high - low, 0.1)
    for tick in (high, (low + high) / 2, low):
        y = top + (bottom - top) * (high - tick) / max(high - low, 0.1)
        draw.line([(left, y), (right, y)], fill=RULE)
        draw.text((left - 8, y), _number(tick), fill=MUTED, font=_font(13), anchor="rm")
    draw.text((16, top - 12), "value", fill=INK, font=_font(13), anchor="ls")
    draw.text(((left + right) / 2, bottom + 34), "time in the episode (s)", fill=INK, font=_font(13), anchor="ms")
    draw.text((left, bottom + 18), "0.0", fill=MUTED, font=_font(13), anchor="ms")
    draw.text((right, bottom + 18), f"{(len(rows) - 1) / fps:.1f}", fill=MUTED, font=_font(13), anchor="rs")
    for number in range(step):
        positive = bool(rows["positive"].iloc[number])
        segment = [(xs[number], ys[number]), (xs[number + 1], ys[number + 1])]
        draw.line(segment, fill=TAG_COLOURS[positive], width=5 if positive else 3)
    draw.line([(xs[step], top), (xs[step], bottom)], fill=MUTED)
    colour = TAG_COLOURS[bool(rows["positive"].iloc[step])]
    draw.ellipse((xs[step] - 5, ys[step] - 5, xs[step] + 5, ys[step] + 5), fill=colour, outline=BACKGROUND)


def _camera_pictures(pictures: DatasetFrames, episode: int, steps: list[int]) -> Iterator[list[Image.Image]]:
    """The cameras' pictures of each step; a block at a time, because an episode may not fit in memory."""
    for begin in range(0, len(steps), BLOCK):
        block = steps[begin : begin + BLOCK]
        cameras = [pictures.read(episode, block, name) for name in pictures.cameras[:MOST_CAMERAS]]
        yield from (list(column) for column in zip(*cameras, strict=True))


def _add_stream(container: av.container.OutputContainer, size: tuple[int, int], fps: float) -> av.VideoStream:
    """H.264 if this build of ffmpeg can write it, else MPEG-4."""
    codec = next(name for name in ENCODERS if name in av.codecs_available and _can_encode(name))
    options = {"crf": "20", "preset": "veryfast"} if "264" in codec else {"qscale": "3"}
    stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    return stream


def _can_encode(name: str) -> bool:
    try:
        return av.Codec(name, "w").is_encoder
    except av.codec.codec.UnknownCodecError:
        return False


def _enlarged(picture: Image.Image) -> Image.Image:
    """As high as the video's pictures; tiny ones without blur, so that their pixels stay honest."""
    sampling = Image.Resampling.NEAREST if picture.height * 2 <= PICTURE_HEIGHT else Image.Resampling.LANCZOS
    return picture.resize((round(picture.width * PICTURE_HEIGHT / picture.height), PICTURE_HEIGHT), sampling)


def _number(value: float, digits: int = 2) -> str:
    return "unknown" if np.isnan(value) else f"{value:.{digits}f}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
