"""The pick simulator as a LeRobot robot, `panda_sim`, and its operator as a teleoperator, `panda_sim_operator`.

Importing this module registers both types and needs neither MuJoCo nor gym-hil. LeRobot's factories strip `Config`
from a class's name and `config_` from its module's to find the device: `sim_robot.PandaSim`, `PandaSimOperator`.
"""

from dataclasses import dataclass

from lerobot.robots.config import RobotConfig
from lerobot.teleoperators.config import TeleoperatorConfig

from lerobot_policy_pi05_rl.demo.constants import CUBE_JITTER_M, IMAGE_SIZE
from lerobot_policy_pi05_rl.demo.operators import STYLES


@RobotConfig.register_subclass("panda_sim")
@dataclass(kw_only=True)
class PandaSimConfig(RobotConfig):
    """Configuration of the simulated arm.

    Attributes:
        image_size: height and width of both pictures, pixels.
        cube_jitter: half width of the uniform jitter of the cube's x and y, metres.
        seed: of the start state; None draws one.
    """

    image_size: int = IMAGE_SIZE
    cube_jitter: float = CUBE_JITTER_M
    seed: int | None = None


@TeleoperatorConfig.register_subclass("panda_sim_operator")
@dataclass(kw_only=True)
class PandaSimOperatorConfig(TeleoperatorConfig):
    """Configuration of the scripted operator who corrects the simulated arm.

    Attributes:
        style: one of `operators.STYLES`.
        seed: of the operator's noise; None draws one.
    """

    style: str = "fast"
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"teleop.style must be one of {', '.join(STYLES)}; got {self.style!r}")
