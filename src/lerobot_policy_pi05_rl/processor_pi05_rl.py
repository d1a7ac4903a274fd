"""Pre- and post-processing: stock π0.5's pipeline with a tokenizer that travels inside the checkpoint."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    ProcessorStepRegistry,
    RelativeActionsProcessorStep,
    TokenizerProcessorStep,
    create_transition,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from lerobot.utils.constants import OBS_STATE
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from .configuration_pi05_rl import TASKS_TOKENIZER, PI05RLConfig
from .data.batch import TASK
from .errors import UserError, one_line
from .stored.files import CheckpointError
from .stored.folders import PROCESSORS, PROCESSORS_ADVICE, damaged_processor_file

logger = logging.getLogger(__name__)

PAD_TO_MULTIPLE_OF = 8  # of the prompt's tokens: few lengths, so that compiled code is seldom compiled again

Preprocessor = PolicyProcessorPipeline[dict[str, Any], dict[str, Any]]
Postprocessor = PolicyProcessorPipeline[PolicyAction, PolicyAction]
Processors = tuple[Preprocessor, Postprocessor]


@ProcessorStepRegistry.register(name="pi05_rl_prepare_prompt")
@dataclass
class PreparePromptStep(Pi05PrepareStateTokenizerProcessorStep):
    """Stock's ``Task: …, State: …;`` prompt, with the normalised state clamped into the 256 bins.

    Stock maps a state below the 1 % quantile to bin −1, a word the model has never seen.
    """

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        observation = dict(transition[TransitionKey.OBSERVATION])
        if observation.get(OBS_STATE) is not None:
            observation[OBS_STATE] = observation[OBS_STATE].clamp(-1.0, 1.0)
        clamped = transition.copy()
        clamped[TransitionKey.OBSERVATION] = observation
        return super().__call__(clamped)


@ProcessorStepRegistry.register(name="pi05_rl_tokenizer")
@dataclass
class TokenizePromptStep(TokenizerProcessorStep):
    """Tokenizes the prompt; its ``state_dict`` is the tokenizer itself.

    LeRobot serialises a tokenizer by Hub name or by absolute path; this step keeps its JSON as a uint8 tensor in
    ``policy_preprocessor_step_*.safetensors``, so that a checkpoint loads anywhere, without network.
    """

    padding: str = "longest"

    def __post_init__(self) -> None:
        if self.tokenizer is not None:  # else: load_state_dict brings it
            self.input_tokenizer = self.tokenizer

    def _tokenize_text(self, text: str | list[str]) -> dict[str, Tensor]:
        tokens = self.input_tokenizer(
            text,
            padding=self.padding,
            padding_side=self.padding_side,
            pad_to_multiple_of=PAD_TO_MULTIPLE_OF,
            return_tensors="pt",
            truncation=False,
        )
        length = int(tokens["attention_mask"].sum(dim=1).max())
        if length > self.max_length:  # stock truncates, which cuts the state and "Action:" off the prompt's end
            raise UserError(
                f"a prompt has {length} tokens but policy.tokenizer_max_length is {self.max_length}: "
                f"{(text if isinstance(text, str) else max(text, key=len))[:120]!r}"
            )
        return tokens

    def get_config(self) -> dict[str, Any]:
        """The step's parameters, without a tokenizer name: the state holds the tokenizer."""
        config = super().get_config()
        config.pop("tokenizer_name", None)
        return config

    def state_dict(self) -> dict[str, Tensor]:
        """{"tokenizer_json": (bytes,) uint8, "pad_token_id": (1,) int64}."""
        text = self.input_tokenizer.backend_tokenizer.to_str().encode()
        return {
            "tokenizer_json": torch.frombuffer(bytearray(text), dtype=torch.uint8),
            "pad_token_id": torch.tensor([self.input_tokenizer.pad_token_id]),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Rebuild the tokenizer from :meth:`state_dict`."""
        backend = Tokenizer.from_str(bytes(state["tokenizer_json"].numpy()).decode())
        pad_token = backend.id_to_token(int(state["pad_token_id"]))
        self.input_tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad_token)


def check_prompt_lengths(pipeline: PolicyProcessorPipeline, tasks: list[str], state_dim: int) -> None:
    """Tokenize every task with the longest state there can be, before a run has begun.

    Raises:
        UserError: a prompt exceeds ``tokenizer_max_length``.
    """
    prepare = next(step for step in pipeline.steps if isinstance(step, PreparePromptStep))
    tokenize = next(step for step in pipeline.steps if isinstance(step, TokenizePromptStep))
    longest_state = torch.full((len(tasks), state_dim), 1.0)  # bin 255: three digits a dimension
    transition = create_transition(observation={OBS_STATE: longest_state}, complementary_data={TASK: tasks})
    tokenize(prepare(transition))


def build_tasks_tokenizer(tasks: list[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer for small models: the tasks' words, π0.5's prompt words, 0 to 255.

    A word it does not know becomes ``<unk>``.
    """
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    texts = [*tasks, "Task: , State: ; Action: ", " ".join(map(str, range(256)))]
    words = dict.fromkeys(word for text in texts for word, _ in splitter.pre_tokenize_str(text.replace("_", " ")))
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")


def make_tokenizer(config: PI05RLConfig, tasks: list[str] | None) -> PreTrainedTokenizerFast:
    """The tokenizer ``config.tokenizer`` asks for.

    Raises:
        UserError: it cannot be loaded, or has more tokens than ``config.vocab_size``.
    """
    if config.tokenizer == TASKS_TOKENIZER:
        if not tasks:
            raise UserError('policy.tokenizer="tasks" needs a dataset with tasks to build the tokenizer from')
        tokenizer = build_tasks_tokenizer(tasks)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the tokenizer {config.tokenizer!r} (policy.tokenizer) is neither a local directory nor reachable on "
                "the Hub; google/paligemma-3b-pt-224 is gated: accept its licence and run `hf auth login`, or give "
                "the directory of a downloaded copy"
            ) from error
    check_vocabulary(tokenizer, config, f"the tokenizer {config.tokenizer!r}")
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, config: PI05RLConfig, name: str) -> None:
    """Every token must have an embedding.

    Raises:
        UserError: the tokenizer, called ``name``, has more tokens than ``config.vocab_size``.
    """
    if len(tokenizer) > config.vocab_size:
        raise UserError(f"{name} has {len(tokenizer)} tokens but policy.vocab_size is {config.vocab_size}")


