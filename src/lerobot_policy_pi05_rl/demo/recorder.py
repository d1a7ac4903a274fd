"""The part of recording that all simulators share: episodes in, LeRobot dataset (v3, with video) out."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import datasets
import gymnasium as gym
import numpy as np
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, DONE, OBS_IMAGES, OBS_STATE, REWARD
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..online.actor.success import parse_success
from ..runtime.files import give_name
from ..runtime.scheduling import unchanged_scheduling
from .constants import ACTION_NAMES, CAMERA_NAMES, CONTROL_HZ, STATE_NAMES

logger = logging.getLogger(__name__)

SUCCESS = "next.success"
RECIPE_FILE = "demo_recipe.json"
RECOVERY_START = "recovery_start"
# What the recording found, not what was asked for; recordings made before a result was written lack it.
_RECIPE_RESULTS = {RECOVERY_START}


class Operator(Protocol):
    """Drives one episode."""

    recovery_start: int | None

    def act_in(self, env: Any) -> np.ndarray:
        """Next action, float32 (4,), from the simulator's true state."""
        ...


@dataclass(frozen=True)
class Simulation:
    """What an episode is recorded from.

    Attributes:
        make_env: from a task's name to its simulator.
        make_operator: from task, operator's name and generator to the operator of one episode.
        robot_type: written to the dataset.
        finish: is given the folder and name of the complete dataset.
    """

    make_env: Callable[[str], gym.Env]
    make_operator: Callable[[str, str, np.random.Generator], Operator]
    robot_type: str
    finish: Callable[[Path, str], None] = lambda root, repo_id: None


def record_episodes(
    root: Path, recipe: dict[str, Any], plan: Sequence[tuple[str, str]], simulation: Simulation
) -> Path:
    """Record the planned episodes, or return what the same recipe gave before.

    A frame holds what was seen before an action, the action as it was executed (noise included), and what
    followed: `next.reward` is 1.0 and `next.success` True only on the last frame of a successful episode,
    `next.done` is True on the last frame of every episode. The recipe is written to `demo_recipe.json` in the
    root, with `recovery_start`: per episode the index of the frame (from 0) at which the operator turns back
    after a miss, null without one. A label of quality must not become a column, where a policy could read it.

    Recording goes to `<root>.partial`, renamed when complete: after an interruption, call again.

    Args:
        recipe: every setting that decides the recording, with at least `repo_id`, `seed` and `image_size`.
        plan: task and operator of every episode.

    Raises:
        FileExistsError: when the root holds something else than a recording with this recipe.
    """
    # FFmpeg reports every file that LeRobot joins.
    av.logging.set_libav_level(av.logging.ERROR)
    datasets.disable_progress_bars()  # one bar per episode otherwise
    if root.exists() and any(root.iterdir()):
        _check_same_recipe(root, recipe)
        logger.info(f"[DEMO] Found {len(plan)} recorded episodes in {root}")
        return root

    partial = root.with_name(root.name + ".partial")
    if partial.exists():
        logger.info(f"[DEMO] Discarding an interrupted recording in {partial}")
        shutil.rmtree(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    envs = {task: simulation.make_env(task) for task in dict.fromkeys(task for task, _ in plan)}
    longest = max(env._max_episode_steps for env in envs.values())
    dataset = _create_dataset(partial, recipe["repo_id"], recipe["image_size"], longest, simulation.robot_type)
    recovery_starts = []
    try:
        with logging_redirect_tqdm():
            # disable=None: a bar only on a terminal, so that log files hold just the lines.
            for i, (task, name) in enumerate(tqdm(plan, desc="Recording", unit="episode", disable=None)):
                rng = np.random.default_rng([recipe["seed"], i])
                start = int(rng.integers(2**31))
                operator = simulation.make_operator(task, name, rng)
                steps, success = _record_episode(envs[task], dataset, operator, start)
                recovery_starts.append(operator.recovery_start)
                outcome = "success" if success else "failure"
                what = name if len(envs) == 1 else f"{task}, {name}"
                logger.info(f"[DEMO] Recorded episode {i + 1}/{len(plan)} ({what}, {outcome}, {steps} steps)")
    finally:
        dataset.finalize()
        for env in envs.values():
            env.close()
    simulation.finish(partial, recipe["repo_id"])
    (partial / RECIPE_FILE).write_text(json.dumps({**recipe, RECOVERY_START: recovery_starts}, indent=2) + "\n")
    give_name(partial, root)
    return root


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


def _create_dataset(root: Path, repo_id: str, image_size: int, longest: int, robot_type: str) -> LeRobotDataset:
    """An empty dataset to write to; `longest` is the largest number of frames in an episode."""
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
        robot_type=robot_type,
        use_videos=True,
        # Key frames only: training reads single frames in random order, and 64x64 key frames are small.
        rgb_encoder=RGBEncoderConfig(vcodec="h264", g=1, crf=20, preset="veryfast", fast_decode=1),
        streaming_encoding=True,
        encoder_threads=1,
        # LeRobot drops frames when this queue is full, so it must hold an episode: the simulator does not
        # wait for the encoder as a camera would.
        encoder_queue_maxsize=longest + 1,
    )


def _record_episode(env: gym.Env, dataset: LeRobotDataset, operator: Operator, seed: int) -> tuple[int, bool]:
    """Record one episode; returns its number of steps and whether it succeeded."""
    observation, _ = env.reset(seed=seed)
    steps, success, done = 0, False, False
    while not done:
        action = operator.act_in(env)
        following, reward, terminated, truncated, info = env.step(action)
        done, success = terminated or truncated, bool(parse_success(info).success)
        dataset.add_frame(
            {
                **{f"{OBS_IMAGES}.{camera}": picture for camera, picture in observation["pixels"].items()},
                OBS_STATE: observation["agent_pos"],
                ACTION: action,
                REWARD: np.array([reward], dtype=np.float32),
                SUCCESS: np.array([success]),
                DONE: np.array([done]),
                "task": env.task_description,
            }
        )
        observation = following
        steps += 1
    with unchanged_scheduling():
        dataset.save_episode()
    return steps, success
