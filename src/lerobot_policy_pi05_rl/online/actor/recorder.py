"""The steps of the episode that is being played; pictures are encoded beside the control loop."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from lerobot.utils.constants import OBS_STATE

from ...returns import Outcome
from ..episode import Episode, encode_picture, new_uid


class Recorder:
    """Collects what becomes an :class:`Episode`.

    Args:
        actor: name of this actor.
        task: the instruction.
        quality: of the JPEG pictures, 1 to 100.
    """

    def __init__(self, actor: str, task: str, quality: int):
        self._actor, self._task, self._quality = actor, task, quality
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self.start()

    def start(self) -> None:
        """Forget what was recorded and begin anew."""
        self._started = time.time()
        self._pictures: dict[str, list[Future[bytes]]] = {}
        self._states: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._interventions: list[bool] = []
        self._versions: list[int] = []

    def __len__(self) -> int:
        return len(self._versions)  # what is added last: Ctrl-C may come in the middle of a step

    def add(
        self, observation: dict[str, np.ndarray], executed: np.ndarray, reward: float, intervention: bool, version: int
    ) -> None:
        """One control step.

        Args:
            observation: what was seen before it.
            executed: (A,) float32.
            version: of the weights that acted.
        """
        for name, value in observation.items():
            if name == OBS_STATE:
                self._states.append(np.array(value, dtype=np.float32))
            else:
                encoding = self._encoder.submit(encode_picture, value, self._quality)
                self._pictures.setdefault(name, []).append(encoding)
        self._actions.append(np.array(executed, dtype=np.float32))
        self._rewards.append(float(reward))
        self._interventions.append(bool(intervention))
        self._versions.append(int(version))

    @property
    def total_reward(self) -> float:
        """Sum of the rewards so far."""
        return float(sum(self._rewards))

    @property
    def intervention_rate(self) -> float:
        """Share of the steps in which a person acted."""
        return sum(self._interventions) / max(1, len(self))

    @property
    def last_version(self) -> int:
        """Of the weights that acted last."""
        return self._versions[-1]

    def finish(self, outcome: Outcome, report: dict[str, float]) -> Episode:
        """The episode, once the last pictures are encoded.

        Args:
            report: the actor's numbers of it.
        """
        length = len(self)
        return Episode(
            uid=new_uid(),
            actor=self._actor,
            task=self._task,
            outcome=outcome,
            state=np.stack(self._states[:length]),
            action=np.stack(self._actions[:length]),
            reward=np.array(self._rewards[:length], dtype=np.float32),
            intervention=np.array(self._interventions[:length], dtype=bool),
            policy_version=np.array(self._versions, dtype=np.int64),
            pictures={
                name: [encoding.result() for encoding in series[:length]] for name, series in self._pictures.items()
            },
            started=self._started,
            report=report,
        )

    def close(self) -> None:
        """End the encoding thread."""
        self._encoder.shutdown(wait=False, cancel_futures=True)
