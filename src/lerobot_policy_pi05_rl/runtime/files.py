"""What a whole checkpoint consists of: size and CRC-32 of every file, by which a damaged one is known.

CRC-32 is the standard library's, leaves the interpreter to others, and is as fast as most disks read; it is there to
find torn writes and flipped bits, not forgeries. Checkpoints of versions that wrote no manifest count as whole.
"""

import json
import os
import zlib
from pathlib import Path

MANIFEST = "manifest.json"
CHUNK = 1 << 24


def write_manifest(directory: Path) -> None:
    """Note every file below ``directory``; the last thing that is written there."""
    files = {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "crc32": checksum(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file()
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


def flush(path: Path, *, recursive: bool = True) -> None:
    """fsync a file or directory and, if asked, all below it, so that a rename never precedes the bytes."""
    for entry in [path, *(path.rglob("*") if recursive else ())]:
        sync(entry, forget=entry.is_file())


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
