"""Closed-loop evaluation and its intervals."""

import json

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("gym_hil")

from lerobot.envs import make_env
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.processor import PolicyProcessorPipeline

from lerobot_policy_pi05_rl.demo import evaluate
from lerobot_policy_pi05_rl.demo.env_config import PandaPickCubeEnv
from lerobot_policy_pi05_rl.demo.evaluate import (
    bootstrap_interval,
    evaluate_closed_loop,
    successes_per_1000_steps,
    summarize,
    wilson_interval,
)
from lerobot_policy_pi05_rl.demo.operators import ScriptedOperator


def test_wilson_interval_by_hand():
    # z = 1.959964, z^2 = 3.841459. For 8 of 10: centre = (0.8 + 0.1920729) / 1.3841459 = 0.7167402,
    # half width = 1.959964 / 1.3841459 * sqrt(0.016 + 0.00960365) = 0.2265765.
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=2e-5)
    # None of n: (0, z^2 / (n + z^2)); all of n mirrors it.
    assert wilson_interval(0, 10) == pytest.approx((0.0, 3.841459 / 13.841459), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((10 / 13.841459, 1.0), abs=1e-6)
    narrow, wide = wilson_interval(8, 10, 0.8), wilson_interval(8, 10, 0.99)
    assert wide[0] < narrow[0] < 0.8 < narrow[1] < wide[1]


@pytest.mark.parametrize("wrong", [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_wilson_interval_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(*wrong)


def test_throughput_by_hand():
    assert successes_per_1000_steps([True, False, True], [10, 40, 30]) == pytest.approx(25.0)
    with pytest.raises(ValueError, match="as many"):
        successes_per_1000_steps([True], [10, 20])


def test_bootstrap_interval():
    # Equal episodes: every resample is the same, the interval has no width.
    assert bootstrap_interval([True] * 4, [20] * 4) == pytest.approx((50.0, 50.0))
    # Two episodes, one success in 10 steps and one failure in 10: a resample has 0, 1 or 2 successes in
    # 20 steps with probabilities 1/4, 1/2, 1/4, so the 90 % interval spans 0 to 100 and the 40 % one is 50.
    assert bootstrap_interval([True, False], [10, 10], 0.9) == pytest.approx((0.0, 100.0))
    assert bootstrap_interval([True, False], [10, 10], 0.4) == pytest.approx((50.0, 50.0))
    success, steps = [True, False, True, True], [12, 40, 30, 11]
    assert bootstrap_interval(success, steps, seed=1) == bootstrap_interval(success, steps, seed=1)
    low, high = bootstrap_interval(success, steps)
    assert low < successes_per_1000_steps(success, steps) < high


def short_env() -> PandaPickCubeEnv:
    return PandaPickCubeEnv(image_size=32, episode_length=5)


def test_evaluates_a_checkpoint_in_uneven_batches_with_overrides(checkpoint, monkeypatch):
    seeds, rollout = [], evaluate.rollout

    def spying(**kwargs):
        seeds.append(kwargs["seeds"])
        assert kwargs["policy"].config.n_action_steps == 1
        return rollout(**kwargs)

    monkeypatch.setattr(evaluate, "rollout", spying)
    result = evaluate_closed_loop(
        checkpoint, 3, seed=20, n_envs=2, overrides=["--n_action_steps=1"], env_cfg=short_env()
    )
    assert seeds == [[20, 21], [22]]
    assert result == {"success": [False] * 3, "steps": [5] * 3}
    assert summarize(result)["mean_steps"] == 5.0


class ScriptedPolicy(nn.Module):
    """Drives the simulators of a vector environment with the scripted operators: a policy that succeeds."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.config = ACTConfig(device="cpu")
        self.names, self.envs = names, None

    def reset(self) -> None:
        self.operators = [ScriptedOperator(name, np.random.default_rng(0)) for name in self.names]

    def select_action(self, batch: dict) -> torch.Tensor:
        sims = [env.unwrapped for env in self.envs.envs]
        pairs = zip(self.operators, sims, strict=True)
        return torch.stack([torch.from_numpy(o.act(s.gripper_position, s.cube_position)) for o, s in pairs])


@pytest.mark.parametrize("freeze", [False, True])
def test_counts_steps_until_the_first_end_although_the_batch_runs_on(freeze, checkpoint, monkeypatch):
    policy = ScriptedPolicy(["fast", "misses", "slow"])

    def build(cfg, n_envs):
        cfg.freeze_finished = freeze
        envs = make_env(cfg, n_envs)
        policy.envs = envs[cfg.type][0]
        return envs

    monkeypatch.setattr(evaluate, "make_env", build)
    monkeypatch.setattr(evaluate, "make_policy", lambda **_: policy)
    identity = PolicyProcessorPipeline(steps=[])
    action_only = PolicyProcessorPipeline(steps=[], to_transition=lambda a: a, to_output=lambda a: a)
    monkeypatch.setattr(evaluate, "make_pre_post_processors", lambda **_: (identity, action_only))
    result = evaluate_closed_loop(checkpoint, 3, seed=0, n_envs=3, env_cfg=PandaPickCubeEnv(image_size=16))
    assert result["success"] == [True, False, True]
    fast, misses, slow = result["steps"]
    assert 2 * fast < slow < misses == 40


def test_command_line_writes_the_results(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "PandaPickCubeEnv", short_env)
    output = tmp_path / "results" / "random.json"
    evaluate.main([str(checkpoint), "--episodes=2", "--seed=5", f"--output={output}"])
    report = json.loads(output.read_text())
    assert report["steps"] == [5, 5] and report["seed"] == 5
    assert report["success_rate_interval_95"] == pytest.approx(wilson_interval(0, 2))


def test_needs_episodes(checkpoint):
    with pytest.raises(ValueError, match="n_episodes"):
        evaluate_closed_loop(checkpoint, 0, seed=0)
