"""Datasets whose pictures show which they are."""

from pathlib import Path

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from tiny import CAMERAS

from lerobot_policy_pi05_rl.runtime.scheduling import unchanged_scheduling

CAMERA = CAMERAS[0]
LENGTHS = (9, 24, 7)
BITS = 8  # of a painted number, each a block of 4 x 8 pixels


def painted(episode: int, frame: int) -> np.ndarray:
    """(32, 32, 3) a moving texture with both numbers in black and white, which every codec keeps."""
    picture = np.roll(TEXTURE, 3 * frame, axis=1).copy()
    for line, number in enumerate((episode, frame)):
        for bit in range(BITS):
            picture[line * 8 : line * 8 + 8, bit * 4 : bit * 4 + 4] = 255 * (number >> bit & 1)
    return picture


TEXTURE = np.random.default_rng(0).integers(90, 160, (32, 32, 3), dtype=np.uint8)


def numbers(picture: torch.Tensor) -> tuple[int, int]:
    """(episode, frame) as painted in (3, 32, 32)."""
    blocks = picture.float().mean(dim=0)[:16].reshape(2, 8, BITS, 4).mean(dim=(1, 3)) > 127
    episode, frame = (int(sum(1 << bit for bit in range(BITS) if row[bit])) for row in blocks)
    return episode, frame


def record(
    root: Path, *, lengths=LENGTHS, shape=(32, 32, 3), names=None, video=True, picture=painted, **create
) -> Path:
    """One camera; all episodes in one file."""
    features = {
        "observation.state": {"dtype": "float32", "shape": (4,), "names": None},
        "action": {"dtype": "float32", "shape": (3,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
        CAMERA: {
            "dtype": "video" if video else "image",
            "shape": shape,
            "names": names or ["height", "width", "channels"],
        },
    }
    dataset = LeRobotDataset.create("test/tiny", fps=10, features=features, root=root, use_videos=video, **create)
    rng = np.random.default_rng(0)
    for episode, length in enumerate(lengths):
        for frame in range(length):
            values = {
                "observation.state": rng.normal(size=4).astype(np.float32),
                "action": rng.normal(size=3).astype(np.float32),
                "next.success": np.array([frame == length - 1]),
                CAMERA: picture(episode, frame),
                "task": "pick",
            }
            dataset.add_frame(values)
        with unchanged_scheduling():
            dataset.save_episode()
    dataset.finalize()
    return root
