"""Datasets of given states and actions, and their statistics."""

from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_policy_pi05_rl.data.statistics import QUANTILES
from lerobot_policy_pi05_rl.runtime.scheduling import unchanged_scheduling

FRONT = "observation.images.front"


def record(root: Path, episodes: list[np.ndarray], *, names: dict | None = None, fps: int = 10) -> Path:
    """A dataset of one small camera: each episode is (T, S + A), state beside action; every other one a success."""
    width = {"observation.state": episodes[0].shape[1] - 3, "action": 3}
    features = {
        key: {"dtype": "float32", "shape": (size,), "names": (names or {}).get(key)} for key, size in width.items()
    }
    features[FRONT] = {"dtype": "image", "shape": (8, 8, 3), "names": ["height", "width", "channels"]}
    features["next.success"] = {"dtype": "bool", "shape": (1,), "names": None}
    dataset = LeRobotDataset.create("test/tiny", fps=fps, features=features, root=root, use_videos=False)
    for number, rows in enumerate(episodes):
        for step, row in enumerate(rows.astype(np.float32)):
            success = np.array([number % 2 == 0 and step == len(rows) - 1])
            values = {"observation.state": row[:-3], "action": row[-3:], "next.success": success}
            dataset.add_frame({**values, FRONT: np.zeros((8, 8, 3), dtype=np.uint8), "task": "pick the cube"})
        with unchanged_scheduling():
            dataset.save_episode()
    dataset.finalize()
    return root


def assert_statistics_of(stats: dict, values: np.ndarray) -> None:
    """``stats`` are numpy's of (N, D) ``values``."""
    values = values.astype(np.float64)
    ends = {"min": values.min(axis=0), "max": values.max(axis=0)}
    expected = ends | {"mean": values.mean(axis=0), "std": values.std(axis=0), "count": [len(values)]}
    expected |= {name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()}
    assert stats.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(stats[name], value, rtol=1e-9, atol=1e-9, err_msg=name)
