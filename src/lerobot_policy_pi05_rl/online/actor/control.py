"""The control loop of one episode: it waits neither for the network nor, beside a real robot, for the model."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from lerobot.utils.robot_utils import precise_sleep

from ...config.actor import ActorConfig
from ...errors import UserError, typed_line
from ...returns import Outcome
from .environment import ActorEnvironment, Observation, Step
from .inference import ChunkSource
from .recorder import Recorder
from .safety import hold_action

logger = logging.getLogger(__name__)

WAIT_S = 0.002  # between looks at an empty queue while nothing moves
# A thread that computes gives Python's lock away after so long: the default, 5 ms, is a sixth of a period at 30 steps
# a second, by which the control loop would be late while weights arrive (benchmarks/control_period.py).
SWITCH_S = 0.0005


@dataclass
class Stats:
    """What the control loop has done since the actor started; it alone writes."""

    steps: int = 0
    held: int = 0  # steps that held because there was no action
    interventions: int = 0  # steps in which a person acted
    episodes: int = 0
    successes: int = 0
    dropped: int = 0  # re-recorded, or ended before their first step
    periods: deque[float] = field(default_factory=lambda: deque(maxlen=2000))  # seconds between steps

    def percentile(self, q: float) -> float:
        """Of the control period, in seconds; 0 before the second step."""
        periods = list(self.periods)
        return float(np.percentile(periods, q)) if periods else 0.0


@dataclass(frozen=True)
class Ending:
    """How an episode ended; without an outcome it is forgotten."""

    outcome: Outcome | None
    why: str
    broken: bool = False  # the environment raised, or no step could be made


class Control:
    """Plays episodes.

    Whatever ends an episode, an outcome that is known by then is its outcome.

    Args:
        stopped: whether the run is to end; the episode is then cut off.
        max_steps: of an episode that the learner takes; it is cut off there. None: any number.
    """

    def __init__(
        self,
        environment: ActorEnvironment,
        source: ChunkSource,
        recorder: Recorder,
        actor: ActorConfig,
        stopped: Callable[[], bool],
        stats: Stats,
        max_steps: int | None = None,
    ):
        self._env, self._source, self._recorder = environment, source, recorder
        self._actor, self._stopped, self._stats, self._max_steps = actor, stopped, stats, max_steps
        self._stands_still = not (actor.realtime or environment.real_robot)  # while there is no action
        # A simulator is as it was left; what surrounds a robot is not.
        self._observe = getattr(environment, "observe", None) if environment.real_robot else None
        self._success = False  # of the present episode so far

    @property
    def known_outcome(self) -> Outcome:
        """Of the present or last episode, if it ends here and nobody says how: truncated, unless it has succeeded."""
        return Outcome.SUCCESS if self._success else Outcome.TRUNCATED

    def play(self, seed: int) -> Ending:
        """One episode; its steps are in the recorder afterwards.

        Raises:
            UserError: the environment does not fit the policy.
            Exception: what the model raised; the steps before it are in the recorder.
        """
        self._recorder.start()
        self._success = False
        self._source.begin_episode()
        try:
            observation = self._env.reset(seed)
        except UserError:
            raise
        except Exception as error:  # of a simulator or a robot: anything
            return self._cut_off(f"the reset failed: {typed_line(error)}", broken=True)
        self._source.publish(observation, intervened=False)
        last: np.ndarray | None = None
        human, fault_since, pace = False, None, Pace(self._env.fps, self._actor.realtime)
        while True:
            if self._stopped():
                return self._cut_off("the actor was stopped")
            proposal, fault = self._source.next_action(), self._source.fault
            fault_since = None if fault is None or human else fault_since or time.monotonic()
            if fault_since is not None and (
                self._actor.on_fault == "stop" or time.monotonic() - fault_since >= self._actor.fault_timeout_s
            ):
                return self._cut_off(str(fault), broken=last is None)
            try:
                if proposal is None and last is None:  # nothing moves before the first chunk
                    observation = self._wait_and_see(observation, pace)
                    continue
                if proposal is None and self._stands_still and not human:
                    time.sleep(WAIT_S)
                    pace.start()
                    continue
                action, version = proposal or self._hold(last)
                step = self._env.step(action)
            except UserError:
                raise
            except Exception as error:
                return self._cut_off(f"the environment failed: {typed_line(error)}", broken=True)
            self._recorder.add(observation, step.executed, step.reward, step.intervention, version)
            self._count(step, held=proposal is None)
            last, observation, human = step.executed, step.observation, step.intervention
            self._source.publish(observation, human)
            self._success |= bool(step.success)
            if (ending := self._ending(step)) is not None:
                return ending
            self._stats.periods.append(pace.wait())

    def _wait_and_see(self, observation: Observation, pace: "Pace") -> Observation:
        """What was seen at the reset grows old while the first chunk is computed, so look again."""
        if self._observe is not None:
            pace.wait()
            observation = self._observe()
            self._source.publish(observation, intervened=False)
        time.sleep(WAIT_S)
        pace.start()
        return observation

    def _hold(self, last: np.ndarray) -> tuple[np.ndarray, int]:
        return hold_action(self._env.action_names, self._actor.hold_action, last), self._source.version

    def _cut_off(self, why: str, *, broken: bool = False) -> Ending:
        return Ending(self.known_outcome, why, broken)

    def _count(self, step: Step, held: bool) -> None:
        self._stats.steps += 1
        self._stats.held += held and not step.intervention
        self._stats.interventions += step.intervention

    def _ending(self, step: Step) -> Ending | None:
        if step.rerecord:
            return Ending(None, "to be recorded again")
        if not (step.terminated or step.truncated):
            if self._max_steps is not None and len(self._recorder) >= self._max_steps:
                return self._cut_off(f"the learner takes {self._max_steps} steps at most")
            return None
        if self._success:
            return Ending(Outcome.SUCCESS, "success")
        if step.terminated and step.success is not None:
            return Ending(Outcome.FAILURE, "failure")
        if step.terminated:
            return Ending(
                time_limit_outcome(self._actor.time_limit, reports_success=False), "nobody says whether it succeeded"
            )
        return Ending(time_limit_outcome(self._actor.time_limit, self._env.reports_success), "time limit")


def time_limit_outcome(time_limit: str, reports_success: bool) -> Outcome:
    """What an episode is whose time is up.

    Args:
        time_limit: failure, truncated or auto, of the configuration.
        reports_success: the environment itself says whether an episode succeeded.
    """
    if time_limit == "auto":
        return Outcome.FAILURE if reports_success else Outcome.TRUNCATED
    return Outcome.FAILURE if time_limit == "failure" else Outcome.TRUNCATED


class Pace:
    """One control step every 1 / fps seconds, on absolute deadlines; a late step is not made up for."""

    def __init__(self, fps: float, realtime: bool):
        self._period, self._realtime = 1.0 / fps, realtime
        self.start()

    def start(self) -> None:
        """The next period begins now."""
        self._began = time.perf_counter()
        self._deadline = self._began + self._period

    def wait(self) -> float:
        """Wait for the end of the period; returns how long it was, in seconds."""
        if self._realtime:
            precise_sleep(self._deadline - time.perf_counter())
        now = time.perf_counter()
        took, self._began = now - self._began, now
        self._deadline = self._deadline + self._period if now < self._deadline + self._period else now + self._period
        return took
