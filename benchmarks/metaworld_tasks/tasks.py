"""The Meta-World tasks: what simulator, operators and configuration agree on.

Importing this module needs neither MuJoCo nor Meta-World.
"""

from dataclasses import dataclass

START_SPREAD = 0.5  # part of Meta-World's range of start states that episodes are drawn from


@dataclass(frozen=True)
class MetaWorldTask:
    """One task.

    Attributes:
        instruction: the text that a policy is given.
        environment: name in `metaworld.env_dict.ALL_V3_ENVIRONMENTS`.
        policy: name of the scripted policy's class in `metaworld.policies`.
        max_episode_steps: control steps until truncation, about 1.3 times what `slow` needs.
        gain: factor on the scripted policy's motion. It is tuned to 80 decisions a second; at 10 it would
            overshoot (or, where it creeps, waste time).
        miss: what `misses` adds to the object's position, lower and upper bounds of x, y, z in metres; the sign of
            x is drawn.
    """

    instruction: str
    environment: str
    policy: str
    max_episode_steps: int
    gain: float
    miss: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


TASKS: dict[str, MetaWorldTask] = {
    "start_coffee": MetaWorldTask(
        instruction="Push the button of the coffee machine.",
        environment="coffee-button-v3",
        policy="SawyerCoffeeButtonV3Policy",
        max_episode_steps=30,
        gain=0.6,
        miss=((0.10, 0.14), (0.0, 0.0), (0.0, 0.0)),
    ),
    "press_button": MetaWorldTask(
        instruction="Press the red button from above.",
        environment="button-press-topdown-v3",
        policy="SawyerButtonPressTopdownV3Policy",
        max_episode_steps=55,
        gain=0.6,
        miss=((0.10, 0.14), (0.0, 0.0), (0.0, 0.0)),
    ),
    "open_window": MetaWorldTask(
        instruction="Slide the window open.",
        environment="window-open-v3",
        policy="SawyerWindowOpenV3Policy",
        max_episode_steps=70,
        gain=0.6,
        miss=((0.0, 0.0), (-0.16, -0.12), (0.0, 0.0)),
    ),
    "open_drawer": MetaWorldTask(
        instruction="Pull the drawer open.",
        environment="drawer-open-v3",
        policy="SawyerDrawerOpenV3Policy",
        max_episode_steps=130,
        gain=0.5,
        miss=((0.10, 0.14), (0.0, 0.0), (0.0, 0.0)),
    ),
}


def split_evenly(episodes: int, tasks: int) -> list[int]:
    """Episodes of each task; the first tasks get those that are left over.

    Raises:
        ValueError: for fewer episodes than tasks.
    """
    if not 1 <= tasks <= episodes:
        raise ValueError(f"Need at least one episode of each of {tasks} tasks, got {episodes=}.")
    return [episodes // tasks + (i < episodes % tasks) for i in range(tasks)]
