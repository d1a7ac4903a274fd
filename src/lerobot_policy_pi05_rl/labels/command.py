"""``pi05-rl label``: a critic's values of whole datasets, and the advantages and tags that follow, as side-cars.

pi05-rl label CONFIG_OR_RUN [--name NAME] [--key=value …]
"""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.utils.constants import PRETRAINED_MODEL_DIR

from ..advantage import tag_columns
from ..checkpoint.critic_provenance import frame_folds, read_critic_data, reward_scale, scale_differences
from ..checkpoint.write import last_checkpoint
from ..command.run import run_as_script
from ..config.arguments import split_config_path
from ..config.file import load_config
from ..config.resolve import changed, resolved
from ..config.train import ConfigError, PI05RLTrainConfig
from ..data.dataset import open_sources
from ..data.episodes import LabelledEpisodes, label_episodes, reward_discount
from ..data.labeling import (
    Labeling,
    advantages,
    find_labeling,
    frame_columns,
    labeling_path,
    out_of_fold,
    outcomes_if_labelled,
    read_meta,
    replaceable_labeling,
    write_labeling,
)
from ..data.sources import Source, dataset_fingerprint
from ..data.workers import Workers
from ..errors import INTERRUPTED, UserError
from ..thresholds import positive_fractions, task_thresholds
from .critic import Critic, find_critic, load_value_function, no_critic
from .options import DEFAULT_HORIZON, LabelOptions, choose_estimator, parse_options
from .outcomes import describe_unlabelled, outcome_sources, set_outcomes
from .summary import LabelingResult, print_summary
from .values import TAG, Interrupted, PartialValues, Timing, compute_values, frame_loader

logger = logging.getLogger(__name__)


@dataclass
class Values:
    """One source's values and where they come from."""

    value: np.ndarray  # (frames,) float32
    fold: np.ndarray  # (frames,) int8
    critic: dict[str, Any]  # path and fingerprint
    reward: dict[str, Any]  # the scale of the returns that the critic learnt


def main(arguments: list[str]) -> int:
    """Run the verb; returns the exit code.

    Raises:
        UserError: bad input; no labeling of before is changed.
    """
    options, rest = parse_options(arguments)
    cfg, run = load_label_config(rest)
    try:
        result = label(cfg, options, run)
    except Interrupted as stopped:
        logger.warning("%s %s", TAG, stopped)
        return INTERRUPTED
    if result is not None:
        print_summary(result)
    return 0


def load_label_config(arguments: list[str]) -> tuple[PI05RLTrainConfig, Path | None]:
    """The configuration, and the folder of the run if one was given instead of a file.

    Raises:
        ConfigError: neither is there.
    """
    path, overrides = split_config_path(arguments, "label")
    run = Path(path)
    if not run.is_dir():
        return load_config(path, overrides), None
    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        raise ConfigError(f"{run} is neither a configuration file nor a run: it has no checkpoints/last")
    return load_config(checkpoint / PRETRAINED_MODEL_DIR / "train_config.json", overrides), run


def label(cfg: PI05RLTrainConfig, options: LabelOptions, run: Path | None) -> LabelingResult | None:
    """Do what the options ask for.

    Args:
        run: its newest checkpoint labels; None: that of ``cfg.run_dir``.

    Returns:
        None where only outcomes were set or listed.

    Raises:
        UserError: bad input.
        Interrupted: a signal came; the values so far are kept.
    """
    cfg = resolved(cfg, device_key=None)  # outcomes are set on any machine
    wants_critic = options.from_name is None and not options.list_unlabelled
    directory = run or cfg.output_dir_offline or cfg.output_dir
    run = Path(directory) if directory else None
    critic = find_critic(options, run, cfg.policy.pi05_checkpoint) if wants_critic else None
    if critic is not None:
        cfg.check_device("learner_device")
        cfg = changed(cfg, policy=critic.reading(cfg.policy))
    sources = outcome_sources(cfg)
    outcome_file = set_outcomes(options, sources, cfg.reward.outcome_file)
    cfg = changed(cfg, reward=changed(cfg.reward, outcome_file=outcome_file))
    if options.list_unlabelled:
        print("\n".join(describe_unlabelled(sources, outcome_file)))
        return None
    if critic is None and options.from_name is None:
        if options.gives_outcomes:
            logger.info("%s Outcomes are set; there is no critic yet, so no advantage is computed", TAG)
            return None
        raise UserError(no_critic(run, cfg.policy.pi05_checkpoint))
    sources, policy = open_sources(cfg)
    cfg = changed(cfg, policy=policy)
    name = options.name or free_name(sources, critic)
    stated = options.from_name or cfg.dataset.labeling
    recorded = [outcomes_if_labelled(source, stated) for source in sources]
    labels = label_episodes(sources, cfg.reward, cfg.policy, recorded=recorded)
    if critic is None:
        values = values_of_labeling(sources, options.from_name, name)
    else:
        logger.info("%s Critic: %s (%s), %d fold(s)", TAG, critic.path, critic.fingerprint, critic.folds)
        values = values_of_critic(cfg, critic, sources, labels, name)
    return write_labelings(cfg, options, sources, labels, values, name)


