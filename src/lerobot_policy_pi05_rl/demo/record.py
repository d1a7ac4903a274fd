"""Record demonstrations of the scripted operators as a LeRobot dataset (v3, with video).

python -m lerobot_policy_pi05_rl.demo.record --root data/demo --episodes 120
"""

import argparse
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import datasets
import numpy as np
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, DONE, OBS_IMAGES, OBS_STATE, REWARD
from lerobot.utils.utils import init_logging
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .constants import (
    ACTION_NAMES,
    CAMERA_NAMES,
    CONTROL_HZ,
    CUBE_JITTER_M,
    IMAGE_SIZE,
    MAX_EPISODE_STEPS,
    STATE_NAMES,
    TASK,
)
from .env_config import SimulatorFactory
from .operators import STYLES, ScriptedOperator

if TYPE_CHECKING:
    from .simulator import PandaPickCubeSimulator

logger = logging.getLogger(__name__)

SUCCESS = "next.success"
RECIPE_FILE = "demo_recipe.json"
RECOVERY_START = "recovery_start"
# What the recording found, not what was asked for; recordings made before a result was written lack it.
_RECIPE_RESULTS = {RECOVERY_START}
DEFAULT_MIX = {"fast": 1 / 3, "slow": 1 / 3, "misses": 1 / 3}
MIXED_QUALITY_MIX = {name: 1 / 4 for name in ("fast", "slow", "misses", "recovers")}
MIXES = {"demo": DEFAULT_MIX, "recovers": MIXED_QUALITY_MIX}


