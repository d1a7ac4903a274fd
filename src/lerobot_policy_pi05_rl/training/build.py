"""From a configuration to what a run trains with: data, policy, algorithm and processors."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from lerobot.utils.random_utils import set_seed
from torch import Tensor

from ..checkpoint.processors import check_processors, probe_processors
from ..config.train import ConfigError, PI05RLTrainConfig
from ..configuration_pi05_rl import PI05RLConfig
from ..data.batch import (
    AHEAD_DISCOUNT,
    AHEAD_REWARD,
    FOLD,
    INTERVENTION,
    NATURAL_WEIGHT,
    PINNED_ADVANTAGE,
    PINNED_TAG,
    POSITION,
    RETURN,
    TASK,
    TASK_INDEX,
    ahead,
    ahead_columns,
    present_columns,
)
from ..data.dataset import OfflineData, open_offline_data
from ..data.loaders import to_device
from ..data.normalisation import differences
from ..distributed.processes import ALONE, Processes
from ..errors import UserError
from ..model.lora import add_adapter, check_same_settings
from ..modeling_pi05_rl import PI05RLPolicy
from ..processor_pi05_rl import (
    Processors,
    check_prompt_lengths,
    check_vocabulary,
    damaged_processors,
    make_pi05_rl_pre_post_processors,
    make_tokenizer,
    stored_statistics,
    tokenizer_from_checkpoint,
)
from ..recap import RecapAlgorithm, RecapConfig
from ..stored.files import locate, stores_critic

logger = logging.getLogger(__name__)

RL_COLUMNS = (RETURN, TASK_INDEX, INTERVENTION, FOLD, POSITION, NATURAL_WEIGHT, PINNED_ADVANTAGE, PINNED_TAG)


def prepare(
    cfg: PI05RLTrainConfig, checkpoint: Path | None, processes: Processes = ALONE
) -> tuple[OfflineData, RecapAlgorithm, tuple]:
    """Data, algorithm and processors of a run, before its first step.

    Args:
        checkpoint: the one to resume; None: a fresh run.
    """
    set_seed(cfg.seed)
    torch.backends.cudnn.deterministic = cfg.cudnn_deterministic
    cfg.policy.device = cfg.policy.learner_device or cfg.policy.device
    data = processes.main_first(partial(open_offline_data, cfg))
    logger.info("%s Data: %s", cfg.tag, data.description)
    policy = make_policy(cfg, checkpoint)
    processors = make_processors(cfg, data, policy, checkpoint)
    check_prompt_lengths(processors[0], data.labels.tasks, cfg.policy.robot_state_feature.shape[0])
    algorithm = RecapAlgorithm(
        policy,
        RecapConfig(policy_config=cfg.policy, seed=cfg.seed, total_steps=cfg.total_steps),
        tasks=data.labels.tasks,
        preprocess=make_preprocess(processors[0], next(policy.parameters()).device),
        processes=processes,
    )
    return data, algorithm, processors


def make_policy(cfg: PI05RLTrainConfig, checkpoint: Path | None) -> PI05RLPolicy:
    """The policy of the checkpoint to resume, else of ``pi05_checkpoint``, else with random weights.

    A run that trains no critic builds none, unless it starts from a checkpoint that has one: an untrained critic in a
    checkpoint would look like a critic.
    """
    source = cfg.policy.pi05_checkpoint if checkpoint is None else checkpoint / PRETRAINED_MODEL_DIR
    if source is not None:
        logger.info("%s Loading weights from %s", cfg.tag, source)
        files = locate(source)
        if checkpoint is not None and (cfg.peft is None) != (files.adapter is None):
            held, asked = ("all weights", "an adapter (peft)") if cfg.peft else ("an adapter", "no peft")
            raise ConfigError(f"{source} holds {held}, but the configuration asks for {asked}; resume with its own")
        with_critic = cfg.policy.trains_critic or stores_critic(files)
        adapting = cfg.peft is not None
        policy = PI05RLPolicy.from_pretrained(
            source, config=cfg.policy, load_critic=with_critic, keep_adapter=adapting
        )
        if adapting and policy.adapter is None:
            add_adapter(policy, cfg.peft, source)
        elif adapting:
            check_same_settings(policy, cfg.peft, source)
        return policy
    logger.warning("%s policy.pi05_checkpoint is null: the policy starts from RANDOM weights", cfg.tag)
    policy = PI05RLPolicy(cfg.policy, load_critic=cfg.policy.trains_critic)
    return policy.to(cfg.policy.device)


def make_processors(
    cfg: PI05RLTrainConfig, data: OfflineData, policy: PI05RLPolicy, checkpoint: Path | None
) -> Processors:
    """The checkpoint's processors on resume, or where the run keeps them; else new ones with the data's statistics."""
    source = cfg.policy.pi05_checkpoint if checkpoint is None else checkpoint / PRETRAINED_MODEL_DIR
    kept = checkpoint is not None or cfg.keeps_processors
    if source is not None:
        _compare_statistics(cfg, data, Path(source), kept=kept)
    if kept:
        return load_processors(cfg.policy, source)
    tokenizer = None
    if cfg.policy.pi05_checkpoint and Path(cfg.policy.pi05_checkpoint).is_dir():
        tokenizer = tokenizer_from_checkpoint(cfg.policy.pi05_checkpoint)
    if tokenizer is not None:
        check_vocabulary(tokenizer, cfg.policy, f"the tokenizer of {cfg.policy.pi05_checkpoint}")
    else:
        tokenizer = make_tokenizer(cfg.policy, data.labels.tasks)
    return make_pi05_rl_pre_post_processors(cfg.policy, data.stats, tokenizer=tokenizer)


def _compare_statistics(cfg: PI05RLTrainConfig, data: OfflineData, source: Path, *, kept: bool) -> None:
    """Say once where the data lie elsewhere than those the weights in the folder ``source`` have learnt from."""
    stored = stored_statistics(source)
    apart = differences(data.stats, stored, cfg.policy) if stored else []
    if apart:
        used = "the checkpoint's are used" if kept else "the data's are used, which the weights must get used to"
        logger.warning(
            "%s The statistics of the data are not those of %s in %s: %s", cfg.tag, source, "; ".join(apart), used
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


def make_preprocess(preprocessor: Callable[[dict], dict], device: torch.device) -> Callable[[dict], dict]:
    """Collated samples → what the losses read. LeRobot's pipeline drops columns it does not know; they are put
    back. Observations of frames ahead go through the same pipeline."""

    def preprocess(samples: dict) -> dict:
        batch = to_device(samples, device)
        later = ahead_columns(batch)
        result = {**preprocessor(present_columns(batch)), **{key: batch[key] for key in RL_COLUMNS if key in batch}}
        for n, columns in later.items():
            bootstrap = {name: columns.pop(name) for name in (AHEAD_REWARD, AHEAD_DISCOUNT)}
            processed = {**preprocessor({**columns, TASK: batch[TASK]}), **bootstrap}
            result |= {ahead(n, name): value for name, value in processed.items() if isinstance(value, Tensor)}
        return result

    return preprocess
