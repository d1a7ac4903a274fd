"""Open LeRobot datasets and read their low-dimensional columns once."""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from lerobot.utils.constants import ACTION, DEFAULT_FEATURES, OBS_STATE, REWARD, TRUNCATED

from ..errors import DatasetError, one_line
from ..returns import Outcome
from .alignment import Alignment, renamed
from .bad_values import BadValue, find_bad, outliers
from .batch import INTERVENTION
from .files.columns import read_columns
from .files.folder import LocalDataset, reading, shortened
from .files.integrity import check_rows
from .files.metadata import VISUAL, column_names, is_shape, read_tasks
from .pictures.video import Segment

logger = logging.getLogger(__name__)


SUCCESS, CUT_OFF, OUTCOME = "next.success", "next.cut_off", "outcome"
INTERVENTION_COLUMNS = (INTERVENTION, "is_intervention", "complementary_info.is_intervention")
SUCCESS_COLUMNS = (SUCCESS, "success")
TRUNCATED_COLUMNS = (TRUNCATED, "truncated")
LABEL_COLUMNS = (REWARD, CUT_OFF, *SUCCESS_COLUMNS, OUTCOME, *TRUNCATED_COLUMNS, *INTERVENTION_COLUMNS)


OUTCOMES_FILE = "outcomes.csv"  # set by hand, in the labels' folder of the first dataset


def labels_folder(dataset_root: str | Path) -> Path:
    """The sibling of the dataset's folder in which everything that is said about it from outside lies."""
    root = Path(dataset_root).absolute()
    return root.with_name(f"{root.name}.labels")


@dataclass(frozen=True)
class Source:
    """One dataset: its LeRobot object (metadata, frames) and its columns, one row per frame, in file order."""

    name: str
    dataset: LocalDataset
    video_backend: str
    columns: dict[str, np.ndarray]  # by the policy's names, once it is aligned
    starts: np.ndarray  # (episodes,) first row of each episode
    ends: np.ndarray  # (episodes,) one past its last row
    tasks: list[str]  # (episodes,) task text
    videos: dict[str, dict[int, Segment]]  # its camera → episode_index → where the episode lies
    alignment: Alignment = field(default_factory=Alignment)
    files: dict[int, Path] = field(default_factory=dict)  # episode_index → its Parquet file
    task_texts: dict[int, str] = field(default_factory=dict)  # task_index → text, of those that lie in files

    @property
    def features(self) -> dict[str, dict]:
        """LeRobot's features under the policy's names, those without a shape left out."""
        features = {key: value for key, value in self.dataset.meta.features.items() if is_shape(value.get("shape"))}
        return renamed(features, self.alignment.names)

    @property
    def stats(self) -> dict[str, dict[str, np.ndarray]] | None:
        """LeRobot's statistics under the policy's names, as recorded."""
        stats = self.dataset.meta.stats
        return None if stats is None else renamed(stats, self.alignment.names)

    def recorded(self, key: str) -> np.ndarray:
        """(frames, D) the column of the policy's ``key`` as recorded."""
        values = self.columns[key]
        return values.reshape(len(values), -1)


def outcomes_path(first: Source) -> Path:
    """The outcome file of the run whose first dataset this is; it names the others in a column."""
    return labels_folder(first.dataset.root) / OUTCOMES_FILE


def use_outcomes_beside(first: Source, outcome_file: str | None) -> str:
    """How to train with the outcomes that ``pi05-rl label`` was told and training does not read by itself, in words;
    empty: there are none, or ``outcome_file`` is read."""
    path = outcomes_path(first)
    if outcome_file is not None or not path.is_file():
        return ""
    return f"Outcomes set by hand lie beside the dataset; train with them: --reward.outcome_file={path}"


