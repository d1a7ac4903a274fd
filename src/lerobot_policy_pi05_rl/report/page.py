"""Assemble the page: one HTML file that asks for nothing else, from ``page.html.jinja``."""

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from . import critic_sections, curves, moments, sections
from .frames import DatasetFrames
from .inputs import Subject
from .labels import Labeling


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
    environment = Environment(
        loader=PackageLoader(__package__, ""), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("page.html.jinja").render(
        subject=subject,
        tasks=labeling.tasks,
        most_tasks=sections.MOST_TASKS,
        facts=sections.facts(subject, labeling),
        tiles=sections.tiles(labeling),
        data=sections.data_table(subject, labeling),
        lengths=sections.lengths_figures(subject, labeling),
        curves=sections.curve_figures(metrics),
        values=critic_sections.value_figures(subject, labeling),
        thresholds=critic_sections.threshold_table(labeling),
        advantages=critic_sections.advantage_figures(labeling, subject.fps),
        calibration=critic_sections.calibration_figures(labeling),
        calibration_error=critic_sections.calibration_error(labeling),
        cameras=moments.cameras(pictures),
        moments=moments.moments(labeling, pictures, subject.fps),
        **sections.comparison(labelings),
        videos=videos,
    )
