"""Which datasets fit one policy and one another, and how those that differ are aligned with the first."""

import logging
from dataclasses import replace

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_STATE

from ..config.resolve import changed
from ..config.train import OfflineDatasetConfig
from ..configuration_pi05_rl import PI05RLConfig
from .alignment import Alignment, affine_to, own_names, renamed
from .names import dimension_names
from .normalisation import mode_of
from .pictures.cameras import EMPTY_CAMERA, check_camera, policy_features
from .relative import check_relative_actions
from .sources import DatasetError, Source
from .statistics import row_statistics, usable

logger = logging.getLogger(__name__)


def align_sources(
    sources: list[Source],
    policy: PI05RLConfig,
    config: OfflineDatasetConfig,
    *,
    rename_map: dict[str, str],
    acts: bool,
) -> tuple[list[Source], PI05RLConfig]:
    """``sources`` with names, rates and scales translated to those of the first, and the policy that reads them.

    Args:
        rename_map, acts: as :func:`renamed_sources` has them.

    Raises:
        DatasetError: one does not fit, or ``rename_map``, ``dataset.weights`` do not fit the datasets.
    """
    weights = config.weights
    if weights is not None and len(weights) != len(sources):
        raise DatasetError(f"dataset.weights has {len(weights)} number(s) for {len(sources)} dataset(s)")
    sources = renamed_sources(rename_map, sources, acts=acts)
    rate = sources[0].dataset.meta.fps
    sources = [
        replace(source, alignment=replace(source.alignment, rate=source.dataset.meta.fps / rate)) for source in sources
    ]
    policy = with_features(policy, sources[0])
    check_sources(policy, sources, resamples=config.resample_actions)
    if config.statistics == "own":
        sources = [sources[0], *(_to_scale_of(sources[0], source, policy) for source in sources[1:])]
    for source in sources:
        if source.alignment.description:
            logger.info("[DATA] Of %s: %s", source.name, source.alignment.description)
    return sources, policy


def renamed_sources(rename_map: dict[str, str], sources: list[Source], *, acts: bool) -> list[Source]:
    """``sources`` with the policy's names for their features.

    Args:
        acts: the configuration has an environment, whose observations ``rename_map`` is for, too.

    Raises:
        DatasetError: ``rename_map`` names a feature that no dataset has, or gives two one name.
    """
    unused = [key for key in rename_map if not any(key in source.dataset.meta.features for source in sources)]
    if unused and not acts:
        raise DatasetError(f"rename_map names {unused[0]}, which no dataset has")
    for key in unused:
        logger.warning("[DATA] rename_map names %s, which no dataset has; the environment (env) should", key)
    sources_renamed = []
    for source in sources:
        try:
            names = own_names(source.dataset.meta.features, rename_map)
        except ValueError as error:
            raise DatasetError(f"dataset {source.name}: {error}") from error
        columns = renamed(source.columns, names)
        for key in {ACTION, OBS_STATE} & names.keys() & columns.keys():
            columns[key] = columns[key].reshape(len(columns[key]), -1)
        sources_renamed.append(replace(source, alignment=Alignment(names), columns=columns))
    return sources_renamed


def _to_scale_of(first: Source, source: Source, policy: PI05RLConfig) -> Source:
    scale = {}
    for key in (OBS_STATE, ACTION):
        mode = mode_of(policy, key)
        own, target = (usable(row_statistics(one.recorded(key)), mode)[0] for one in (source, first))
        affine = affine_to(own, target, mode)
        if affine is not None:
            scale[key] = affine
    return replace(source, alignment=replace(source.alignment, scale=scale))


def with_features(policy: PI05RLConfig, first: Source) -> PI05RLConfig:
    """``policy`` with what it leaves open: it reads and acts as the first dataset, aligned, was recorded."""
    inputs, outputs, names = policy.input_features, policy.output_features, policy.action_feature_names
    own = first.features.get(ACTION)
    if not inputs:
        inputs = {
            key: feature
            for key, feature in policy_features(first.features).items()
            if feature.type is FeatureType.VISUAL or (feature.type is FeatureType.STATE and key == OBS_STATE)
        }
    if not outputs:
        outputs = {ACTION: PolicyFeature(FeatureType.ACTION, tuple(own["shape"]))} if own else {}
    if names is None and own:
        names = dimension_names(own, qualified=True)
    return changed(policy, input_features=inputs, output_features=outputs, action_feature_names=names)


def check_sources(policy: PI05RLConfig, sources: list[Source], *, resamples: bool) -> None:
    """
    Args:
        resamples: datasets of other rates are read at the first one's.

    Raises:
        DatasetError: a dataset lacks what the policy reads, or has another shape or rate,
            or actions that cannot be taken relative to its state.
    """
    if not policy.image_features:
        raise DatasetError(f"dataset {sources[0].name} has no camera; π0.5 needs at least one")
    wanted: dict[str, PolicyFeature] = {**policy.input_features, **policy.output_features}
    if OBS_STATE not in wanted or ACTION not in wanted:
        raise DatasetError(f"dataset {sources[0].name} needs the columns {OBS_STATE} and {ACTION}")
    for source in sources:
        features = source.features
        for key, feature in wanted.items():
            if key.startswith(EMPTY_CAMERA):
                continue
            if key not in features:
                raise DatasetError(
                    f"dataset {source.name} has no {key}, which the policy reads; it has {sorted(features)}. If a "
                    'camera only has another name, say so: rename_map={"<its name>": "<the policy\'s>"}'
                )
            if feature.type is FeatureType.VISUAL:
                check_camera(source.name, key, features[key])
            elif tuple(features[key]["shape"]) != tuple(feature.shape):
                raise DatasetError(
                    f"dataset {source.name}: {key} has the shape {tuple(features[key]['shape'])}, "
                    f"the policy expects {tuple(feature.shape)}"
                )
        check_relative_actions(policy, source.name, features)
        if source.alignment.rate != 1.0 and not resamples:
            raise DatasetError(
                f"dataset {source.name} was recorded at {source.dataset.meta.fps} frames per second, "
                f"{sources[0].name} at {sources[0].dataset.meta.fps}. If actions are absolute (positions, not "
                "differences), dataset.resample_actions=true reads it at the first one's rate"
            )
    if wanted[ACTION].shape[0] > policy.max_action_dim:
        raise DatasetError(
            f"actions have {wanted[ACTION].shape[0]} dimensions, policy.max_action_dim is {policy.max_action_dim}"
        )
