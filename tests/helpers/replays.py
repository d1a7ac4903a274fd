"""Episodes as actors send them, and a replay of them."""

import hashlib
from pathlib import Path

import numpy as np
from lerobot.configs.video import RGBEncoderConfig
from tiny import CAMERAS

from lerobot_policy_pi05_rl.online.episode import Episode, EpisodeSpec, encode_picture
from lerobot_policy_pi05_rl.online.replay.replay import Replay
from lerobot_policy_pi05_rl.returns import Outcome

TASKS = ("pick the cube", "open the drawer")
SPEC = EpisodeSpec(4, 3, dict.fromkeys(CAMERAS, (32, 32)), TASKS, fps=10)
ENCODER = RGBEncoderConfig(vcodec="h264", g=2, crf=10, preset="ultrafast", fast_decode=1)
OUTCOMES = (Outcome.SUCCESS, Outcome.FAILURE, Outcome.TRUNCATED)


def uid_of(number: int) -> str:
    return hashlib.blake2b(bytes([number]), digest_size=16).hexdigest()


def make_episode(number: int, length: int = 5, outcome: Outcome | None = None) -> Episode:
    """Drawn from its number; the pictures are plain, of a colour that tells episode, step and camera."""
    rng = np.random.default_rng(number)

    def picture(camera: int, step: int) -> bytes:
        colour = (20 * (number % 10), 12 * step % 250, 100 + 80 * camera)
        return encode_picture(np.full((32, 32, 3), colour, dtype=np.uint8), 95)

    return Episode(
        uid=uid_of(number),
        actor=f"robot-{number % 2}",
        task=TASKS[number % 2],
        outcome=outcome or OUTCOMES[number % 3],
        state=rng.normal(size=(length, 4)).astype(np.float32),
        action=rng.normal(size=(length, 3)).astype(np.float32),
        reward=rng.normal(size=length).astype(np.float32),
        intervention=rng.random(length) < 0.5,
        policy_version=np.sort(rng.integers(0, 9, length)),
        pictures={camera: [picture(n, step) for step in range(length)] for n, camera in enumerate(CAMERAS)},
        started=1e9 + number,
    )


def open_replay(root: Path, capacity: int = 1000, spec: EpisodeSpec = SPEC) -> Replay:
    return Replay.open(
        root,
        spec,
        repo_id="test/replay",
        names={"action": ["x", "y", "z"]},
        robot_type="tiny",
        capacity=capacity,
        encoder=ENCODER,
    )
