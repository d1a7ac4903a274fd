"""``python -m lerobot_policy_pi05_rl.online.learner CONFIG``: as ``pi05-rl learner``."""

import sys

from ...cli import main

main(["learner", *sys.argv[1:]])
