"""Whether a checkpoint's processors are whole and of this policy; LeRobot's pipeline asks neither."""

from pathlib import Path

import torch
from lerobot.configs import NormalizationMode
from lerobot.processor import NormalizerProcessorStep, PolicyProcessorPipeline, UnnormalizerProcessorStep
from lerobot.utils.constants import ACTION, OBS_STATE

from ..configuration_pi05_rl import PI05RLConfig
from ..data.batch import TASK
from ..processor_pi05_rl import TokenizePromptStep
from ..stored.files import CheckpointError
from ..stored.folders import PROCESSOR_CONFIGS, PROCESSORS, PROCESSORS_ADVICE

READS = {
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}


def check_processors(
    config: PI05RLConfig,
    preprocessor: PolicyProcessorPipeline,
    postprocessor: PolicyProcessorPipeline,
    path: str | Path,
) -> None:
    """Statistics for everything that is normalised, finite and of the policy's dimensions, and a tokenizer that fits.

    Raises:
        CheckpointError: they are not; without them the policy would read, or do, something else than it learnt.
    """
    problem = (
        _step_problem(preprocessor, postprocessor)
        or _tokenizer_problem(config, preprocessor)
        or _statistics_problem(config, preprocessor, NormalizerProcessorStep)
        or _statistics_problem(config, postprocessor, UnnormalizerProcessorStep)
    )
    if problem:
        raise CheckpointError(
            f"the processors in {path} ({PROCESSORS}) are not those of this policy: {problem}. {PROCESSORS_ADVICE}"
        )


def probe_processors(
    config: PI05RLConfig, preprocessor: PolicyProcessorPipeline, postprocessor: PolicyProcessorPipeline
) -> None:
    """Send one state and one action through: what raises here would raise at the first batch, hours into a queue."""
    widths = {key: config.input_features[key].shape[0] for key in (OBS_STATE,) if key in config.input_features}
    actions = config.output_features[ACTION].shape[0]
    preprocessor({**{key: torch.zeros(1, width) for key, width in widths.items()}, TASK: ["x"]})
    postprocessor(torch.zeros(1, actions))


def _step_problem(preprocessor: PolicyProcessorPipeline, postprocessor: PolicyProcessorPipeline) -> str | None:
    for name, pipeline, needed in (
        (PROCESSOR_CONFIGS[0], preprocessor, (NormalizerProcessorStep, TokenizePromptStep)),
        (PROCESSOR_CONFIGS[1], postprocessor, (UnnormalizerProcessorStep,)),
    ):
        for kind in needed:
            if sum(isinstance(step, kind) for step in pipeline.steps) != 1:
                return f"{name} has not exactly one {kind.__name__}"
    return None


def _tokenizer_problem(config: PI05RLConfig, preprocessor: PolicyProcessorPipeline) -> str | None:
    step = next(step for step in preprocessor.steps if isinstance(step, TokenizePromptStep))
    tokens = len(step.input_tokenizer)
    if tokens <= config.vocab_size:
        return None
    return f"the tokenizer has {tokens} tokens, policy.vocab_size is {config.vocab_size}"


def _statistics_problem(config: PI05RLConfig, pipeline: PolicyProcessorPipeline, kind: type) -> str | None:
    step = next(step for step in pipeline.steps if isinstance(step, kind))
    for key, feature in {**config.input_features, **config.output_features}.items():
        mode = step.norm_map.get(feature.type, NormalizationMode.IDENTITY)
        if key not in step.features or mode is NormalizationMode.IDENTITY:
            continue
        for name in READS[mode]:
            value = step.stats.get(key, {}).get(name)
            if value is None:
                return f"{kind.__name__} has no {name} of {key}, which {mode.value} reads"
            value = torch.as_tensor(value, dtype=torch.float32)
            if value.numel() not in (1, feature.shape[0]):
                return f"{name} of {key} has {value.numel()} dimensions, the policy's {key} has {feature.shape[0]}"
            bad = (~value.flatten().isfinite()).nonzero().flatten().tolist()
            if bad:
                return f"{name} of {key} is {value.flatten()[bad[0]].item()} in dimension {bad[0]}"
    return None
