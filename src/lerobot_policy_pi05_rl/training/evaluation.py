"""What critic and actor are worth on episodes they have not seen.

A function that measures the critic is pure (critic_metrics.py); here the networks run.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.utils.constants import ACTION
from torch import Tensor

from ..advantage import TAG_POSITIVE
from ..data.batch import ACTION_IS_PAD, FOLD, POSITION, RETURN, Batch
from ..data.frames import FrameIndex
from ..losses import per_sample
from ..model.cache import CriticFeatures, PrefixCache
from ..noise import sample_noise
from ..recap import RecapAlgorithm
from ..returns import Outcome
from .critic_metrics import auc, calibration_error, middle_frames, spearman_per_episode

SAMPLED_FRAMES = 32  # held-out frames for which whole chunks are sampled: ten passes of the expert per tag
SAMPLED_PER_BATCH = 4  # frames of one batch resemble each other


def critic_metrics(
    values: np.ndarray, returns: np.ndarray, cross_entropies: np.ndarray, numbers: np.ndarray, frames: FrameIndex
) -> dict[str, float]:
    """What the critic is worth, from its (frames,) values on the ``numbers`` of ``frames``."""
    found = [frames[number] for number in numbers.tolist()]
    episodes = np.array([episode.start + 10**9 * episode.source for episode, _ in found])
    places = np.array([(row - episode.start) / max(1, episode.length - 1) for episode, row in found])
    outcomes = np.array([episode.outcome.value for episode, _ in found])
    middle = middle_frames(episodes, places)
    labelled = middle[outcomes[middle] != Outcome.TRUNCATED.value]
    succeeded = outcomes[labelled] == Outcome.SUCCESS.value
    return {
        "loss_critic": _mean(cross_entropies),
        "spearman_value_return": spearman_per_episode(values, returns, episodes),
        "auc_value_outcome": auc(values[labelled], succeeded),
        "auc_episodes": float(min(succeeded.sum(), (~succeeded).sum())),  # of the rarer outcome
        "calibration_error": calibration_error(values, returns),
    }


def _mean(column: np.ndarray) -> float:
    known = column[~np.isnan(column)]
    return float(known.mean()) if len(known) else float("nan")


@torch.no_grad()
def evaluate(
    algorithm: RecapAlgorithm, held_out: Iterable[Batch], frames: FrameIndex, training: Iterable[Batch]
) -> dict[str, float]:
    """Held-out metrics of critic and actor; every frame's images and prompt are embedded once.

    Every process calls it with its own batches, as many as the others have, and gets the metrics of all.

    Args:
        held_out: collated samples whose positions are the frames' numbers in ``frames``.
        training: collated samples of about as many training frames, for the gap.

    Returns:
        Metric → value; a metric that this data cannot give (one outcome only, no label) is left out.
    """
    config, mode = algorithm.policy.config, algorithm.losses.training
    algorithm.losses.eval()
    found, sampled_batches = [], 1
    for number, raw in enumerate(held_out):
        batch = algorithm.preprocess(raw)
        if number == 0:
            sampled_batches = -(-SAMPLED_FRAMES // min(SAMPLED_PER_BATCH, len(batch[POSITION])))
        sampling = number * algorithm.processes.count < sampled_batches  # the same answer in every process
        found.append(algorithm.losses.run(held_out_columns, algorithm, batch, sampling))
    columns = gathered_columns(algorithm, found, sampled_batches)
    metrics = {name: _mean(column) for name, column in columns.items() if name.startswith(("loss_actor", "action_"))}
    if "tag_grip" in columns:
        metrics["tag_grip"] = float(np.sqrt(columns["tag_grip"].mean()))
    if config.trains_critic:
        numbers = columns["numbers"].astype(int)
        metrics |= critic_metrics(columns["values"], columns["returns"], columns["cross_entropy"], numbers, frames)
        metrics["critic_gap"] = metrics["loss_critic"] - training_cross_entropy(algorithm, training)
    algorithm.losses.train(mode)
    return {name: value for name, value in metrics.items() if not np.isnan(value)}


def held_out_columns(algorithm: RecapAlgorithm, batch: dict[str, Tensor], sampling: bool) -> dict[str, Tensor]:
    """(B,) columns of one batch; those of :func:`sample_columns`, of its first frames, if ``sampling``."""
    policy = algorithm.policy
    with policy.autocast():
        prefix = policy.embed_observation(batch)
        cache = policy.model.encode_prefix(prefix)
        rows = {"numbers": batch[POSITION]}
        if policy.config.trains_critic:
            rows |= critic_columns(algorithm, policy.model.critic_features(prefix, cache), batch)
        rows |= flow_columns(algorithm, cache, batch)
        if sampling:
            part = {key: value[:SAMPLED_PER_BATCH] for key, value in batch.items() if isinstance(value, Tensor)}
            rows |= sample_columns(algorithm, cache.first(SAMPLED_PER_BATCH), part)
    return rows


def gathered_columns(
    algorithm: RecapAlgorithm, found: list[dict[str, Tensor]], sampled_batches: int | None = None
) -> dict[str, np.ndarray]:
    """The columns of every process's batches, in the frames' order; a batch that several processes read counts once.

    Args:
        sampled_batches: of how many batches the columns of :func:`sample_columns` are kept.
    """
    own = [{name: column.cpu().double().numpy() for name, column in rows.items()} for rows in found]
    batches = {float(rows["numbers"][0]): rows for rows in algorithm.processes.gather_list(own)}
    columns: dict[str, list[np.ndarray]] = {}
    for number, first in enumerate(sorted(batches)):
        for name, column in batches[first].items():
            if number < (sampled_batches or 0) or not name.startswith(("action_", "tag_grip")):
                columns.setdefault(name, []).append(column)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def training_cross_entropy(algorithm: RecapAlgorithm, training: Iterable[Batch]) -> float:
    """Mean cross-entropy (nats) on training frames, of the critics that learn from them."""
    found = [algorithm.losses.run(probe_columns, algorithm, algorithm.preprocess(raw)) for raw in training]
    return _mean(gathered_columns(algorithm, found)["cross_entropy"])


def probe_columns(algorithm: RecapAlgorithm, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """(B,) columns of one batch that the critic alone reads."""
    with algorithm.policy.autocast():
        features = algorithm.policy.critic_features(batch)
        return {"numbers": batch[POSITION], **critic_columns(algorithm, features, batch)}


def critic_columns(algorithm: RecapAlgorithm, features: CriticFeatures, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """(B,) values, returns and cross-entropies against the return, the latter's mean over those critics that learn
    from the sample (all of them where it is held out)."""
    critic, returns = algorithm.policy.model.critic, batch[RETURN]
    logits = algorithm.policy.model.critic_logits(features)
    critics = logits.shape[1]
    cross_entropy = critic.bins.cross_entropy(logits, returns.nan_to_num()[:, None].expand(-1, critics))
    learns = critic.learns_from(batch[FOLD])
    mean = (cross_entropy * learns).sum(dim=1) / learns.sum(dim=1)
    values = critic.out_of_fold(critic.bins.value(logits), batch[FOLD])
    return {"values": values, "returns": returns, "cross_entropy": torch.where(returns.isnan(), torch.nan, mean)}


def shown_tags(algorithm: RecapAlgorithm, batch: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """Name → (B,) tags: none and, where the policy is shown tags, the positive one."""
    tags: dict[str, Tensor | None] = {"none": None}
    if algorithm.policy.config.extraction.shows_tag:
        tags["positive"] = torch.full((len(batch[POSITION]),), TAG_POSITIVE, device=batch[POSITION].device)
    return tags


def flow_columns(algorithm: RecapAlgorithm, cache: PrefixCache, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """(B,) flow-matching error under each tag, from the same noise and time."""
    policy = algorithm.policy
    sampled = sample_noise(algorithm.config.seed, batch[POSITION], policy.config)
    actions = policy.prepare_action(batch)
    errors = {
        name: policy.model.flow_matching_error(cache, actions, sampled.noise, sampled.time, shown)
        for name, shown in shown_tags(algorithm, batch).items()
    }
    return {f"loss_actor_{name}": per_sample(error, batch) for name, error in errors.items()}


def sample_columns(algorithm: RecapAlgorithm, cache: PrefixCache, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """(B,) mean absolute error, in normalised actions, of the executed part of a chunk sampled under each tag from
    the same noise, and the mean square distance between the chunks with and without the positive tag."""
    model, config = algorithm.policy.model, algorithm.policy.config
    noise = sample_noise(algorithm.config.seed, batch[POSITION], config).noise
    width, steps = batch[ACTION].shape[-1], config.n_action_steps
    valid = ~batch[ACTION_IS_PAD][:, :steps]
    chunks, columns = {}, {}
    for name, shown in shown_tags(algorithm, batch).items():
        velocity = partial(model.velocity, cache, tags=shown)
        chunks[name] = euler_integrate(velocity, noise, config.num_inference_steps)[:, :, :width]
        error = (chunks[name] - batch[ACTION])[:, :steps].abs().mean(dim=2)
        columns[f"action_error_{name}"] = (error * valid).sum(dim=1) / valid.sum(dim=1)
    if "positive" in chunks:
        columns["tag_grip"] = (chunks["positive"] - chunks["none"]).square().mean(dim=(1, 2))
    return columns