def load_source(
    name: str, dataset: LocalDataset, video_backend: str, rename_map: Mapping[str, str] | None = None
) -> Source:
    """Read the columns that training needs into memory (pictures stay where they are) and compare them with the
    metadata.

    Args:
        rename_map: the dataset's name → the policy's; the dataset's columns of these names are read, too.

    Raises:
        DatasetError: the data are not what the metadata say.
    """
    rows = dataset.rows
    with reading(dataset.root):
        tasks = read_tasks(dataset.root)
        features = needed_features(name, dataset, rename_map or {})
        columns = read_columns(
            dataset.files,
            features,
            vectors=tuple(key for key in features if (rename_map or {}).get(key, key) in (ACTION, OBS_STATE)),
            optional=tuple(key for key in features if key not in DEFAULT_FEATURES),
            episodes=dataset.chosen,
        )
    check_rows(name, columns, rows, tasks)
    episodes = columns["episode_index"]
    starts = np.flatnonzero(np.r_[True, episodes[1:] != episodes[:-1]])
    ends = np.r_[starts[1:], len(episodes)]
    texts = [tasks[index] for index in columns["task_index"][starts].tolist()]
    videos = {
        camera: {index: row.videos[camera] for index, row in rows.items()}
        for camera in dataset.meta.video_keys
        if all(camera in row.videos for row in rows.values())
    }
    files = {index: row.data for index, row in rows.items()}
    return Source(name, dataset, video_backend, columns, starts, ends, texts, videos, files=files, task_texts=tasks)


def needed_features(name: str, dataset: LocalDataset, rename_map: Mapping[str, str]) -> dict[str, dict]:
    """Name → declaration of the columns that training may read; all others are left alone.

    Raises:
        DatasetError: such a column lies in the data and is not declared: it would be ignored in silence.
    """
    declared = dataset.meta.features
    wanted = (ACTION, OBS_STATE, *LABEL_COLUMNS, *rename_map)
    present = column_names(dataset.files[0])
    hidden = [key for key in wanted if key in present and key not in declared]
    if hidden:
        raise DatasetError(
            f"dataset {name}: {dataset.files[0]} has the column {hidden[0]}, which meta/info.json does not declare "
            "among its features; declare it there, or remove the column"
        )
    features = {key: declared.get(key, feature) for key, feature in DEFAULT_FEATURES.items()}
    columns = {key: declared[key] for key in wanted if key in declared}
    return features | {key: column for key, column in columns.items() if column["dtype"] not in (*VISUAL, "language")}


def handle_bad_values(source: Source, rename_map: Mapping[str, str], policy: str) -> Source:
    """``source`` without NaN, infinity and outliers in state and action.

    Args:
        policy: ``dataset.bad_values``.

    Raises:
        DatasetError: there are such values and the policy does not say what to do, or no episode is without.
    """
    keys = tuple(key for key in source.columns if rename_map.get(key, key) in (ACTION, OBS_STATE))
    source = _without(
        source, find_bad(source.columns, keys, lambda values: ~np.isfinite(values)), drop=policy == "drop_episode"
    )
    if policy == "keep_outliers":
        return source
    found = find_bad(source.columns, keys, lambda values: outliers(values, source.starts, source.ends))
    text = ", far beyond all others, which would be normalised to nearly one value beside it"
    otherwise = "; if it is right, --dataset.bad_values=keep_outliers"
    return _without(source, found, drop=policy == "drop_episode", text=text, otherwise=otherwise)


def _without(source: Source, found: list[BadValue], *, drop: bool, text: str = "", otherwise: str = "") -> Source:
    """``source`` without the episodes that hold what was ``found``, if they may be dropped."""
    if not found:
        return source
    bad = sorted({episode for value in found for episode in value.episodes})
    what = f"dataset {source.name}: {'; '.join(map(str, found))}{text}"
    if not drop:
        raise DatasetError(
            f"{what}. Correct the recording, or train without the {len(bad)} of {len(source.starts)} episode(s) "
            f"({shortened(bad)}): --dataset.bad_values=drop_episode{otherwise}"
        )
    logger.warning("[DATA] %s: episode(s) %s are dropped (dataset.bad_values)", what, shortened(bad))
    return without_episodes(source, bad)


