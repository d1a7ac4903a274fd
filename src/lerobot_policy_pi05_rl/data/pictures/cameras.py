"""Which of a dataset's features are cameras that π0.5 can read, and how their pictures are declared."""

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import OBS_IMAGES
from lerobot.utils.feature_utils import dataset_to_policy_features

from ..sources import DatasetError

logger = logging.getLogger(__name__)

EMPTY_CAMERA = f"{OBS_IMAGES}.empty_camera"  # LeRobot's names for cameras that exist in no dataset
COLOURS = 3
CHANNEL_NAMES = ("channel", "channels", "c")
CHANNEL_COUNTS = (1, 2, 3, 4)


class PictureShape(NamedTuple):
    """Of a camera's pictures, as declared."""

    channels: int
    height: int
    width: int


def is_camera(feature: Mapping[str, Any]) -> bool:
    """Whether the feature holds pictures, of colours or of distances."""
    return feature["dtype"] in ("image", "video")


def is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether the feature holds depth maps, as ``LeRobotDatasetMetadata.depth_keys`` has it, old marks included."""
    info, old = feature.get("info") or {}, feature.get("video_info") or {}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map") or old.get("video.is_depth_map"))


def picture_shape(key: str, feature: Mapping[str, Any]) -> PictureShape:
    """The declared shape, whichever order it is declared in: (H, W, C), (C, H, W), and names that contradict sizes.

    Raises:
        DatasetError: it is not a picture's.
    """
    shape, names = tuple(feature["shape"] or ()), feature.get("names")
    names = [str(name).lower() for name in names] if isinstance(names, list | tuple) and len(names) == 3 else []
    possible = [axis for axis in (2, 0) if len(shape) == 3 and shape[axis] in CHANNEL_COUNTS]
    named = [axis for axis in possible if names and names[axis] in CHANNEL_NAMES]
    if not possible:
        raise DatasetError(
            f"camera {key} has the shape {shape}: not (height, width, channels) and not (channels, height, width). "
            f"Correct features.{key}.shape in meta/info.json"
        )
    axis = (named or possible)[0]
    sides = [other for other in range(3) if other != axis]
    if named and names[sides[0]] in ("width", "w"):
        sides.reverse()
    return PictureShape(shape[axis], shape[sides[0]], shape[sides[1]])


def policy_features(features: Mapping[str, Mapping[str, Any]]) -> dict[str, PolicyFeature]:
    """LeRobot's policy features of a dataset's, cameras as (3, H, W). Depth maps are left out: π0.5 reads colours.

    Raises:
        DatasetError: a camera that is no depth map has not three channels.
    """
    found = dataset_to_policy_features({key: dict(value) for key, value in features.items() if not is_camera(value)})
    for key, feature in features.items():
        if not is_camera(feature):
            continue
        if is_depth(feature):
            logger.info("[DATA] Camera %s is a depth map: left out (π0.5 reads colour pictures)", key)
            continue
        shape = picture_shape(key, feature)
        found[key] = PolicyFeature(FeatureType.VISUAL, tuple(shape))
    _check_channels(found)
    return found


def _check_channels(found: dict[str, PolicyFeature]) -> None:
    visual = {key: feature.shape for key, feature in found.items() if feature.type is FeatureType.VISUAL}
    bad = next((key for key, shape in visual.items() if shape[0] != COLOURS), None)
    if bad is None:
        return
    others = {
        key: {"type": feature.type.value, "shape": list(feature.shape)}
        for key, feature in found.items()
        if feature.type in (FeatureType.VISUAL, FeatureType.STATE) and visual.get(key, (COLOURS,))[0] == COLOURS
    }
    advice = f"Leave it out: --policy.input_features='{json.dumps(others)}'"
    if all(visual[key][0] != COLOURS for key in visual):
        advice = "Record it in colour"
    raise DatasetError(f"camera {bad} has pictures of {_channels(visual[bad][0])}, and π0.5 reads three. {advice}")


def check_camera(source: str, key: str, feature: Mapping[str, Any]) -> None:
    """Refuse a camera that the policy is told to read and cannot.

    Raises:
        DatasetError: ``key`` of the dataset ``source`` is no camera, a depth map, or has not three channels.
    """
    if not is_camera(feature):
        raise DatasetError(f"dataset {source}: {key} is {feature['dtype']}, and the policy reads it as a camera")
    if is_depth(feature):
        raise DatasetError(
            f"dataset {source}: camera {key} is a depth map, and π0.5 reads colour pictures. Take {key} out of "
            "policy.input_features"
        )
    channels = picture_shape(key, feature).channels
    if channels != COLOURS:
        raise DatasetError(
            f"dataset {source}: camera {key} has pictures of {_channels(channels)}, and π0.5 reads three. Take {key} "
            "out of policy.input_features"
        )


def _channels(count: int) -> str:
    return "one channel" if count == 1 else f"{count} channels"
