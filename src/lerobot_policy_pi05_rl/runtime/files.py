"""How files get onto the disk: written aside, then renamed; and by which size and CRC-32 a damaged one is known.

Whatever is replaced here is, after a crash or a power cut at any instant, what it was before or what it is now.

CRC-32 is the standard library's, leaves the interpreter to others, and is as fast as most disks read; it is there to
find torn writes and flipped bits, not forgeries. Checkpoints of versions that wrote no manifest count as whole.
"""

import json
import os
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"
CHUNK = 1 << 24


def write_manifest(directory: Path, *, free: Collection[str] = ()) -> None:
    """Note every file below ``directory``; the last thing that is written there.

    Args:
        free: names of files that people may change; they are not noted.
    """
    files = {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "crc32": checksum(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in free
    }
    (directory / MANIFEST).write_text(json.dumps({"files": files}, indent=1))


def damages(directory: Path) -> list[str]:
    """In words, each file that is not as the manifest says; sizes first, contents only where all sizes are right.

    Empty if there is nothing to complain of, or no manifest. Files that came later are none of its business.
    """
    manifest = directory / MANIFEST
    if not manifest.is_file():
        return []
    try:
        files = json.loads(manifest.read_text())["files"]
        wanted = {directory / name: (int(entry["bytes"]), str(entry["crc32"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} is unreadable ({type(error).__name__})"]
    found = []
    for path, (size, _) in wanted.items():
        name = path.relative_to(directory)
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != size:
            found.append(f"{name} has {path.stat().st_size} bytes, not {size}")
    if found:
        return found
    return [
        f"{path.relative_to(directory)} has other contents than were written (CRC-32)"
        for path, (_, crc) in wanted.items()
        if checksum(path) != crc
    ]


def checksum(path: Path) -> str:
    """CRC-32 of a file's contents, in hexadecimal."""
    value = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


@contextmanager
def replacing(path: Path, aside: Path | None = None) -> Iterator[Path]:
    """Yields where to write a file or folder, which then gets the name ``path``; a reader sees the old or the new one.

    Args:
        aside: where; a hidden name beside ``path`` if None.

    Raises:
        OSError: the disk is full or broken. ``path`` is as it was, and a file aside is gone.
    """
    aside = aside or path.with_name(f".{path.name}.new")
    make_folder(path.parent)
    try:
        yield aside
        give_name(aside, path)
    except BaseException:
        if aside.is_file():
            aside.unlink()
        raise


def give_name(aside: Path, path: Path) -> None:
    """Rename a complete file, link or folder, whose bytes are on the disk before its name is, and its name on return.

    A file or link of that name is replaced; a folder must be empty.
    """
    if not aside.is_symlink():
        flush(aside)
    aside.replace(path)
    sync(path.parent)
    if aside.parent != path.parent:
        sync(aside.parent)


def make_folder(folder: Path) -> None:
    """The folder and its parents, each entered in its parent on the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)  # another process may make it, too
        sync(path.parent)


def flush(path: Path, *, forget: bool = False) -> None:
    """fsync a file, or a folder and all below it, deepest first."""
    for entry in [*sorted(path.rglob("*"), reverse=True), path]:
        if not entry.is_symlink():
            sync(entry, forget=forget and entry.is_file())


def sync(path: Path, *, forget: bool = False) -> None:
    """Return once the file's contents, or the folder's entries, are on the disk.

    Args:
        forget: what is read next shall come from the disk, not from memory: that is what a resume will read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if forget and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
