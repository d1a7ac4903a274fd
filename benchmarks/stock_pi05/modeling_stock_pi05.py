"""Stock's policy around stock's network, built at the configuration's sizes."""

from lerobot.policies.pi05.modeling_pi05 import PI05Policy, PI05Pytorch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import nn

from lerobot_policy_pi05_rl.model.towers import PaliGemmaWithExpert
from stock_pi05.configuration_stock_pi05 import StockPI05Config


class StockPI05Pytorch(PI05Pytorch):
    """Stock's passes (joint layers, eager attention); its two unused logits heads are left out, to its advantage."""

    def __init__(self, config: StockPI05Config, rtc_processor=None):
        nn.Module.__init__(self)
        self.config, self.rtc_processor = config, rtc_processor
        self.gradient_checkpointing_enabled = False
        self.paligemma_with_expert = PaliGemmaWithExpert(config)
        self.action_in_proj = nn.Linear(config.max_action_dim, config.expert_width)
        self.action_out_proj = nn.Linear(config.expert_width, config.max_action_dim)
        self.time_mlp_in = nn.Linear(config.expert_width, config.expert_width)
        self.time_mlp_out = nn.Linear(config.expert_width, config.expert_width)


class StockPI05Policy(PI05Policy):
    """Stock's ``forward``, batch and loss."""

    config_class = StockPI05Config
    name = "stock_pi05"

    def __init__(self, config: StockPI05Config, **kwargs):
        PreTrainedPolicy.__init__(self, config)
        config.validate_features()
        self.config = config
        self.init_rtc_processor()
        self.model = StockPI05Pytorch(config, self.rtc_processor)
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.model.to(config.device)
        self.reset()
