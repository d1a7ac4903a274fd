"""Stock's processors (lerobot/policies/pi05/processor_pi05.py) with a tokenizer that needs no download."""

from dataclasses import replace
from typing import Any

from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
from lerobot.processor import TokenizerProcessorStep
from torch import Tensor

from lerobot_policy_pi05_rl.processor_pi05_rl import (
    PreparePromptStep,
    TokenizePromptStep,
    make_pi05_rl_pre_post_processors,
)

from .configuration_stock_pi05 import StockPI05Config


def make_stock_pi05_pre_post_processors(
    config: StockPI05Config, dataset_stats: dict[str, dict[str, Tensor]] | None = None, **kwargs: Any
) -> tuple:
    """Ours, with the two steps that are ours replaced by stock's."""
    preprocessor, postprocessor = make_pi05_rl_pre_post_processors(config, dataset_stats)
    stock = [_stock_step(step, config) for step in preprocessor.steps]
    return replace(preprocessor, steps=stock), postprocessor


def _stock_step(step: Any, config: StockPI05Config) -> Any:
    if isinstance(step, PreparePromptStep):
        return Pi05PrepareStateTokenizerProcessorStep(max_state_dim=config.max_state_dim)
    if isinstance(step, TokenizePromptStep):
        return TokenizerProcessorStep(
            tokenizer=step.input_tokenizer,
            max_length=config.tokenizer_max_length,
            padding_side="right",
            padding="max_length",
        )
    return step
