"""Actions relative to the state (``policy.use_relative_actions``): which dimensions are, and whether they can be."""

import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from lerobot.lerobot_types import TransitionKey
from lerobot.processor import RelativeActionsProcessorStep, create_transition
from lerobot.utils.constants import ACTION, OBS_STATE

from ..configuration_pi05_rl import PI05RLConfig
from .names import dimension_names
from .sources import DatasetError

logger = logging.getLogger(__name__)


def relative_mask(policy: PI05RLConfig, width: int) -> np.ndarray:
    """(width,) bool: which dimensions of an action LeRobot's processor makes relative to the state's."""
    step = RelativeActionsProcessorStep(
        enabled=True, exclude_joints=policy.relative_exclude_joints, action_names=policy.action_feature_names
    )
    transition = create_transition(observation={OBS_STATE: torch.ones(1, width)}, action=torch.zeros(1, width))
    return step(transition)[TransitionKey.ACTION][0].numpy() != 0


def check_relative_actions(policy: PI05RLConfig, name: str, features: Mapping[str, dict[str, Any]]) -> None:
    """Dimension d of an action is taken relative to dimension d of the state, unless its name is excluded.

    Args:
        name: of the dataset, for errors.
        features: the dataset's, under the policy's names.

    Raises:
        DatasetError: there is no such dimension, or it is another joint's; an excluded name is no action's.
    """
    if not policy.use_relative_actions:
        return
    width, state = (int(np.prod(features[key]["shape"])) for key in (ACTION, OBS_STATE))
    off = "set policy.use_relative_actions=false to learn the actions as they were recorded"
    if width > state:
        raise DatasetError(
            f"policy.use_relative_actions: dataset {name} has actions of {width} dimensions and a state of {state}; "
            f"each action is taken relative to the state's dimension of the same number, so {off}"
        )
    names = policy.action_feature_names
    if names is not None and len(names) != width:
        raise DatasetError(
            f"policy.action_feature_names has {len(names)} names, but the actions of dataset {name} have {width} "
            "dimensions; give one for each"
        )
    _check_excluded(policy, name)
    own, theirs = (dimension_names(features[key]) for key in (ACTION, OBS_STATE))
    for d in np.flatnonzero(relative_mask(policy, width)) if own and theirs else ():
        if own[d] in theirs and theirs.index(own[d]) != d:
            raise DatasetError(
                f"policy.use_relative_actions: dimension {d} of the action of dataset {name} is {own[d]}, which is "
                f"dimension {theirs.index(own[d])} of its state, and would be taken relative to {theirs[d]}; {off}, "
                "or record both in one order"
            )


def _check_excluded(policy: PI05RLConfig, name: str) -> None:
    names, excluded = policy.action_feature_names, [str(token) for token in policy.relative_exclude_joints if token]
    absent = [token for token in excluded if not any(token.lower() in own.lower() for own in names or ())]
    if not absent:
        return
    known = f"they are called {', '.join(names)}" if names else "they have no names (policy.action_feature_names)"
    (default,) = (field.default_factory() for field in fields(policy) if field.name == "relative_exclude_joints")
    if policy.relative_exclude_joints == default:  # nobody asked for it
        logger.info("[DATA] %s: no action is called %s; %s, and all are relative", name, ", ".join(absent), known)
        return
    raise DatasetError(
        f"policy.relative_exclude_joints names {absent[0]}, but no action of dataset {name} is called that: {known}"
    )
