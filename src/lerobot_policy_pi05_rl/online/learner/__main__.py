"""``python -m lerobot_policy_pi05_rl.online.learner CONFIG``: as ``pi05-rl learner``."""

from ...command.run import run_as_script
from ...plan.command import describe_memory
from .learner import main

if __name__ == "__main__":
    run_as_script("learner", main, count_memory=describe_memory)
