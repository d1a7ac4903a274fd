"""Everything random in a step, as a function of (seed, position): noise, time, whether the tag is dropped.

No global random state is read, so a sample's numbers do not depend on its batch, its process, or on whether the
run was interrupted. Numbers come from numpy's counter-based Philox generator with (seed, position) as its key.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .configuration_pi05_rl import PI05RLConfig


class SampledNoise(NamedTuple):
    """One batch's random numbers."""

    noise: Tensor  # (B, chunk, max_action_dim) standard normal
    time: Tensor  # (B,) flow-matching time, π0.5's Beta distribution; 1 is noise
    dropped: Tensor  # (B,) bool, the advantage tag is hidden


def sample_noise(seed: int, positions: Tensor, config: PI05RLConfig) -> SampledNoise:
    """Noise, time and tag dropout of the samples at the given global positions (B,), on their device."""
    shape = (config.chunk_size, config.max_action_dim)
    noise = np.empty((len(positions), *shape), dtype=np.float32)
    time = np.empty(len(positions), dtype=np.float32)
    dropped = np.empty(len(positions), dtype=bool)
    for row, position in enumerate(positions.tolist()):
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, position], dtype=np.uint64)))
        dropped[row] = rng.random() < config.advantage_dropout
        beta = rng.beta(config.time_sampling_beta_alpha, config.time_sampling_beta_beta)
        time[row] = beta * config.time_sampling_scale + config.time_sampling_offset
        noise[row] = rng.standard_normal(shape, dtype=np.float32)
    return SampledNoise(*(torch.from_numpy(values).to(positions.device) for values in (noise, time, dropped)))
