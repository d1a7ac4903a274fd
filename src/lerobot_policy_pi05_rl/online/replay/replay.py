"""The learner's replay: a LeRobotDataset of whole episodes that grows while it is read, and survives crashes."""

import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.compute_stats import aggregate_stats
from lerobot.datasets.utils import INFO_PATH, STATS_PATH, DatasetInfo, serialize_dict
from lerobot.datasets.video_utils import get_video_info

from ...cards.replay import replay_card
from ...cards.text import CARD, replace_card
from ...data.sources import CUT_OFF, SUCCESS, Source
from ...returns import Outcome, episode_outcome
from ..episode import Episode, EpisodeSpec
from . import files
from .card import Acted, replay_facts
from .compaction import build_compacted
from .files import Ledger, Receipt
from .memory import Held, Memory
from .recovery import ReplayError, Row, data_file, open_folder, place_of
from .stored_episode import (
    UID,
    column_stats,
    episode_row,
    frame_columns,
    frame_table,
    row_stats,
    table_columns,
    without_stats,
    write_videos,
)

logger = logging.getLogger(__name__)

SLACK = 1.1  # episodes beyond the capacity stay on the disk until they are a tenth of it: compaction rewrites tables
MANY_TABLES, MOST_TABLES = 64, 500  # so many files are merged at the end, or at once: opening reads each of them


