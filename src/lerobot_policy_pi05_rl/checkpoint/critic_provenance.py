"""Which critic a checkpoint holds, and which episodes it has seen.

``pretrained_model/critic_data.json``: per dataset its fingerprint and the fold of every episode, and the scale of the
returns the critic learnt. A labeling made later asks each critic only about episodes that it has not seen.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..configuration_pi05_rl import PI05RLConfig
from ..data.dataset import OfflineData
from ..data.episodes import LabelledEpisodes, reward_discount
from ..data.sources import Source, dataset_fingerprint
from ..returns import RewardConfig
from ..stored.files import CRITIC_PREFIX, CheckpointError, CheckpointFiles, find_file, locate, open_tensors

logger = logging.getLogger(__name__)

CRITIC_DATA = "critic_data.json"
_PALIGEMMA = "model.paligemma_with_expert.paligemma.model."
READ_PREFIXES = (  # what the critic's input is made of
    f"{_PALIGEMMA}vision_tower.",
    f"{_PALIGEMMA}multi_modal_projector.",
    f"{_PALIGEMMA}language_model.embed_tokens.",
)
PREPROCESSOR_STATES = "policy_preprocessor_step_*.safetensors"


def critic_data(data: OfflineData, reward: RewardConfig) -> dict[str, Any] | None:
    """What a checkpoint says of its critic: the folds of this run's episodes, and what the checkpoint that it started
    from says of other datasets. None where no critic has ever been trained."""
    policy = data.policy
    earlier = read_critic_data(policy.pi05_checkpoint) if policy.pi05_checkpoint else None
    if not policy.trains_critic:
        return earlier
    folds: list[dict[str, int]] = [{} for _ in data.sources]
    for episode in data.labels.episodes:
        folds[episode.source][str(episode.index)] = data.train.folds.get((episode.source, episode.index), -1)
    datasets = [
        {"name": source.name, "fingerprint": dataset_fingerprint(source), "folds": folds[number]}
        for number, source in enumerate(data.sources)
    ]
    here = {dataset["fingerprint"]: dataset["folds"] for dataset in datasets}
    before = (earlier or {}).get("datasets", [])
    if policy.critic_folds > 1 and any(
        dataset["folds"] != here.get(dataset["fingerprint"], dataset["folds"]) for dataset in before
    ):
        logger.warning(
            "The critics of %s learnt from other folds of this data: each has seen episodes it will be asked about",
            policy.pi05_checkpoint,
        )
    kept = [dataset for dataset in before if dataset["fingerprint"] not in here]
    return {"datasets": datasets + kept, "reward": reward_scale(reward, policy, data.labels)}


def reward_scale(reward: RewardConfig, policy: PI05RLConfig, labels: LabelledEpisodes) -> dict[str, Any]:
    """What fixes the unit of the returns; values and returns compare only where it is the same."""
    scale: dict[str, Any] = {"source": reward.source, "discount": reward_discount(reward, policy)}
    if reward.source == "dataset":
        scale["reward_normalization_constant"] = policy.reward_normalization_constant
        scale["terminal_failure_reward"] = policy.terminal_failure_reward
        return scale
    return scale | {"task_lengths": dict(zip(labels.tasks, labels.task_lengths.tolist(), strict=True))}


def scale_differences(of_critic: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """In words, where two :func:`reward_scale` differ; tasks that only one of them knows are left out."""
    lengths = of_critic.get("task_lengths", {})
    differences = [
        f"{key} {of_critic.get(key)!r}, here {here.get(key)!r}"
        for key in sorted(of_critic.keys() | here.keys())
        if key != "task_lengths" and of_critic.get(key) != here.get(key)
    ]
    return differences + [
        f"longest episode of {task!r} {lengths[task]} steps, here {length}"
        for task, length in here.get("task_lengths", {}).items()
        if lengths.get(task, length) != length
    ]


def read_critic_data(checkpoint: str | Path) -> dict[str, Any] | None:
    """The ``critic_data.json`` of a directory or Hub repository; None where it has none.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        path = find_file(checkpoint, CRITIC_DATA)
    except CheckpointError:  # no such checkpoint, or no way to it: whoever loads the weights says so
        path = None
    if path is None:
        return None
    try:
        data = json.loads(path.read_text())
        return {"datasets": list(data["datasets"]), "reward": dict(data["reward"])}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); use another checkpoint") from error


def frame_folds(data: dict[str, Any] | None, source: Source) -> np.ndarray:
    """(frames,) int8 fold of each frame's episode; −1 where no critic has seen the episode."""
    fingerprint = dataset_fingerprint(source)
    known = next((d["folds"] for d in (data or {}).get("datasets", []) if d["fingerprint"] == fingerprint), {})
    folds = [known.get(str(int(source.columns["episode_index"][start])), -1) for start in source.starts]
    return np.repeat(np.array(folds, dtype=np.int8), source.ends - source.starts)


def critic_fingerprint(checkpoint: str | Path, support: tuple[float, float]) -> str | None:
    """A hash of what the critic's values depend on; None where the checkpoint has no critic.

    That is: its tensors, the vision tower, projector and token embedding that it reads, the preprocessor's statistics
    and tokenizer, and the value ``support``.

    Raises:
        CheckpointError: there are no weights, or they are damaged.
    """
    files = locate(checkpoint)
    digest = hashlib.blake2b(repr(tuple(map(float, support))).encode(), digest_size=16)
    with open_tensors(files) as stored:
        if not any(key.startswith(CRITIC_PREFIX) for key in stored):
            return None
        for key in sorted(key for key in stored if key.startswith((CRITIC_PREFIX, *READ_PREFIXES))):
            _update(digest, key, stored[key].read())
    if files.adapter is not None:
        with open_tensors(CheckpointFiles(files.adapter)) as stored:
            for key in sorted(key for key in stored if key.startswith(READ_PREFIXES)):
                _update(digest, key, stored[key].read())
    for state in sorted(files.directory.glob(PREPROCESSOR_STATES)):
        digest.update(state.read_bytes())
    return digest.hexdigest()


def _update(digest: "hashlib.blake2b", key: str, tensor: Tensor) -> None:
    digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
