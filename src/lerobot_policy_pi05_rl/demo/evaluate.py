"""Closed-loop evaluation of a checkpoint on the demo's simulators.

Uses LeRobot's own loading and `lerobot.scripts.lerobot_eval.rollout`, i.e. what `lerobot-eval` runs, and adds
what `lerobot-eval` does not report: the number of steps of every episode, and intervals.

    python -m lerobot_policy_pi05_rl.demo.evaluate PATH --episodes 50 --seed 1000 --output results.json
    python -m lerobot_policy_pi05_rl.demo.evaluate PATH --env-type metaworld_tasks --episodes 100
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from gymnasium.vector import VectorEnv
from lerobot.configs import PreTrainedConfig
from lerobot.envs import close_envs, make_env, make_env_pre_post_processors
from lerobot.policies import PreTrainedPolicy, make_policy, make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.random_utils import set_seed
from lerobot.utils.utils import init_logging

from .env_config import PandaPickCubeEnv
from .intervals import bootstrap_interval, successes_per_1000_steps, wilson_interval
from .metaworld_env_config import MetaWorldTasksEnv
from .metaworld_tasks import split_evenly

logger = logging.getLogger(__name__)


class ClosedLoopResult(TypedDict):
    """One entry per episode, in the order of the seeds."""

    success: list[bool]
    steps: list[int]  # environment steps until success or truncation
    task: NotRequired[list[str]]  # its name, where the environment has several


def evaluate_closed_loop(
    policy_path: str | Path,
    n_episodes: int,
    seed: int,
    n_envs: int = 10,
    overrides: Sequence[str] = (),
    env_cfg: PandaPickCubeEnv | MetaWorldTasksEnv | None = None,
) -> ClosedLoopResult:
    """Run a checkpoint for some episodes; episode i starts from the state that seed + i gives.

    Every policy evaluated with the same seed and number of episodes meets the same start states. A policy
    that samples its actions draws from PyTorch's generator, seeded per batch: those draws, unlike the start
    states, also depend on `n_envs`. With several tasks the episodes are spread evenly, one task after another.

    Args:
        policy_path: folder (or Hub id) with `config.json`, `model.safetensors` and the two processors.
        n_episodes: number of episodes.
        seed: of the first episode.
        n_envs: simulators stepped together in this process; the policy sees them as one batch.
        overrides: changes to the policy's configuration as on `lerobot-eval`'s command line without the
            `policy.` prefix, e.g. `["--device=cpu", "--n_action_steps=1"]`.
        env_cfg: environment; the pick task if None. Its `freeze_finished` is set.

    Returns:
        Success flag and number of steps of every episode, and its task where there are several.

    Raises:
        ValueError: for n_episodes < 1 (or fewer than tasks) or n_envs < 1.
        FileNotFoundError: when the checkpoint is not there.
    """
    if n_episodes < 1 or n_envs < 1:
        raise ValueError(f"Need n_episodes >= 1 and n_envs >= 1, got {n_episodes=}, {n_envs=}.")
    env_cfg = env_cfg if env_cfg is not None else PandaPickCubeEnv()
    env_cfg.freeze_finished = True
    several = isinstance(env_cfg, MetaWorldTasksEnv)
    env_cfgs = env_cfg.of_each_task() if several else {env_cfg.type: env_cfg}
    counts = split_evenly(n_episodes, len(env_cfgs))
    cfg = PreTrainedConfig.from_pretrained(policy_path, cli_overrides=list(overrides))
    cfg.pretrained_path = Path(policy_path)
    policy = make_policy(cfg=cfg, env_cfg=env_cfg)
    policy.eval()
    preprocessor, postprocessor = make_pre_post_processors(
        policy_cfg=cfg,
        pretrained_path=str(cfg.pretrained_path),
        preprocessor_overrides={"device_processor": {"device": str(policy.config.device)}},
    )
    result: ClosedLoopResult = {"success": [], "steps": []}
    for (name, task_cfg), count in zip(env_cfgs.items(), counts, strict=True):
        done = len(result["steps"])
        seeds = range(seed + done, seed + done + count)
        for success, steps in _run_batches(policy, cfg, task_cfg, preprocessor, postprocessor, seeds, n_envs):
            result["success"] += success
            result["steps"] += steps
            if several:
                result.setdefault("task", []).extend([name] * len(steps))
            logger.info(f"[EVAL] {len(result['steps'])}/{n_episodes} episodes, {sum(result['success'])} successes")
    return result


def _run_batches(
    policy: PreTrainedPolicy,
    cfg: PreTrainedConfig,
    env_cfg: PandaPickCubeEnv | MetaWorldTasksEnv,
    preprocessor: PolicyProcessorPipeline,
    postprocessor: PolicyProcessorPipeline,
    seeds: range,
    n_envs: int,
) -> Iterator[tuple[list[bool], list[int]]]:
    """Run one episode per seed of one task, `n_envs` at a time; yields each batch's success flags and steps."""
    env_preprocessor, env_postprocessor = make_env_pre_post_processors(env_cfg=env_cfg, policy_cfg=cfg)
    device_type = torch.device(policy.config.device).type
    envs: dict[str, Any] = {}
    try:
        for first in range(0, len(seeds), n_envs):
            chosen = list(seeds[first : first + n_envs])
            batch = len(chosen)
            if not envs or _only(envs).num_envs != batch:  # the last batch may be smaller
                close_envs(envs)
                envs = make_env(env_cfg, n_envs=batch)
            set_seed(chosen[0])
            with torch.no_grad(), torch.autocast(device_type) if cfg.use_amp else nullcontext():
                data = rollout(
                    env=_only(envs),
                    policy=policy,
                    env_preprocessor=env_preprocessor,
                    env_postprocessor=env_postprocessor,
                    preprocessor=preprocessor,
                    postprocessor=postprocessor,
                    seeds=chosen,
                )
            last = data["done"].int().argmax(dim=1)  # first True; `done` stays True from there on
            yield data["success"][torch.arange(batch), last].tolist(), (last + 1).tolist()
    finally:
        close_envs(envs)


