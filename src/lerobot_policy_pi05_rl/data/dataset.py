"""From a training configuration to its data: open, label, split, check against the policy."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lerobot.transforms import ImageTransforms

from ..config.train import OfflineDatasetConfig, PI05RLTrainConfig
from ..configuration_pi05_rl import PI05RLConfig
from ..extraction_checks import asked_repetitions, keeps_episode
from ..returns import NStepReturns, Outcome, n_step_returns
from .compatibility import align_sources
from .episodes import (
    Episode,
    LabelledEpisodes,
    assign_folds,
    cap_transitions,
    label_episodes,
    reward_discount,
    split_episodes,
)
from .files.folder import open_dataset
from .files.picture_files import check_pictures
from .frames import FrameDataset, FrameIndex, PrecomputedLabels
from .labeling import labeling_outcomes, precomputed_labels, read_labelings
from .labeling_checks import check_labelings
from .normalisation import normalisation_statistics
from .pictures.cameras import EMPTY_CAMERA, picture_shape
from .pictures.frame_cache import FrameCache, open_frame_cache
from .sampling import MixedOrder, SampleOrder, sample_order
from .sources import DatasetError, Source, handle_bad_values, load_source
from .statistics import Stats
from .workers import Workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OfflineData:
    """Everything the offline learner knows of its data."""

    sources: list[Source]
    policy: PI05RLConfig  # with the features of the first dataset where the configuration has none
    labels: LabelledEpisodes
    train: FrameDataset
    held_out: FrameDataset | None
    order: SampleOrder | MixedOrder  # in which the training frames are drawn
    workers: Workers  # that read them
    stats: dict[str, Stats]  # what a fresh run's processors normalise with

    @property
    def description(self) -> str:
        """One line for the console."""
        held_out = 0 if self.held_out is None else len(self.held_out)
        return (
            f"{len(self.labels.episodes)} episodes of {len(self.labels.tasks)} task(s) in {len(self.sources)} "
            f"dataset(s): {len(self.train)} frames to train on, {held_out} held out"
        )


def open_sources(cfg: PI05RLTrainConfig) -> tuple[list[Source], PI05RLConfig]:
    """Open the datasets of ``cfg`` and align them with the first; with them the policy that reads them.

    Raises:
        DatasetError: a dataset is missing, or does not fit the policy or the first dataset.
    """
    sources = read_sources(cfg.dataset, cfg.rename_map, cfg.tolerance_s)
    sources = [handle_bad_values(source, cfg.rename_map, cfg.dataset.bad_values) for source in sources]
    sources, policy = align_sources(
        sources, cfg.policy, cfg.dataset, rename_map=cfg.rename_map, acts=cfg.env is not None
    )
    for source in sources:
        check_pictures(source, policy_cameras(policy))
    return sources, policy


def read_sources(
    config: OfflineDatasetConfig, rename_map: dict[str, str], tolerance_s: float, *, pictures: bool = True
) -> list[Source]:
    """The datasets of ``config`` with their columns as recorded, not yet aligned with one another.

    Args:
        tolerance_s: by how much a frame's time may be off, seconds.
        pictures: whether videos are needed; outcomes are listed and set without them.

    Raises:
        DatasetError: a dataset is missing, damaged, or not what its metadata say.
    """
    backend = config.video_backend
    first = open_dataset(
        config.repo_id,
        config.root,
        revision=config.revision,
        episodes=config.episodes,
        tolerance_s=tolerance_s,
        pictures=pictures,
    )
    sources = [load_source(config.repo_id, first, backend, rename_map)]
    for path in config.additional_offline_dataset_paths:
        folder = Path(path)
        local = folder.is_dir()
        dataset = open_dataset(
            folder.name if local else path,
            folder if local else None,
            key="dataset.additional_offline_dataset_paths",
            tolerance_s=tolerance_s,
            pictures=pictures,
        )
        sources.append(load_source(path, dataset, backend, rename_map))
    return sources


def open_offline_data(cfg: PI05RLTrainConfig) -> OfflineData:
    """Open, label and split the datasets of ``cfg``.

    Raises:
        DatasetError: as :func:`open_sources`; or episodes are unlabelled, or the labeling does not fit.
    """
    sources, policy = open_sources(cfg)
    name, needs_returns = cfg.dataset.labeling, policy.extraction.needs_outcomes
    labelings = read_labelings(sources, name) if name else None
    recorded = labelings and [labeling_outcomes(labeling) for labeling in labelings]
    labels = label_episodes(sources, cfg.reward, policy, needs_returns=needs_returns, recorded=recorded)
    if labelings and needs_returns:
        check_labelings(labelings, name, sources, labels, cfg.reward.outcome_file)
    precomputed = precomputed_labels(labelings) if labelings else None
    train, held_out = split_episodes(labels.episodes, cfg.dataset.eval_split)
    train = cap_transitions(kept_episodes(policy, train), policy.offline_buffer_capacity, cfg.seed)
    repetitions = frame_repetitions(policy, train, precomputed) if precomputed else None
    pooled = cfg.dataset.statistics == "pooled"
    stats = normalisation_statistics(policy, sources, train, policy_cameras(policy), pooled=pooled)
    transforms = cfg.dataset.image_transforms

    folds = assign_folds(train, policy.critic_folds) if policy.trains_critic else {}
    discount = reward_discount(cfg.reward, policy)
    running = precomputed is None and not cfg.labels_itself
    bootstrapped = make_n_step_returns(sources, labels, policy, discount, running=running)
    workers = Workers(cfg.num_workers, cfg.prefetch_factor, cfg.dataloader_multiprocessing_context)
    caches = open_caches(sources, policy, cfg.dataset.frame_cache, workers)

    def frames(index: FrameIndex, image_transforms=None, n_step_returns=bootstrapped) -> FrameDataset:
        return FrameDataset(
            sources,
            labels,
            index,
            cameras=policy_cameras(policy),
            chunk_size=policy.chunk_size,
            image_transforms=image_transforms,
            folds=folds,
            n_step_returns=n_step_returns,
            precomputed=precomputed,
            caches=caches,
            padded=dict.fromkeys(mixed_cameras(policy, sources, caches), policy.image_resolution),
            seed=cfg.seed,
        )

    index = FrameIndex.of(train, repetitions, by_source=cfg.dataset.weights is not None)
    return OfflineData(
        sources,
        policy,
        labels,
        frames(index, ImageTransforms(transforms) if transforms.enable else None),
        frames(FrameIndex.of(held_out), n_step_returns=None) if held_out else None,
        sample_order(sources, index, cfg.dataset.weights, cfg.seed),
        workers,
        stats,
    )


def open_caches(
    sources: list[Source], policy: PI05RLConfig, folder: str | None, workers: Workers
) -> list[FrameCache] | None:
    """The decoded frames of every source in ``folder``, built where they are not there; None: frames are decoded as
    they are drawn.

    Raises:
        DatasetError: as :func:`open_frame_cache`.
    """
    if folder is None:
        return None
    return [
        open_frame_cache(
            Path(folder),
            source,
            cameras=[source.alignment.own_name(camera) for camera in policy_cameras(policy)],
            resolution=policy.image_resolution,
            loader_kwargs=workers.loader_kwargs,
        )
        for source in sources
    ]


def mixed_cameras(policy: PI05RLConfig, sources: list[Source], caches: list[FrameCache] | None) -> list[str]:
    """The cameras whose pictures are not of one size in all datasets."""
    mixed = []
    for camera in policy_cameras(policy):
        own = [source.alignment.own_name(camera) for source in sources]
        features = [source.dataset.meta.features[name] for source, name in zip(sources, own, strict=True)]
        sizes = [picture_shape(camera, feature)[1:] for feature in features]
        if caches is not None:
            sizes = [cache.sizes[name] for cache, name in zip(caches, own, strict=True)]
        if len({tuple(size) for size in sizes}) > 1:
            mixed.append(camera)
    return mixed


def policy_cameras(policy: PI05RLConfig) -> list[str]:
    """The cameras that are read: those the policy declares, without LeRobot's empty ones."""
    return [key for key in policy.image_features if not key.startswith(EMPTY_CAMERA)]


