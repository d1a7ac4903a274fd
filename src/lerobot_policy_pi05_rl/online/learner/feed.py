"""Between two steps of the online learner: episodes in, weights out, a wait until there is enough to learn from."""

import logging
import time
from functools import partial
from itertools import batched

import numpy as np
import torch
from torch.utils.data import default_collate

from ...advantage import TAG_POSITIVE
from ...cards.model import OnlineEpisodes
from ...configuration_pi05_rl import PI05RLConfig
from ...data.dataset import OfflineData
from ...data.frames import FrameDataset
from ...data.labeling import read_labelings
from ...model.trainable import pushed_tensors
from ...recap import RecapAlgorithm
from ...training.loop import Feed
from ...training.start import Run
from ..config import OnlineTrainConfig
from ..replay.labels import ReplayLabels
from ..replay.replay import Replay
from ..replay.rule import LabelRule
from ..transport.weights import WeightsBox, pack_weights
from .batches import OnlineBatches, online_count
from .intake import Intake
from .monitoring import Monitor

logger = logging.getLogger(__name__)

IDLE_S = 0.05
WAITING_LOG_S = 30.0


class OnlineFeed(Feed):
    """Batches of offline data and replay; see :meth:`ready` for what happens between two of them."""

    def __init__(self, run: Run, replay: Replay, intake: Intake, pusher: "WeightsPusher", monitor: Monitor):
        cfg, algorithm = run.cfg, run.algorithm
        online = online_count(cfg.batch_size, cfg.online_ratio)
        start = algorithm.sample_position
        super().__init__(OnlineBatches(run.data, cfg.batch_size, online, seed=cfg.seed, start=start))
        self.policy, self.algorithm = cfg.policy, algorithm
        self.labels = arrival_labels(cfg, run.data, algorithm)
        self.replay, self.intake, self.pusher, self.monitor = replay, intake, pusher, monitor
        self._frames: FrameDataset | None = None  # what the batches were last shown
        self._shown = -1  # episodes received when the batches were last shown the replay
        self._said = 0.0

    def ready(self) -> bool:
        """Push the weights, take note of what has arrived, show it to the batches.

        Raises:
            UserError: an episode that has arrived cannot be stored.
        """
        self.intake.check()
        self.pusher.push_if_due()
        self.monitor.log_new_episodes(self.intake)
        if not may_update(self.policy, self.replay, self.algorithm.optimization_step):
            if time.perf_counter() - self._said > WAITING_LOG_S:
                self._said = time.perf_counter()
                logger.info("[LEARNER] Waiting for episodes: %s", self.monitor.totals())
            time.sleep(IDLE_S)
            return False
        if self.replay.episodes_received != self._shown:
            self._shown = self.replay.episodes_received
            self._frames = self.labels.frames(self.replay.source())
            self.batches.show(self._frames)
        return True

    def news(self) -> tuple[dict[str, float], str]:
        """Of the episodes since the last line, and how things stand."""
        online = self.monitor.flush()
        if self._frames is not None and self._frames.precomputed is not None:
            (labels,) = self._frames.precomputed
            online["replay_positive_fraction"] = float((labels.tags == TAG_POSITIVE).mean())
        return online, self.monitor.summary(online)

    def online(self) -> OnlineEpisodes:
        """What actors have sent."""
        replay = self.replay
        return OnlineEpisodes(replay.episodes_received, replay.transitions_received, replay.outcomes_received())

    def close(self) -> None:
        """The actors end with the last weights."""
        self.batches.close()
        self.pusher.push()


def arrival_labels(cfg: OnlineTrainConfig, data: OfflineData, algorithm: RecapAlgorithm) -> ReplayLabels:
    """What labels the episodes that arrive: the rule of the offline data's labels, unless each batch is labelled."""
    if not cfg.labels_arrivals:
        return ReplayLabels(data, cfg.reward, cfg.seed)
    name = cfg.dataset.labeling or str(cfg.run_dir.absolute())
    rule = LabelRule.of(read_labelings(data.sources, name))
    values = partial(critic_values, algorithm, cfg.batch_size)
    return ReplayLabels(data, cfg.reward, cfg.seed, rule=rule, values=values)


@torch.no_grad()
def critic_values(algorithm: RecapAlgorithm, batch_size: int, frames: FrameDataset) -> np.ndarray:
    """(T, K, 2) float32 what the K critics of the moment say of T frames (predict_label_values)."""
    losses, training, values = algorithm.losses, algorithm.losses.training, []
    losses.eval()
    for numbers in batched(range(len(frames)), batch_size):
        batch = algorithm.preprocess(default_collate([frames[number, number] for number in numbers]))
        values.append(losses.run(algorithm.policy.predict_label_values, batch).float().cpu().numpy())
    losses.train(training)
    return np.concatenate(values)


def may_update(policy: PI05RLConfig, replay: Replay, step: int) -> bool:
    """Whether there is enough to learn from: enough transitions at all, and enough for so many updates."""
    received = replay.transitions_received
    if len(replay) < max(1, policy.online_step_before_learning):
        return False
    limit = policy.online_updates_per_transition
    return limit is None or step < limit * received


class WeightsPusher:
    """Hands the actor's weights to the actors every so many seconds, if they have changed and somebody listens."""

    def __init__(self, algorithm: RecapAlgorithm, box: WeightsBox, session: str):
        policy = algorithm.policy.config
        connection = policy.actor_learner_config
        self.algorithm, self.box, self.session = algorithm, box, session
        self.period = connection.policy_parameters_push_frequency
        self.dtype = getattr(torch, connection.push_dtype or policy.dtype)
        self._pushed, self._last = -1, 0.0
        self.push()  # an actor may act at once

    def push_if_due(self) -> None:
        """Copy the weights if it is time, they are new, and an actor would take them."""
        if time.perf_counter() - self._last >= self.period and self.box.listeners:
            self.push()

    def push(self) -> None:
        """Copy the weights if they are new."""
        self._last = time.perf_counter()
        if self.algorithm.optimization_step != self._pushed:
            self._pushed = self.algorithm.optimization_step
            data = pack_weights(pushed_tensors(self.algorithm.policy), self.dtype)
            self.box.publish(self.session, self._pushed, data)
