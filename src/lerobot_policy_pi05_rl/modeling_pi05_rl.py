"""The LeRobot policy ``pi05_rl``: loading, saving, and acting under the advantage that it is asked for."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn

from .configuration_pi05_rl import PI05RLConfig
from .extraction_checks import asked_inference_tag
from .model.cache import Block, CriticFeatures
from .model.lora import (
    Adapter,
    check_targets,
    load_adapter,
    locate_for,
    merge_adapter,
    save_adapter,
    untouched_modules,
)
from .model.network import PI05RLPytorch
from .model.precision import Purpose, hold_in_bf16, names_in_bf16, supports_bf16
from .model.weights import LeftOut, load_left_out, load_policy_weights
from .stored.files import CRITIC_PREFIX, CheckpointError, stored_config, stores_critic
from .stored.folders import policy_kind

logger = logging.getLogger(__name__)


class PI05RLPolicy(PI05Policy):
    """The LeRobot policy ``pi05_rl``."""

    config_class = PI05RLConfig
    name = "pi05_rl"

    def __init__(self, config: PI05RLConfig, *, load_critic: bool = True, empty_towers: bool = False, **kwargs):
        """``load_critic=False`` builds the actor alone, ``empty_towers`` towers that a checkpoint fills; other keyword
        arguments of ``make_policy`` are unused."""
        PreTrainedPolicy.__init__(self, config)
        config.validate_features()
        self.config = config
        self.adapter: Adapter | None = None
        self._left_out: LeftOut | None = None
        self.init_rtc_processor()
        self.model = PI05RLPytorch(config, self.rtc_processor, with_critic=load_critic, empty_towers=empty_towers)
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        if not empty_towers:
            self.model.to(config.device)
        self._warned_untagged = self._warned_relative = False
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        load_critic: bool | None = None,
        keep_adapter: bool = False,
        strict: bool = True,
        purpose: Purpose | None = None,
        full_training_modules: Sequence[str] = (),
        **kwargs,
    ) -> "PI05RLPolicy":
        """Load one of our checkpoints, or a stock π0.5 whose critic then starts from the actor (and says so).

        LeRobot's own ``PI05Policy.from_pretrained`` prints and returns random weights on a missing file or a
        wrong shape; this one raises. A checkpoint in PEFT form is its base with the adapter merged into it, or with
        ``keep_adapter`` apart from it, to be trained on.

        LeRobot's tools (``make_policy``) give a configuration that names what to load (``pretrained_path``), and do
        not say whether the policy will train. Until it does (:meth:`complete`) it is held as an actor's: bf16 as far
        as that changes no product, and no critic.

        Args:
            load_critic: None: with the critic, except for LeRobot's tools.
            purpose: what the policy is for, which says what may be held in bf16 (:mod:`.model.precision`); None: all
                is fp32, except for LeRobot's tools.
            full_training_modules: of an adapter that is going to be added: what trains in full beside it.

        Raises:
            CheckpointError: a file is missing or damaged, or a tensor is missing, unexpected or of another shape.
        """
        by_tool = config is not None and config.pretrained_path and purpose is None and load_critic is None
        hub_keys = ("force_download", "cache_dir", "token", "revision", "local_files_only")
        hub_kwargs = {key: kwargs[key] for key in hub_keys if kwargs.get(key) is not None}
        if config is None:
            config = stored_config(pretrained_name_or_path, **hub_kwargs)
            if not isinstance(config, PI05RLConfig):
                kind = policy_kind(config.type)
                raise CheckpointError(
                    f"{pretrained_name_or_path} is of {kind}, but a π0.5 is needed"
                    if kind
                    else f"{pretrained_name_or_path} holds a policy of type {config.type!r}; pass "
                    "config=PI05RLConfig(…) to start a pi05_rl policy from its weights"
                )
        files = locate_for(config, pretrained_name_or_path, **hub_kwargs)
        with_critic = load_critic is not False
        if config.use_peft:  # an adapter's checkpoint, or its base: a critic that neither stores was never trained
            with_critic = with_critic and stores_critic(files)
        policy = cls(config, load_critic=with_critic and not by_tool, empty_towers=True)
        if by_tool and files.adapter is None:
            purpose = "act"
        reduced = set() if purpose is None else names_in_bf16(policy, purpose, full_training_modules)
        merges = files.adapter is not None and not keep_adapter
        load_policy_weights(policy, files, set() if merges else reduced)  # merged into exact weights
        if by_tool:
            policy._left_out = LeftOut(files, {name: policy.get_parameter(name) for name in reduced}, with_critic)
        if files.adapter is not None:
            (merge_adapter if merges else load_adapter)(policy, files)
        policy.to(config.device)
        if merges:
            hold_in_bf16(policy, reduced)
        return policy.eval()

    def complete(self) -> None:
        """Hold all of the checkpoint, in fp32 and with its critic: what training, saving and values need.

        Raises:
            CheckpointError: the files that the policy was loaded from are gone or damaged.
        """
        if self._left_out is not None:
            load_left_out(self, self._left_out)
            self._left_out = None

    def train(self, mode: bool = True) -> "PI05RLPolicy":
        """As torch's; a policy that is going to train is :meth:`complete`."""
        if mode:
            self.complete()
        return super().train(mode)

    def wrap_with_peft(self, *args, **kwargs) -> nn.Module:
        """LeRobot's."""
        self.complete()
        return super().wrap_with_peft(*args, **kwargs)

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        self.complete()
        if self.adapter is None:
            super()._save_pretrained(save_directory, state_dict=state_dict)
        else:
            save_adapter(self, save_directory, state_dict)

    def _get_default_peft_targets(self) -> dict[str, str | list[str]]:
        """LeRobot's targets for π0.5; whatever the targets, the critic stays as it is."""
        return {**super()._get_default_peft_targets(), "exclude_modules": untouched_modules(self)}

    def _build_peft_config(self, cli_overrides: dict):
        """LeRobot's; the tag's vector, which starts at 0, trains in full beside any adapter."""
        peft = super()._build_peft_config(cli_overrides)
        peft.modules_to_save = [*(peft.modules_to_save or []), "advantage_embedding"]
        return peft

    def _validate_peft_config(self, peft_config) -> None:
        super()._validate_peft_config(peft_config)
        check_targets(self, peft_config.target_modules, peft_config.modules_to_save)

    def get_optim_params(self) -> list[nn.Parameter]:
        """What stock ``lerobot-train`` optimises: the actor (it computes no critic loss)."""
        self.complete()
        return [p for name, p in self.named_parameters() if not name.startswith(CRITIC_PREFIX)]

    @property
    def computes_in_bf16(self) -> bool:
        """Whether the configuration asks for it and the device has it; what trains is held in fp32 all the same."""
        return self.config.dtype == "bfloat16" and supports_bf16(next(self.parameters()).device.type)

    def autocast(self) -> torch.autocast:
        """Where the network computes in bf16 if :attr:`computes_in_bf16`."""
        device = next(self.parameters()).device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.computes_in_bf16)

    def embed_observation(self, batch: dict[str, Tensor]) -> Block:
        """The prefix: each image through the vision tower once, and the prompt."""
        images, img_masks = self._preprocess_images(batch)
        tokens, masks = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        return self.model.embed_observation(images, img_masks, tokens, masks)

    def _preprocess_images(self, batch: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Stock's, without the black images that it puts behind the others for cameras the batch does not have: they
        would be embedded to be masked."""
        images, img_masks = super()._preprocess_images(batch)
        present = sum(key in batch for key in self.config.image_features)
        return images[:present], img_masks[:present]

    @torch.no_grad()
    def critic_features(self, batch: dict[str, Tensor]) -> CriticFeatures:
        """The critic's input for a preprocessed batch; no layer of the actor runs that it does not need."""
        return self.model.critic_features(self.embed_observation(batch))

    @torch.no_grad()
    def predict_values(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, K) fp32 value of each critic for a preprocessed batch."""
        self.complete()
        with self.autocast():
            return self.model.critic.bins.value(self.model.critic_logits(self.critic_features(batch)))

    @torch.no_grad()
    def predict_label_values(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, K, 2) fp32 what labels are made of: each critic's value, and its expectation of a success."""
        self.complete()
        bins = self.model.critic.bins
        with self.autocast():
            logits = self.model.critic_logits(self.critic_features(batch))
            return torch.stack([bins.value(logits), bins.success_value(logits)], dim=-1)

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, dict]:
        """Behaviour cloning without a tag, for stock ``lerobot-train``.

        The RL update is :class:`~lerobot_policy_pi05_rl.losses.RecapLosses`.
        """
        if self.training and not self._warned_untagged:
            self._warned_untagged = True
            self.config.inference_advantage = "none"
            logger.warning(
                "lerobot-train clones with pi05_rl: no critic is trained and no advantage tag is seen, so "
                "inference_advantage is set to 'none'. Use `pi05-rl offline CONFIG` for RL."
            )
        with self.autocast():
            return super().forward(batch, reduction)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs) -> Tensor:
        """(B, H, action_dim) normalised actions, conditioned on ``config.inference_advantage``."""
        self.eval()
        images, img_masks = self._preprocess_images(batch)
        tokens, tag = batch[OBS_LANGUAGE_TOKENS], asked_inference_tag(self.config.extraction)
        with self.autocast():
            actions = self.model.sample_actions(
                images,
                img_masks,
                tokens,
                batch[OBS_LANGUAGE_ATTENTION_MASK],
                tags=None if tag is None else torch.full((len(tokens),), tag, device=tokens.device),
                guidance_scale=self.config.guidance_scale,
                **kwargs,
            )
        return actions[:, :, : self.config.output_features[ACTION].shape[0]]

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, action_dim) the next normalised action of the queue; with ``use_relative_actions`` always a new chunk's
        first.

        LeRobot's postprocessor adds the newest state to whatever it is given, so an action that was computed relative
        to an earlier one would end elsewhere.
        """
        if self.config.use_relative_actions:
            if self.config.n_action_steps > 1 and not self._warned_relative:
                self._warned_relative = True
                logger.warning(
                    "use_relative_actions: each step computes a chunk of its own (n_action_steps is %d), because an "
                    "action is only right relative to the state it was computed for",
                    self.config.n_action_steps,
                )
            self._action_queue.clear()
        return super().select_action(batch)
