"""What a person watches of an online run: episodes, actors, queues, weights, under the learner's optimization step."""

import logging
from collections.abc import Callable

from ...recap import RecapAlgorithm
from ...training.metrics import MetricsWindow, MetricsWriter
from ..episode import Episode
from ..replay.replay import Replay
from ..transport.inbox import Inbox
from ..transport.server import LearnerServer
from ..transport.weights import WeightsBox
from .episode_video import EpisodeVideos
from .intake import Intake

logger = logging.getLogger(__name__)

SHOWN = (
    *("episode_success_mean", "episode_length_mean", "intervention_rate_mean"),
    *("actor_steps_per_s", "policy_age_s", "inbox"),
)

# an actor's number → what it is called, and how those of several actors become one
REPORTED: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "steps_per_s": ("actor_steps_per_s", sum),
    "policy_age_s": ("policy_age_s", max),
    "spooled_episodes": ("actor_spool", sum),
    "control_period_p99_s": ("actor_period_p99_s", max),
    "held_steps": ("actor_held_steps", sum),
}


class Monitor:
    """Gathers the online numbers and writes them beside the training's."""

    def __init__(
        self,
        algorithm: RecapAlgorithm,
        writer: MetricsWriter,
        videos: EpisodeVideos,
        *,
        replay: Replay,
        inbox: Inbox,
        box: WeightsBox,
    ):
        self.algorithm, self.writer, self.videos = algorithm, writer, videos
        self.replay, self.inbox, self.box = replay, inbox, box
        self.server: LearnerServer | None = None
        self._window = MetricsWindow()
        self._reports: dict[str, dict[str, float]] = {}
        self._number = replay.episodes_received  # of the last episode logged

    def attach(self, server: LearnerServer) -> None:
        """The server whose counts are logged."""
        self.server = server

    def on_report(self, actor: str, numbers: dict[str, float]) -> None:
        """An actor's report; called by the server's threads."""
        self._reports = {**self._reports, actor: dict(numbers)}

    def log_new_episodes(self, intake: Intake) -> None:
        """Log every episode that was stored since the last call, and draw a video when it is time."""
        while not intake.stored.empty():
            self._log(intake.stored.get())

    def _log(self, episode: Episode) -> None:
        step = self.algorithm.optimization_step
        self._number += 1
        values = {
            "episode_return": float(episode.reward.sum()),
            "episode_success": float(episode.success),
            "episode_length": float(len(episode)),
            "intervention_rate": float(episode.intervention.mean()),
            "episode_policy_age_steps": float(step - episode.policy_version.max()),
        }
        self._window.add(values)
        self.writer.log(step, {**values, "interaction_step": float(self.replay.transitions_received)})
        logger.info(
            "[LEARNER] Episode %d of %s: %s after %d steps, return %.3g, interventions %.2f, weights of step %d",
            self._number,
            episode.actor,
            episode.outcome.value,
            len(episode),
            values["episode_return"],
            values["intervention_rate"],
            int(episode.policy_version.max()),
        )
        policy = self.algorithm.policy
        every = policy.config.episode_logging_freq
        if every and policy.model.critic is not None and (self._number - 1) % every == 0:
            path = self.videos.write(episode, self._number)
            logger.info("[LEARNER] Video of episode %d: %s", self._number, path)
            self.writer.log_video(step, "episode", path)

    def flush(self) -> dict[str, float]:
        """Means over the episodes since the last call, and how things stand now."""
        means = {f"{name}_mean": value for name, value in self._window.flush().items()}
        reports = list(self._reports.values())
        means |= {
            "interaction_step": float(self.replay.transitions_received),
            "episodes": float(self.replay.episodes_received),
            "replay_transitions": float(len(self.replay)),
            "inbox": float(len(self.inbox)),
            "weights_pushed": float(self.box.pushes),
            "actors": float(self.box.listeners),
        }
        if self.server is not None:
            means |= {
                "episodes_refused": float(self.server.refused),
                "episodes_sent_twice": float(self.server.duplicates),
            }
        for name, (key, combined) in REPORTED.items():
            known = [report[name] for report in reports if name in report]
            if known:
                means[key] = combined(known)
        return means

    def summary(self, online: dict[str, float]) -> str:
        """The online numbers of a log line."""
        return " ".join(f"{name}={online[name]:.3g}" for name in SHOWN if name in online)

    def totals(self) -> str:
        """Counts since the run began."""
        refused, twice = (self.server.refused, self.server.duplicates) if self.server else (0, 0)
        return (
            f"{self.replay.episodes_received} episodes received ({self.replay.transitions_received} transitions), "
            f"{len(self.replay)} transitions in the replay, {len(self.inbox)} waiting, {twice} sent twice, "
            f"{refused} refused, {self.box.pushes} weights pushed, "
            f"optimization step {self.algorithm.optimization_step}"
        )
