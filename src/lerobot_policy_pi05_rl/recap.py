"""RECAP's update (arXiv 2511.14759): a distributional critic, and a policy conditioned on its advantage.

One pass per image serves critic and actor, one backward serves both losses, one AdamW holds the groups "actor"
and "critic". The offline and the online learner call the same :class:`RecapAlgorithm`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from lerobot.rl.algorithms.base import RLAlgorithm
from lerobot.rl.algorithms.configs import RLAlgorithmConfig, TrainingStats
from torch import Tensor
from torch.profiler import record_function

from .configuration_pi05_rl import PI05RLConfig
from .data.batch import POSITION, Batch, Preprocess
from .distributed.fsdp import Sharded, full_tensors, shard_like
from .distributed.processes import Processes, Replicated
from .errors import UserError
from .losses import Metrics, RecapLosses
from .model.trainable import select_trainable
from .modeling_pi05_rl import PI05RLPolicy
from .noise import SampledNoise, sample_noise
from .stored.files import CRITIC_PREFIX
from .thresholds import AdvantageThresholds, positive_fractions
from .training.early_stopping import CriticEarlyStopping
from .training.schedule import build_schedule


@RLAlgorithmConfig.register_subclass("recap")
@dataclass
class RecapConfig(RLAlgorithmConfig):
    """What the algorithm needs beside the policy's own fields."""

    policy_config: PI05RLConfig | None = None
    seed: int = 1000
    total_steps: int = 10_000  # the length of the learning-rate schedule
    critic_steps: int = 0  # of a phase of the critics' own, with a schedule of its own; the actor's begins behind it

    @classmethod
    def from_policy_config(cls, policy_cfg: PI05RLConfig) -> "RecapConfig":
        """The configuration of an offline run of ``policy_cfg.offline_steps`` steps."""
        return cls(policy_config=policy_cfg, total_steps=policy_cfg.offline_steps)


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
        preprocess: Preprocess = lambda batch: batch,
        processes: Processes | None = None,
    ):
        """Args:
            tasks: their texts, in the order of the task indices.
            preprocess: turns what the iterator yields into what the losses read.
            processes: those of the run; each passes its own part of every batch, the update is the same in all.

        Raises:
            UserError: a positive fraction is configured for a task that is not one of these.
        """
        self.policy, self.config, self.preprocess = policy, config, preprocess
        self.processes = processes or Processes()
        cfg = policy.config
        fractions = positive_fractions(
            tasks, cfg.advantage_positive_fraction, cfg.advantage_positive_fraction_per_task
        )
        self.thresholds = AdvantageThresholds(fractions, window=cfg.advantage_window)
        self.losses = RecapLosses(policy, self.thresholds, self.processes, labels_later=config.critic_steps > 0)
        self.losses.train()
        self.wrapped = self._wrap()
        self.early_stopping = (
            CriticEarlyStopping(policy.model.critic, cfg.critic_early_stop) if cfg.trains_critic else None
        )
        self.histograms: dict[str, Tensor] = {}
        self.sample_position = 0  # how many samples all processes have drawn: where the run goes on
        self.make_optimizers_and_scheduler()

    def _wrap(self) -> Replicated | Sharded | None:
        """The losses over the processes; None: there is one."""
        groups = select_trainable(self.policy)
        if self.processes.count == 1:
            return None
        return Replicated(self.losses, groups) if self.processes.fsdp is None else Sharded(self.losses, self.processes)

    def _forward(
        self, batch: Batch, sampled: SampledNoise, *, train_actor: bool, synchronise: bool
    ) -> tuple[Tensor, Metrics, dict[str, Tensor]]:
        """The losses' forward, through the wrapper where there are several processes."""
        if self.wrapped is None:
            return self.losses(batch, sampled, train_actor=train_actor)
        return self.wrapped(
            batch, sampled, train_actor=train_actor, train_critic=self.losses.critic_learns, synchronise=synchronise
        )

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
        self.scheduler = build_schedule(
            cfg.get_scheduler_preset(),
            self.optimizer,
            self.config.total_steps,
            critic_steps=self.config.critic_steps,
        )
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
        return step >= (cfg.critic_warmup_steps or 0) and step % cfg.policy_update_freq == 0

    def update(self, batch_iterator: Iterator[Batch]) -> TrainingStats:
        """One optimization step: ``utd_ratio`` critic updates, the last of which may train the actor too."""
        for _ in range(self._critic_updates - 1):
            self._gradient_step(batch_iterator, train_actor=False)
        stats = self._gradient_step(batch_iterator, train_actor=self.trains_actor(self.optimization_step))
        self.scheduler.step()
        self.optimization_step += 1
        return stats

    def _gradient_step(self, batch_iterator: Iterator[Batch], *, train_actor: bool) -> TrainingStats:
        accumulation = self.policy.config.gradient_accumulation_steps
        totals: dict[str, float] = {}
        for number in range(accumulation):
            with record_function("data"):
                samples = next(batch_iterator)
            with record_function("preprocess"):
                batch = self.preprocess(samples)
                sampled = sample_noise(self.config.seed, batch[POSITION], self.policy.config)
                self.sample_position += len(batch[POSITION]) * self.processes.count
            with record_function("forward"):
                loss, metrics, self.histograms = self._forward(
                    batch, sampled, train_actor=train_actor, synchronise=number + 1 == accumulation
                )
            if loss.requires_grad:  # a stopped critic has nothing to learn in a step without the actor
                with record_function("backward"):
                    (loss / accumulation).backward()
            stacked = self.processes.mean(torch.stack([value.float() for value in metrics.values()]))
            values = stacked.tolist()  # one wait for the device
            for name, value in zip(metrics, values, strict=True):
                totals[name] = totals.get(name, 0.0) + value / accumulation
        with record_function("clip"):
            norms = self._clip(train_actor=train_actor)
        if not all(torch.isfinite(torch.tensor(list(norms.values())))):
            raise UserError(
                f"the gradient is not finite at step {self.optimization_step} ({norms}); no weight was changed. Look "
                "at the dataset's statistics and actions, or lower policy.actor_lr and policy.critic_lr"
            )
        with record_function("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.losses.update_target()
        losses = {name: value for name, value in totals.items() if name.startswith("loss_")}
        extra = {name: value for name, value in totals.items() if name not in losses}
        return TrainingStats(losses=losses, grad_norms=norms, extra=extra)

    def _clip(self, *, train_actor: bool) -> dict[str, float]:
        """Clip each group that learns in this step by itself; returns the gradient norms before."""
        norms = {}
        for name, parameters in self.parameters.items():
            if self.losses.critic_learns if name == "critic" else train_actor:
                norm = torch.nn.utils.clip_grad_norm_(parameters, self.policy.config.resolved_grad_clip_norm)
                norms[name] = float(full_tensors(norm))
        return norms

    def on_evaluate(self, metrics: dict[str, float]) -> None:
        """Take note of a held-out evaluation; a critic that early stopping stops trains no more, the actor goes on."""
        if self.early_stopping is not None:
            self.early_stopping.on_evaluate(metrics, self.optimization_step)
            self.losses.critic_learns = not self.early_stopping.stopped

    def gathered_histograms(self) -> dict[str, Tensor]:
        """The last batch's histograms over all processes, each of which must ask."""
        return {name: self.processes.gather(values) for name, values in self.histograms.items()}

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
        """What the algorithm owns beside the policy: its place in the order of samples, the advantage windows, the
        target critic, early stopping."""
        target = self.losses.target_critic
        targets = {} if target is None else {f"target_critic.{k}": v for k, v in target.state_dict().items()}
        early_stopping = {} if self.early_stopping is None else self.early_stopping.state_dict()
        position = {"sample_position": torch.tensor(self.sample_position)}
        return full_tensors({**position, **self.thresholds.state_dict(), **targets, **early_stopping})

    def load_state_dict(self, state_dict: dict[str, Tensor], device: str | torch.device = "cpu") -> None:
        """Restore :meth:`state_dict`."""
        self.sample_position = int(state_dict["sample_position"])
        self.thresholds.load_state_dict(state_dict)
        if self.early_stopping is not None:
            self.early_stopping.load_state_dict(state_dict)
            self.losses.critic_learns = not self.early_stopping.stopped
        if self.losses.target_critic is not None:
            prefix = "target_critic."
            own = self.losses.target_critic.state_dict()
            targets = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
            self.losses.target_critic.load_state_dict({k: shard_like(v, own[k]) for k, v in targets.items()})
