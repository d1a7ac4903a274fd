"""Record demonstrations of the scripted operators on all tasks, as one LeRobot dataset.

PYTHONPATH=benchmarks python -m metaworld_tasks.record --root data/tasks --episodes 120
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from lerobot.datasets.compute_stats import get_feature_stats
from lerobot.datasets.io_utils import write_stats
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE
from lerobot.utils.utils import init_logging

from lerobot_policy_pi05_rl.demo.constants import IMAGE_SIZE
from lerobot_policy_pi05_rl.demo.env_config import SimulatorFactory
from lerobot_policy_pi05_rl.demo.record import DEFAULT_MIX, operator_order
from lerobot_policy_pi05_rl.demo.recorder import Simulation, record_episodes

from .env_config import SIMULATOR
from .operators import SPEEDS, MetaWorldOperator
from .tasks import START_SPREAD, TASKS, split_evenly

REPO_ID = "local/metaworld_tasks"


def record_tasks(
    root: str | Path,
    repo_id: str,
    episodes: int = 120,
    seed: int = 0,
    mix: Mapping[str, float] = DEFAULT_MIX,
    image_size: int = IMAGE_SIZE,
    start_spread: float = START_SPREAD,
) -> Path:
    """Record demonstrations of all Meta-World tasks, or return those that the same call recorded before.

    Every task has as many episodes (within one) and the same shares of the operators; the order is random.

    Args:
        root: folder of the dataset.
        repo_id: its LeRobot name.
        episodes: number of episodes, all tasks together.
        seed: of start states, order and operators' noise.
        mix: operator name to its share; shares are normalised.
        image_size: height and width of the pictures, pixels.
        start_spread: part of Meta-World's range of start states that episodes are drawn from.

    Returns:
        The root.

    Raises:
        FileExistsError: when the root holds something else than a recording with these settings.
        ValueError: for an operator that these tasks lack, a negative share or fewer episodes than tasks.
    """
    counts = split_evenly(episodes, len(TASKS))
    plan = [
        (task, name)
        for i, (task, count) in enumerate(zip(TASKS, counts, strict=True))
        for name in operator_order(count, mix, seed + i, known=SPEEDS)
    ]
    plan = [plan[i] for i in np.random.default_rng(seed).permutation(episodes)]
    recipe = {
        "repo_id": repo_id,
        "simulator": "metaworld",
        "seed": seed,
        "image_size": image_size,
        **({} if start_spread == START_SPREAD else {"start_spread": start_spread}),
        "max_episode_steps": {name: task.max_episode_steps for name, task in TASKS.items()},
        "tasks": [task for task, _ in plan],
        "operators": [name for _, name in plan],
    }
    simulation = Simulation(
        make_env=lambda task: SimulatorFactory(
            SIMULATOR, {"task": task, "image_size": image_size, "start_spread": start_spread}
        )(),
        make_operator=MetaWorldOperator,
        robot_type="sawyer",
        finish=write_pooled_statistics,
    )
    return record_episodes(Path(root), recipe, plan, simulation)


def write_pooled_statistics(root: Path, repo_id: str) -> None:
    """Replace the statistics of state and action by those of all frames together.

    LeRobot's quantiles of a dataset are the means of the episodes' quantiles. A gripper that some tasks keep open
    and others closed then has equal 1 % and 99 % quantiles, which nothing can be normalised with.
    """
    dataset = LeRobotDataset(repo_id, root=root)
    table = dataset.hf_dataset.with_format("numpy")
    pooled = {key: get_feature_stats(np.asarray(table[key]), axis=0, keepdims=False) for key in (OBS_STATE, ACTION)}
    write_stats({**dataset.meta.stats, **pooled}, root)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Record demonstrations of the scripted operators on all tasks.")
    parser.add_argument("--root", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--episodes", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    init_logging()
    record_tasks(args.root, REPO_ID, args.episodes, args.seed)


if __name__ == "__main__":
    main()
