"""From a critic and the episodes to labelings: values out of fold, advantages, thresholds over all sources, tags."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..advantage import tag_columns
from ..checkpoint.critic_provenance import frame_folds, reward_scale, scale_differences
from ..config.train import PI05RLTrainConfig
from ..configuration_pi05_rl import PI05RLConfig
from ..data.batch import Batch, Preprocess
from ..data.episodes import LabelledEpisodes, reward_discount
from ..data.labeling import OF_A_FAILURE, Columns, Labeling, advantages, frame_columns, value_columns
from ..data.sources import Source, dataset_fingerprint
from ..data.workers import Workers
from ..distributed.processes import ALONE, Processes
from ..errors import UserError
from ..runtime.progress import StopSignal
from ..thresholds import positive_fractions, task_thresholds
from .options import LabelOptions, choose_estimator
from .values import TAG, PartialValues, Timing, compute_values, frame_loader

logger = logging.getLogger(__name__)


@dataclass
class Values:
    """One source's values and where they come from."""

    fold: np.ndarray  # (frames,) int8
    critic: dict[str, Any]  # path and fingerprint
    reward: dict[str, Any]  # the scale of the returns that the critic learnt
    value: np.ndarray  # (frames,) float32
    success_value: np.ndarray  # (frames,) float32; NaN where nobody has computed it


@dataclass(frozen=True)
class AskedCritic:
    """A critic that values frames, and what is known of it."""

    identity: dict[str, Any]  # path and fingerprint
    folds: int  # K, the number of critics
    seen: dict[str, Any] | None  # the episodes that it has learnt from (critic_provenance.py); None: nobody knows
    preprocess: Preprocess  # collated samples → what predict reads
    predict: Callable[[Batch], Tensor]  # → (B, K, 2) values, as predict_label_values


def say_unseen(source: Source, folds: np.ndarray, critics: int) -> None:
    """How many frames no critic has seen, and a warning where one critic labels what it has learnt from."""
    unseen = f"{(folds < 0).sum()} of {len(folds)} frames are of episodes that no critic has seen"
    logger.info("%s %s: %s", TAG, source.name, unseen)
    if critics == 1 and (folds >= 0).any():
        logger.warning(
            "%s %s: labels its own training episodes: returns may be memorised; set policy.critic_folds",
            TAG,
            source.name,
        )


def source_values(
    critic: AskedCritic,
    sources: list[Source],
    labels: LabelledEpisodes,
    number: int,
    partial: PartialValues,
    stop: StopSignal,
    *,
    policy: PI05RLConfig,
    batch_size: int,
    workers: Workers,
    timing: Timing,
    processes: Processes = ALONE,
    device: torch.device | None = None,
) -> Values:
    """The values of source ``number``'s frames, each of the critic that has not seen its episode.

    Raises:
        Interrupted: a signal came.
    """
    source = sources[number]
    folds = frame_folds(critic.seen, source)
    say_unseen(source, folds, critic.folds)

    def loader(batches: list[range]) -> torch.utils.data.DataLoader:
        return frame_loader(sources, labels, number, batches, policy=policy, workers=workers)

    every = compute_values(
        critic.preprocess,
        critic.predict,
        partial,
        loader,
        stop,
        total=len(source.columns["index"]),
        batch_size=batch_size,
        timing=timing,
        processes=processes,
        device=device,
    )
    return Values(folds, critic.identity, (critic.seen or {}).get("reward", {}), **value_columns(every, folds))


def check_known(baseline: str, columns: Columns, source: Source) -> None:
    """
    Raises:
        UserError: the values are of a labeling that does not know them.
    """
    if baseline == "success" and np.isnan(columns["success_value"]).all():
        raise UserError(
            f"dataset {source.name}: the labeling is of an earlier version, which kept the critic's value alone: "
            "give --baseline all, or label with the critic (leave --from out)"
        )


