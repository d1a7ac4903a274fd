"""RECAP's update (arXiv 2511.14759): a distributional critic, and a policy conditioned on its advantage.

One pass per image serves critic and actor, one backward serves both losses, one AdamW holds the groups "actor"
and "critic". The offline and the online learner call the same :class:`RecapAlgorithm`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from lerobot.rl.algorithms.base import RLAlgorithm
from lerobot.rl.algorithms.configs import RLAlgorithmConfig, TrainingStats
from lerobot.utils.constants import ACTION
from torch import Tensor, nn

from .configuration_pi05_rl import PI05RLConfig
from .data.frames import ACTION_IS_PAD, INTERVENTION, POSITION, RETURN, TASK_INDEX
from .draws import Draws, draw
from .errors import UserError
from .modeling_pi05_rl import Block, PI05RLPolicy, select_tag
from .returns import AdvantageThresholds, advantage_tags
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
        self.policy, self.thresholds = policy, thresholds

    def forward(
        self, batch: dict[str, Tensor], draws: Draws, *, train_actor: bool
    ) -> tuple[Tensor, Metrics, dict[str, Tensor]]:
        """(loss, metrics, histograms) of one preprocessed batch; the loss is the sum of the two losses.

        Gradients of the two losses never mix: the critic reads the prefix detached, and the advantage carries
        no gradient.
        """
        policy, conditioned = self.policy, self.policy.config.policy_extraction == "conditioning"
        losses, metrics, histograms, tags = [], {}, {}, None
        with policy.autocast():
            with torch.set_grad_enabled(train_actor and torch.is_grad_enabled()):
                prefix = policy.embed_observation(batch)
            if conditioned:
                loss, values, info = self.critic_loss(prefix, batch)
                losses.append(loss)
                advantages = batch[RETURN] - values
                tags, tag_info = self.advantage_tags(advantages, batch, draws)
                metrics |= info | tag_info
                histograms = {"advantages": advantages, "critic_values": values}
            if train_actor:
                loss, info = self.actor_loss(prefix, tags, batch, draws)
                losses.append(loss)
                metrics |= info
        return torch.stack(losses).sum(), metrics, histograms

    def critic_loss(self, prefix: Block, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Metrics]:
        """Cross-entropy of the value distribution against the Monte-Carlo return.

        Returns the loss, the values (B,) without gradient, and metrics. Samples without a known return count
        as zero, so that the batch's mean does not depend on how samples are spread over processes.
        """
        critic, returns = self.policy.model.critic, batch[RETURN]
        known = ~returns.isnan()
        logits = critic(prefix.embs.detach(), prefix.pad_masks)
        cross_entropy = critic.bins.cross_entropy(logits, returns.nan_to_num())
        loss = torch.where(known, cross_entropy, 0.0).mean()
        values = critic.bins.value(logits.detach())
        error = (returns - values)[known]
        metrics = {
            "loss_critic": loss.detach(),
            "critic_value_mean": values.mean(),
            "critic_value_std": values.std(correction=0),
            "td_error_mean": error.mean(),
            "td_error_std": error.std(correction=0),
        }
        return loss, values, metrics

    @torch.no_grad()
    def advantage_tags(self, advantages: Tensor, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, Metrics]:
        """(B,) tags of A_t = G_t − V(o_t) against the task's threshold (RECAP with N = T)."""
        tasks, cpu_advantages = batch[TASK_INDEX].cpu(), advantages.float().cpu()
        if self.training:
            self.thresholds.update(tasks, cpu_advantages)
        thresholds = self.thresholds[tasks].to(advantages.device)
        known = advantages[~advantages.isnan()]
        metrics = {
            "advantage_mean": known.mean(),
            "advantage_std": known.std(correction=0),
            "advantage_positive_fraction": (advantages > thresholds).float().mean(),
        }
        tags = advantage_tags(advantages, thresholds, interventions=batch[INTERVENTION], dropped=draws.dropped)
        return tags, metrics

    def actor_loss(
        self, prefix: Block, tags: Tensor | None, batch: dict[str, Tensor], draws: Draws
    ) -> tuple[Tensor, Metrics]:
        """Flow matching on the action chunk under the tag; each sample is the mean over its unpadded steps."""
        model, tag = self.policy.model, None
        if tags is not None and bool((tags >= 0).any()):
            tag = model.embed_tag(*select_tag(batch, tags))
        actions = self.policy.prepare_action(batch)
        error = model.flow_matching_error(prefix, tag, actions, draws.noise, draws.time)
        error = error[:, :, : batch[ACTION].shape[-1]].mean(dim=2)
        valid = ~batch[ACTION_IS_PAD]
        loss = ((error * valid).sum(dim=1) / valid.sum(dim=1)).mean()
        return loss, {"loss_actor": loss.detach()}


