"""From settings and data to what a run trains with: policy, processors, and what stands between data and losses."""

import copy
import logging
from pathlib import Path

import torch
from lerobot.configs.default import PeftConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from torch import Tensor

from ..checkpoint.processors import check_processors, probe_processors
from ..config.train import ConfigError
from ..configuration_pi05_rl import PI05RLConfig
from ..data.batch import (
    FOLD,
    IMPORTANCE_WEIGHT,
    INTERVENTION,
    N_STEP_DISCOUNT,
    N_STEP_REWARD,
    POSITION,
    PRECOMPUTED_ADVANTAGE,
    PRECOMPUTED_TAG,
    RETURN,
    TASK,
    TASK_INDEX,
    Batch,
    Preprocess,
    n_step_columns,
    n_step_key,
    own_columns,
)
from ..data.dataset import OfflineData
from ..data.loaders import to_device
from ..data.normalisation import differences
from ..errors import UserError
from ..model.lora import add_adapter, check_same_settings
from ..modeling_pi05_rl import PI05RLPolicy
from ..processor_pi05_rl import (
    Preprocessor,
    Processors,
    check_vocabulary,
    damaged_processors,
    make_pi05_rl_pre_post_processors,
    make_tokenizer,
    stored_statistics,
    tokenizer_from_checkpoint,
)
from ..stored.files import locate, stores_critic

logger = logging.getLogger(__name__)

RL_COLUMNS = (
    RETURN,
    TASK_INDEX,
    INTERVENTION,
    FOLD,
    POSITION,
    IMPORTANCE_WEIGHT,
    PRECOMPUTED_ADVANTAGE,
    PRECOMPUTED_TAG,
)


def make_policy(config: PI05RLConfig, peft: PeftConfig | None, checkpoint: Path | None, *, tag: str) -> PI05RLPolicy:
    """The policy of the checkpoint to resume, else of ``pi05_checkpoint``, else with random weights.

    A run that trains no critic builds none, unless it starts from a checkpoint that has one: an untrained critic in a
    checkpoint would look like a critic.

    Its configuration is its own: LeRobot notes an adapter and its base there.

    Args:
        peft: of the adapter that trains; None: everything trains.
        tag: what begins a console line.
    """
    config = copy.deepcopy(config)
    source = config.pi05_checkpoint if checkpoint is None else checkpoint / PRETRAINED_MODEL_DIR
    if source is not None:
        logger.info("%s Loading weights from %s", tag, source)
        files = locate(source)
        if checkpoint is not None and (peft is None) != (files.adapter is None):
            held, asked = ("all weights", "an adapter (peft)") if peft else ("an adapter", "no peft")
            raise ConfigError(f"{source} holds {held}, but the configuration asks for {asked}; resume with its own")
        with_critic = config.trains_critic or stores_critic(files)
        adapting = peft is not None
        policy = PI05RLPolicy.from_pretrained(
            source,
            config=config,
            load_critic=with_critic,
            keep_adapter=adapting,
            purpose="adapt" if adapting else "train",
            full_training_modules=peft.full_training_modules or () if adapting else (),
        )
        if adapting and policy.adapter is None:
            add_adapter(policy, peft, source)
        elif adapting:
            check_same_settings(policy, peft, source)
        return policy
    logger.warning("%s policy.pi05_checkpoint is null: the policy starts from RANDOM weights", tag)
    return PI05RLPolicy(config, load_critic=config.trains_critic).to(config.device)


def make_processors(data: OfflineData, checkpoint: Path | None, *, keeps: bool, tag: str) -> Processors:
    """The checkpoint's processors on resume, or where the run ``keeps`` those of what it starts from; else new ones
    with the data's statistics."""
    config = data.policy
    start, kept = config.pi05_checkpoint, checkpoint is not None or keeps
    source = start if checkpoint is None else checkpoint / PRETRAINED_MODEL_DIR
    if source is not None:
        _compare_statistics(data, Path(source), kept=kept, tag=tag)
    if kept:
        return load_processors(config, source)
    tokenizer = tokenizer_from_checkpoint(start) if start and Path(start).is_dir() else None
    if tokenizer is not None:
        check_vocabulary(tokenizer, config, f"the tokenizer of {start}")
    else:
        tokenizer = make_tokenizer(config, data.labels.tasks)
    return make_pi05_rl_pre_post_processors(config, data.stats, tokenizer=tokenizer)


def _compare_statistics(data: OfflineData, source: Path, *, kept: bool, tag: str) -> None:
    """Say once where the data lie elsewhere than those the weights in the folder ``source`` have learnt from."""
    stored = stored_statistics(source)
    apart = differences(data.stats, stored, data.policy) if stored else []
    if apart:
        used = "the checkpoint's are used" if kept else "the data's are used, which the weights must get used to"
        logger.warning(
            "%s The statistics of the data are not those of %s in %s: %s", tag, source, "; ".join(apart), used
        )


def load_processors(policy: PI05RLConfig, path: str | Path) -> Processors:
    """The processors saved in the directory (or Hub repository) ``path``.

    Raises:
        CheckpointError: they are missing, damaged or of another policy.
    """
    try:
        processors = make_pre_post_processors(
            policy,
            pretrained_path=str(path),
            preprocessor_overrides={"device_processor": {"device": policy.device}},
        )
        check_processors(policy, *processors, path)
        probe_processors(policy, *processors)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file raises, the user must learn which checkpoint it was
        raise damaged_processors(path, error) from error
    return processors


def make_preprocess(preprocessor: Preprocessor, device: torch.device) -> Preprocess:
    """Collated samples → what the losses read. LeRobot's pipeline drops columns it does not know; they are put
    back. Observations of later frames go through the same pipeline."""

    def preprocess(samples: Batch) -> Batch:
        batch = to_device(samples, device)
        later = n_step_columns(batch)
        result = {**preprocessor(own_columns(batch)), **{key: batch[key] for key in RL_COLUMNS if key in batch}}
        for n, columns in later.items():
            bootstrap = {name: columns.pop(name) for name in (N_STEP_REWARD, N_STEP_DISCOUNT)}
            processed = {**preprocessor({**columns, TASK: batch[TASK]}), **bootstrap}
            result |= {n_step_key(n, name): value for name, value in processed.items() if isinstance(value, Tensor)}
        return result

    return preprocess
