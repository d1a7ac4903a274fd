"""Blocks of pictures: which frames are shown, from videos and from images, in bounded memory."""

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from recordings import make_dataset
from tiny import write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.labels.browser import pictures
from lerobot_policy_pi05_rl.labels.browser.pictures import PictureBlocks, block_frames, packed, shown_frames, stride
from lerobot_policy_pi05_rl.labels.outcomes import outcome_sources

CAMERA = "observation.images.front"


def unpacked(block: bytes) -> list[Image.Image]:
    found, at = [], 0
    while at < len(block):
        (size,) = struct.unpack_from(">I", block, at)
        found.append(Image.open(BytesIO(block[at + 4 : at + 4 + size])))
        at += 4 + size
    return found


def painted(episode: int, step: int) -> np.ndarray:
    return np.full((32, 32, 3), 40 + 100 * episode + 2 * step, dtype=np.uint8)


@pytest.fixture(scope="module", params=[False, True], ids=["images", "video"])
def sources(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    episodes = [{"length": 40, "success": True}, {"length": 7, "success": False}]
    make_dataset(folder / "data", episodes, video=request.param, picture=painted)
    return outcome_sources(load_config(write_config(folder / "c.json", folder / "data", folder / "run")))


@pytest.mark.parametrize(
    ("length", "fps", "expected"),
    [(5, 10, [0, 1, 2, 3, 4]), (7, 30, [0, 3, 6]), (6, 30, [2, 5]), (1, 30, [0]), (4, 5, [0, 1, 2, 3])],
)
def test_the_last_frame_is_always_shown(length, fps, expected):
    assert shown_frames(length, fps) == expected


@pytest.mark.parametrize(("fps", "every"), [(5, 1), (10, 1), (15, 2), (20, 2), (25, 2), (30, 3), (50, 5)])
def test_about_ten_pictures_a_second_are_shown(fps, every):
    assert stride(fps) == every and np.diff(shown_frames(40, fps)).tolist() == [every] * (
        len(shown_frames(40, fps)) - 1
    )


def test_a_block_holds_the_frames_in_their_order(sources):
    blocks = PictureBlocks(sources)
    found = [unpacked(blocks.read(0, 0, 40, CAMERA, number)) for number in range(3)]
    assert [len(block) for block in found] == [pictures.BLOCK, 40 - pictures.BLOCK, 0]
    for frame, picture in enumerate([*found[0], *found[1]]):
        assert picture.size == (32, 32) and abs(np.asarray(picture).mean() - painted(0, frame).mean()) < 3
    assert len(unpacked(blocks.read(0, 1, 7, CAMERA, 0))) == 7


def test_a_large_picture_is_made_smaller_and_keeps_its_shape():
    (picture,) = unpacked(packed([Image.new("RGB", (1280, 720))]))
    assert picture.size == (640, 360)


def test_what_was_read_is_kept_in_bounded_memory(sources, monkeypatch):
    blocks = PictureBlocks(sources)
    once = blocks.read(0, 0, 40, CAMERA, 0)
    monkeypatch.setattr(blocks.frames[0], "read", lambda *_: pytest.fail("it was read already"))
    assert blocks.read(0, 0, 40, CAMERA, 0) is once
    monkeypatch.undo()
    monkeypatch.setattr(pictures, "CACHED_BYTES", len(once))
    blocks.read(0, 0, 40, CAMERA, 1)
    assert list(blocks._kept) == [(0, 0, CAMERA, 1)]


def test_a_damaged_episode_is_one_error(sources, tmp_path, monkeypatch):
    blocks = PictureBlocks(sources)
    with pytest.raises(UserError, match="has no episode 9"):
        blocks.read(0, 9, 3, CAMERA, 0)


def test_the_frames_of_a_block_are_at_most_so_many():
    assert block_frames(1000, 10, 1) == list(range(pictures.BLOCK, 2 * pictures.BLOCK))
