"""Assemble the page: one HTML file that asks for nothing else."""

from collections.abc import Sequence

from . import critic_sections, curves, moments, sections
from .frames import DatasetFrames
from .inputs import Subject
from .labels import Labeling
from .markup import escape
from .style import PATTERNS, STYLE


def render_page(
    subject: Subject,
    labelings: Sequence[Labeling],
    pictures: DatasetFrames,
    metrics: dict[str, curves.Series],
    videos: Sequence[str] = (),
) -> str:
    """The whole page.

    Args:
        labelings: the first is the page's, the others are compared with it.
        metrics: the run's numbers, empty for a dataset.
        videos: names of overlay videos beside the page.
    """
    labeling = labelings[0]
    content = [
        sections.header(subject, labeling),
        sections.overview(labeling),
        sections.data_section(subject, labeling),
        sections.curves_section(metrics),
        critic_sections.values_section(subject, labeling),
        critic_sections.advantages_section(labeling, subject.fps),
        critic_sections.calibration_section(labeling),
        moments.moments_section(labeling, pictures, subject.fps),
        sections.comparison_section(labelings),
        sections.videos_section(videos),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(subject.name)} · π0.5 RL report</title><style>{STYLE}</style></head>"
        f"<body>{PATTERNS}{''.join(content)}<footer>Made by <code>pi05-rl report</code>.</footer></body></html>\n"
    )
