"""``pi05-rl label``: a critic's values of whole datasets, and the advantages and tags that follow, as side-cars.

pi05-rl label CONFIG_OR_RUN [--name NAME] [--key=value …]
"""

import logging
from pathlib import Path

import numpy as np
from lerobot.utils.constants import PRETRAINED_MODEL_DIR

from ..checkpoint.critic_provenance import frame_folds, read_critic_data
from ..checkpoint.write import last_checkpoint
from ..command.run import run_as_script
from ..config.arguments import split_config_path
from ..config.file import load_config
from ..config.resolve import changed, resolved
from ..config.train import ConfigError, PI05RLTrainConfig, check_baseline
from ..data.dataset import open_sources
from ..data.episodes import LabelledEpisodes, label_episodes
from ..data.labeling import (
    VALUES,
    Labeling,
    find_labeling,
    labeling_path,
    outcomes_if_labelled,
    own_labeling,
    read_labelings,
    read_meta,
    replaceable_labeling,
    write_labeling,
)
from ..data.sources import Source, dataset_fingerprint
from ..data.workers import Workers
from ..errors import INTERRUPTED, UserError
from ..runtime.progress import StopSignal
from .browser.command import browse
from .critic import Critic, find_critic, load_value_function, no_critic
from .making import AskedCritic, Values, make_labelings, say_unseen, source_values
from .options import LabelOptions, parse_options
from .outcomes import describe_unlabelled, outcome_sources, set_outcomes
from .summary import LabelingResult, print_summary
from .values import TAG, Interrupted, PartialValues, Timing

logger = logging.getLogger(__name__)


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
        logger.warning("%s %s; the same command goes on from there", TAG, stopped)
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
    check_baseline("--baseline", options.baseline or cfg.baseline, cfg.reward)
    wants_critic = options.from_name is None and not options.list_unlabelled and not options.browser
    directory = run or cfg.output_dir_offline or cfg.output_dir
    run = Path(directory) if directory else None
    critic = find_critic(options, run, cfg.policy.pi05_checkpoint) if wants_critic else None
    if critic is not None:
        cfg.check_device("learner_device")
        cfg = changed(cfg, policy=critic.reading(cfg.policy))
    sources = outcome_sources(cfg)
    named = cfg.reward.outcome_file
    outcome_file = set_outcomes(options, sources, named)
    cfg = changed(cfg, reward=changed(cfg.reward, outcome_file=outcome_file))
    if options.list_unlabelled:
        print("\n".join(describe_unlabelled(sources, outcome_file)))
        return None
    if options.browser:
        labelings = shown_labelings(options, cfg, run, sources)
        browse(sources, named, labelings=labelings, port=options.port)
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


def shown_labelings(
    options: LabelOptions, cfg: PI05RLTrainConfig, run: Path | None, sources: list[Source]
) -> list[Labeling]:
    """Whose values stand beside the pictures: those that the command names, else those that the run was or would be
    trained from, if they are there.

    Raises:
        UserError: those that the command names are missing or of other frames.
    """
    if options.from_name is not None:
        return read_labelings(sources, options.from_name)
    implied = cfg.dataset.labeling or (None if run is None else own_labeling(run))
    if implied is None:
        return []
    try:
        return read_labelings(sources, implied)
    except UserError as error:
        logger.warning("%s No values are shown: %s", TAG, error)
        return []


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
        values.append(
            Values(
                columns["fold"], critic, labeling.meta.get("reward", {}), **{name: columns[name] for name in VALUES}
            )
        )
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
    workers = Workers(cfg.num_workers, cfg.prefetch_factor, cfg.dataloader_multiprocessing_context)
    asked, timing, results = None, Timing(), []
    with StopSignal() as stop:
        for number, source in enumerate(sources):
            labeling = earlier[number]
            if labeling is not None and not np.isnan(labeling.columns["success_value"]).all():
                logger.info(
                    "%s %s: labeling %r of the same critic is there; its values are used", TAG, source.name, name
                )
                folds = frame_folds(seen, source)
                say_unseen(source, folds, critic.folds)
                kept = {name: labeling.columns[name] for name in VALUES}
                results.append(Values(folds, critic.identity, (seen or {}).get("reward", {}), **kept))
                continue
            if asked is None:
                preprocess, predict = load_value_function(critic, labels, cfg.policy.device)
                asked = AskedCritic(critic.identity, critic.folds, seen, preprocess, predict)
            results.append(
                source_values(
                    asked,
                    sources,
                    labels,
                    number,
                    partials[number],
                    stop,
                    policy=cfg.policy,
                    batch_size=cfg.batch_size,
                    workers=workers,
                    timing=timing,
                )
            )
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
    path = labeling_path(source, name).with_suffix(".partial")
    return PartialValues(path, dataset=dataset_fingerprint(source), critic=critic.fingerprint, critics=critic.folds)


def write_labelings(
    cfg: PI05RLTrainConfig,
    options: LabelOptions,
    sources: list[Source],
    labels: LabelledEpisodes,
    values: list[Values],
    name: str,
) -> LabelingResult:
    """Advantages, thresholds over all sources, tags; write the side-cars."""
    labelings, thresholds = make_labelings(cfg, options, sources, labels, values, name)
    for source, labeling in zip(sources, labelings, strict=True):
        path = labeling_path(source, name)
        write_labeling(path, labeling)
        path.with_suffix(".partial").unlink(missing_ok=True)
        logger.info("%s Wrote %s", TAG, path)
    return LabelingResult(name, [labeling_path(source, name) for source in sources], thresholds)


if __name__ == "__main__":
    run_as_script("label", main)
