"""RECAP's update (arXiv 2511.14759): a distributional critic, and a policy conditioned on its advantage.

One pass per image serves critic and actor, one backward serves both losses, one AdamW holds the groups "actor"
and "critic". The offline and the online learner call the same :class:`RecapAlgorithm`.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from lerobot.rl.algorithms.base import RLAlgorithm
from lerobot.rl.algorithms.configs import RLAlgorithmConfig, TrainingStats
from lerobot.utils.constants import ACTION
from torch import Tensor, nn

from .configuration_pi05_rl import PI05RLConfig
from .data.frames import (
    ACTION_IS_PAD,
    AHEAD_DISCOUNT,
    AHEAD_REWARD,
    FOLD,
    INTERVENTION,
    PINNED_ADVANTAGE,
    PINNED_TAG,
    POSITION,
    RETURN,
    TASK_INDEX,
    ahead,
    ahead_columns,
)
from .draws import Draws, draw
from .early_stop import CriticWatch
from .errors import UserError
from .modeling_pi05_rl import TAG_NONE, Features, PI05RLPolicy, PrefixStates, select_tag
from .returns import AdvantageThresholds, advantage_tags, awr_weights, positive_fractions
from .trainable import select_trainable
from .weights import CRITIC_PREFIX

Metrics = dict[str, Tensor]


@RLAlgorithmConfig.register_subclass("recap")
@dataclass
class RecapConfig(RLAlgorithmConfig):
    """What the algorithm needs beside the policy's own fields."""

    policy_config: PI05RLConfig | None = None
    seed: int = 1000
    total_steps: int = 10_000  # the length of the learning-rate schedule

    @classmethod
    def from_policy_config(cls, policy_cfg: PI05RLConfig) -> "RecapConfig":
        """The configuration of an offline run of ``policy_cfg.offline_steps`` steps."""
        return cls(policy_config=policy_cfg, total_steps=policy_cfg.offline_steps)


