"""Both losses of RECAP's update (arXiv 2511.14759, section IV) from one pass per image, and the advantage between."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from lerobot.utils.constants import ACTION
from torch import Tensor, nn

from .advantage import TAG_NONE, TAG_POSITIVE, SampleLabels
from .data.batch import (
    ACTION_IS_PAD,
    FOLD,
    IMPORTANCE_WEIGHT,
    INTERVENTION,
    N_STEP_DISCOUNT,
    N_STEP_REWARD,
    PRECOMPUTED_ADVANTAGE,
    PRECOMPUTED_TAG,
    RETURN,
    TASK_INDEX,
    n_step_columns,
    n_step_key,
)
from .distributed.processes import Processes
from .extraction_checks import sample_tags, sample_weights
from .model.cache import CriticFeatures, PrefixCache
from .modeling_pi05_rl import PI05RLPolicy
from .noise import SampledNoise
from .thresholds import AdvantageThresholds

Metrics = dict[str, Tensor]


class RecapLosses(nn.Module):
    """Both losses of one batch. A module, so that a data-parallel wrapper sees the whole forward."""

    def __init__(
        self,
        policy: PI05RLPolicy,
        thresholds: AdvantageThresholds,
        processes: Processes | None = None,
        *,
        labels_later: bool = False,
    ):
        """Args:
        processes: the run's; each of them has a part of the batch.
        labels_later: the data are labelled once the critics have learnt; until then nobody asks for an advantage.
        """
        super().__init__()
        self.labels_later = labels_later
        self.processes = processes or Processes()
        self.policy, self.thresholds, self.critic_learns = policy, thresholds, policy.config.trains_critic
        td = policy.config.trains_critic and policy.config.critic_target == "td"
        self.target_critic = copy.deepcopy(policy.model.critic).requires_grad_(False) if td else None
        self._extraction_checked = False  # the values of its first tags and weights were looked at

    def forward(
        self, batch: dict[str, Tensor], sampled: SampledNoise, *, train_actor: bool
    ) -> tuple[Tensor, Metrics, dict[str, Tensor]]:
        """(loss, metrics, histograms) of one preprocessed batch; the loss is the sum of the two losses.

        Gradients of the two losses never mix: the critic reads the prefix detached, and the advantage carries
        no gradient. Losses and histograms are this process's, a part of the batch; means and deviations of values
        and advantages are those of all processes' samples.
        """
        policy, config = self.policy, self.policy.config
        losses, metrics, histograms, tags, weights = [], {}, {}, None, None
        with policy.autocast():
            with torch.set_grad_enabled(train_actor and torch.is_grad_enabled()):
                prefix = policy.embed_observation(batch)
                cache = policy.model.encode_prefix(prefix) if train_actor else None
            later = self.bootstrap_features(batch) if config.trains_critic else {}
            if config.trains_critic:
                with torch.set_grad_enabled(self.critic_learns and torch.is_grad_enabled()):
                    features = policy.model.critic_features(prefix, cache)
                    loss, values, info = self.critic_loss(features, later, batch)
                if self.critic_learns:
                    losses.append(loss)
                metrics |= info
                histograms["critic_values"] = values
            if config.uses_advantage and (train_actor or not self.labels_later):
                advantages = batch.get(PRECOMPUTED_ADVANTAGE)
                if advantages is None:
                    advantages = self.advantages(values, later, batch)
                tags, weights, info = self.tag_and_weigh(advantages, batch, sampled)
                metrics |= info
                histograms["advantages"] = advantages
            if train_actor:
                loss, info = self.actor_loss(cache, tags, batch, sampled, weights=weights)
                losses.append(loss)
                metrics |= info
        return torch.stack(losses).sum() if losses else torch.zeros(()), metrics, histograms

    def run(self, function: Callable, *args) -> Any:
        """``function(*args)`` as a pass of this module, so that a wrapper has its parameters at hand."""
        return function(*args)

    @torch.no_grad()
    def bootstrap_features(self, batch: dict[str, Tensor]) -> dict[int, CriticFeatures]:
        """n → what the critic reads of the frame n steps later, for every n that the batch carries."""
        return {n: self.policy.critic_features(view) for n, view in n_step_columns(batch).items()}

    def critic_loss(
        self, features: CriticFeatures, later: dict[int, CriticFeatures], batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Metrics]:
        """Cross-entropy of the value distribution against the return, or its n-step bootstrap.

        Returns the loss, the out-of-fold values (B,) without gradient, and metrics. Samples without a known
        return count as zero, so that the batch's mean does not depend on how samples are spread over processes.

        However often a frame is drawn, loss and metrics follow the data as recorded: each sample counts with its
        ``importance_weight`` (B,); without that column as one.
        """
        critic, fold = self.policy.model.critic, batch[FOLD]
        logits = self.policy.model.critic_logits(features)
        targets = self.critic_targets(later, batch)
        learns = critic.learns_from(fold) & ~targets.isnan()
        cross_entropy = critic.bins.cross_entropy(logits, targets.nan_to_num())
        importance = batch.get(IMPORTANCE_WEIGHT, torch.ones_like(batch[RETURN])).to(batch[RETURN])
        loss = (importance[:, None] * torch.where(learns, cross_entropy, 0.0)).mean(dim=0).sum()
        all_values = critic.bins.value(logits.detach())
        values = critic.out_of_fold(all_values, fold)
        columns = torch.stack([values, batch[RETURN], importance], dim=1)
        gathered, returns, weights = self.processes.gather(columns).unbind(dim=1)
        known = ~returns.isnan()
        metrics = {"loss_critic": loss.detach() / max(1, len(critic.members) - 1)}
        metrics["critic_value_mean"], metrics["critic_value_std"] = weighted_moments(gathered, weights)
        error = (returns - gathered)[known]
        metrics["td_error_mean"], metrics["td_error_std"] = weighted_moments(error, weights[known])
        return loss, values, metrics

    @torch.no_grad()
    def critic_targets(self, later: dict[int, CriticFeatures], batch: dict[str, Tensor]) -> Tensor:
        """(B, K) what each critic regresses to; NaN where unknown."""
        if self.target_critic is None:
            return batch[RETURN][:, None].expand(-1, len(self.policy.model.critic.members))
        n = self.policy.config.n_step
        values = self.target_critic.bins.value(self.policy.model.critic_logits(later[n], self.target_critic))
        reward, discount = batch[n_step_key(n, N_STEP_REWARD)], batch[n_step_key(n, N_STEP_DISCOUNT)]
        targets = reward[:, None] + discount[:, None] * values
        return targets.clamp(self.target_critic.bins.support_min, self.target_critic.bins.support_max)

    @torch.no_grad()
    def advantages(self, values: Tensor, later: dict[int, CriticFeatures], batch: dict[str, Tensor]) -> Tensor:
        """(B,) A = G − V (RECAP with N = T), or n-step: rewards and the later frame's value, less V."""
        n = self.policy.config.advantage_n_step
        if n is None:
            return batch[RETURN] - values
        critic = self.policy.model.critic
        bootstrap_values = critic.bins.value(self.policy.model.critic_logits(later[n]))
        bootstrap_value = critic.out_of_fold(bootstrap_values, batch[FOLD])
        return batch[n_step_key(n, N_STEP_REWARD)] + batch[n_step_key(n, N_STEP_DISCOUNT)] * bootstrap_value - values

    @torch.no_grad()
    def tag_and_weigh(
        self, advantages: Tensor, batch: dict[str, Tensor], sampled: SampledNoise
    ) -> tuple[Tensor | None, Tensor | None, Metrics]:
        """What the policy extraction makes of the advantages (B,): tags (B,), weights (B,) of the actor's loss.

        Raises:
            UserError: it makes something else of them.
        """
        extraction, corrected = self.policy.config.extraction, batch[INTERVENTION]
        columns = torch.stack([advantages.float(), batch[TASK_INDEX].float(), corrected.float()], dim=1)
        gathered, tasks, corrections = self.processes.gather(columns).unbind(dim=1)
        if self.training:  # the same windows in every process, in the order of one process with the whole batch
            self.thresholds.update(tasks.long().cpu(), gathered.cpu(), corrections.bool().cpu())
        labels = SampleLabels.of(
            advantages,
            batch[TASK_INDEX],
            self.thresholds,
            corrected=corrected,
            hidden=sampled.dropped,
            precomputed_tags=batch.get(PRECOMPUTED_TAG),
        )
        known = gathered[~gathered.isnan()]
        metrics = {
            "advantage_mean": known.mean(),
            "advantage_std": known.std(correction=0),
            "advantage_positive_fraction": (labels.tags == TAG_POSITIVE).float().mean(),
        }
        first, self._extraction_checked = not self._extraction_checked, True
        tags = sample_tags(extraction, labels, first=first)
        return tags, sample_weights(extraction, labels, first=first), metrics

    def actor_loss(
        self,
        cache: PrefixCache,
        tags: Tensor | None,
        batch: dict[str, Tensor],
        sampled: SampledNoise,
        *,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Metrics]:
        """Flow matching on the action chunk under the tag, behind the prefix's cache; each sample is the mean over its
        unpadded steps."""
        if tags is None:  # its vectors are part of every pass: what trains is the same whoever extracts
            tags = torch.full(batch[ACTION].shape[:1], TAG_NONE, device=batch[ACTION].device)
        actions = self.policy.prepare_action(batch)
        error = self.policy.model.flow_matching_error(cache, actions, sampled.noise, sampled.time, tags)
        error = per_sample(error, batch)
        loss = (error if weights is None else error * weights).mean()
        return loss, {"loss_actor": loss.detach()}

    @torch.no_grad()
    def update_target(self) -> None:
        """Polyak step of the target critic, in fp32."""
        if self.target_critic is not None:
            rate = self.policy.config.critic_target_update_weight
            pairs = zip(self.target_critic.parameters(), self.policy.model.critic.parameters(), strict=True)
            for target, online in pairs:
                target.lerp_(online, rate)


def weighted_moments(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of (N,) values with (N,) weights; NaN where there are none."""
    mean = (weights * values).sum() / weights.sum()
    return mean, ((weights * (values - mean).square()).sum() / weights.sum()).sqrt()


def per_sample(error: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """(B, H, max_action_dim) errors → (B,) means over the action's own dimensions and its unpadded steps."""
    valid = ~batch[ACTION_IS_PAD]
    error = error[:, :, : batch[ACTION].shape[-1]].mean(dim=2)
    return (error * valid).sum(dim=1) / valid.sum(dim=1)