def _only(envs: dict[str, dict[int, VectorEnv]]) -> VectorEnv:
    """The vector environment of a configuration with one task."""
    return next(iter(envs.values()))[0]


def summarize(result: ClosedLoopResult) -> dict[str, Any]:
    """Success rate, mean steps and throughput with 95 % intervals, as plain numbers for JSON.

    With several tasks: of all episodes together, and under `tasks` of each task's.
    """
    summary = _summarize(result["success"], result["steps"])
    if "task" in result:
        summary["tasks"] = {}
        for name in dict.fromkeys(result["task"]):
            rows = [i for i, task in enumerate(result["task"]) if task == name]
            of_task = [[result[key][i] for i in rows] for key in ("success", "steps")]
            summary["tasks"][name] = _summarize(*of_task)
    return summary


def _summarize(success: Sequence[bool], steps: Sequence[int]) -> dict[str, Any]:
    """`summarize` of episodes that belong together."""
    return {
        "episodes": len(success),
        "successes": sum(success),
        "success_rate": sum(success) / len(success),
        "success_rate_interval_95": wilson_interval(sum(success), len(success)),
        "mean_steps": sum(steps) / len(steps),
        "successes_per_1000_steps": successes_per_1000_steps(success, steps),
        "successes_per_1000_steps_interval_95": bootstrap_interval(success, steps),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint on a demo simulator.")
    parser.add_argument("policy_path", help="checkpoint folder (.../pretrained_model)")
    parser.add_argument("--env-type", choices=("panda_pick_cube", "metaworld_tasks"), default="panda_pick_cube")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1000, help="seed of the first episode")
    parser.add_argument("--n-envs", type=int, default=10, help="simulators stepped together")
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="--FIELD=VALUE",
        help="change of the policy's configuration, e.g. --override=--device=cpu (repeatable)",
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args(argv)
    init_logging()

    start = time.perf_counter()
    env_cfg = PandaPickCubeEnv() if args.env_type == "panda_pick_cube" else MetaWorldTasksEnv()
    result = evaluate_closed_loop(args.policy_path, args.episodes, args.seed, args.n_envs, args.override, env_cfg)
    summary = summarize(result)
    logger.info(f"[EVAL] {json.dumps(summary)}")
    if args.output is not None:
        report = {
            "policy_path": args.policy_path,
            "env_type": args.env_type,
            "seed": args.seed,
            "overrides": args.override,
            "seconds": time.perf_counter() - start,
            **summary,
            **result,
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=2) + "\n")
        logger.info(f"[EVAL] Wrote {args.output}")


if __name__ == "__main__":
    main()
