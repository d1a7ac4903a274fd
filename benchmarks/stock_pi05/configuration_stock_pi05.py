"""The configuration: π0.5's, with sizes as fields."""

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig


@PreTrainedConfig.register_subclass("stock_pi05")
@dataclass
class StockPI05Config(PI05RLConfig):
    """The fields of critic and advantage mean nothing here."""