def kept_episodes(policy: PI05RLConfig, episodes: list[Episode]) -> list[Episode]:
    """Those that the policy extraction learns from.

    Raises:
        DatasetError: none is left.
        UserError: it answers with something else than yes or no.
    """
    extraction = policy.extraction
    kept = [episode for episode in episodes if keeps_episode(extraction, episode.outcome)]
    if not kept:
        raise DatasetError(
            f"policy.policy_extraction is {policy.policy_extraction}, and no episode to train on is {extraction.kept}"
        )
    return kept


def frame_repetitions(
    policy: PI05RLConfig, episodes: list[Episode], precomputed: list[PrecomputedLabels]
) -> list[np.ndarray] | None:
    """Per source (frames,) how often an epoch repeats each frame of ``episodes``, by the policy extraction; None:
    all once.

    Args:
        precomputed: per source, the labels of a labeling.

    Raises:
        DatasetError: it repeats none of them.
        UserError: it answers with something else than a count per frame.
    """
    tags, advantages = (
        np.concatenate([column[episode.source][episode.start : episode.end] for episode in episodes])
        for column in ([labels.tags for labels in precomputed], [labels.advantages for labels in precomputed])
    )
    repeated = asked_repetitions(policy.extraction, tags, advantages)
    if repeated is None:
        return None
    if not repeated.any():
        raise DatasetError(f"policy.policy_extraction is {policy.policy_extraction}, and it draws no frame")
    repetitions = [np.zeros(len(labels.tags)) for labels in precomputed]
    ends = np.cumsum([episode.length for episode in episodes])
    for episode, counts in zip(episodes, np.split(repeated, ends[:-1]), strict=True):
        repetitions[episode.source][episode.start : episode.end] = counts
    return repetitions


