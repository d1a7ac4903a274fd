"""What a plan is about: a configuration, the inputs it will see, and everything that had to be assumed."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from lerobot.configs import FeatureType
from lerobot.utils.constants import ACTION, HF_LEROBOT_HOME, OBS_STATE

from ..config.resolve import changed, resolved
from ..config.train import ConfigError, PI05RLTrainConfig
from ..configuration_pi05_rl import PI05RLConfig
from ..data.alignment import own_names, renamed
from ..data.dataset import policy_cameras
from ..data.pictures.cameras import policy_features
from ..data.sources import DatasetError
from ..distributed.fsdp import check_goes_with_fsdp
from ..errors import typed_line
from .meta_step import Shape, with_cameras

FRAMES = 50_000  # without a dataset, of labels that the run makes itself: 100 episodes of 17 s at 30 a second
CAMERAS, TEXT_TOKENS = 2, 64  # without a dataset: a scene and a wrist camera; a short task, its state spelled out


@dataclass
class Setup:
    """A configuration whose policy knows its features, and the shape of its batches."""

    config: PI05RLTrainConfig
    shape: Shape
    frames: int = 0  # that the run labels itself
    processes: int = 1
    fsdp: bool = False
    assumptions: list[str] = field(default_factory=list)

    @property
    def checkpoints_written(self) -> int:
        """How many the run saves: every so many steps, and at its end."""
        if not self.config.save_checkpoint:
            return 0
        steps, every = self.config.policy.offline_steps, self.config.checkpoint_freq
        return 1 if every <= 0 else -(-steps // every)

    @property
    def checkpoints_at_once(self) -> int:
        """The most that lie on the disk: those kept, and the one being written."""
        keep = self.config.keep_last_checkpoints
        return self.checkpoints_written if keep is None else min(self.checkpoints_written, keep + 1)


def make_setup(
    config: PI05RLTrainConfig,
    *,
    cameras: int | None = None,
    text_tokens: int | None = None,
    frames: int | None = None,
    processes: int = 1,
    fsdp: bool = False,
) -> Setup:
    """Features from the configuration, else from the dataset if it is on this machine, else assumed.

    Args:
        cameras: so many, whatever the dataset has.
        text_tokens: of the longest prompt in a batch.
        frames: so many that the run labels, whatever the dataset has.
        processes: of the run, a GPU each.
        fsdp: each of them holds a shard of the model, not all of it.

    Raises:
        ConfigError: the configuration is impossible, or an argument is.
        DatasetError: the dataset's metadata is damaged.
    """
    config = resolved(config, device_key=None)  # the plan is for another machine than this one
    policy, assumptions = config.policy, []
    least = {"--cameras": cameras, "--text": text_tokens, "--frames": frames, "--processes": processes}
    for name, value in least.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    if fsdp:
        check_goes_with_fsdp(compiles=policy.compile_model)
        if processes == 1:
            raise ConfigError("--fsdp needs --processes N: among how many the model is spread")
    if cameras is not None:
        policy = with_cameras(policy, cameras)
        assumptions.append(f"{cameras} camera(s), as asked")
    elif not policy.image_features:
        file = _info_file(config)
        if file.is_file():
            policy = _with_features(policy, file, config.rename_map)
            assumptions.append(f"cameras and dimensions of {file.parents[1]}")
        else:
            policy = with_cameras(policy, CAMERAS)
            assumptions.append(f"{CAMERAS} cameras (--cameras N): no dataset in {file.parents[1]}")
    if not policy_cameras(policy):
        raise DatasetError("there is no camera; π0.5 needs at least one")
    shape = step_shape(config, text_tokens)
    if text_tokens is None:
        assumptions.append(f"prompts of up to {shape.text_tokens} tokens (--text N)")
    if processes > 1:
        held = "each holds its shard (FSDP; an upper estimate)" if fsdp else "each holds all of the model (DDP)"
        assumptions.append(f"{processes} processes, {held}, what they send is hidden behind compute")
    if policy.dtype == "bfloat16":
        assumptions.append("bf16 compute, what does not train held in bf16, fused attention, fused AdamW")
    else:
        assumptions.append("fp32 compute (policy.dtype), fused attention, fused AdamW")
    if config.labels_itself and frames is None:
        frames, where = count_frames(config)
        assumptions.append(where)
    return Setup(changed(config, policy=policy), shape, frames or 0, processes, fsdp, assumptions)


def step_shape(config: PI05RLTrainConfig, text_tokens: int | None = None) -> Shape:
    """Of the batches of the run's policy phase; prompts of a usual length where nobody says how long they are."""
    if text_tokens is None:
        text_tokens = min(TEXT_TOKENS, config.policy.tokenizer_max_length)
    labelled = config.dataset.labeling is not None or config.labels_itself
    return Shape(config.batch_size, text_tokens, precomputed=labelled)


def count_frames(config: PI05RLTrainConfig) -> tuple[int, str]:
    """The frames of the first dataset, or a guess, and where the number is from."""
    file = _info_file(config)
    if not file.is_file():
        return FRAMES, f"{FRAMES} frames to label (--frames N)"
    try:
        frames = int(json.loads(file.read_text())["total_frames"])
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{file} is damaged ({typed_line(error)})") from error
    more = len(config.dataset.additional_offline_dataset_paths)
    return frames, f"{frames} frames to label" + (f", those of {more} more dataset(s) not counted" if more else "")


def _info_file(config: PI05RLTrainConfig) -> Path:
    return Path(config.dataset.root or HF_LEROBOT_HOME / config.dataset.repo_id) / "meta" / "info.json"


def _with_features(policy: PI05RLConfig, file: Path, rename_map: dict[str, str]) -> PI05RLConfig:
    """``policy`` with the features as data/loading.py takes them, from the dataset's metadata alone."""
    try:
        recorded = json.loads(file.read_text())["features"]
        features = policy_features(renamed(recorded, own_names(recorded, rename_map)))
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{file} is damaged ({typed_line(error)})") from error
    missing = [key for key in (OBS_STATE, ACTION) if key not in features]
    if missing:
        raise DatasetError(f"the dataset in {file.parents[1]} needs the column(s) {', '.join(missing)}")
    visual = {key: feature for key, feature in features.items() if feature.type is FeatureType.VISUAL}
    inputs = {**visual, OBS_STATE: features[OBS_STATE]}
    return changed(policy, input_features=inputs, output_features={ACTION: features[ACTION]})
