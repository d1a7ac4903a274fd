"""What the configuration says of the online learner and its actors, beside the policy's own fields.

The offline learner reads the same file, so the names are known here; whatever acts on them lies in ``online/``.
"""

from dataclasses import dataclass
from pathlib import Path

from lerobot.configs.video import RGBEncoderConfig

from ..options import NOTE, ONLINE, check_options, option


@dataclass
class ActorConfig:
    """One actor: how it drives the environment, what it never does, where it keeps what it cannot send."""

    # Of this actor among others, and of its folder; None: the host's name.
    name: str | None = option(None, NOTE, ONLINE)
    episodes: int | None = option(None, NOTE, ONLINE, least=1)  # stop after so many; None: until it is stopped
    # rtc: chunks are computed beside the control loop (LeRobot's real-time chunking; policy.rtc_config). sync: the
    # loop waits for each chunk, which only a simulator that stands still meanwhile can afford.
    inference: str = option("rtc", NOTE, ONLINE, choices=("rtc", "sync"))
    # One control step every 1 / env.fps seconds; false: as fast as a simulator can.
    realtime: bool = option(True, NOTE, ONLINE)
    # A new chunk is computed once so many actions or fewer are left; None: half of the policy's chunk.
    queue_threshold: int | None = option(None, NOTE, ONLINE)
    # Limits of what is executed, whoever decided it. Action name → [least, greatest], in the action's own units.
    action_clamp_limits: dict[str, list[float]] | None = option(None, NOTE, ONLINE)
    # Action name → largest change per control step.
    max_action_step: dict[str, float] = option(dict, NOTE, ONLINE, above=0)
    # A real robot does not start without limits of every action, unless true.
    allow_unlimited_actions: bool = option(False, NOTE, ONLINE)
    # What is executed while there is no action to execute: these values, and of every other dimension the last one.
    hold_action: dict[str, float] = option(dict, NOTE, ONLINE)
    # An observation this old is not acted on; a camera that froze this long is stale.
    stale_observation_s: float = option(0.5, NOTE, ONLINE, above=0)
    # hold | stop: what a stale observation or a NaN of the policy leads to.
    on_fault: str = option("hold", NOTE, ONLINE, choices=("hold", "stop"))
    fault_timeout_s: float = option(2.0, NOTE, ONLINE, above=0)  # a fault this long ends the episode as cut off
    # What an episode is whose time is up, or that the environment ends without a word: failure, truncated (nobody
    # knows how it would have ended), or auto: a failure where the environment itself says whether an episode
    # succeeded, truncated where only a person does.
    time_limit: str = option("auto", NOTE, ONLINE, choices=("auto", "failure", "truncated"))
    # Episodes wait here until the learner has them; None: <output_dir>/actors/<name>.
    spool_dir: Path | None = option(None, NOTE, ONLINE)
    spool_gb: float = option(20.0, NOTE, ONLINE, above=0)  # the actor stops after an episode once more than that waits
    jpeg_quality: int = option(95, NOTE, ONLINE, least=1, most=100)  # of the pictures on their way to the learner

    def __post_init__(self) -> None:
        check_options(self, "actor")
        for name, limits in (self.action_clamp_limits or {}).items():
            if len(limits) != 2 or not limits[0] < limits[1]:
                raise ValueError(f"actor.action_clamp_limits[{name!r}] must be [least, greatest], got {limits}")


@dataclass
class ReplayConfig:
    """The learner's replay: a LeRobotDataset of whole episodes in ``<output_dir>/replay``."""

    # Key frames every second frame, as LeRobot records; h264 because a learner encodes beside its training.
    rgb_encoder: RGBEncoderConfig = option(
        lambda: RGBEncoderConfig(vcodec="h264", g=2, crf=20, preset="veryfast", fast_decode=1), NOTE, ONLINE
    )
    max_episode_mb: float = option(1024.0, NOTE, ONLINE)  # an actor's episode that is larger is refused
    max_episode_frames: int = option(20_000, NOTE, ONLINE)