class RecapAlgorithm(RLAlgorithm):
    """LeRobot's RLAlgorithm interface around :class:`RecapLosses`: schedule, backward, clip, AdamW."""

    config_class = RecapConfig
    name = "recap"

    def __init__(
        self,
        policy: PI05RLPolicy,
        config: RecapConfig,
        *,
        num_tasks: int,
        preprocess: Callable[[dict], dict] = lambda batch: batch,
    ):
        """``preprocess`` turns what the iterator yields into a batch for the losses."""
        self.policy, self.config, self.preprocess = policy, config, preprocess
        cfg = policy.config
        self.thresholds = AdvantageThresholds(
            num_tasks, positive_fraction=cfg.advantage_positive_fraction, window=cfg.advantage_window
        )
        self.losses = RecapLosses(policy, self.thresholds)
        self.losses.train()
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
        cloning = self.policy.config.policy_extraction == "none"
        return 1 if cloning else self.policy.config.utd_ratio

    def trains_actor(self, step: int) -> bool:
        """Whether the actor takes part in this step (``critic_warmup_steps``, ``policy_update_freq``)."""
        cfg = self.policy.config
        if cfg.policy_extraction == "none":
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
            (loss / accumulation).backward()
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + float(value) / accumulation
        norms = {}
        for name, parameters in self.parameters.items():
            if name == "critic" or train_actor:
                norm = torch.nn.utils.clip_grad_norm_(parameters, self.policy.config.resolved_grad_clip_norm)
                norms[name] = float(norm)
        if not all(torch.isfinite(torch.tensor(list(norms.values())))):
            raise UserError(
                f"the gradient is not finite at step {self.optimization_step} ({norms}); no weight was changed. Look "
                "at the dataset's statistics and actions, or lower policy.actor_lr and policy.critic_lr"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        losses = {name: value for name, value in totals.items() if name.startswith("loss_")}
        extra = {name: value for name, value in totals.items() if name not in losses}
        return TrainingStats(losses=losses, grad_norms=norms, extra=extra)

    @torch.no_grad()
    def evaluate(self, batches: Iterator[dict]) -> dict[str, float]:
        """Mean losses over held-out batches; tags and draws as in training, thresholds left alone."""
        self.losses.eval()
        totals, count = {}, 0
        for raw in batches:
            batch = self.preprocess(raw)
            draws = draw(self.config.seed, batch[POSITION], self.policy.config)
            _, metrics, _ = self.losses(batch, draws, train_actor=True)
            size = len(batch[POSITION])
            count += size
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + float(value) * size
        self.losses.train()
        return {name: value / count for name, value in totals.items()}

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
        """What the algorithm owns beside the policy: the advantage windows."""
        return self.thresholds.state_dict()

    def load_state_dict(self, state_dict: dict[str, Tensor], device: str | torch.device = "cpu") -> None:
        """Restore :meth:`state_dict`."""
        self.thresholds.load_state_dict(state_dict)
