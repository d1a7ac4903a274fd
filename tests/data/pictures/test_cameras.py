"""Which cameras a policy reads: colours as they were recorded, no depth map, nothing saturated or transposed."""

import io
import json
import logging
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from painting import CAMERA, painted, record
from PIL import Image
from tiny import CAMERAS, write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.dataset import OfflineData, open_offline_data
from lerobot_policy_pi05_rl.data.loaders import make_train_loader
from lerobot_policy_pi05_rl.data.pictures.cameras import picture_shape
from lerobot_policy_pi05_rl.data.sources import DatasetError
from lerobot_policy_pi05_rl.plan.setup import make_setup
from lerobot_policy_pi05_rl.runtime.scheduling import unchanged_scheduling

DEPTH = "observation.images.front_depth"
STATE = {"observation.state": {"type": "STATE", "shape": [4]}}
COLOURS = np.random.default_rng(2).integers(0, 255, (24, 32, 3), dtype=np.uint8)


def load(root: Path, tmp_path: Path, **changes) -> OfflineData:
    changes = {"dataset__video_backend": "pyav", **changes}
    return open_offline_data(load_config(write_config(tmp_path / "c.json", root, tmp_path / "run", **changes)))


def change_info(root: Path, camera: str, **values) -> None:
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"][camera] |= values
    path.write_text(json.dumps(info))