def values_of_labeling(sources: list[Source], from_name: str, name: str) -> list[Values]:
    """The values of the labeling ``from_name``; no network is built.

    Raises:
        UserError: it is missing or of other frames, or ``name`` belongs to another critic or dataset.
    """
    values = []
    for source in sources:
        labeling = find_labeling(source, from_name)
        critic = {key: labeling.meta["critic"][key] for key in ("path", "fingerprint")}
        replaceable_labeling(source, name, critic["fingerprint"])
        columns = labeling.columns
        values.append(Values(columns["value"], columns["fold"], critic, labeling.meta.get("reward", {})))
    return values


def values_of_critic(
    cfg: PI05RLTrainConfig, critic: Critic, sources: list[Source], labels: LabelledEpisodes, name: str
) -> list[Values]:
    """Per source the critic's values: those of an earlier labeling of the same name and critic, else computed.

    Raises:
        UserError: the name belongs to another critic or dataset.
        Interrupted: a signal came.
    """
    seen = read_critic_data(critic.path)
    if seen is None:
        logger.warning(
            "%s %s does not say which episodes its critic has seen, or the critic was never trained", TAG, critic.path
        )
    earlier = [replaceable_labeling(source, name, critic.fingerprint) for source in sources]
    partials = [partial_values(source, name, critic) for source in sources]
    identity = {"path": critic.path, "fingerprint": critic.fingerprint}
    workers = Workers(cfg.num_workers, cfg.prefetch_factor, cfg.dataloader_multiprocessing_context)
    reading = {"policy": cfg.policy, "batch_size": cfg.batch_size, "workers": workers}
    timing, function, results = Timing(), None, []
    for number, source in enumerate(sources):
        folds = frame_folds(seen, source)
        unseen = f"{(folds < 0).sum()} of {len(folds)} frames are of episodes that no critic has seen"
        logger.info("%s %s: %s", TAG, source.name, unseen)
        if critic.folds == 1 and (folds >= 0).any():
            logger.warning(
                "%s %s: labels its own training episodes: returns may be memorised; set policy.critic_folds",
                TAG,
                source.name,
            )
        labeling = earlier[number]
        if labeling is not None:
            logger.info("%s %s: labeling %r of the same critic is there; its values are used", TAG, source.name, name)
            value = labeling.columns["value"]
        else:
            function = function or load_value_function(critic, labels, cfg.policy.device)
            every = compute_values(
                *function,
                partials[number],
                lambda first, number=number: frame_loader(sources, labels, number, first, **reading),
                total=len(source.columns["index"]),
                batch_size=cfg.batch_size,
                timing=timing,
            )
            value = out_of_fold(every, folds)
        results.append(Values(value, folds, identity, (seen or {}).get("reward", {})))
    logger.info("%s %s", TAG, timing)
    return results


def free_name(sources: list[Source], critic: Critic) -> str:
    """The name of the critic's run and step; with its fingerprint where another critic's labeling has that name."""
    name = critic.default_name
    for path in (labeling_path(source, name) for source in sources):
        if path.is_file() and read_meta(path)["critic"]["fingerprint"] != critic.fingerprint:
            return f"{name}-{critic.fingerprint[:8]}"
    return name


def partial_values(source: Source, name: str, critic: Critic) -> PartialValues:
    """The values of an interrupted command of the same name."""
    header = {"dataset": dataset_fingerprint(source), "critic": critic.fingerprint, "critics": critic.folds}
    return PartialValues(labeling_path(source, name).with_suffix(".partial"), header, critics=critic.folds)


def write_labelings(
    cfg: PI05RLTrainConfig,
    options: LabelOptions,
    sources: list[Source],
    labels: LabelledEpisodes,
    values: list[Values],
    name: str,
) -> LabelingResult:
    """Advantages, thresholds over all sources, tags; write the side-cars."""
    n_step, gae_lambdas, estimator = choose_estimator(options, cfg.policy.advantage_n_step, labels)
    logger.info("%s Advantages: %s", TAG, estimator)
    horizon = None
    if gae_lambdas is not None and options.gae_lambda is None:
        horizon = DEFAULT_HORIZON if options.horizon is None else options.horizon
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
        columns["advantage"] = advantages(
            columns, n_step=n_step, gae_lambdas=gae_lambdas, discount=discount, alignment=source.alignment
        )
        tables.append(columns)
    thresholds = task_thresholds(tables, by_task)
    tables = [tag_columns(columns, thresholds) for columns in tables]
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
            "n_step": n_step,
            "horizon": horizon,
            "trace": None if gae_lambdas is None else {task: gae_lambdas[task] for task in tasks},
            "discount": discount,
            "positive_fraction": {task: by_task[task] for task in tasks},
            "thresholds": {task: thresholds[task] for task in tasks},
            "reward": own.reward or scale,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        path = labeling_path(source, name)
        write_labeling(path, Labeling(columns, meta))
        path.with_suffix(".partial").unlink(missing_ok=True)
        logger.info("%s Wrote %s", TAG, path)
    return LabelingResult(name, [labeling_path(source, name) for source in sources], thresholds)


if __name__ == "__main__":
    run_as_script("label", main)
