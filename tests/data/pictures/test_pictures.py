"""Every row's own picture, from every codec that LeRobot writes, or one error: never a neighbour's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from painting import CAMERA, LENGTHS, numbers, record

from lerobot_policy_pi05_rl.data.files.folder import open_dataset
from lerobot_policy_pi05_rl.data.pictures import video
from lerobot_policy_pi05_rl.data.pictures.decoding import read_picture, read_pictures
from lerobot_policy_pi05_rl.data.sources import DatasetError, load_source


def opened(root: Path, tolerance: float = 1e-4):
    return load_source("own", open_dataset("test/tiny", root, tolerance_s=tolerance), "pyav")


def rewrite(root: Path, **columns) -> None:
    """Replace columns of the (only) table of frames."""
    (path,) = (root / "data").rglob("*.parquet")
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path)


ENCODERS = {
    "h264": RGBEncoderConfig(vcodec="h264"),
    "h264, long group": RGBEncoderConfig(vcodec="h264", g=None),
    "h264, open group": RGBEncoderConfig(vcodec="h264", g=6, extra_options={"bf": 3, "x264-params": "open-gop=1"}),
    "hevc": RGBEncoderConfig(vcodec="hevc"),
    "hevc, open group": RGBEncoderConfig(vcodec="hevc", g=6),
    "av1": RGBEncoderConfig(),
    "av1, long group": RGBEncoderConfig(g=None),
}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_frame_of_every_codec_is_its_rows_whatever_the_order(tmp_path, encoder):
    root = record(tmp_path / "data", rgb_encoder=ENCODERS[encoder])
    source, wide = opened(root), opened(root, 0.09)
    total = sum(LENGTHS)
    expected = [(episode, frame) for episode, length in enumerate(LENGTHS) for frame in range(length)]
    in_order = list(read_pictures(source, CAMERA, range(total)))
    assert [numbers(picture) for picture in in_order] == expected
    for row in np.random.default_rng(1).permutation(total).tolist():
        assert torch.equal(read_picture(source, CAMERA, row), in_order[row])
        assert torch.equal(read_picture(wide, CAMERA, row), in_order[row])  # counted
    stock = LeRobotDataset("test/tiny", root=root, video_backend="pyav", return_uint8=True)
    if encoder != "hevc, open group":  # whose leading frames LeRobot's reader does not find
        assert all(torch.equal(stock[row][CAMERA], in_order[row]) for row in range(total))


@pytest.mark.parametrize("seed", range(3))
def test_no_timestamps_and_no_tolerance_give_a_frame_of_another_episode(tmp_path, seed):
    root = record(tmp_path / "data")
    rng = np.random.default_rng(seed)
    exact = np.concatenate([np.arange(length) / 10 for length in LENGTHS])
    rewrite(root, timestamp=exact + rng.uniform(0, 2, len(exact)) if seed else exact + 1.0)
    for tolerance, least in ((1e-4, 0), (0.02, 0), (0.04, 0), (10.0, sum(LENGTHS))):
        source, read = opened(root, tolerance), 0
        for row in range(sum(LENGTHS)):
            try:
                episode, frame = numbers(read_picture(source, CAMERA, row))
            except DatasetError as error:
                assert f"episode {source.columns['episode_index'][row]}, frame" in str(error)
                continue
            read += 1
            assert episode == source.columns["episode_index"][row]
            if tolerance > 0.025:
                assert frame == source.columns["frame_index"][row]
        assert read >= least, tolerance


def test_a_video_with_fewer_frames_than_rows_is_an_error_that_names_it(tmp_path):
    root = record(tmp_path / "data", lengths=(9,))
    long = record(tmp_path / "long", lengths=(12,))
    (short,) = (root / "videos").rglob("*.mp4")
    (full,) = (long / "videos").rglob("*.mp4")
    full.write_bytes(short.read_bytes())
    for tolerance in (1e-4, 10.0):
        source = opened(long, tolerance)
        assert numbers(read_picture(source, CAMERA, 8)) == (0, 8)
        with pytest.raises(DatasetError, match=rf"episode 0, frame 11: {full}"):
            read_picture(source, CAMERA, 11)


@pytest.mark.parametrize("damage", ["empty", "noise", "cut"])
def test_a_video_that_cannot_be_decoded_is_an_error_that_names_it(tmp_path, damage):
    root = record(tmp_path / "data", rgb_encoder=ENCODERS["h264"])
    (path,) = (root / "videos").rglob("*.mp4")
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "noise": bytes(1000), "cut": data[: len(data) // 2]}[damage])
    for tolerance in (1e-4, 10.0):
        with pytest.raises(DatasetError, match=f"episode 2, frame 3: {path} (cannot be|has 0 frames)"):
            read_picture(opened(root, tolerance), CAMERA, 36)


def test_a_frame_that_another_backend_does_not_find_is_read_by_ours(tmp_path, monkeypatch):
    """torchcodec, read in random order, loses the leading pictures of an open group."""
    source = opened(record(tmp_path / "data", rgb_encoder=ENCODERS["hevc, open group"]))
    other = replace(source, video_backend="torchcodec")
    asked = []

    def finds_every_second(path, timestamps, tolerance_s, backend, **kwargs):
        asked.extend(timestamps)
        if len(asked) % 2:
            raise video.FrameTimestampError("no such frame")
        return torch.stack(list(video.read_frames(path, timestamps, tolerance_s=tolerance_s, backend="pyav")))

    monkeypatch.setattr(video, "decode_video_frames", finds_every_second)
    for row in (30, 5, 17, 0):
        assert torch.equal(read_picture(other, CAMERA, row), read_picture(source, CAMERA, row))
    assert len(asked) == 4
