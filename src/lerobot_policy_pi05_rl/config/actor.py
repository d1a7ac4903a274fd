"""What the configuration says of the online learner and its actors, beside the policy's own fields.

The offline learner reads the same file, so the names are known here; whatever acts on them lies in ``online/``.
"""

from dataclasses import dataclass, field
from pathlib import Path

from lerobot.configs.video import RGBEncoderConfig

INFERENCES = ("rtc", "sync")
FAULTS = ("hold", "stop")
TIME_LIMITS = ("auto", "failure", "truncated")


@dataclass
class ActorConfig:
    """One actor: how it drives the environment, what it never does, where it keeps what it cannot send."""

    name: str | None = None  # of this actor among others, and of its folder; None: the host's name
    episodes: int | None = None  # stop after so many; None: until it is stopped
    # rtc: chunks are computed beside the control loop (LeRobot's real-time chunking; policy.rtc_config). sync: the
    # loop waits for each chunk, which only a simulator that stands still meanwhile can afford.
    inference: str = "rtc"
    realtime: bool = True  # one control step every 1 / env.fps seconds; false: as fast as a simulator can
    # A new chunk is computed once so many actions or fewer are left; None: half of the policy's chunk.
    queue_threshold: int | None = None
    # Limits of what is executed, whoever decided it. Action name → [least, greatest], in the action's own units.
    action_clamp_limits: dict[str, list[float]] | None = None
    max_action_step: dict[str, float] = field(default_factory=dict)  # action name → largest change per control step
    allow_unlimited_actions: bool = False  # a real robot does not start without limits of every action, unless true
    # What is executed while there is no action to execute: these values, and of every other dimension the last one.
    hold_action: dict[str, float] = field(default_factory=dict)
    stale_observation_s: float = 0.5  # an observation this old is not acted on; a camera that froze this long is stale
    on_fault: str = "hold"  # hold | stop: what a stale observation or a NaN of the policy leads to
    fault_timeout_s: float = 2.0  # a fault that lasts so long ends the episode as cut off
    # What an episode is whose time is up, or that the environment ends without a word: failure, truncated (nobody
    # knows how it would have ended), or auto: a failure where the environment itself says whether an episode
    # succeeded, truncated where only a person does.
    time_limit: str = "auto"
    spool_dir: Path | None = None  # episodes wait here until the learner has them; None: <output_dir>/actors/<name>
    spool_gb: float = 20.0  # the actor stops at an episode's end once more than that waits
    jpeg_quality: int = 95  # of the pictures on their way to the learner

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("inference", self.inference, INFERENCES),
            ("on_fault", self.on_fault, FAULTS),
            ("time_limit", self.time_limit, TIME_LIMITS),
        ):
            if value not in choices:
                raise ValueError(f"actor.{name} must be one of {', '.join(choices)}; got {value!r}")
        for name in ("stale_observation_s", "fault_timeout_s", "spool_gb"):
            if not getattr(self, name) > 0:
                raise ValueError(f"actor.{name} must be above 0, got {getattr(self, name)}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"actor.jpeg_quality must be between 1 and 100, got {self.jpeg_quality}")
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(f"actor.episodes must be at least 1, got {self.episodes}")
        for name, limits in (self.action_clamp_limits or {}).items():
            if len(limits) != 2 or not limits[0] < limits[1]:
                raise ValueError(f"actor.action_clamp_limits[{name!r}] must be [least, greatest], got {limits}")
        for name, step in self.max_action_step.items():
            if not step > 0:
                raise ValueError(f"actor.max_action_step[{name!r}] must be above 0, got {step}")


@dataclass
class ReplayConfig:
    """The learner's replay: a LeRobotDataset of whole episodes in ``<output_dir>/replay``."""

    # Key frames every second frame, as LeRobot records; h264 because a learner encodes beside its training.
    rgb_encoder: RGBEncoderConfig = field(
        default_factory=lambda: RGBEncoderConfig(vcodec="h264", g=2, crf=20, preset="veryfast", fast_decode=1)
    )
    max_episode_mb: float = 1024.0  # an actor's episode that is larger is refused
    max_episode_frames: int = 20_000