def record_dataset(
    root: str | Path,
    repo_id: str,
    episodes: int = 120,
    seed: int = 0,
    mix: Mapping[str, float] = DEFAULT_MIX,
    image_size: int = IMAGE_SIZE,
    max_episode_steps: int = MAX_EPISODE_STEPS,
    cube_jitter: float = CUBE_JITTER_M,
) -> Path:
    """Record a demonstration set, or return the one that the same call recorded before.

    A frame holds what was seen before an action, the action as it was executed (noise included), and what
    followed: `next.reward` is 1.0 and `next.success` True only on the last frame of a successful episode,
    `next.done` is True on the last frame of every episode. The settings and each episode's operator are
    written to `demo_recipe.json` in the root, with `recovery_start`: per episode the index of the frame (from 0)
    at which `recovers` turns back to the cube, null without one. A label of quality must not become a column,
    where a policy could read it.

    Recording goes to `<root>.partial`, renamed when complete: after an interruption, call again.

    Args:
        root: folder of the dataset.
        repo_id: its LeRobot name.
        episodes: number of episodes.
        seed: of start states, operators' order and operators' noise.
        mix: operator name to its share; shares are normalised.
        image_size: height and width of the pictures, pixels.
        max_episode_steps: steps until an episode is truncated.
        cube_jitter: half width of the cube's uniform jitter, metres.

    Returns:
        The root.

    Raises:
        FileExistsError: when the root holds something else than a recording with these settings.
        ValueError: for an unknown operator, a negative share or episodes < 1.
    """
    # FFmpeg reports every file that LeRobot joins.
    av.logging.set_libav_level(av.logging.ERROR)
    datasets.disable_progress_bars()  # one bar per episode otherwise
    root = Path(root)
    operators = operator_order(episodes, mix, seed)
    recipe = {
        "repo_id": repo_id,
        "seed": seed,
        "image_size": image_size,
        "max_episode_steps": max_episode_steps,
        "cube_jitter": cube_jitter,
        "operators": operators,
    }
    if root.exists() and any(root.iterdir()):
        _check_same_recipe(root, recipe)
        logger.info(f"[DEMO] Found {episodes} recorded episodes in {root}")
        return root

    partial = root.with_name(root.name + ".partial")
    if partial.exists():
        logger.info(f"[DEMO] Discarding an interrupted recording in {partial}")
        shutil.rmtree(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    env: PandaPickCubeSimulator = SimulatorFactory(image_size, max_episode_steps, cube_jitter, False)()
    dataset = _create_dataset(partial, repo_id, image_size, max_episode_steps)
    recovery_starts = []
    try:
        with logging_redirect_tqdm():
            # disable=None: a bar only on a terminal, so that log files hold just the lines.
            for i, name in enumerate(tqdm(operators, desc="Recording", unit="episode", disable=None)):
                steps, success, recovery = _record_episode(env, dataset, name, np.random.default_rng([seed, i]))
                recovery_starts.append(recovery)
                outcome = "success" if success else "failure"
                logger.info(f"[DEMO] Recorded episode {i + 1}/{episodes} ({name}, {outcome}, {steps} steps)")
    finally:
        dataset.finalize()
        env.close()
    (partial / RECIPE_FILE).write_text(json.dumps({**recipe, RECOVERY_START: recovery_starts}, indent=2) + "\n")
    partial.rename(root)
    return root


def operator_order(episodes: int, mix: Mapping[str, float], seed: int) -> list[str]:
    """Names of the operators, one per episode: shares rounded to whole episodes, in random order.

    Raises:
        ValueError: for an unknown operator, a negative share, no positive share, or episodes < 1.
    """
    unknown = sorted(set(mix) - set(STYLES))
    total = sum(mix.values())
    if episodes < 1 or unknown or min(mix.values(), default=0.0) < 0.0 or total <= 0.0:
        raise ValueError(
            f"Need episodes >= 1 and non-negative shares of {sorted(STYLES)} with a positive sum, "
            f"got {episodes=}, mix={dict(mix)}."
        )
    # Cumulative rounding: the counts add up and each is within one of its share.
    edges = np.rint(np.cumsum(list(mix.values())) / total * episodes).astype(int)
    names = np.repeat(list(mix), np.diff(edges, prepend=0))
    return np.random.default_rng(seed).permutation(names).tolist()


def _check_same_recipe(root: Path, recipe: dict[str, Any]) -> None:
    """Raise FileExistsError unless `root` was recorded with exactly the settings `recipe`."""
    path = root / RECIPE_FILE
    if not path.is_file():
        raise FileExistsError(f"{root} exists and is not a demo recording; choose another root.")
    found = json.loads(path.read_text())
    settings = (recipe.keys() | found.keys()) - _RECIPE_RESULTS
    different = sorted(key for key in settings if recipe.get(key) != found.get(key))
    if different:
        raise FileExistsError(
            f"{root} holds a demo recording with other settings ({', '.join(different)}); "
            "delete it or choose another root."
        )


def _create_dataset(root: Path, repo_id: str, image_size: int, max_episode_steps: int) -> LeRobotDataset:
    """An empty dataset to write to."""
    picture = {
        "dtype": "video",
        "shape": (image_size, image_size, 3),
        "names": ["height", "width", "channels"],
    }
    features: dict[str, dict[str, Any]] = {
        **{f"{OBS_IMAGES}.{name}": picture for name in CAMERA_NAMES},
        OBS_STATE: {"dtype": "float32", "shape": (len(STATE_NAMES),), "names": list(STATE_NAMES)},
        ACTION: {"dtype": "float32", "shape": (len(ACTION_NAMES),), "names": list(ACTION_NAMES)},
        REWARD: {"dtype": "float32", "shape": (1,), "names": None},
        SUCCESS: {"dtype": "bool", "shape": (1,), "names": None},
        DONE: {"dtype": "bool", "shape": (1,), "names": None},
    }
    return LeRobotDataset.create(
        repo_id=repo_id,
        fps=CONTROL_HZ,
        features=features,
        root=root,
        robot_type="panda",
        use_videos=True,
        # Key frames only: training reads single frames in random order, and 64x64 key frames are small.
        rgb_encoder=RGBEncoderConfig(vcodec="h264", g=1, crf=20, preset="veryfast", fast_decode=1),
        streaming_encoding=True,
        encoder_threads=1,
        # LeRobot drops frames when this queue is full, so it must hold an episode: the simulator does not
        # wait for the encoder as a camera would.
        encoder_queue_maxsize=max_episode_steps + 1,
    )


def _record_episode(
    env: "PandaPickCubeSimulator", dataset: LeRobotDataset, name: str, rng: np.random.Generator
) -> tuple[int, bool, int | None]:
    """Record one episode; returns its number of steps, whether it succeeded, and where a recovery starts."""
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    operator = ScriptedOperator(name, rng)
    steps, success, done = 0, False, False
    while not done:
        action = operator.act(env.gripper_position, env.cube_position)
        following, reward, terminated, truncated, info = env.step(action)
        done, success = terminated or truncated, bool(info["is_success"])
        dataset.add_frame(
            {
                **{f"{OBS_IMAGES}.{camera}": picture for camera, picture in observation["pixels"].items()},
                OBS_STATE: observation["agent_pos"],
                ACTION: action,
                REWARD: np.array([reward], dtype=np.float32),
                SUCCESS: np.array([success]),
                DONE: np.array([done]),
                "task": TASK,
            }
        )
        observation = following
        steps += 1
    dataset.save_episode()
    return steps, success, operator.recovery_start


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Record demonstrations of the scripted operators.")
    parser.add_argument("--root", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--repo-id", default="local/panda_pick_cube", help="LeRobot name of the dataset")
    parser.add_argument("--episodes", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE)
    parser.add_argument("--mix", choices=MIXES, default="demo", help="the operators, in equal parts")
    for name in STYLES:
        parser.add_argument(f"--{name}", type=float, help=f"share of `{name}` (default: the mix's)")
    args = parser.parse_args(argv)
    init_logging()
    start = time.perf_counter()
    shares = {name: getattr(args, name) for name in STYLES}
    mix = MIXES[args.mix] | {name: share for name, share in shares.items() if share is not None}
    record_dataset(args.root, args.repo_id, args.episodes, args.seed, mix, args.image_size)
    logger.info(f"[DEMO] Dataset in {args.root} after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
