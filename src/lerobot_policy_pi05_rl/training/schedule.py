"""Learning rates: π0.5's warm-up and cosine decay, of each group over its own part of the run."""

from collections.abc import Callable
from dataclasses import replace

import torch
from lerobot.optim import CosineDecayWithWarmupSchedulerConfig
from torch.optim.lr_scheduler import LambdaLR

Factor = Callable[[int], float]  # step → what multiplies the learning rate


def build_schedule(
    preset: CosineDecayWithWarmupSchedulerConfig,
    optimizer: torch.optim.Optimizer,
    total_steps: int,
    *,
    critic_steps: int = 0,
) -> LambdaLR:
    """One schedule over the whole run; or, with ``critic_steps``, the critic's over those first steps, behind which it
    goes on at a tenth of its peak, and the actor's over all others.

    Args:
        preset: LeRobot's, which fits its own steps to the length it is given.
        optimizer: its groups have names.
    """
    if not 0 < critic_steps < total_steps:
        return preset.build(optimizer, total_steps)
    goes_on = replace(preset, decay_lr=preset.peak_lr / 10)
    critic, actor = factor_of(goes_on, critic_steps), factor_of(preset, total_steps - critic_steps)
    factors = {
        "critic": lambda step: critic(min(step, critic_steps)),
        "actor": lambda step: actor(max(0, step - critic_steps)),
    }
    return LambdaLR(optimizer, [factors[group["name"]] for group in optimizer.param_groups])


def factor_of(preset: CosineDecayWithWarmupSchedulerConfig, steps: int) -> Factor:
    """The preset's factor over ``steps`` steps."""
    throwaway = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    return preset.build(throwaway, steps).lr_lambdas[0]
