"""The policy that the benchmark's Meta-World policies start from: cloned from a broad recording.

PYTHONPATH=benchmarks python -m metaworld_tasks.pretrain --destination benchmarks/metaworld_tasks/pretrained

As the demo's (``lerobot_policy_pi05_rl/demo/pretrain.py``), which this uses: another seed than the benchmark's, start
states from a larger part of Meta-World's range, all operators, all tasks.
"""

import sys
from pathlib import Path

from lerobot_policy_pi05_rl.demo import pretrain
from lerobot_policy_pi05_rl.demo.record import DEFAULT_MIX

from .record import record_tasks

START_SPREAD = 0.7  # the benchmark's episodes have 0.5


def record(root: Path, repo_id: str, episodes: int) -> Path:
    """The broad recording."""
    return record_tasks(root, repo_id, episodes, pretrain.SEED, DEFAULT_MIX, start_spread=START_SPREAD)


if __name__ == "__main__":
    sys.exit(pretrain.main(sys.argv[1:], record=record, repo_id="local/metaworld_broad"))
