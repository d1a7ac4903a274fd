"""The section of film strips: the most and the least advantageous moments."""

from collections.abc import Sequence

from . import markup
from .frames import DatasetFrames
from .labels import Labeling, ending
from .markup import escape
from .statistics import extreme_moments
from .strips import MOST_CAMERAS, Strip, make_strip
from .svg import number

MOMENTS = 3  # of each kind


def moments_section(labeling: Labeling, pictures: DatasetFrames, fps: float) -> str:
    """The moments with the most and with the least advantage, at most one of an episode in each list."""
    frames = labeling.frames
    if not pictures.cameras or not frames["advantage"].notna().any():
        return ""
    best, worst = (
        [
            make_strip(pictures, frames, moment, fps)
            for _, moment in extreme_moments(frames, MOMENTS, largest=largest).iterrows()
        ]
        for largest in (True, False)
    )
    names = " above, ".join(camera.rsplit(".", 1)[-1] for camera in pictures.cameras[:MOST_CAMERAS])
    names += " below" if len(pictures.cameras) > 1 else ""
    intro = (
        f"<p>Camera: {escape(names)}. The outlined picture is the moment; bar and number under each picture are the "
        "critic’s value there (a longer bar is a higher value). Read on to the right to see what came of it.</p>"
    )
    columns = "".join(
        f"<div><h3>{title}</h3>{''.join(_moment(strip, _lowest(best, worst), fps) for strip in strips)}</div>"
        for title, strips in (("Most advantageous", best), ("Least advantageous", worst))
    )
    return markup.section("Moments", intro, f'<div class="moments">{columns}</div>')


def _lowest(best: Sequence[Strip], worst: Sequence[Strip]) -> float:
    """The value at which a bar is empty."""
    return min(frame.value for strip in (*best, *worst) for frame in strip.frames)


def _moment(strip: Strip, low: float, fps: float) -> str:
    row = strip.moment
    at = number(row["frame_index"] / fps, 1)
    tag = "positive" if row["positive"] else "negative"
    items = []
    for frame in strip.frames:
        share = 100.0 if low >= 0 else 100 * (1 - frame.value / low)
        time = number(frame.step / fps, 1)
        alt = f"episode {row['episode_index']} at {time} s"
        shots = "".join(f'<img src="{jpeg}" alt="{alt}">' for jpeg in frame.jpegs)
        items.append(
            f'<li{' class="now"' if frame.is_moment else ""}><span class="shots">{shots}</span>'
            f'<span class="meter"><i style="width:{min(100.0, max(0.0, share)):.0f}%"></i></span>'
            f'{number(frame.value)}<br><span class="at">{time} s</span></li>'
        )
    text = (
        f"advantage {signed(row['advantage'])}, tagged {tag}; value {number(row['value'])}, "
        f"return {number(row['return'])}; the episode {ending(row['outcome'])}"
    )
    return (
        f'<article class="moment" data-episode="{row["episode_index"]}" data-frame="{row["frame_index"]}">'
        f"<h4>Episode {row['episode_index']}, {at} s (step {row['frame_index']})</h4>"
        f'<p class="muted">{text}</p><ol class="strip">{"".join(items)}</ol></article>'
    )


def signed(value: float) -> str:
    """A number with its sign."""
    return ("+" if value > 0 else "") + number(float(value), 3)