def store(root: Path, cells: list[dict]) -> None:
    """Put these cells into the camera's column of the (only) table of frames."""
    (path,) = (root / "data").rglob("*.parquet")
    table = pq.read_table(path)
    place = table.schema.get_field_index(CAMERA)
    table = table.set_column(place, table.schema.field(CAMERA), pa.array(cells, table.schema.field(CAMERA).type))
    pq.write_table(table, path)


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module", params=[False, True], ids=["images", "video"])
def depth_dataset(request, tmp_path_factory) -> Path:
    """A colour and a depth camera of 16 bits."""
    root = tmp_path_factory.mktemp("depth") / "data"
    kind, names = "video" if request.param else "image", ["height", "width", "channels"]
    features = {
        "observation.state": {"dtype": "float32", "shape": (4,), "names": None},
        "action": {"dtype": "float32", "shape": (3,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
        DEPTH: {"dtype": kind, "shape": (32, 32, 1), "names": names, "info": {"is_depth_map": True}},
        CAMERA: {"dtype": kind, "shape": (32, 32, 3), "names": names},
    }
    dataset = LeRobotDataset.create("test/tiny", fps=10, features=features, root=root, use_videos=request.param)
    for episode in range(2):
        for frame in range(6):
            dataset.add_frame(
                {
                    "observation.state": np.full(4, frame, np.float32),
                    "action": np.full(3, frame, np.float32),
                    "next.success": np.array([frame == 5]),
                    DEPTH: np.full((32, 32, 1), 1000 + frame, np.uint16),
                    CAMERA: painted(episode, frame),
                    "task": "pick",
                }
            )
        with unchanged_scheduling():
            dataset.save_episode()
    dataset.finalize()
    return root


def test_a_depth_camera_is_left_out_and_said_once(depth_dataset, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = load(depth_dataset, tmp_path)
    assert data.train.cameras == [CAMERA] and DEPTH not in data.train[(0, 0)]
    assert sum(f"Camera {DEPTH} is a depth map: left out" in line for line in caplog.messages) == 1
    planned = make_setup(load_config(tmp_path / "c.json")).config.policy
    assert list(planned.image_features) == [CAMERA]


def test_a_depth_camera_that_the_policy_names_is_refused(depth_dataset, tmp_path):
    features = {camera: {"type": "VISUAL", "shape": [3, 32, 32]} for camera in (CAMERA, DEPTH)} | STATE
    with pytest.raises(
        DatasetError, match=f"camera {DEPTH} is a depth map.*Take {DEPTH} out of policy.input_features"
    ):
        load(depth_dataset, tmp_path, policy__input_features=features)


@pytest.mark.parametrize(
    "shape, names, expected",
    [
        ((24, 32, 3), ["height", "width", "channels"], (3, 24, 32)),
        ((24, 32, 3), ["height", "width", "channel"], (3, 24, 32)),
        ((3, 24, 32), ["channels", "height", "width"], (3, 24, 32)),
        ((24, 32, 3), None, (3, 24, 32)),
        ((3, 24, 32), None, (3, 24, 32)),
        ((3, 24, 32), ["height", "width", "channels"], (3, 24, 32)),  # as some conversions have it
        ((24, 32, 3), ["channels", "height", "width"], (3, 24, 32)),
        ((32, 24, 3), ["width", "height", "channels"], (3, 24, 32)),
        ((24, 32, 1), ["height", "width", "channels"], (1, 24, 32)),
        ((3, 32, 3), ["height", "width", "channels"], (3, 3, 32)),
    ],
)
def test_a_pictures_shape_in_whatever_order_it_is_declared(shape, names, expected):
    assert picture_shape("camera", {"dtype": "image", "shape": shape, "names": names}) == expected


@pytest.mark.parametrize("shape", [(24, 32), (24, 32, 7), (1, 3, 24, 32), None])
def test_a_shape_that_is_no_pictures_is_refused(shape):
    with pytest.raises(DatasetError, match=r"camera wrist has the shape .*features\.wrist\.shape"):
        picture_shape("wrist", {"dtype": "image", "shape": shape, "names": None})


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_channels_first_or_last_the_picture_is_lerobots(tmp_path, video, first):
    shape, names = ((3, 24, 32), ["channels", "height", "width"]) if first else ((24, 32, 3), None)
    root = record(tmp_path / "data", lengths=(5,), shape=shape, names=names, video=video, picture=lambda *_: COLOURS)
    data = load(root, tmp_path)
    stock = LeRobotDataset("test/tiny", root=root, video_backend="pyav")
    assert tuple(data.train[(0, 3)][CAMERA].shape) == (3, 24, 32)
    assert torch.equal(data.train[(0, 3)][CAMERA], (stock[3][CAMERA] * 255).round().to(torch.uint8))


def test_floats_from_0_to_1_are_recorded_and_read_as_lerobot_has_them(tmp_path):
    picture = COLOURS.astype(np.float32) / 255
    root = record(tmp_path / "data", lengths=(5,), shape=(24, 32, 3), video=False, picture=lambda *_: picture)
    stock = LeRobotDataset("test/tiny", root=root)[3][CAMERA]
    assert torch.equal(load(root, tmp_path).train[(0, 3)][CAMERA], (stock * 255).round().to(torch.uint8))
    assert (stock.permute(1, 2, 0) - torch.from_numpy(picture)).abs().max() <= 1 / 255


def test_one_channel_without_a_mark_is_refused_by_name(tmp_path):
    deep = np.full((24, 32, 1), 1000, np.uint16)
    root = record(tmp_path / "data", lengths=(5,), shape=(24, 32, 1), video=False, picture=lambda *_: deep)
    with pytest.raises(DatasetError, match=f"camera {CAMERA} has pictures of one channel"):
        load(root, tmp_path)


def test_the_advice_to_leave_a_camera_out_works(tmp_path):
    root = record(tmp_path / "data", lengths=(5,), shape=(24, 32, 3), video=False, picture=lambda *_: COLOURS)
    wrist = CAMERAS[1]
    (path,) = (root / "data").rglob("*.parquet")
    table = pq.read_table(path)
    pq.write_table(table.append_column(wrist, table[CAMERA]), path)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][wrist] = info["features"][CAMERA] | {"shape": [24, 32, 4]}
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match=f"camera {wrist} has pictures of 4 channels") as raised:
        load(root, tmp_path)
    advice = re.search(r"--policy\.input_features='(.*)'", str(raised.value))[1]
    data = load(root, tmp_path, policy__input_features=json.loads(advice))
    assert data.train.cameras == [CAMERA]


@pytest.mark.parametrize("mode", ["I;16", "F", "RGBA", "CMYK"])
def test_a_stored_picture_that_is_no_8_bit_colours_is_refused_with_its_frame(tmp_path, mode):
    root = record(tmp_path / "data", lengths=(5,), shape=(24, 32, 3), video=False, picture=lambda *_: COLOURS)
    deep = Image.fromarray(np.full((24, 32), 300, np.uint16)) if mode == "I;16" else Image.new(mode, (32, 24))
    store(root, [{"bytes": file_of(deep, "TIFF"), "path": None}] * 5)
    data = load(root, tmp_path)
    with pytest.raises(DatasetError, match=f"episode 0, frame 3: {CAMERA} cannot be read .*'{mode}'"):
        data.train[(0, 3)]


@pytest.mark.parametrize("how", ["bytes", "relative path", "absolute path", "grey bytes"])
def test_pictures_stored_as_bytes_or_as_paths_are_read(tmp_path, how):
    root = record(tmp_path / "data", lengths=(5,), shape=(24, 32, 3), video=False, picture=lambda *_: COLOURS)
    image = Image.fromarray(COLOURS)
    image = image.convert("L") if "grey" in how else image
    (root / "images").mkdir(exist_ok=True)
    (root / "images/a.png").write_bytes(file_of(image))
    path = str(root / "images/a.png") if "absolute" in how else "images/a.png"
    store(root, [{"bytes": None, "path": path} if "path" in how else {"bytes": file_of(image), "path": None}] * 5)
    found = load(root, tmp_path).train[(0, 3)][CAMERA]
    assert torch.equal(found, torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))


