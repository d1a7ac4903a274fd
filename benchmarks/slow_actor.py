"""Episodes that an actor keeps while weights load slowly, chunks take long, or a camera is slow.

    python benchmarks/slow_actor.py

The actor's own control loop, chunk thread and recorder, at the default limits of the configuration, drive a robot that
only looks like one: 10 steps an episode at 30 steps a second, new weights at every reset. Exit code 1 where an episode
is lost.
"""

import argparse
import sys
import time

import numpy as np
import torch
from lerobot.policies.rtc.configuration_rtc import RTCConfig

from lerobot_policy_pi05_rl.config.actor import ActorConfig
from lerobot_policy_pi05_rl.online.actor.chunk_model import Weights
from lerobot_policy_pi05_rl.online.actor.control import Control, Stats
from lerobot_policy_pi05_rl.online.actor.environment import Step
from lerobot_policy_pi05_rl.online.actor.inference import ChunkSource, ChunkThread
from lerobot_policy_pi05_rl.online.actor.recorder import Recorder
from lerobot_policy_pi05_rl.online.actor.safety import StalenessCheck

FPS, STEPS, ACTIONS, CHUNK = 30.0, 10, 6, 50
# what is slow → seconds that weights take to load, a chunk, an episode's first chunk, an observation
CASES = {
    "nothing": (0.0, 0.0, 0.0, 0.0),
    "weights, 0.7 s": (0.7, 0.0, 0.0, 0.0),
    "weights, 5 s": (5.0, 0.0, 0.0, 0.0),
    "first chunk, 3 s": (0.0, 0.0, 3.0, 0.0),
    "camera, 0.7 s": (0.0, 0.0, 0.0, 0.7),
    "weights, chunks and camera, 0.7 s": (0.7, 0.7, 0.7, 0.7),
}


class Robot:
    """Takes so many seconds for an observation; no two pictures are alike."""

    fps, task, real_robot, reports_success = FPS, "task", True, False

    def __init__(self, camera_s: float):
        self.camera_s, self.steps, self.looks = camera_s, 0, 0
        self.action_names = [str(n) for n in range(ACTIONS)]

    def observe(self) -> dict:
        """What is seen now."""
        time.sleep(self.camera_s)
        self.looks += 1
        picture = np.full((48, 64, 3), self.looks % 256, np.uint8)
        return {"observation.images.front": picture, "observation.state": np.zeros(ACTIONS, np.float32)}

    def reset(self, seed: int) -> dict:
        """The first observation."""
        self.steps = 0
        return self.observe()

    def step(self, action: np.ndarray) -> Step:
        """The next one; a success after so many steps."""
        self.steps += 1
        done = self.steps == STEPS
        return Step(self.observe(), action, float(done), done, False, done)


class SlowModel:
    """Zeros, late."""

    def __init__(self, load_s: float, chunk_s: float, first_chunk_s: float):
        self.load_s, self.chunk_s, self.first_chunk_s = load_s, chunk_s, first_chunk_s
        self.first = True  # chunk of an episode

    def load(self, weights: Weights) -> None:
        """Takes a while."""
        time.sleep(self.load_s)

    def compute(self, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        """One chunk."""
        time.sleep(self.first_chunk_s if self.first else self.chunk_s)
        self.first = False
        return torch.zeros(CHUNK, ACTIONS), torch.zeros(CHUNK, ACTIONS)


def play(name: str, episodes: int) -> int:
    """Play and print one case; how many episodes were lost."""
    *model_s, camera_s = CASES[name]
    model, robot, actor = SlowModel(*model_s), Robot(camera_s), ActorConfig()
    staleness = StalenessCheck(actor.stale_observation_s, check_pictures=True)
    source = ChunkSource(model, RTCConfig(), FPS, threshold=CHUNK // 2, horizon=CHUNK, staleness=staleness)
    recorder, stats, chunks = Recorder("bench", "task", 95), Stats(), ChunkThread(source)
    control = Control(robot, source, recorder, actor, lambda: False, stats)
    chunks.start()
    lengths, reasons = [], {}
    for number in range(episodes):
        source.stage(Weights(number, {}))
        model.first = True
        ending = control.play(0)
        lengths.append(len(recorder))
        if not len(recorder):
            reasons[ending.why] = None
    chunks.stop()
    chunks.join(10.0)
    recorder.close()
    kept = sum(length > 0 for length in lengths)
    lost = f"; lost: {'; '.join(reasons)}" if reasons else ""
    print(f"{name:34} {kept} of {episodes} episodes kept, {lengths} steps, {stats.held} held{lost}", flush=True)
    return episodes - kept


def main() -> int:
    """Play all cases; 1 if an episode was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=4)
    args = parser.parse_args()
    print(f"slow: {'':28} (stale_observation_s {ActorConfig().stale_observation_s}, {FPS:.0f} steps a second)")
    return 1 if sum([play(name, args.episodes) for name in CASES]) else 0


if __name__ == "__main__":
    sys.exit(main())
