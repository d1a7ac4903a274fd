"""Closed-loop evaluation of a checkpoint on the tasks, one after another.

PYTHONPATH=benchmarks python -m metaworld_tasks.evaluate PATH --episodes 100
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lerobot_policy_pi05_rl.demo import evaluate
from lerobot_policy_pi05_rl.demo.evaluate import ClosedLoopResult, evaluate_closed_loop, summarize

from .env_config import MetaWorldTasksEnv
from .tasks import split_evenly


class TasksResult(ClosedLoopResult):
    """One entry per episode, in the order of the seeds."""

    task: list[str]  # its name


def evaluate_tasks(
    policy_path: str | Path,
    n_episodes: int,
    seed: int,
    n_envs: int = 10,
    overrides: Sequence[str] = (),
    env_cfg: MetaWorldTasksEnv | None = None,
) -> TasksResult:
    """As :func:`evaluate_closed_loop`, the episodes spread evenly over the tasks of ``env_cfg`` (all, if None).

    Raises:
        ValueError: for fewer episodes than tasks, or n_envs < 1.
        FileNotFoundError: when the checkpoint is not there.
    """
    of_task = (env_cfg or MetaWorldTasksEnv()).of_each_task()
    result: TasksResult = {"success": [], "steps": [], "task": []}
    for (name, task_cfg), count in zip(of_task.items(), split_evenly(n_episodes, len(of_task)), strict=True):
        done = len(result["steps"])
        found = evaluate_closed_loop(policy_path, count, seed + done, n_envs, overrides, task_cfg)
        result["success"] += found["success"]
        result["steps"] += found["steps"]
        result["task"] += [name] * count
    return result


def summarize_tasks(result: TasksResult) -> dict[str, Any]:
    """:func:`summarize` of all episodes together, and under ``tasks`` of each task's."""
    summary = {**summarize(result), "tasks": {}}
    for name in dict.fromkeys(result["task"]):
        rows = [row for row, task in enumerate(result["task"]) if task == name]
        of_task = {key: [result[key][row] for row in rows] for key in ("success", "steps")}
        summary["tasks"][name] = summarize(of_task)
    return summary


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    evaluate.main(argv, env_type="metaworld_tasks", run=evaluate_tasks, summary_of=summarize_tasks)


if __name__ == "__main__":
    main()