@pytest.mark.parametrize("cell", [{"bytes": b"no picture", "path": None}, {"bytes": None, "path": "gone.png"}])
def test_a_stored_picture_that_cannot_be_read_is_named(tmp_path, cell):
    root = record(tmp_path / "data", lengths=(5,), shape=(24, 32, 3), video=False, picture=lambda *_: COLOURS)
    store(root, [cell] * 5)
    data = load(root, tmp_path)
    with pytest.raises(DatasetError, match=f"episode 0, frame 2: {CAMERA} cannot be read"):
        data.train[(0, 2)]


@pytest.mark.parametrize("cache", [False, True])
def test_a_picture_of_another_size_than_declared_is_refused(tmp_path, cache):
    root = record(tmp_path / "data", lengths=(5,), shape=(24, 32, 3), video=False, picture=lambda *_: COLOURS)
    change_info(root, CAMERA, shape=[32, 24, 3])
    with pytest.raises(DatasetError, match=rf"{CAMERA} is 24 x 32 \(height x width\), and .* declares 32 x 24"):
        data = load(root, tmp_path, **({"dataset__frame_cache": str(tmp_path / "frames")} if cache else {}))
        data.train[(0, 2)]


@pytest.mark.parametrize("cache", [False, True])
def test_datasets_whose_cameras_differ_in_size_make_one_batch(tmp_path, cache):
    roots = [
        record(tmp_path / name, lengths=(5,), shape=picture.shape, video=False, picture=lambda *_, own=picture: own)
        for name, picture in (("large", COLOURS), ("small", COLOURS[:16, :20]))
    ]
    cfg_changes = {"dataset__additional_offline_dataset_paths": [str(roots[1])], "dataset__weights": [1, 1]}
    if cache:
        cfg_changes["dataset__frame_cache"] = str(tmp_path / "frames")
    config = write_config(tmp_path / "c.json", roots[0], tmp_path / "run", batch_size=8, **cfg_changes)
    cfg = load_config(config)
    data = open_offline_data(cfg)
    (batch,) = make_train_loader(data, batch_size=cfg.batch_size, batches=1)
    assert tuple(batch[CAMERA].shape) == (8, 3, 32, 32)  # the policy's resolution, with black borders
    for sample in batch[CAMERA]:  # both are wider than high
        assert not sample[:, :2].any() and not sample[:, -2:].any() and sample[:, 16].any()
