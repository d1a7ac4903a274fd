"""Decoded frames on disk: the same pictures, built once, never stale."""

import json
import os
import pickle
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from lerobot.policies.common.vla_utils import resize_with_pad_torch
from recordings import make_dataset
from tiny import CAMERAS, write_config

from lerobot_policy_pi05_rl import cli
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.dataset import open_offline_data
from lerobot_policy_pi05_rl.data.loaders import make_train_loader
from lerobot_policy_pi05_rl.data.pictures import frame_cache
from lerobot_policy_pi05_rl.data.pictures.frame_cache import resize, stored_size
from lerobot_policy_pi05_rl.data.pictures.video import read_frames
from lerobot_policy_pi05_rl.data.sources import DatasetError

EPISODES = [{"length": 9, "success": True}, {"length": 12, "success": False}, {"length": 7, "success": True}]
TOTAL = 28


@pytest.fixture(params=[False, True], ids=["images", "video"])
def dataset(request, tmp_path):
    make_dataset(tmp_path / "dataset", EPISODES, video=request.param)
    return tmp_path / "dataset"


@pytest.fixture
def images(tmp_path):
    make_dataset(tmp_path / "dataset", EPISODES)
    return tmp_path / "dataset"


@pytest.fixture
def opened(tmp_path):
    """Opens a dataset under a configuration with the given changes, with a cache."""

    def open_(root, folder="frames", **changes):
        if folder is not None:
            changes["dataset__frame_cache"] = str(tmp_path / folder)
        open_.cfg = load_config(write_config(tmp_path / "train.json", root, tmp_path / "run", **changes))
        open_.cfg.validate()
        return open_offline_data(open_.cfg)

    return open_


def caches(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir())


# ── The same pictures ────────────────────────────────────────────────────────────────────────────────────────────


SMALL = {"policy__image_resolution": [16, 16], "policy__critic_image_pooling": 1}


def test_cached_pictures_are_the_decoded_ones_resized(opened, dataset):
    decoded, cached = opened(dataset, folder=None, **SMALL), opened(dataset, **SMALL)
    for number in range(TOTAL):
        expected, found = decoded.train[(0, number)], cached.train[(0, number)]
        for camera in CAMERAS:
            assert torch.equal(found[camera], resize(expected[camera][None], (16, 16), (16, 16))[0])
        assert torch.equal(found["action"], expected["action"])


