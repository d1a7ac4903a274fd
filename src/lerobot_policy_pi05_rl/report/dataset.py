"""``pi05-rl report DATASET``: what the data are worth before a GPU is rented, in lines and on a page.

Columns are read into memory as for training; of the pictures only a few frames are ever decoded, however many episodes
there are.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from lerobot.utils.constants import ACTION, OBS_STATE

from ..data.bad_values import BadValue, find_bad, outliers
from ..data.files.picture_files import check_times
from ..data.labeling import labeling_names, labels_folder
from ..data.named import NamedDataset, open_named, outcomes_as_told
from ..data.names import dimension_labels, dimension_names
from ..data.pictures.stored_frames import DatasetFrames
from ..data.sources import Source, without_episodes
from ..errors import DatasetError, UserError
from ..runtime.files import replacing
from . import dataset_sections, sections
from .checks import duplicates, motion, outcomes, pictures, timing
from .checks.finding import Finding, Verdict
from .checks.recording import UNKNOWN, Recording, Signal, numbered
from .page import render

TOLERANCE_S = 1e-4  # a run's default


@dataclass(frozen=True)
class DatasetReport:
    """What was found, and the page that shows it."""

    findings: list[Finding]
    page: Path
    labelings: list[str]  # that the dataset has; each has a page of its own


def report_dataset(dataset: str | Path, output: str | Path | None = None) -> DatasetReport:
    """Check a dataset and write the page.

    Args:
        output: None: DATASET.report.html beside its folder; of one of the Hub, in the working directory.

    Raises:
        UserError: the dataset is missing or damaged, or the page cannot be written.
    """
    named = open_named(str(dataset), tolerance_s=TOLERANCE_S, pictures=True, key="RUN_OR_DATASET")
    output = default_output(named) if output is None else Path(output)
    if output.is_dir():
        raise UserError(f"--output must be a file, and {output} is a folder")
    source, values = without_bad_values(named.source)
    recording = recording_of(named, source)
    shown = DatasetFrames(source.dataset.root, source.dataset.meta.info.to_dict())
    seen = pictures.look(recording, shown.cameras, partial(read_grey, shown))
    lag = timing.find_lag(recording)
    findings = [
        outcomes.outcomes(recording),
        outcomes.spread(recording),
        outcomes.lengths(recording),
        motion.pauses(recording),
        pictures.frozen(recording, seen),
        pictures.dark(recording, seen),
        values,
        motion.jumps(recording),
        motion.saturation(recording),
        motion.still_dimensions(recording),
        duplicates.duplicates(recording),
        timing.timestamps(recording, TOLERANCE_S, refused_times(source)),
        timing.lag(recording, lag),
    ]
    tasks = dataset_sections.tasks(recording)
    page = render(
        "dataset.html.jinja",
        name=named.name,
        facts=dataset_sections.facts(recording, str(named.folder or named.repo_id), shown.cameras),
        tiles=dataset_sections.tiles(findings, recording),
        findings=findings,
        tasks=tasks,
        most_tasks=sections.MOST_TASKS,
        outcomes=dataset_sections.outcome_table(recording),
        lengths=sections.lengths_figures(dataset_sections.episode_table(recording), tasks, recording.fps),
        dimensions=dataset_sections.dimension_table(recording),
        lag=dataset_sections.lag_figures(lag, recording.fps),
        cameras=dataset_sections.camera_table(seen),
        strips=dataset_sections.film_strips(recording, shown, seen),
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as aside:
            aside.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}); choose another --output") from error
    return DatasetReport(findings, output, labeling_names(labels_folder(source.dataset.root)))


def read_grey(shown: DatasetFrames, episode: int, steps: list[int], camera: str) -> list[np.ndarray]:
    """(H, W) uint8 of each step."""
    return [np.asarray(picture.convert("L")) for picture in shown.read(episode, steps, camera)]


def default_output(named: NamedDataset) -> Path:
    """Beside the dataset: nothing is ever written into one."""
    return Path(f"{named.name}.report.html") if named.folder is None else Path(f"{named.folder}.report.html")


def recording_of(named: NamedDataset, source: Source) -> Recording:
    """What the checks read of a dataset.

    Args:
        source: its own, or that without some of its episodes; states and actions are finite.
    """
    whole, episodes = named.source, source.columns["episode_index"][source.starts]
    told = dict(zip(whole.columns["episode_index"][whole.starts].tolist(), outcomes_as_told(whole), strict=True))
    found = [told[episode] for episode in episodes.tolist()]
    return Recording(
        named.name,
        float(source.dataset.meta.fps),
        episodes,
        source.starts,
        source.ends,
        list(source.tasks),
        [UNKNOWN if outcome is None else outcome.value for outcome in found],
        signal_of(source, OBS_STATE),
        signal_of(source, ACTION),
        source.columns["timestamp"].reshape(-1),
    )


def signal_of(source: Source, key: str) -> Signal:
    """A column as recorded, with what its dimensions are called."""
    values, feature = source.recorded(key), source.features[key]
    names = dimension_names(feature) or []
    return Signal(key, values, dimension_labels(feature, values.shape[1]), len(names) == values.shape[1])


def without_bad_values(source: Source) -> tuple[Source, Finding]:
    """The dataset without the episodes that hold NaN, infinity or outliers, as ``dataset.bad_values=drop_episode``
    has it, and what was found.

    Raises:
        DatasetError: no episode is left.
    """
    keys, total = (OBS_STATE, ACTION), len(source.starts)
    found: list[BadValue] = find_bad(source.columns, keys, lambda values: ~np.isfinite(values))
    source = without_episodes(source, _episodes(found)) if found else source
    far = find_bad(source.columns, keys, lambda values: outliers(values, source.starts, source.ends))
    source = without_episodes(source, _episodes(far)) if far else source
    found += far
    if not found:
        fine = "state and action are finite, and none is far beyond all others"
        return source, Finding("bad values", Verdict.OK, 0.0, fine)
    bad = _episodes(found)
    text = (
        f"{'; '.join(map(str, found))}; the other checks are without {len(bad)} of {total} episodes ({numbered(bad)})"
    )
    advice = "a run stops there: correct the recording, or train with --dataset.bad_values=drop_episode"
    return source, Finding("bad values", Verdict.HARMS, len(bad) / total, text, advice)


def _episodes(found: list[BadValue]) -> list[int]:
    return sorted({episode for value in found for episode in value.episodes})


def refused_times(source: Source) -> str:
    """What a run says of time stamps by which pictures of videos cannot be found; empty: it finds them."""
    if not source.dataset.meta.video_keys:
        return ""
    try:
        check_times(source.name, source.columns, float(source.dataset.meta.fps), source.dataset.tolerance_s)
    except DatasetError as error:
        return str(error)
    return ""
