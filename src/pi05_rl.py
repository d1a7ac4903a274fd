"""The console script ``pi05-rl``, also ``python -m pi05_rl``.

It lies beside the package because importing the package registers the policy with LeRobot, which imports torch and
takes seconds. Where this module is loaded first, the package leaves that to the command (its ``__init__`` says how).
"""

import sys

sys.modules.setdefault("pi05_rl", sys.modules[__name__])  # under `python -m` it is called __main__


def main() -> None:
    """Console entry point."""
    from lerobot_policy_pi05_rl.cli import main as run  # start-up: this module must be there first

    run()


if __name__ == "__main__":
    main()