class RecapLosses(nn.Module):
    """Both losses of one batch. A module, so that a data-parallel wrapper sees the whole forward."""

    def __init__(self, policy: PI05RLPolicy, thresholds: AdvantageThresholds):
        super().__init__()
        self.policy, self.thresholds, self.critic_learns = policy, thresholds, policy.config.trains_critic
        td = policy.config.trains_critic and policy.config.critic_target == "td"
        self.target_critic = copy.deepcopy(policy.model.critic).requires_grad_(False) if td else None

    def forward(
        self, batch: dict[str, Tensor], draws: Draws, *, train_actor: bool
    ) -> tuple[Tensor, Metrics, dict[str, Tensor]]:
        """(loss, metrics, histograms) of one preprocessed batch; the loss is the sum of the two losses.

        Gradients of the two losses never mix: the critic reads the prefix detached, and the advantage carries
        no gradient.
        """
        policy, config = self.policy, self.policy.config
        losses, metrics, histograms, tags, weights = [], {}, {}, None, None
        with policy.autocast():
            with torch.set_grad_enabled(train_actor and torch.is_grad_enabled()):
                prefix = policy.embed_observation(batch)
                states = policy.model.read_prefix(prefix) if train_actor else None
            later = self.read_ahead(batch) if config.trains_critic else {}
            if config.trains_critic:
                with torch.set_grad_enabled(self.critic_learns and torch.is_grad_enabled()):
                    features = policy.model.critic_features(prefix, states)
                    loss, values, info = self.critic_loss(features, later, batch)
                if self.critic_learns:
                    losses.append(loss)
                metrics |= info
                histograms["critic_values"] = values
            if config.uses_advantage:
                advantages = batch.get(PINNED_ADVANTAGE)
                if advantages is None:
                    advantages = self.advantages(values, later, batch)
                tags, weights, info = self.judge(advantages, batch, draws)
                metrics |= info
                histograms["advantages"] = advantages
            if train_actor:
                loss, info = self.actor_loss(states, tags, batch, draws, weights=weights)
                losses.append(loss)
                metrics |= info
        return torch.stack(losses).sum() if losses else torch.zeros(()), metrics, histograms

    @torch.no_grad()
    def read_ahead(self, batch: dict[str, Tensor]) -> dict[int, Features]:
        """n → what the critic reads of the frame n steps later, for every n that the batch carries."""
        return {n: self.policy.read_for_critic(view) for n, view in ahead_columns(batch).items()}

    def critic_loss(
        self, features: Features, later: dict[int, Features], batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Metrics]:
        """Cross-entropy of the value distribution against the return, or its n-step bootstrap.

        Returns the loss, the out-of-fold values (B,) without gradient, and metrics. Samples without a known
        return count as zero, so that the batch's mean does not depend on how samples are spread over processes.
        """
        critic, fold = self.policy.model.critic, batch[FOLD]
        logits = critic(*features)
        targets = self.critic_targets(later, batch)
        learns = critic.learns_from(fold) & ~targets.isnan()
        cross_entropy = critic.bins.cross_entropy(logits, targets.nan_to_num())
        loss = torch.where(learns, cross_entropy, 0.0).mean(dim=0).sum()
        all_values = critic.bins.value(logits.detach())
        values = critic.out_of_fold(all_values, fold)
        error = (batch[RETURN] - values)[~batch[RETURN].isnan()]
        metrics = {
            "loss_critic": loss.detach() / max(1, len(critic.members) - 1),
            "critic_value_mean": values.mean(),
            "critic_value_std": values.std(correction=0),
            "td_error_mean": error.mean(),
            "td_error_std": error.std(correction=0),
        }
        return loss, values, metrics

    @torch.no_grad()
    def critic_targets(self, later: dict[int, Features], batch: dict[str, Tensor]) -> Tensor:
        """(B, K) what each critic regresses to; NaN where unknown."""
        members = len(self.policy.model.critic.members)
        if self.target_critic is None:
            return batch[RETURN][:, None].expand(-1, members)
        n = self.policy.config.n_step
        values = self.target_critic.bins.value(self.target_critic(*later[n]))
        targets = batch[ahead(n, AHEAD_REWARD)][:, None] + batch[ahead(n, AHEAD_DISCOUNT)][:, None] * values
        return targets.clamp(self.target_critic.bins.support_min, self.target_critic.bins.support_max)

    @torch.no_grad()
    def advantages(self, values: Tensor, later: dict[int, Features], batch: dict[str, Tensor]) -> Tensor:
        """(B,) A = G − V (RECAP with N = T), or n-step: rewards and the later frame's value, less V."""
        n = self.policy.config.advantage_n_step
        if n is None:
            return batch[RETURN] - values
        critic = self.policy.model.critic
        ahead_values = critic.bins.value(critic(*later[n]))
        ahead_value = critic.out_of_fold(ahead_values, batch[FOLD])
        return batch[ahead(n, AHEAD_REWARD)] + batch[ahead(n, AHEAD_DISCOUNT)] * ahead_value - values

    @torch.no_grad()
    def judge(
        self, advantages: Tensor, batch: dict[str, Tensor], draws: Draws
    ) -> tuple[Tensor | None, Tensor | None, Metrics]:
        """What the advantages (B,) mean to the actor: tags (B,) under conditioning, else weights (B,) of the loss."""
        config, tasks, on_cpu = self.policy.config, batch[TASK_INDEX].cpu(), advantages.float().cpu()
        if self.training:
            self.thresholds.update(tasks, on_cpu)
        thresholds = self.thresholds[tasks].to(advantages.device)
        positive = advantage_tags(advantages, thresholds, interventions=batch[INTERVENTION])
        if PINNED_TAG in batch:
            positive = torch.where(batch[INTERVENTION], 1, batch[PINNED_TAG])
        known = advantages[~advantages.isnan()]
        metrics = {
            "advantage_mean": known.mean(),
            "advantage_std": known.std(correction=0),
            "advantage_positive_fraction": (positive == 1).float().mean(),
        }
        if config.policy_extraction == "conditioning":
            # With pinned labels the positive ones are drawn more often instead (data/loading.py).
            others = 1.0 if PINNED_TAG in batch else 1.0 / config.advantage_positive_weight
            weights = torch.where(positive == 1, 1.0, others)
            return torch.where(draws.dropped, TAG_NONE, positive), weights, metrics
        if config.policy_extraction == "filtered":
            return None, (positive == 1).float(), metrics
        spread = self.thresholds.spread(tasks).to(advantages.device)
        weights = awr_weights(advantages, spread, temperature=config.awr_temperature, max_weight=config.awr_max_weight)
        return None, torch.where(batch[INTERVENTION], config.awr_max_weight, weights), metrics

    def actor_loss(
        self,
        prefix: PrefixStates,
        tags: Tensor | None,
        batch: dict[str, Tensor],
        draws: Draws,
        *,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Metrics]:
        """Flow matching on the action chunk under the tag; each sample is the mean over its unpadded steps."""
        model, tag = self.policy.model, None
        if tags is not None and bool((tags >= 0).any()):
            tag = model.embed_tag(*select_tag(batch, tags))
        actions = self.policy.prepare_action(batch)
        error = model.flow_matching_error(prefix, tag, actions, draws.noise, draws.time)
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


