"""The critic that labels: where it lies, its own configuration, and its value function."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR
from torch import Tensor

from ..checkpoint.critic_provenance import critic_fingerprint
from ..checkpoint.write import last_checkpoint
from ..config.resolve import changed
from ..configuration_pi05_rl import PI05RLConfig
from ..data.batch import Batch, Preprocess
from ..data.episodes import LabelledEpisodes
from ..modeling_pi05_rl import PI05RLPolicy
from ..processor_pi05_rl import check_prompt_lengths
from ..stored.files import CheckpointError, locate, stored_config
from ..training.build import load_processors, make_preprocess
from .options import LabelOptions


@dataclass(frozen=True)
class Critic:
    """A checkpoint with a critic; its sizes, cameras and value support are its own, not the configuration's."""

    path: str  # a pretrained_model directory or a Hub id
    fingerprint: str
    policy: PI05RLConfig

    @property
    def identity(self) -> dict[str, Any]:
        """What a labeling says of it."""
        return {"path": self.path, "fingerprint": self.fingerprint}

    @property
    def folds(self) -> int:
        """K, the number of critics."""
        return self.policy.critic_folds

    @property
    def default_name(self) -> str:
        """``<run>-<step>`` for a checkpoint of a run, else the directory's or repository's name."""
        path = Path(self.path)
        if path.name == PRETRAINED_MODEL_DIR:
            step = path.parent
            path = Path(f"{step.parent.parent.name}-{step.name}" if step.parent.name == CHECKPOINTS_DIR else step.name)
        return re.sub(r"[^\w.-]", "-", path.name)

    def reading(self, policy: PI05RLConfig) -> PI05RLConfig:
        """``policy``, with which the data are opened as this critic reads them."""
        own = ("input_features", "output_features", "value_support_min", "value_support_max")
        return changed(policy, **{name: getattr(self.policy, name) for name in own})


def find_critic(options: LabelOptions, run: Path | None, start: str | None) -> Critic | None:
    """The critic of ``--checkpoint``, else of the run's newest checkpoint, else of ``start``.

    None where the last two have none. A checkpoint that was asked for must have one.

    Args:
        start: ``policy.pi05_checkpoint``.

    Raises:
        CheckpointError: a checkpoint is missing or damaged, or ``--checkpoint`` holds no critic.
    """
    if options.checkpoint is not None:
        path = pretrained_folder(options.checkpoint)
        critic = load_critic(path)
        if critic is None:
            raise CheckpointError(f"the checkpoint {path} holds no critic; give one that pi05-rl offline has written")
        return critic
    checkpoint = None if run is None else last_checkpoint(run)
    critic = None if checkpoint is None else load_critic(str(checkpoint / PRETRAINED_MODEL_DIR))
    if critic is not None:
        return critic
    if start is None or (options.gives_outcomes and not Path(start).is_dir()):
        return None  # setting outcomes downloads no weights
    return load_critic(start)


def no_critic(run: Path | None, start: str | None) -> str:
    """What to say where :func:`find_critic` found none: where it looked, and what to do."""
    checkpoint = None if run is None else last_checkpoint(run)
    held = [str(checkpoint / PRETRAINED_MODEL_DIR)] if checkpoint is not None else []
    held += [] if start is None else [f"policy.pi05_checkpoint, {start},"]
    found = [f"the checkpoint {place} holds no critic" for place in held]
    if checkpoint is None:
        found.insert(0, "output_dir is not set" if run is None else f"{run} has no checkpoint")
    return (
        f"there is no critic to label with: {', and '.join(found)}. Train one (pi05-rl offline with "
        "policy.policy_extraction=conditioning), or give another run's: --checkpoint DIR"
    )


def pretrained_folder(name: str) -> str:
    """A run, one of its checkpoints, or what lies inside → the directory that holds the weights."""
    path = Path(name)
    for inner in (path / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR, path / PRETRAINED_MODEL_DIR):
        if inner.is_dir():
            return str(inner.resolve())
    return str(path.resolve()) if path.is_dir() else name


def load_critic(path: str) -> Critic | None:
    """What there is to know of a checkpoint's critic without building it; None where there is none.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    locate(path)
    policy = stored_config(path)
    if not isinstance(policy, PI05RLConfig):
        return None
    fingerprint = critic_fingerprint(path, (policy.value_support_min, policy.value_support_max))
    return None if fingerprint is None else Critic(path, fingerprint, policy)


def load_value_function(
    critic: Critic, labels: LabelledEpisodes, device: str | None
) -> tuple[Preprocess, Callable[[Batch], Tensor]]:
    """Build the network: (collated samples → batch, batch → (B, K, 2) values).

    Raises:
        UserError: weights or processors do not load, or a task's prompt is too long.
    """
    config = changed(critic.policy, device=device)
    policy = PI05RLPolicy.from_pretrained(critic.path, config=config, load_critic=True, purpose="act")
    preprocessor, _ = load_processors(config, critic.path)
    check_prompt_lengths(preprocessor, labels.tasks, config.robot_state_feature.shape[0])
    return make_preprocess(preprocessor, next(policy.parameters()).device), policy.predict_label_values