@pytest.mark.parametrize("recorded", [(480, 640), (640, 480), (96, 96), (100, 300), (333, 251)])
def test_the_model_sees_the_stored_picture_as_the_recorded_one(recorded):
    size = stored_size(recorded, (224, 224))
    pictures = torch.randint(0, 256, (2, 3, *recorded), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stored = resize(pictures, (224, 224), size)
    assert stored.shape == (2, 3, *size) and stored.dtype == torch.uint8

    def seen(frames):
        return resize_with_pad_torch(frames.permute(0, 2, 3, 1).float() / 255.0, 224, 224)

    assert (seen(stored) - seen(pictures)).abs().max() <= 0.501 / 255


def test_at_the_recorded_size_batches_are_the_same_bit_for_bit(opened, dataset):
    decoded = opened(dataset, folder=None, policy__image_resolution=[64, 64])
    plain = list(make_train_loader(decoded, batch_size=4, batches=3))
    cached = opened(dataset, policy__image_resolution=[64, 64])
    for expected, found in zip(plain, make_train_loader(cached, batch_size=4, batches=3), strict=True):
        for camera in CAMERAS:
            assert torch.equal(found[camera], expected[camera])


@pytest.mark.parametrize(
    "recorded, resolution, stored",
    [
        ((480, 640), (224, 224), (168, 224)),  # no black borders on the disk
        ((224, 224), (224, 224), (224, 224)),
        ((96, 96), (224, 224), (96, 96)),  # never more than recorded
        ((64, 448), (224, 224), (32, 224)),
    ],
)
def test_stored_sizes(recorded, resolution, stored):
    assert stored_size(recorded, resolution) == stored


def test_reading_a_run_of_frames_gives_what_reading_each_gives(tmp_path):
    root = tmp_path / "video"
    data = make_dataset(root, EPISODES, video=True)
    path = root / data.meta.get_video_file_path(0, CAMERAS[0])
    settings = {"tolerance_s": 1e-3, "backend": "pyav"}
    for rows in (range(TOTAL), range(5, 20), [3, 4, 9, 27]):
        times = [row / 10 for row in rows]
        together = list(read_frames(path, times, **settings))
        assert len(together) == len(times)
        for time, frame in zip(times, together, strict=True):
            assert torch.equal(frame, next(read_frames(path, [time], **settings)))


# ── Built once ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_run_decodes_nothing(opened, dataset, tmp_path, monkeypatch):
    opened(dataset)
    monkeypatch.setattr(frame_cache, "_build", lambda *_: pytest.fail("built again"))
    opened(dataset)
    (folder,) = caches(tmp_path / "frames")
    assert sorted(path.name for path in folder.iterdir()) == sorted(["cache.json", *(f"{c}.uint8" for c in CAMERAS)])


def test_an_interrupted_build_goes_on_where_it_was(opened, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_cache, "UNIT_FRAMES", 10)  # a unit per episode and camera
    written, decode = [], frame_cache.UnitWriter.__getitem__

    def stop_at_the_fourth(writer, number):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(number)
        return decode(writer, number)

    monkeypatch.setattr(frame_cache.UnitWriter, "__getitem__", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        opened(dataset)
    (partial,) = caches(tmp_path / "frames")
    assert partial.name.endswith(".partial")
    again = []
    monkeypatch.setattr(
        frame_cache.UnitWriter, "__getitem__", lambda writer, number: again.append(number) or decode(writer, number)
    )
    data = opened(dataset)
    assert (written, again) == ([0, 1, 2], [3, 4, 5])
    whole = opened(dataset, folder="whole")
    for camera in CAMERAS:
        assert data.train.caches[0].path(camera).read_bytes() == whole.train.caches[0].path(camera).read_bytes()


def test_workers_build_it_together(opened, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_cache, "UNIT_FRAMES", 10)
    alone = opened(dataset, folder="alone")
    together = opened(dataset, folder="together", num_workers=2)
    for camera in CAMERAS:
        one, other = (data.train.caches[0].path(camera).read_bytes() for data in (alone, together))
        assert one == other


# ── Never stale ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_changed_file_or_setting_is_another_cache(opened, images, tmp_path):
    opened(images, **SMALL)
    opened(images)
    assert len(caches(tmp_path / "frames")) == 2
    file = next((images / "data").rglob("*.parquet"))
    os.utime(file, ns=(0, 0))
    opened(images, **SMALL)
    assert len(caches(tmp_path / "frames")) == 3


@pytest.mark.parametrize("damage", ["cut", "no stamp", "another stamp"])
def test_a_damaged_cache_is_named_and_built_anew(opened, images, tmp_path, caplog, damage):
    whole = opened(images).train[(0, 20)][CAMERAS[0]]
    (folder,) = caches(tmp_path / "frames")
    file, stamp = folder / f"{CAMERAS[0]}.uint8", folder / "cache.json"
    if damage == "cut":
        os.truncate(file, 100)
    elif damage == "no stamp":
        stamp.unlink()
    else:
        stamp.write_text(json.dumps({"fingerprint": "0"}))
    data = opened(images)
    assert any(str(folder) in record.getMessage() and record.levelname == "WARNING" for record in caplog.records)
    assert torch.equal(data.train[(0, 20)][CAMERAS[0]], whole)


def test_a_cache_that_goes_while_it_is_read_is_an_error(opened, images, tmp_path):
    data = opened(images)
    shutil.rmtree(tmp_path / "frames")
    with pytest.raises(DatasetError, match="cannot be read"):
        data.train[(0, 0)]


# ── Several datasets, later frames, the command ──────────────────────────────────────────────────────────────────


def test_each_dataset_has_its_own_cache(opened, images, tmp_path):
    make_dataset(tmp_path / "second", [{"length": 5, "success": True}], seed=3)
    paths = {"dataset__additional_offline_dataset_paths": [str(tmp_path / "second")]}
    data = opened(images, policy__image_resolution=[64, 64], **paths)
    decoded = opened(images, folder=None, policy__image_resolution=[64, 64], **paths)
    assert [cache.frames for cache in data.train.caches] == [TOTAL, 5]
    for number in (0, 27, 28, 32):
        assert torch.equal(data.train[(0, number)][CAMERAS[0]], decoded.train[(0, number)][CAMERAS[0]])


def test_later_frames_come_from_the_cache_too(opened, images, monkeypatch):
    changes = {"policy__critic_target": "td", "policy__n_step": 3, "policy__image_resolution": [64, 64]}
    data = opened(images, **changes)
    sample, later = data.train[(0, 2)], data.train[(0, 5)]
    assert torch.equal(sample[f"n_step_3.{CAMERAS[0]}"], later[CAMERAS[0]])


def test_the_command_builds_it(images, tmp_path, capsys):
    config = str(write_config(tmp_path / "train.json", images, tmp_path / "run"))
    assert cli.run_verb(cli.verb_function("cache"), [config], debug=False) == 2
    assert "dataset.frame_cache is not set" in capsys.readouterr().err
    folder = tmp_path / "frames"
    assert cli.run_verb(cli.verb_function("cache"), [config, f"--dataset.frame_cache={folder}"], debug=False) == 0
    assert len(caches(folder)) == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_inside_the_dataset_is_refused(images, opened, tmp_path):
    with pytest.raises(DatasetError, match="whose files are not touched"):
        opened(images, folder="dataset/frames")


def test_too_little_space_is_said_before_anything_is_decoded(images, opened, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(frame_cache.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(DatasetError, match="make room or choose another folder"):
        opened(images)


def test_a_file_in_the_folders_place_is_one_error(images, opened, tmp_path):
    (tmp_path / "frames").write_text("")
    with pytest.raises(DatasetError, match="cannot be used"):
        opened(images)


def test_the_cache_pickles_as_paths(opened, images):
    cache = opened(images).train.caches[0]
    expected = cache.read(CAMERAS[0], 3)
    assert len(pickle.dumps(cache)) < 4096
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache)).read(CAMERAS[0], 3), expected)