def per_sample(error: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """(B, H, max_action_dim) errors → (B,) means over the action's own dimensions and its unpadded steps."""
    valid = ~batch[ACTION_IS_PAD]
    error = error[:, :, : batch[ACTION].shape[-1]].mean(dim=2)
    return (error * valid).sum(dim=1) / valid.sum(dim=1)


class RecapAlgorithm(RLAlgorithm):
    """LeRobot's RLAlgorithm interface around :class:`RecapLosses`: schedule, backward, clip, AdamW."""

    config_class = RecapConfig
    name = "recap"

    def __init__(
        self,
        policy: PI05RLPolicy,
        config: RecapConfig,
        *,
        tasks: list[str],
        preprocess: Callable[[dict], dict] = lambda batch: batch,
    ):
        """Args:
            tasks: their texts, in the order of the task indices.
            preprocess: turns what the iterator yields into what the losses read.

        Raises:
            UserError: a positive fraction is configured for a task that is not one of these.
        """
        self.policy, self.config, self.preprocess = policy, config, preprocess
        cfg = policy.config
        fractions = positive_fractions(
            tasks, cfg.advantage_positive_fraction, cfg.advantage_positive_fraction_per_task
        )
        self.thresholds = AdvantageThresholds(fractions, window=cfg.advantage_window)
        self.losses = RecapLosses(policy, self.thresholds)
        self.losses.train()
        self.watch = CriticWatch(policy.model.critic, cfg.critic_early_stop) if cfg.trains_critic else None
        self.histograms: dict[str, Tensor] = {}
        self.make_optimizers_and_scheduler()

    def make_optimizers_and_scheduler(self) -> dict[str, torch.optim.Optimizer]:
        """One AdamW with two groups, π0.5's betas, weight decay and cosine schedule."""
        cfg = self.policy.config
        self.parameters = select_trainable(self.policy)
        lrs = {"actor": cfg.resolved_actor_lr, "critic": cfg.critic_lr}
        groups = [
            {"params": params, "lr": lrs[name], "name": name} for name, params in self.parameters.items() if params
        ]
        preset = cfg.get_optimizer_preset()
        self.optimizer = torch.optim.AdamW(
            groups,
            betas=preset.betas,
            eps=preset.eps,
            weight_decay=preset.weight_decay,
            fused=next(self.policy.parameters()).is_cuda,
        )
        self.scheduler = cfg.get_scheduler_preset().build(self.optimizer, self.config.total_steps)
        return self.get_optimizers()

    @property
    def batches_per_step(self) -> int:
        """How many batches one optimization step consumes."""
        return self._critic_updates * self.policy.config.gradient_accumulation_steps

    @property
    def _critic_updates(self) -> int:
        return self.policy.config.utd_ratio if self.policy.config.trains_critic else 1

    def trains_actor(self, step: int) -> bool:
        """Whether the actor takes part in this step (``critic_warmup_steps``, ``policy_update_freq``)."""
        cfg = self.policy.config
        if not cfg.trains_critic:
            return True
        return step >= cfg.critic_warmup_steps and step % cfg.policy_update_freq == 0

    def update(self, batch_iterator: Iterator[dict]) -> TrainingStats:
        """One optimization step: ``utd_ratio`` critic updates, the last of which may train the actor too."""
        for _ in range(self._critic_updates - 1):
            self._gradient_step(batch_iterator, train_actor=False)
        stats = self._gradient_step(batch_iterator, train_actor=self.trains_actor(self.optimization_step))
        self.scheduler.step()
        self.optimization_step += 1
        return stats

    def _gradient_step(self, batch_iterator: Iterator[dict], *, train_actor: bool) -> TrainingStats:
        accumulation = self.policy.config.gradient_accumulation_steps
        totals: dict[str, float] = {}
        for _ in range(accumulation):
            batch = self.preprocess(next(batch_iterator))
            draws = draw(self.config.seed, batch[POSITION], self.policy.config)
            loss, metrics, self.histograms = self.losses(batch, draws, train_actor=train_actor)
            if loss.requires_grad:  # a stopped critic has nothing to learn in a step without the actor
                (loss / accumulation).backward()
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + float(value) / accumulation
        norms = {}
        for name, parameters in self.parameters.items():
            if self.losses.critic_learns if name == "critic" else train_actor:
                norm = torch.nn.utils.clip_grad_norm_(parameters, self.policy.config.resolved_grad_clip_norm)
                norms[name] = float(norm)
        if not all(torch.isfinite(torch.tensor(list(norms.values())))):
            raise UserError(
                f"the gradient is not finite at step {self.optimization_step} ({norms}); no weight was changed. Look "
                "at the dataset's statistics and actions, or lower policy.actor_lr and policy.critic_lr"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.update_target()
        losses = {name: value for name, value in totals.items() if name.startswith("loss_")}
        extra = {name: value for name, value in totals.items() if name not in losses}
        return TrainingStats(losses=losses, grad_norms=norms, extra=extra)

    def observe_held_out(self, metrics: dict[str, float]) -> None:
        """Tell the critic's watch of an evaluation; a critic that it stops no longer trains, the actor goes on."""
        if self.watch is not None:
            self.watch.observe(metrics, self.optimization_step)
            self.losses.critic_learns = not self.watch.stopped

    def get_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The one optimizer."""
        return {"adamw": self.optimizer}

    def get_weights(self) -> dict[str, Tensor]:
        """The policy's tensors, critic left out, for an actor process."""
        return {k: v for k, v in self.policy.state_dict().items() if not k.startswith(CRITIC_PREFIX)}

    def load_weights(self, weights: dict[str, Tensor], device: str | torch.device = "cpu") -> None:
        """Load :meth:`get_weights`' tensors in place."""
        own = self.policy.state_dict()
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(tensor)

    def state_dict(self) -> dict[str, Tensor]:
        """What the algorithm owns beside the policy: the advantage windows, the target critic, the critic's watch."""
        target = self.losses.target_critic
        targets = {} if target is None else {f"target_critic.{k}": v for k, v in target.state_dict().items()}
        watch = {} if self.watch is None else self.watch.state_dict()
        return {**self.thresholds.state_dict(), **targets, **watch}

    def load_state_dict(self, state_dict: dict[str, Tensor], device: str | torch.device = "cpu") -> None:
        """Restore :meth:`state_dict`."""
        self.thresholds.load_state_dict(state_dict)
        if self.watch is not None:
            self.watch.load_state_dict(state_dict)
            self.losses.critic_learns = not self.watch.stopped
        if self.losses.target_critic is not None:
            prefix = "target_critic."
            targets = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
            self.losses.target_critic.load_state_dict(targets)
