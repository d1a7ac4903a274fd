"""``python -m lerobot_policy_pi05_rl.online.actor CONFIG``: as ``pi05-rl actor``."""

from ...command.run import run_as_script
from .actor import main

if __name__ == "__main__":
    run_as_script("actor", main)
