"""A policy extraction of one's own: cloning in which the better half of a task's samples counts the more.

python examples/own_policy_extraction.py CONFIG --policy.policy_extraction=soft_filtered
"""

import sys

import torch
from torch import Tensor

from lerobot_policy_pi05_rl.advantage import PolicyExtraction, SampleLabels
from lerobot_policy_pi05_rl.cli import main


@PolicyExtraction.register("soft_filtered")
class SoftFiltered(PolicyExtraction):
    """A sample weighs σ(A / std), between 0 and 1; a human's correction weighs 1."""

    def weights(self, labels: SampleLabels) -> Tensor:
        """(B,) 0 where the advantage, or as yet its task's deviation, is unknown."""
        weights = torch.sigmoid(labels.advantages / labels.advantage_std).nan_to_num(nan=0.0)
        return torch.where(labels.corrected, 1.0, weights)


if __name__ == "__main__":
    main(["offline", *sys.argv[1:]])
