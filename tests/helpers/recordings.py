"""Tiny LeRobot datasets, and what is put beside and into them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from tiny import CAMERAS

from lerobot_policy_pi05_rl.data.dataset import open_sources
from lerobot_policy_pi05_rl.data.episodes import label_episodes
from lerobot_policy_pi05_rl.data.labeling import Labeling, frame_columns, labeling_path, write_labeling
from lerobot_policy_pi05_rl.data.sources import dataset_fingerprint
from lerobot_policy_pi05_rl.runtime.scheduling import unchanged_scheduling


def make_dataset(
    root: Path,
    episodes: list[dict],
    *,
    video: bool = False,
    columns: tuple[str, ...] = ("next.reward", "next.success"),
    fps: int = 10,
    seed: int = 0,
    picture: Callable[[int, int], np.ndarray] | None = None,
) -> LeRobotDataset:
    """A LeRobot dataset of drawn frames.

    Args:
        episodes: per episode ``length``, and optionally ``success``, ``truncated``, ``reward`` (of the last
            frame), ``task``, ``intervention`` (first frame of a correction).
        columns: which label columns exist.
        picture: (episode, step) → (32, 32, 3) uint8 of every camera; None: drawn.
    """
    shapes = {"observation.state": (4,), "action": (3,)}
    features = {key: {"dtype": "float32", "shape": shape, "names": None} for key, shape in shapes.items()}
    for camera in CAMERAS:
        features[camera] = {
            "dtype": "video" if video else "image",
            "shape": (32, 32, 3),
            "names": ["height", "width", "channels"],
        }
    dtypes = {"next.reward": "float32"}
    for column in columns:
        features[column] = {"dtype": dtypes.get(column, "bool"), "shape": (1,), "names": None}
    dataset = LeRobotDataset.create("test/tiny", fps=fps, features=features, root=root, use_videos=video)
    rng = np.random.default_rng(seed)
    for number, episode in enumerate(episodes):
        for step in range(episode["length"]):
            last = step == episode["length"] - 1
            labels = {
                "next.reward": np.array([episode.get("reward", 0.0) if last else 0.0], dtype=np.float32),
                "next.success": np.array([last and episode.get("success", False)]),
                "next.truncated": np.array([last and episode.get("truncated", False)]),
                "intervention": np.array([step >= episode.get("intervention", 10**6)]),
            }
            dataset.add_frame(
                {
                    "observation.state": rng.normal(size=4).astype(np.float32),
                    "action": np.array([step, *rng.normal(size=2)], dtype=np.float32),
                    **{
                        camera: picture(number, step) if picture else rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                        for camera in CAMERAS
                    },
                    **{column: labels[column] for column in columns},
                    "task": episode.get("task", "pick the cube"),
                }
            )
        with unchanged_scheduling():
            dataset.save_episode()
    dataset.finalize()
    return LeRobotDataset("test/tiny", root=root)


MIXED_EPISODES = [
    {"length": 9, "success": True},
    {"length": 12, "success": False},
    {"length": 7, "success": True},
    {"length": 10, "success": False},
]


def with_column(root: Path, name: str, values: list, dtype: str, kind: pa.DataType) -> None:
    """Put a column, or another one of its name, into the dataset's data and metadata."""
    (file,) = (root / "data").rglob("*.parquet")
    table = pq.read_table(file).replace_schema_metadata(None)
    if name in table.column_names:
        table = table.drop_columns([name])
    pq.write_table(table.append_column(name, pa.array(values, kind)), file)
    info = json.loads((root / "meta" / "info.json").read_text())
    info["features"][name] = {"dtype": dtype, "shape": [1], "names": None}
    (root / "meta" / "info.json").write_text(json.dumps(info))


def make_labeling(cfg, name: str, positive: Callable[[int], np.ndarray], **meta) -> None:
    """Labelings of the configuration's datasets beside them, of no critic: all values are 0.

    Args:
        positive: number of frames → (frames,) bool, those tagged positive.
        meta: what else they say of themselves.
    """
    sources, _ = open_sources(cfg)
    labels = label_episodes(sources, cfg.reward, cfg.policy)
    for number, source in enumerate(sources):
        count = len(source.columns["index"])
        columns = frame_columns(number, source, labels)
        columns |= {key: np.zeros(count, np.float32) for key in ("value", "success_value", "advantage")}
        columns |= {"fold": np.full(count, -1, np.int8), "positive": positive(count)}
        columns["tag"] = columns["positive"].astype(np.int8)
        dataset = {
            "repo_id": source.name,
            "root": str(source.dataset.root),
            "fingerprint": dataset_fingerprint(source),
        }
        said = {"dataset": dataset, "critic": {"path": "nowhere", "fingerprint": "none"}, "n_step": None, **meta}
        write_labeling(labeling_path(source, name), Labeling(columns, said))
