"""``pi05-rl report RUN_OR_DATASET``: find what there is, write the page and, if asked, overlay videos.

python -m lerobot_policy_pi05_rl.report.build outputs/offline --labels recap

A run's page, or that of a dataset's labeling, is made here; what a dataset is worth before that, in dataset.py.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from lerobot.utils.constants import PRETRAINED_MODEL_DIR

from ..checkpoint.write import last_checkpoint
from ..data.labeling import labels_folder, own_labeling
from ..data.pictures.stored_frames import DatasetFrames
from ..errors import UserError
from ..labels.critic import load_critic
from ..runtime.files import replacing
from . import critic_sections, curves, sections, statistics, strips
from .checks.finding import summary
from .dataset import report_dataset
from .inputs import Subject, is_dataset, open_subject, read_metrics
from .labels import LabelingTable, newest_labeling, read_labeling_table
from .page import render
from .video import write_overlay_video

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point.

    Raises:
        UserError: the input is not what it should be.
    """
    args = make_parser().parse_args(argv)
    names, episodes = split_names(args.labels), split_episodes(args.video_episodes)
    if names or episodes or not is_dataset(args.subject):
        report(args.subject, labels=names, output=args.output, video_episodes=episodes)
        return 0
    found = report_dataset(args.subject, args.output)
    print("\n".join([*(finding.line for finding in found.findings), summary(found.findings), f"page: {found.page}"]))
    if found.labelings:
        print(
            f"labelings of it: {', '.join(found.labelings)}; `pi05-rl report {args.subject} --labels NAME` shows one"
        )
    return 0


def report(
    run_or_dataset: str | Path,
    *,
    labels: Sequence[str] = (),
    output: str | Path | None = None,
    video_episodes: Sequence[int] = (),
) -> Path:
    """Write one self-contained HTML page about a run's directory or a dataset; returns the file.

    A dataset's page says what its data are worth; with ``labels`` or ``video_episodes`` it is that of a labeling.

    Args:
        run_or_dataset: a run's folder, a dataset's, or a dataset of the Hub.
        labels: names of labelings; more than one are compared with the first. Empty: the run's own; a run that
            trained no critic has none, and its page says so in place of what needs values.
        output: None: report.html in the run, DATASET.report.html beside the dataset, or NAME.html beside the labeling.
        video_episodes: of these, value-overlay videos are written beside the page.

    Raises:
        UserError: the input is not what it should be.
    """
    if not labels and not video_episodes and is_dataset(run_or_dataset):
        return report_dataset(run_or_dataset, output).page
    subject = open_subject(run_or_dataset)
    name = None if labels else default_labeling(subject)
    names = list(labels) if name is None else [name]
    total_frames = int(subject.info["total_frames"])
    root, episodes = subject.dataset_root, subject.episodes
    labelings = [read_labeling_table(root, name, total_frames, episodes) for name in dict.fromkeys(names)]
    labelings = labelings or [table_without_values(subject)]
    output = default_output(subject, labelings[0]) if output is None else Path(output)
    pictures = DatasetFrames(subject.dataset_root, subject.info)
    output.parent.mkdir(parents=True, exist_ok=True)
    videos = write_videos(video_episodes, labelings[0], pictures, subject.fps, output)
    page = render_page(subject, labelings, pictures, read_metrics(subject.run), videos)
    with replacing(output) as aside:
        aside.write_text(page, encoding="utf-8")
    logger.info("[REPORT] Wrote %s (%.1f MB)", output, output.stat().st_size / 1e6)
    return output


