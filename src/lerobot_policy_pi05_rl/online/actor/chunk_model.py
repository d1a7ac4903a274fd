"""The acting policy between its processors: from one observation to one chunk of actions."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.policies.rtc import reanchor_relative_rtc_prefix
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.processor import NormalizerProcessorStep, RelativeActionsProcessorStep
from torch import Tensor

from ...data.batch import TASK
from ...modeling_pi05_rl import PI05RLPolicy
from ...processor_pi05_rl import Processors
from ..transport.weights import apply_weights
from .environment import Observation


@dataclass(frozen=True)
class Weights:
    """What the learner pushed."""

    version: int  # the learner's optimization step
    tensors: dict[str, Tensor]
    received: float = field(default_factory=time.monotonic)


class ChunkModel:
    """The policy between its processors.

    Args:
        policy: acts; its weights change in :meth:`load` alone.
        processors: its preprocessor and postprocessor.
        task: the instruction.
    """

    def __init__(self, policy: PI05RLPolicy, processors: Processors, task: str):
        self.policy, (self._before, self._after) = policy, processors
        self._task = task
        self._device = next(policy.parameters()).device
        steps = getattr(self._before, "steps", [])
        self._relative = next((s for s in steps if isinstance(s, RelativeActionsProcessorStep) and s.enabled), None)
        self._normalizer = next((s for s in steps if isinstance(s, NormalizerProcessorStep)), None)

    def load(self, weights: Weights) -> None:
        """Act with these weights from the next chunk on."""
        apply_weights(self.policy, weights.tensors)

    @torch.no_grad()
    def compute(
        self, observation: Observation, delay: int, left_over: Tensor | None, left_over_actions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One chunk of T actions: (T, A) normalised, (T, A) as the environment takes them, both on the CPU.

        Args:
            delay: actions that will have been executed since the observation when the chunk is done.
            left_over: (N, A) normalised actions that follow the observation, which the chunk continues; None: it is
                free.
            left_over_actions: (N, A) the same as the environment takes them.
        """
        batch = prepare_observation_for_inference(dict(observation), self._device, self._task)
        batch[TASK] = [self._task]
        batch = self._before(batch)
        options: dict[str, Any] = {}
        if left_over is not None and len(left_over):
            if self._relative is not None and self._relative.get_cached_state() is not None:
                # Relative actions of the last chunk are relative to where the robot was then.
                left_over = reanchor_relative_rtc_prefix(
                    prev_actions_absolute=left_over_actions,
                    current_state=self._relative.get_cached_state(),
                    relative_step=self._relative,
                    normalizer_step=self._normalizer,
                    policy_device=self._device,
                )
            options["inference_delay"] = min(delay, len(left_over))
            options["prev_chunk_left_over"] = left_over.to(self._device)
        chunk = self.policy.predict_action_chunk(batch, **options)
        return chunk.squeeze(0).float().cpu(), self._after(chunk).squeeze(0).float().cpu()
