"""Early stopping of the critic: warns when its held-out metrics say that it overfits and, if asked, stops it and
restores its best weights."""

import logging
import math

import torch
from torch import Tensor, nn

from ..distributed.fsdp import shard_like
from .critic_metrics import LEAST_EPISODES

logger = logging.getLogger(__name__)

RISE = 0.1  # nats above its best at which the held-out cross-entropy counts as risen, or above training's as a gap
LEAST_AUC = 0.6  # a coin has 0.5
STATE_KEY = "critic_watch"  # in checkpoints; its name is from before the class had its present one
ADVICE = (
    "Its advantages say little about new episodes: set policy.critic_early_stop, lower policy.critic_lr, use "
    "policy.critic_folds, or check the outcomes"
)


class CriticEarlyStopping:
    """Best held-out cross-entropy so far, evaluations since, and the weights of that moment.

    ``stopped`` means that the best weights are in place and the critic no longer trains.
    """

    def __init__(self, critic: nn.Module, patience: int | None):
        """``patience``: evaluations without a new best after which the critic stops; None: only warn."""
        self.critic, self.patience = critic, patience
        self.best, self.training_at_best, self.waited, self.stopped = math.inf, math.inf, 0, False
        self.weights: dict[str, Tensor] = self._snapshot()
        self._warned: set[str] = set()

    def _snapshot(self) -> dict[str, Tensor]:
        if self.patience is None:
            return {}
        return {name: tensor.detach().clone() for name, tensor in self.critic.state_dict().items()}

    def on_evaluate(self, metrics: dict[str, float], step: int) -> None:
        """Take note of one evaluation: warn, keep the weights if they are the best, stop if it is time."""
        if "loss_critic" not in metrics or "critic_gap" not in metrics or self.stopped:
            return
        self._warn(metrics, step)
        held_out = metrics["loss_critic"]
        if held_out < self.best:
            self.best, self.training_at_best, self.waited = held_out, held_out - metrics["critic_gap"], 0
            self.weights = self._snapshot()
            return
        self.waited += 1
        if self.patience is not None and self.waited >= self.patience:
            self.restore_best()
            self.stopped = True
            logger.info(
                "The critic stops at step %d: held-out cross-entropy has not fallen below %.3f in %d evaluations; "
                "its best weights are restored",
                step,
                self.best,
                self.waited,
            )

    def restore_best(self) -> None:
        """Put the best weights back; nothing happens without a ``patience`` or before the first evaluation."""
        if self.weights and self.best < math.inf:
            self.critic.load_state_dict(self.weights)

    def _warn(self, metrics: dict[str, float], step: int) -> None:
        held_out, gap = metrics["loss_critic"], metrics["critic_gap"]
        auc = metrics.get("auc_value_outcome", math.nan)
        enough = metrics.get("auc_episodes", 0) >= LEAST_EPISODES
        if held_out > self.best + RISE and held_out - gap < self.training_at_best:
            self._warn_once(
                "overfits",
                f"The critic overfits at step {step}: held-out cross-entropy {held_out:.3f}, "
                f"{held_out - self.best:.3f} above its best, while on training frames it fell from "
                f"{self.training_at_best:.3f} to {held_out - gap:.3f}.",
            )
        if enough and auc <= LEAST_AUC and gap > RISE:
            self._warn_once(
                "blind",
                f"The critic cannot tell held-out successes from failures at step {step}: AUC {auc:.2f} at the middle "
                f"of an episode (0.5 is a coin), cross-entropy {gap:.3f} above that on training frames.",
            )

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s %s", message, ADVICE)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors for the checkpoint's training state."""
        numbers = [self.best, self.training_at_best, float(self.waited), float(self.stopped)]
        weights = {f"best_critic.{name}": tensor for name, tensor in self.weights.items()}
        return {STATE_KEY: torch.tensor(numbers, dtype=torch.float64), **weights}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`state_dict`. Other settings take effect: a stop that is switched on begins with the present
        critic, one that is switched off or more patient lets a stopped critic go on from its best weights."""
        was_on = any(name.startswith("best_critic.") for name in state)
        if self.patience is not None and not was_on:
            return
        self.best, self.training_at_best, waited, stopped = state[STATE_KEY].tolist()
        self.waited = int(waited)
        self.stopped = bool(stopped) and self.patience is not None and self.waited >= self.patience
        self.weights = {
            name: shard_like(state[f"best_critic.{name}"].to(t.device), t) for name, t in self.weights.items()
        }
