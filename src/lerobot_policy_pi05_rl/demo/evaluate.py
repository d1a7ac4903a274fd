"""Closed-loop evaluation of a checkpoint on the demo's simulator.

Uses LeRobot's own loading and `lerobot.scripts.lerobot_eval.rollout`, i.e. what `lerobot-eval` runs, and adds
what `lerobot-eval` does not report: the number of steps of every episode, and intervals.

    python -m lerobot_policy_pi05_rl.demo.evaluate PATH --episodes 50 --seed 1000 --output results.json
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypedDict

import torch
from gymnasium.vector import VectorEnv
from lerobot.configs import PreTrainedConfig
from lerobot.envs import EnvConfig, close_envs, make_env, make_env_pre_post_processors
from lerobot.policies import PreTrainedPolicy, make_policy, make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.random_utils import set_seed
from lerobot.utils.utils import init_logging

from ..config.resolve import changed
from .env_config import PandaPickCubeEnv
from .intervals import bootstrap_interval, successes_per_1000_steps, wilson_interval

logger = logging.getLogger(__name__)


class ClosedLoopResult(TypedDict):
    """One entry per episode, in the order of the seeds."""

    success: list[bool]
    steps: list[int]  # environment steps until success or truncation


def evaluate_closed_loop(
    policy_path: str | Path,
    n_episodes: int,
    seed: int,
    n_envs: int = 10,
    overrides: Sequence[str] = (),
    env_cfg: EnvConfig | None = None,
) -> ClosedLoopResult:
    """Run a checkpoint for some episodes; episode i starts from the state that seed + i gives.

    Every policy evaluated with the same seed and number of episodes meets the same start states. A policy
    that samples its actions draws from PyTorch's generator, seeded per batch: those draws, unlike the start
    states, also depend on `n_envs`.

    Args:
        policy_path: folder (or Hub id) with `config.json`, `model.safetensors` and the two processors.
        n_envs: simulators stepped together in this process; the policy sees them as one batch.
        overrides: changes to the policy's configuration as on `lerobot-eval`'s command line without the
            `policy.` prefix, e.g. `["--device=cpu", "--n_action_steps=1"]`.
        env_cfg: environment with one task, acted in with `freeze_finished`; the pick task if None.

    Raises:
        ValueError: for n_episodes < 1 or n_envs < 1.
        FileNotFoundError: when the checkpoint is not there.
    """
    if n_episodes < 1 or n_envs < 1:
        raise ValueError(f"Need n_episodes >= 1 and n_envs >= 1, got {n_episodes=}, {n_envs=}.")
    env_cfg = changed(PandaPickCubeEnv() if env_cfg is None else env_cfg, freeze_finished=True)
    cfg = PreTrainedConfig.from_pretrained(policy_path, cli_overrides=list(overrides))
    cfg = changed(cfg, pretrained_path=Path(policy_path))
    policy = make_policy(cfg=cfg, env_cfg=env_cfg)
    policy.eval()
    preprocessor, postprocessor = make_pre_post_processors(
        policy_cfg=cfg,
        pretrained_path=str(cfg.pretrained_path),
        preprocessor_overrides={"device_processor": {"device": str(policy.config.device)}},
    )
    result: ClosedLoopResult = {"success": [], "steps": []}
    seeds = range(seed, seed + n_episodes)
    for success, steps in _run_batches(policy, cfg, env_cfg, preprocessor, postprocessor, seeds, n_envs):
        result["success"] += success
        result["steps"] += steps
        logger.info(f"[EVAL] {len(result['steps'])}/{n_episodes} episodes, {sum(result['success'])} successes")
    return result


def _run_batches(
    policy: PreTrainedPolicy,
    cfg: PreTrainedConfig,
    env_cfg: EnvConfig,
    preprocessor: PolicyProcessorPipeline,
    postprocessor: PolicyProcessorPipeline,
    seeds: range,
    n_envs: int,
) -> Iterator[tuple[list[bool], list[int]]]:
    """Run one episode per seed, `n_envs` at a time; yields each batch's success flags and steps."""
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
    """Success rate, mean steps and throughput with 95 % intervals, as plain numbers for JSON."""
    success, steps = result["success"], result["steps"]
    return {
        "episodes": len(success),
        "successes": sum(success),
        "success_rate": sum(success) / len(success),
        "success_rate_interval_95": wilson_interval(sum(success), len(success)),
        "mean_steps": sum(steps) / len(steps),
        "successes_per_1000_steps": successes_per_1000_steps(success, steps),
        "successes_per_1000_steps_interval_95": bootstrap_interval(success, steps),
    }


def main(
    argv: Sequence[str] | None = None,
    *,
    env_type: str = "panda_pick_cube",
    run: Callable[..., Any] = evaluate_closed_loop,
    summary_of: Callable[[Any], dict[str, Any]] = summarize,
) -> None:
    """Command line entry point; a benchmark with an environment of its own gives its name and functions."""
    parser = argparse.ArgumentParser(description=f"Evaluate a checkpoint on {env_type}.")
    parser.add_argument("policy_path", help="checkpoint folder (.../pretrained_model)")
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
    result = run(args.policy_path, args.episodes, args.seed, args.n_envs, args.override)
    summary = summary_of(result)
    logger.info(f"[EVAL] {json.dumps(summary)}")
    if args.output is not None:
        report = {
            "policy_path": args.policy_path,
            "env_type": env_type,
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