def without_episodes(source: Source, episodes: Collection[int]) -> Source:
    """``source`` as if ``dataset.episodes`` named all others.

    Raises:
        DatasetError: none is left.
    """
    kept = [index for index in source.dataset.rows if index not in set(episodes)]
    if not kept:
        raise DatasetError(f"dataset {source.name}: no episode is left to train on")
    rows = np.isin(source.columns["episode_index"], kept)
    columns = {key: values[rows] for key, values in source.columns.items()}
    stays = np.isin(source.columns["episode_index"][source.starts], kept)
    ends = np.cumsum((source.ends - source.starts)[stays])
    return replace(
        source,
        dataset=replace(source.dataset, episodes=kept),
        columns=columns,
        starts=np.r_[0, ends[:-1]],
        ends=ends,
        tasks=[task for task, stay in zip(source.tasks, stays, strict=True) if stay],
        videos={camera: {index: places[index] for index in kept} for camera, places in source.videos.items()},
        files={index: source.files[index] for index in kept},
    )


def check_outcome_file_datasets(path: str | None, sources: list[Source]) -> None:
    """Refuse rows of an outcome file that name a dataset nobody opened: their labels would be lost silently.

    Raises:
        DatasetError: there is such a row.
    """
    table = None if path is None else _read_outcome_table(path)
    if table is None or "dataset" not in table.columns:
        return
    names = [source.name for source in sources]
    unknown = sorted(set(table["dataset"].dropna().astype(str)) - set(names))
    if unknown:
        raise DatasetError(f"{path} names the dataset {unknown[0]}, which is not one of {', '.join(names)}")


def _read_outcome_table(path: str) -> pd.DataFrame:
    if not Path(path).is_file():
        raise DatasetError(
            f"reward.outcome_file {path} does not exist; outcomes set by hand, `pi05-rl label CONFIG --success 0-3 "
            "--failure 4`, come into outcomes.csv beside the dataset"
        )
    try:
        table = pd.read_csv(path)
    except ValueError as error:  # empty, unbalanced quotes, not text
        raise DatasetError(f"reward.outcome_file {path} is not a CSV: {one_line(error)}") from error
    missing = {"episode_index", "outcome"} - set(table.columns)
    if missing:
        raise DatasetError(f"{path} lacks the column(s) {', '.join(sorted(missing))}; it has {list(table.columns)}")
    return table


def read_outcome_file(path: str | None, source: Source, *, primary: bool) -> dict[int, Outcome]:
    """Episode → outcome from a CSV ``episode_index,outcome[,dataset]``; rows without a dataset are the primary's.

    Raises:
        DatasetError: the file, a column, an episode or an outcome is not what it should be.
    """
    if path is None:
        return {}
    table = _read_outcome_table(path)
    if "dataset" in table.columns:
        table = table[table["dataset"].isna() & primary | (table["dataset"] == source.name)]
    elif not primary:
        return {}
    known = set(source.columns["episode_index"][source.starts].tolist())
    outcomes = {}
    for row in table.itertuples():
        if row.episode_index not in known:
            raise DatasetError(f"{path}: dataset {source.name} has no episode {row.episode_index}")
        if row.episode_index in outcomes:
            raise DatasetError(f"{path} gives episode {row.episode_index} of dataset {source.name} twice")
        try:
            outcomes[int(row.episode_index)] = Outcome(str(row.outcome).strip().lower())
        except ValueError:
            choices = ", ".join(outcome.value for outcome in Outcome)
            raise DatasetError(
                f"{path}: episode {row.episode_index} has the outcome {row.outcome!r}; it must be one of {choices}"
            ) from None
    return outcomes


def dataset_fingerprint(source: Source) -> str:
    """A hash of what identifies the frames: sizes, features, episode bounds, states and actions.

    Paths, times and everything that people may change beside the frames (outcomes, statistics) are left out.
    """
    meta = source.dataset.meta
    features = {key: [feature["dtype"], list(feature["shape"] or ())] for key, feature in meta.features.items()}
    essentials = [int(meta.total_frames), float(meta.fps), features, (source.ends - source.starts).tolist()]
    digest = hashlib.blake2b(json.dumps(essentials, sort_keys=True).encode(), digest_size=16)
    for key in ("episode_index", ACTION, OBS_STATE):
        if key in meta.features and (name := source.alignment.policy_name(key)) in source.columns:
            digest.update(np.ascontiguousarray(source.columns[name]).tobytes())
    return digest.hexdigest()
