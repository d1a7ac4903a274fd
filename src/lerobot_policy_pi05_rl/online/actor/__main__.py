"""``python -m lerobot_policy_pi05_rl.online.actor CONFIG``: as ``pi05-rl actor``."""

import sys

from ...cli import main

main(["actor", *sys.argv[1:]])
