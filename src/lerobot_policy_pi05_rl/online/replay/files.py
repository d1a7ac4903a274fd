"""The replay's files: what is written once, what replaces what, what a crash leaves behind.

One rule makes a folder survive a crash at any instant: an episode's files are new, and ``meta/info.json``, which is
replaced last, counts the episodes that are there. What it does not count is removed when the replay is opened.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lerobot.datasets.utils import (
    DEFAULT_CHUNK_SIZE,
    DEFAULT_DATA_PATH,
    DEFAULT_EPISODES_PATH,
    DEFAULT_TASKS_PATH,
    DEFAULT_VIDEO_PATH,
    INFO_PATH,
    STATS_PATH,
)

from ...returns import Outcome
from ...runtime.files import give_name, make_folder, replacing, sync

INCOMING = ".incoming"  # an episode that is being written
BUILDING, COMPACTED = ".building", ".compacted"  # new data/ and meta/; the second name says that they are complete
TABLES = ("data", "meta")
LEDGER = "received.jsonl"


def place(number: int) -> dict[str, int]:
    """LeRobot's chunk and file of the ``number``-th file of a kind."""
    return {"chunk_index": number // DEFAULT_CHUNK_SIZE, "file_index": number % DEFAULT_CHUNK_SIZE}


def data_path(number: int) -> str:
    """Relative to the root."""
    return DEFAULT_DATA_PATH.format(**place(number))


def episodes_path(number: int) -> str:
    """Relative to the root."""
    return DEFAULT_EPISODES_PATH.format(**place(number))


def video_path(camera: str, number: int) -> str:
    """Relative to the root."""
    return DEFAULT_VIDEO_PATH.format(video_key=camera, **place(number))


def numbered(path: Path) -> int:
    """:func:`place` backwards, of a file's path."""
    return int(path.parent.name.split("-")[1]) * DEFAULT_CHUNK_SIZE + int(path.stem.split("-")[1])


def adopt(written: Path, path: Path) -> None:
    """Give a complete file its name; whatever had it is replaced."""
    make_folder(path.parent)
    give_name(written, path)


def write_json(value: Any, path: Path) -> None:
    """Replace a JSON file at once."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(value, indent=4, ensure_ascii=False), encoding="utf-8")


def fresh_folder(path: Path) -> Path:
    """``path``, empty."""
    if path.exists():
        shutil.rmtree(path)
    make_folder(path)
    return path


def commit_compaction(root: Path) -> None:
    """Put the tables in ``.building`` in the place of the root's; a crash before leaves those, after: the new ones."""
    give_name(root / BUILDING, root / COMPACTED)
    finish_compaction(root)


def finish_compaction(root: Path) -> None:
    """The rest of a committed compaction, from wherever it stopped."""
    ready = root / COMPACTED
    if not ready.exists():
        return
    for table in TABLES:
        if not (ready / table).exists():
            continue  # it has its place already
        if (root / table).exists():
            old = ready / f"old_{table}"
            if old.exists():
                shutil.rmtree(old)
            os.rename(root / table, old)
        os.rename(ready / table, root / table)
        sync(root)
        sync(ready)
    shutil.rmtree(ready)
    sync(root)


def remove_strays(root: Path, kept: set[str]) -> int:
    """Remove every file of the dataset's folders that is not in ``kept`` (relative paths), and whatever was being
    written; the number of files.
    """
    for name in (INCOMING, BUILDING):
        if (root / name).exists():
            shutil.rmtree(root / name)
    kept = kept | {INFO_PATH, STATS_PATH, DEFAULT_TASKS_PATH}
    strays = [
        path
        for folder in ("data", "videos", "meta")
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and path.relative_to(root).as_posix() not in kept and _ours(path.relative_to(root))
    ]
    for path in strays:
        path.unlink()
    return len(strays)


def _ours(path: Path) -> bool:
    """Whether the replay writes such files; a person's own files (labels, notes) stay."""
    if path.parts[0] == "meta" and path.parts[1] != "episodes":
        return path.name.startswith(".") and path.name.endswith(".new")
    return path.name.startswith("file-") and path.suffix in (".parquet", ".mp4")


@dataclass(frozen=True)
class Receipt:
    """One line of the ledger: an episode that was stored, whether or not it is still there."""

    uid: str
    length: int
    outcome: str  # of Outcome
    actor: str
    started: float  # seconds since 1970

    @classmethod
    def of(cls, uid: str, length: int, outcome: Outcome, actor: str, started: float) -> "Receipt":
        return cls(uid, length, outcome.value, actor, started)


class Ledger:
    """``received.jsonl``: every episode that was ever stored, one line each, never changed."""

    def __init__(self, path: Path):
        """Read what is there; a last line that a crash cut short is removed (its episode's own files say the same)."""
        self.path = path
        self.receipts: dict[str, Receipt] = {}
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        for line in whole.decode().splitlines():
            receipt = Receipt(**json.loads(line))
            self.receipts[receipt.uid] = receipt
        self.transitions = sum(receipt.length for receipt in self.receipts.values())
        self.outcomes = dict.fromkeys((outcome.value for outcome in Outcome), 0)  # → episodes
        for receipt in self.receipts.values():
            self.outcomes[receipt.outcome] += 1

    def add(self, receipt: Receipt) -> None:
        """Enter an episode; it is on the disk on return."""
        new = not self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(receipt)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync(self.path.parent)
        self.receipts[receipt.uid] = receipt
        self.transitions += receipt.length
        self.outcomes[receipt.outcome] += 1
