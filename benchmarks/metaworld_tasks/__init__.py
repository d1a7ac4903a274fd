"""The benchmark ``metaworld``: four Meta-World tasks with the demo's observations and actions.

Importing it registers the environment type ``metaworld_tasks``; for LeRobot's tools ``--env.discover_packages_path``
does. The parent of this folder must be on Python's path:

    PYTHONPATH=benchmarks lerobot-eval --env.discover_packages_path=metaworld_tasks --env.type=metaworld_tasks …
"""

from . import env_config as env_config