def tokenizer_from_checkpoint(path: str | Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer saved inside one of our checkpoints; None where the directory has none."""
    config_file = Path(path) / "policy_preprocessor.json"
    if not config_file.is_file() or "pi05_rl_tokenizer" not in config_file.read_text():
        return None
    try:
        pipeline = PolicyProcessorPipeline.from_pretrained(
            path,
            config_filename=config_file.name,
            overrides={"device_processor": {"device": "cpu"}},
        )
    except Exception as error:  # whatever a damaged file raises, the user must learn which checkpoint it was
        raise damaged_processors(path, error) from error
    return next(s.input_tokenizer for s in pipeline.steps if isinstance(s, TokenizePromptStep))


def stored_statistics(path: str | Path) -> dict[str, dict[str, np.ndarray]]:
    """Feature → name → what the processors saved in the folder ``path`` normalise with; empty where none can be read,
    which whoever loads them will say."""
    stats: dict[str, dict[str, np.ndarray]] = {}
    for file in Path(path).glob("policy_preprocessor_step_*_normalizer_processor.safetensors"):
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError):
            continue
        for name, tensor in tensors.items():
            key, _, statistic = name.rpartition(".")
            stats.setdefault(key, {})[statistic] = tensor.float().numpy()
    return stats


def damaged_processors(path: str | Path, error: Exception) -> CheckpointError:
    """What to tell the user when the processors saved in the directory (or Hub repository) ``path`` do not load."""
    reason = damaged_processor_file(Path(path)) or one_line(error)
    return CheckpointError(
        f"the processors in {path} ({PROCESSORS}) are missing or damaged: {reason}. {PROCESSORS_ADVICE}"
    )


def make_pi05_rl_pre_post_processors(
    config: PI05RLConfig,
    dataset_stats: dict[str, dict[str, Tensor]] | None = None,
    *,
    dataset_meta: Any | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Processors:
    """Stock π0.5's pipelines (policies/pi05/processor_pi05.py) with the two steps above.

    Args:
        dataset_stats: statistics to normalise with.
        dataset_meta: a LeRobot dataset's metadata; its tasks build the "tasks" tokenizer.
        tokenizer: used instead of ``config.tokenizer``.
    """
    if tokenizer is None:
        # Stock lerobot-train passes no metadata here; make_policy leaves it on the configuration.
        meta = dataset_meta or getattr(config, "_runtime_dataset_meta", None)
        tokenizer = make_tokenizer(config, None if meta is None else [str(task) for task in meta.tasks.index])
    steps = make_default_policy_processor_steps(config, dataset_stats)
    relative = RelativeActionsProcessorStep(
        enabled=config.use_relative_actions,
        exclude_joints=config.relative_exclude_joints,
        action_names=config.action_feature_names,
    )
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            relative,
            steps.normalize,
            PreparePromptStep(max_state_dim=config.max_state_dim),
            TokenizePromptStep(tokenizer=tokenizer, max_length=config.tokenizer_max_length),
            steps.to_device,
        ],
        output_steps=[
            steps.unnormalize,
            AbsoluteActionsProcessorStep(enabled=config.use_relative_actions, relative_step=relative),
            steps.to_cpu,
        ],
    )