class Replay:
    """Whole episodes on disk (``root``, a LeRobotDataset at every instant that it is not being written) and their
    columns in memory.

    One thread appends; any thread reads. What :meth:`source` gave stays as it was, its videos included, until a tenth
    of the capacity has been appended since.
    """

    def __init__(
        self,
        root: Path,
        spec: EpisodeSpec,
        info: DatasetInfo,
        rows: list[Row],
        ledger: Ledger,
        tasks: list[str],
        *,
        repo_id: str,
        capacity: int,
        encoder: RGBEncoderConfig,
        started_from: str | None = None,
    ):
        """Use :meth:`open`."""
        self.root, self.repo_id, self.capacity = root, repo_id, capacity
        self._spec, self._info, self._ledger = spec, info, ledger
        self._rows = [without_stats(row) for row in rows]
        self._tasks, self._encoder = {task: number for number, task in enumerate(tasks)}, encoder
        self._memory = Memory(capacity)
        self._stats = aggregate_stats([row_stats(row) for row in rows]) if rows else None
        self._uids = set(ledger.receipts) | {row[UID] for row in rows}
        self._doomed: list[Path] = []  # videos of evicted episodes that an old snapshot may still read
        self._acted: dict[str, Acted] = {}  # uid → for the card
        self._started_from = started_from
        self._damaged = False
        self._write_lock, self._lock = threading.Lock(), threading.Lock()
        self._number = 0  # of the next episode, as it is called in memory
        self._videos = 1 + max(
            (files.numbered(path) for row in rows for path in self._row_videos(row).values()), default=-1
        )
        self._tables = 1 + max((files.numbered(Path(data_file(row))) for row in rows), default=-1)

    @classmethod
    def open(
        cls,
        root: Path,
        spec: EpisodeSpec,
        *,
        repo_id: str,
        names: dict[str, Any],
        robot_type: str | None,
        capacity: int,
        encoder: RGBEncoderConfig,
        started_from: str | None = None,
    ) -> "Replay":
        """Create the replay, or recover it: exactly the episodes whose :meth:`append` was committed are in it.

        Args:
            names: LeRobot's feature names of state and action, for a new replay.
            capacity: transitions; older episodes are dropped.
            started_from: the checkpoint that the policy started from, for the card.

        Raises:
            ReplayError: ``root`` holds something else, or a replay of other features or another rate.
        """
        av.logging.set_libav_level(av.logging.ERROR)  # the encoder describes every video otherwise
        info, rows, tasks = open_folder(root, spec, names, robot_type)
        ledger = Ledger(root / files.LEDGER)
        constants: dict[str, Any] = {"repo_id": repo_id, "capacity": capacity, "encoder": encoder}
        replay = cls(root, spec, info, rows, ledger, tasks, **constants, started_from=started_from)
        replay._load()
        replay._write_card()
        return replay

    def __len__(self) -> int:
        """Transitions that may be drawn."""
        with self._lock:
            return len(self._memory)

    def __contains__(self, uid: str) -> bool:
        """Whether an episode was ever stored."""
        return uid in self._uids

    @property
    def transitions_received(self) -> int:
        """Transitions that were ever stored, those of evicted episodes included."""
        return self._ledger.transitions

    @property
    def episodes_received(self) -> int:
        """Episodes that were ever stored."""
        return len(self._ledger.receipts)

    def outcomes_received(self) -> dict[str, int]:
        """success, failure, truncated → episodes that were ever stored."""
        return dict(self._ledger.outcomes)

    @property
    def episodes(self) -> int:
        """Episodes that may be drawn."""
        with self._lock:
            return len(self._memory.episodes)

    def source(self) -> Source:
        """What may be drawn now, as the data code reads it; it never changes. ``episode_index`` is a running number,
        which episodes keep while the process lives.

        Raises:
            ValueError: nothing was appended yet.
        """
        with self._lock:
            if not len(self._memory):
                raise ValueError("the replay is empty")
            return self._memory.source(self.repo_id, self.root, self._info.features, self._stats, self._info.fps)

    def append(self, episode: Episode) -> bool:
        """Store an episode; it is on the disk on return. False: it was stored before.

        Raises:
            BadEpisodeError: a picture is damaged; nothing is stored.
            ReplayError: writing failed before (a full disk); open the replay again.
        """
        with self._write_lock:
            if episode.uid in self:
                return False
            if self._damaged:
                raise ReplayError(
                    f"writing to the replay in {self.root} failed before; free the disk and start the learner again"
                )
            staging = files.fresh_folder(self.root / files.INCOMING)
            self._store(episode, staging)
            shutil.rmtree(staging)
            if self._info.total_frames > SLACK * self.capacity or self._tables >= MOST_TABLES:
                self._compact()
            self._write_card()
            return True

    def compact(self) -> None:
        """Merge the tables into one file each and remove evicted episodes, where there is enough of either."""
        with self._write_lock:
            evicted = len(self._rows) > len(self._memory.episodes)
            if evicted or self._tables >= MANY_TABLES:
                self._compact()
                self._write_card()

    def _row_videos(self, row: Row) -> dict[str, Path]:
        """Camera → the episode's file."""
        return {
            camera: self.root / self._info.video_path.format(video_key=camera, **place_of(row, f"videos/{camera}"))
            for camera in self._spec.cameras
        }

    def _load(self) -> None:
        """Columns from the tables; the ledger's lines that a crash kept from being written."""
        tables = {name: table_columns(pq.read_table(self.root / name)) for name in {data_file(r) for r in self._rows}}
        for row in self._rows:
            table = tables[data_file(row)]
            start = row["dataset_from_index"] - int(table["index"][0])
            columns = {name: values[start : start + row["length"]] for name, values in table.items()}
            outcome = episode_outcome(cut_off=columns[CUT_OFF], success=columns[SUCCESS])
            if row[UID] not in self._ledger.receipts:
                self._ledger.add(Receipt.of(row[UID], row["length"], outcome, row["actor"], row["started"]))
            self._hold(row, outcome, columns)

    def _hold(self, row: Row, outcome: Outcome, columns: dict) -> None:
        held = Held(self._number, row["length"], outcome, row["tasks"][0], self._row_videos(row))
        self._memory.add(held, columns)
        self._acted[row[UID]] = Acted.of(columns)
        self._number += 1

    def _write_card(self) -> None:
        """Say in the folder's README.md what is in it, unless a person has edited that."""
        facts = replay_facts(
            self.repo_id, self._info, self._rows, self._acted, self._ledger.receipts, self._started_from
        )
        try:
            replace_card(self.root / CARD, replay_card(facts))
        except OSError as error:  # the episodes are safe, and the next one writes it again
            logger.warning("[LEARNER] The card of the replay in %s was not written: %s", self.root, error.strerror)

    def _store(self, episode: Episode, staging: Path) -> None:
        """Write everything beside the dataset, then give it its names; ``info.json`` is last, and counts it."""
        number, first = self._info.total_episodes, self._info.total_frames
        columns = frame_columns(episode, self._spec.fps, number=number, first=first, task=self._tasks[episode.task])
        videos, stats = write_videos(staging, episode, self._spec, self._encoder)
        stats |= column_stats(columns)
        video, table = files.place(self._videos), files.place(self._tables)
        places = {"data": table, "meta/episodes": table} | {f"videos/{camera}": video for camera in videos}
        row = episode_row(episode, stats, number=number, first=first, places=places, fps=self._spec.fps)
        pq.write_table(frame_table(columns, self._info.features), staging / "data.parquet")
        pq.write_table(pa.Table.from_pylist([row]), staging / "episode.parquet")
        total = aggregate_stats([self._stats, stats]) if self._stats is not None else stats
        for camera, path in videos.items():
            feature = self._info.features[camera]
            if "info" not in feature:
                feature["info"] = get_video_info(path, video_encoder=self._encoder)

        self._damaged = True  # until everything has its place: the memory no longer agrees with the disk
        for camera, path in videos.items():
            files.adopt(path, self.root / files.video_path(camera, self._videos))
        files.adopt(staging / "data.parquet", self.root / files.data_path(self._tables))
        files.adopt(staging / "episode.parquet", self.root / files.episodes_path(self._tables))
        files.write_json(serialize_dict(total), self.root / STATS_PATH)
        counts = self._counted(number + 1, first + len(episode))
        files.write_json(counts, self.root / INFO_PATH)
        with self._lock:
            self._rows.append(without_stats(row))
            self._uids.add(episode.uid)
            self._stats, self._videos, self._tables = total, self._videos + 1, self._tables + 1
            self._hold(row, episode.outcome, columns)
        self._ledger.add(Receipt.of(episode.uid, len(episode), episode.outcome, episode.actor, episode.started))
        self._damaged = False

    def _counted(self, episodes: int, frames: int) -> dict[str, Any]:
        """``info.json`` with these numbers."""
        self._info.total_episodes, self._info.total_frames = episodes, frames
        self._info.total_tasks = len(self._tasks)
        self._info.splits = {"train": f"0:{episodes}"}
        return self._info.to_dict()

    def _compact(self) -> None:
        """Only what is in memory stays, renumbered, in one table of each kind; videos keep their names."""
        self._damaged = True  # until memory and disk agree again
        gone, rows = build_compacted(self.root, len(self._memory.episodes), list(self._tasks), self._counted)
        files.commit_compaction(self.root)
        with self._lock:
            self._rows = [without_stats(row) for row in rows]
            self._acted = {row[UID]: self._acted[row[UID]] for row in rows}
            self._stats, self._tables = aggregate_stats([row_stats(row) for row in rows]), 1
        for path in self._doomed:
            path.unlink(missing_ok=True)
        self._doomed = [path for row in gone for path in self._row_videos(row).values()]
        self._damaged = False
        logger.info("[LEARNER] The replay holds %d episodes; %d older ones were removed", len(rows), len(gone))