def bootstrap_steps(policy: PI05RLConfig, *, running: bool) -> list[int]:
    """The n of the n-step returns that training bootstraps; none by default.

    Args:
        running: each batch's advantages are computed as it is trained on.
    """
    wanted = set()
    if policy.trains_critic and policy.critic_target == "td":
        wanted.add(policy.n_step)
    if policy.trains_critic and policy.advantage_n_step is not None and running:
        wanted.add(policy.advantage_n_step)
    return sorted(wanted)


def episode_n_step_returns(
    episode: Episode, source: Source, rewards: np.ndarray, n: int, discount: float
) -> NStepReturns:
    """The ``n``-step returns of every frame of ``episode``, from its (T,) rewards and γ per policy step."""
    return n_step_returns(
        rewards,
        max(1, int(source.alignment.frame_offset(n))),
        discount=source.alignment.per_frame(discount),
        terminated=episode.outcome is not Outcome.TRUNCATED,
    )


def make_n_step_returns(
    sources: list[Source], labels: LabelledEpisodes, policy: PI05RLConfig, discount: float, *, running: bool
) -> dict[int, list[NStepReturns]]:
    """n → per source the n-step returns of every frame, for the n that training reads."""
    result: dict[int, list[NStepReturns]] = {}
    for n in bootstrap_steps(policy, running=running):
        result[n] = []
        for number, source in enumerate(sources):
            count = len(source.columns["index"])
            columns = NStepReturns(
                np.full(count, np.nan, dtype=np.float32),
                np.zeros(count, dtype=np.int64),
                np.zeros(count, dtype=np.float32),
            )
            for episode in (episode for episode in labels.episodes if episode.source == number):
                rows = slice(episode.start, episode.end)
                steps = episode_n_step_returns(episode, source, labels.rewards[number][rows], n, discount)
                for column, values in zip(columns, steps, strict=True):
                    column[rows] = values
            result[n].append(columns)
    return result