def render_page(
    subject: Subject,
    labelings: Sequence[LabelingTable],
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
    of_values = {} if labeling.no_values else values_sections(subject, labeling, pictures)
    episodes = statistics.episode_table(labeling.frames, by_task=True)
    return render(
        "page.html.jinja",
        name=subject.name,
        subject=subject,
        tasks=labeling.tasks,
        most_tasks=sections.MOST_TASKS,
        facts=sections.facts(subject, labeling),
        tiles=sections.tiles(labeling),
        data=sections.data_table(subject, labeling),
        lengths=sections.lengths_figures(episodes, labeling.tasks, subject.fps),
        curves=sections.curve_figures(metrics),
        note=labeling.note,
        no_values=labeling.no_values,
        **of_values,
        **sections.comparison(labelings),
        videos=videos,
    )


def values_sections(subject: Subject, labeling: LabelingTable, pictures: DatasetFrames) -> dict[str, Any]:
    """What the template shows of a labeling's values and advantages."""
    return {
        "values": critic_sections.value_figures(subject, labeling),
        "thresholds": critic_sections.threshold_table(labeling),
        "advantages": critic_sections.advantage_figures(labeling, subject.fps),
        "calibration": critic_sections.calibration_figures(labeling),
        "calibration_error": critic_sections.calibration_error(labeling),
        "cameras": strips.cameras(pictures),
        "moments": strips.moments(labeling, pictures, subject.fps),
    }


def make_parser() -> argparse.ArgumentParser:
    """The verb's options."""
    parser = argparse.ArgumentParser(prog="pi05-rl report", description="Write one self-contained HTML page.")
    parser.add_argument(
        "subject", metavar="RUN_OR_DATASET", help="a run's folder, or a dataset's, or its name on the Hub"
    )
    parser.add_argument(
        "--labels",
        metavar="NAME",
        nargs="+",
        default=[],
        help="labelings to show; more than one are compared with the first (default: the run's own)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="HTML file (default: report.html in the run, DATASET.report.html, or NAME.html beside the labeling)",
    )
    parser.add_argument(
        "--video-episodes", metavar="I,J", nargs="+", default=[], help="also write value-overlay videos of these"
    )
    return parser


def default_labeling(subject: Subject) -> str | None:
    """The newest labeling; for a run, the one that it was trained from or has made, else the newest that its critic
    made, which is None where its checkpoint holds no critic.

    Raises:
        UserError: there is none.
    """
    if subject.labeling is not None:
        return subject.labeling
    if subject.run is not None and (own := own_labeling(subject.run)) is not None:
        return own
    name = newest_labeling(subject.dataset_root, subject.run)
    if name is not None:
        return name
    if subject.run is not None:
        checkpoint = last_checkpoint(subject.run)
        trained = checkpoint is not None and load_critic(str(checkpoint / PRETRAINED_MODEL_DIR)) is not None
        return ensure_labels(subject) if trained else None
    raise UserError(f"the dataset {subject.dataset_root} has no labeling yet; make one with `pi05-rl label` first")


def ensure_labels(subject: Subject) -> str:
    """Label the run's dataset with its newest critic; the labeling's name.

    Raises:
        UserError: the run's dataset cannot be labelled.
    """
    from ..labels.command import main as label  # imports torch and LeRobot, which the page itself does not need

    logger.info("[REPORT] No labeling of this run yet: labelling its dataset with its newest critic")
    label([str(subject.run)])
    name = newest_labeling(subject.dataset_root, subject.run)
    if name is None:
        raise UserError(f"{subject.run} could not be labelled; run `pi05-rl label {subject.run}`")
    return name


def table_without_values(subject: Subject) -> LabelingTable:
    """What there is to know of the dataset of a run that trained no critic.

    Raises:
        UserError: the run's configuration or dataset cannot be read.
    """
    from ..labels.command import load_label_config  # as in ensure_labels
    from ..labels.outcomes import unlabelled_columns

    logger.info("[REPORT] The run trained no critic: the page is without values")
    cfg, _ = load_label_config([str(subject.run), "--policy.pi05_checkpoint=null"])  # which may lie on the Hub
    columns, unknown = unlabelled_columns(cfg)
    frames = pd.DataFrame(columns)
    episodes = frames["episode_index"].nunique()
    taken_for = "truncated" if cfg.reward.unlabelled == "error" else cfg.reward.unlabelled
    note = f"{unknown} of {episodes} episodes have no outcome and are counted as {taken_for}." if unknown else ""
    why = (
        f"This run trained no critic (policy.policy_extraction={cfg.policy.policy_extraction}), so value, advantage, "
        "calibration and moments are missing"
    )
    return LabelingTable("", frames, {}, why, note)


def default_output(subject: Subject, labeling: LabelingTable) -> Path:
    """Inside the run, or beside the side-car: nothing is ever written into a dataset."""
    if subject.run is not None:
        return subject.run / "report.html"
    return labels_folder(subject.dataset_root) / f"{labeling.name}.html"


def write_videos(
    episodes: Sequence[int], labeling: LabelingTable, pictures: DatasetFrames, fps: float, output: Path
) -> list[str]:
    """One overlay video per episode, beside the page; their file names.

    Raises:
        UserError: there are no values, or the dataset has no such episode or no camera.
    """
    if episodes and labeling.no_values:
        raise UserError(f"--video-episodes draws values. {labeling.no_values}; show a labeling's with --labels NAME")
    known = set(labeling.frames["episode_index"].tolist())
    unknown = [episode for episode in episodes if episode not in known]
    if unknown:
        raise UserError(f"--video-episodes names episode {unknown[0]}, which is not in {pictures.root}")
    if episodes and not pictures.cameras:
        raise UserError(f"--video-episodes needs pictures, but {pictures.root} has no camera")
    names = []
    for episode in episodes:
        path = output.with_name(f"{output.stem}_episode_{episode:03d}.mp4")
        write_overlay_video(path, pictures, labeling.frames, episode, fps)
        logger.info("[REPORT] Wrote %s", path)
        names.append(path.name)
    return names


def split_names(values: Sequence[str]) -> list[str]:
    """``["a,b", "c"]`` → ``["a", "b", "c"]``."""
    return [name for value in values for name in value.split(",") if name]


def split_episodes(values: Sequence[str]) -> list[int]:
    """Episode numbers of ``3,17`` or ``3 17``.

    Raises:
        UserError: one is not a number.
    """
    try:
        return [int(name) for name in split_names(values)]
    except ValueError:
        raise UserError(f"--video-episodes takes episode numbers such as 3,17; got {' '.join(values)!r}") from None


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
