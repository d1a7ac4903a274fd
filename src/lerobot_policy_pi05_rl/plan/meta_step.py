"""One real training step on the meta device: the package's own policy, losses and backward, without a value."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.fx.experimental._config as fx_config
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.default import PeftConfig
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor, nn

from ..config.resolve import changed
from ..configuration_pi05_rl import PI05RLConfig
from ..data.batch import (
    ACTION_IS_PAD,
    FOLD,
    INTERVENTION,
    N_STEP_DISCOUNT,
    N_STEP_REWARD,
    PRECOMPUTED_ADVANTAGE,
    PRECOMPUTED_TAG,
    RETURN,
    TASK_INDEX,
    n_step_key,
)
from ..data.dataset import bootstrap_steps, policy_cameras
from ..losses import RecapLosses
from ..model.lora import add_adapter
from ..model.precision import hold_in_bf16, names_in_bf16
from ..model.trainable import select_trainable
from ..modeling_pi05_rl import PI05RLPolicy
from ..noise import SampledNoise
from ..thresholds import AdvantageThresholds
from .meta_modes import MetaAutocast, PlaceholderValues


@dataclass(frozen=True)
class Shape:
    """What a step's cost depends on beside the policy's configuration."""

    batch_size: int = 1
    text_tokens: int = 64  # the longest prompt of the batch
    precomputed: bool = False  # advantages come from a labeling


class MetaPolicy(PI05RLPolicy):
    """The policy without values; it computes in bf16 where it would on a GPU."""

    recomputes = False  # set for backward, where checkpointed layers run again

    def autocast(self) -> contextlib.AbstractContextManager:
        """As on a GPU, whatever this machine has."""
        if self.config.dtype != "bfloat16":
            return contextlib.nullcontext()
        return MetaAutocast(cached=not self.recomputes)


@dataclass(frozen=True)
class MetaModel:
    """The losses around a policy on the meta device, and what of it trains."""

    losses: RecapLosses
    trainable: dict[str, list[nn.Parameter]]  # "actor", "critic"

    @property
    def policy(self) -> MetaPolicy:
        """The policy itself."""
        return self.losses.policy


def with_cameras(config: PI05RLConfig, cameras: int, *, state_dim: int = 6, action_dim: int = 6) -> PI05RLConfig:
    """A copy that reads so many cameras at the policy's own resolution, a state and actions of these sizes, or of the
    policy's largest."""
    state_dim, action_dim = min(state_dim, config.max_state_dim), min(action_dim, config.max_action_dim)
    images = {
        f"observation.images.camera{number}": PolicyFeature(FeatureType.VISUAL, (3, *config.image_resolution))
        for number in range(cameras)
    }
    return changed(
        config,
        input_features={**images, OBS_STATE: PolicyFeature(FeatureType.STATE, (state_dim,))},
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (action_dim,))},
    )


def build(config: PI05RLConfig, peft: PeftConfig | None = None) -> MetaModel:
    """The model of ``config`` (whose features say how many cameras there are) on the meta device; takes seconds at
    full size and no memory.

    Args:
        peft: of the adapter that trains; None: everything trains that ``config`` does not freeze.

    Raises:
        UserError: it adapts what the actor does not have.
    """
    config = _on_meta(config)
    with torch.device("meta"):
        policy = MetaPolicy(config, load_critic=config.trains_critic)
        full = () if peft is None else peft.full_training_modules or ()
        hold_in_bf16(policy, names_in_bf16(policy, "train" if peft is None else "adapt", full))
        if peft is not None:
            add_adapter(policy, peft, config.pi05_checkpoint or "")
        trainable = select_trainable(policy)
    losses = RecapLosses(policy, AdvantageThresholds([config.advantage_positive_fraction], window=1))
    return MetaModel(losses.train(), trainable)


def build_actor(config: PI05RLConfig, peft: PeftConfig | None = None) -> MetaPolicy:
    """What acts: no critic, an adapter beside its base, all matrices in bf16 where it computes so."""
    config = _on_meta(config)
    with torch.device("meta"):
        policy = MetaPolicy(config, load_critic=False)
        hold_in_bf16(policy, names_in_bf16(policy, "act"))
        if peft is not None:
            add_adapter(policy, peft, config.pi05_checkpoint or "")
    return policy.requires_grad_(False).eval()


def _on_meta(config: PI05RLConfig) -> PI05RLConfig:
    """Where nothing is computed. What is compiled needs what it needs otherwise, or less."""
    return changed(config, device="meta", compile_model=False)


def make_observation(config: PI05RLConfig, shape: Shape) -> dict[str, Tensor]:
    """A preprocessed batch of what a policy sees; call it under ``torch.device("meta")``."""
    size = shape.batch_size
    return {
        **{key: torch.empty(size, *config.input_features[key].shape) for key in policy_cameras(config)},
        OBS_LANGUAGE_TOKENS: torch.empty(size, shape.text_tokens, dtype=torch.long),
        OBS_LANGUAGE_ATTENTION_MASK: torch.empty(size, shape.text_tokens, dtype=torch.bool),
    }


def make_batch(config: PI05RLConfig, shape: Shape) -> tuple[dict[str, Tensor], SampledNoise]:
    """A preprocessed batch and its noise, as ``offline_learner`` gives them to the losses."""
    size = shape.batch_size
    with torch.device("meta"):
        observation = make_observation(config, shape)
        batch = {
            **observation,
            ACTION: torch.empty(size, config.chunk_size, *config.action_feature.shape),
            ACTION_IS_PAD: torch.empty(size, config.chunk_size, dtype=torch.bool),
            RETURN: torch.empty(size),
            TASK_INDEX: torch.empty(size, dtype=torch.long),
            INTERVENTION: torch.empty(size, dtype=torch.bool),
            FOLD: torch.empty(size, dtype=torch.long),
        }
        if shape.precomputed:
            batch |= {PRECOMPUTED_ADVANTAGE: torch.empty(size), PRECOMPUTED_TAG: torch.empty(size, dtype=torch.long)}
        for n in bootstrap_steps(config, running=not shape.precomputed):
            later = {**observation, N_STEP_REWARD: torch.empty(size), N_STEP_DISCOUNT: torch.empty(size)}
            batch |= {n_step_key(n, key): value for key, value in later.items()}
        noise = torch.empty(size, config.chunk_size, config.max_action_dim)
        return batch, SampledNoise(noise, torch.empty(size), torch.empty(size, dtype=torch.bool))


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Lets code that looks at values run on the meta device."""
    with PlaceholderValues(), fx_config.patch(meta_nonzero_assume_all_nonzero=True):
        yield


def forward(model: MetaModel, shape: Shape, *, train_actor: bool = True) -> Tensor:
    """The loss of one batch, as the offline learner's step computes it."""
    with without_values():
        return model.losses(*make_batch(model.policy.config, shape), train_actor=train_actor)[0]


def backward(model: MetaModel, loss: Tensor) -> None:
    """The gradients of every trainable parameter."""
    policy = model.policy
    policy.recomputes = True
    try:
        with policy.autocast():
            run_backward(loss)
    finally:
        policy.recomputes = False


def run_backward(loss: Tensor) -> None:
    """``loss.backward()``, which itself would suspend :class:`MetaAutocast` and ``FusedAttention``, without values."""
    engine = torch.autograd.Variable._execution_engine
    with without_values():
        engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, accumulate_grad=True)