def of_tasks[T](found: dict[str, T] | None, tasks: list[str]) -> dict[str, T] | None:
    """What a labeling notes of its own tasks."""
    return None if found is None else {task: found[task] for task in tasks}


def warn_of_whole_successes(
    tables: list[dict[str, np.ndarray]], thresholds: dict[str, float], fractions: dict[str, float]
) -> None:
    """Say so where failures reach the threshold: then all frames of all successes are positive, the slow ones, too."""
    for task in [task for task, threshold in thresholds.items() if threshold == OF_A_FAILURE]:
        own = np.concatenate([columns["advantage"][columns["task"] == task] for columns in tables])
        share = (own > OF_A_FAILURE).mean()
        if round(share * len(own)) < round(fractions[task] * len(own)):
            logger.warning(
                "%s %s: a share of %g was to be positive, but only %.2f of its frames belong to successes; now all of "
                "those are, good or not. Ask for fewer (--positive-fraction, policy.advantage_positive_fraction)",
                TAG,
                task,
                fractions[task],
                share,
            )


def make_labelings(
    cfg: PI05RLTrainConfig,
    options: LabelOptions,
    sources: list[Source],
    labels: LabelledEpisodes,
    values: list[Values],
    name: str,
) -> tuple[list[Labeling], dict[str, float]]:
    """Per source its labeling, and task → threshold; no network runs."""
    estimator = choose_estimator(options, cfg, labels)
    logger.info("%s Advantages: %s", TAG, estimator)
    default = cfg.policy.advantage_positive_fraction if options.fraction is None else options.fraction
    discount, scale = reward_discount(cfg.reward, cfg.policy), reward_scale(cfg.reward, cfg.policy, labels)
    fractions = positive_fractions(labels.tasks, default, cfg.policy.advantage_positive_fraction_per_task)
    by_task = dict(zip(labels.tasks, fractions, strict=True))
    tables = []
    for number, (source, own) in enumerate(zip(sources, values, strict=True)):
        differences = scale_differences(own.reward, scale) if own.reward else []
        if differences:
            logger.warning(
                "%s %s: the critic learnt returns on another scale (%s); its values and these returns do not compare",
                TAG,
                source.name,
                "; ".join(differences),
            )
        columns = {**frame_columns(number, source, labels), "value": own.value, "fold": own.fold}
        columns["success_value"] = own.success_value
        check_known(estimator.baseline, columns, source)
        columns["advantage"] = advantages(
            columns,
            baseline=estimator.baseline,
            n_steps=estimator.n_steps,
            gae_lambdas=estimator.gae_lambdas,
            smoothing=estimator.smoothing,
            discount=discount,
            alignment=source.alignment,
        )
        tables.append(columns)
    thresholds = task_thresholds(tables, by_task)
    warn_of_whole_successes(tables, thresholds, by_task)
    labelings = []
    for source, own, columns in zip(sources, values, tables, strict=True):
        tasks = [task for task in labels.tasks if (columns["task"] == task).any()]
        dataset = {
            "repo_id": source.name,
            "root": str(Path(source.dataset.root).absolute()),
            "fingerprint": dataset_fingerprint(source),
        }
        if source is sources[0] and cfg.dataset.episodes is not None:
            dataset["episodes"] = cfg.dataset.episodes  # those alone have rows
        meta = {
            "name": name,
            "dataset": dataset,
            "critic": own.critic,
            "baseline": estimator.baseline,
            "n_step": of_tasks(estimator.n_steps, tasks),
            "horizon": estimator.horizon,
            "trace": of_tasks(estimator.gae_lambdas, tasks),
            "smoothing": of_tasks(estimator.smoothing, tasks),
            "smoothing_share": estimator.smoothing_share,
            "discount": discount,
            "positive_fraction": {task: by_task[task] for task in tasks},
            "thresholds": {task: thresholds[task] for task in tasks},
            "reward": own.reward or scale,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        labelings.append(Labeling(tag_columns(columns, thresholds), meta))
    return labelings, thresholds
