"""A checkpoint's manifest tells a damaged file from a whole one."""

from pathlib import Path

import pytest

from lerobot_policy_pi05_rl.runtime.files import MANIFEST, damages, flush, write_manifest


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "big").write_bytes(bytes(range(256)) * 400)
    (tmp_path / "small").write_text("{}")
    (tmp_path / "empty").write_text("")
    write_manifest(tmp_path)
    flush(tmp_path)
    return tmp_path


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_what_was_written_is_whole_and_files_that_came_later_do_not_matter(folder):
    assert damages(folder) == []
    (folder / "later").write_text("x")
    assert damages(folder) == []


@pytest.mark.parametrize("position", [0, 50_000, -1])
def test_one_flipped_bit_is_found(folder, position):
    flip(folder / "inner" / "big", position)
    (complaint,) = damages(folder)
    assert complaint.startswith("inner/big has other contents")


def test_a_short_a_long_and_a_missing_file_are_named(folder):
    (folder / "inner" / "big").write_bytes(b"x" * 10)
    (folder / "empty").write_text("no")
    (folder / "small").unlink()
    assert damages(folder) == [
        "empty has 2 bytes, not 0",
        "inner/big has 10 bytes, not 102400",
        "small is missing",
    ]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": {"small": 3}}', '{"files": []}'])
def test_an_unreadable_manifest_is_a_damage(folder, content):
    (folder / MANIFEST).write_text(content)
    (complaint,) = damages(folder)
    assert MANIFEST in complaint


def test_without_a_manifest_nothing_is_known_and_nothing_said(folder):
    (folder / MANIFEST).unlink()
    (folder / "small").unlink()
    assert damages(folder) == []
