"""The demo's simulator as a LeRobot robot, ``panda_sim``, and its operator as a teleoperator, ``panda_sim_operator``.

Importing it registers both types; for LeRobot's tools ``--robot.discover_packages_path=panda_sim`` does. The parent of
this folder must be on Python's path.
"""

from . import config_sim_robot as config_sim_robot
