"""The control period of an actor while weights are being received and chunks take 300 ms.

    python benchmarks/control_period.py

A learner in a process of its own pushes weights over loopback, by default as often as policy.actor_learner_config says
(--push-every 0: without a pause); the actor's own loop, chunk thread, weights thread and recorder drive an environment
that answers at once. Exit code 1 where the 99th percentile of the period is more than a tenth above 1 / fps.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lerobot.policies.rtc.configuration_rtc import RTCConfig

from lerobot_policy_pi05_rl.config.actor import ActorConfig
from lerobot_policy_pi05_rl.configuration_pi05_rl import ActorLearnerConfig
from lerobot_policy_pi05_rl.online.actor.control import SWITCH_S, Control, Stats
from lerobot_policy_pi05_rl.online.actor.environment import Step
from lerobot_policy_pi05_rl.online.actor.inference import ChunkSource, ChunkThread
from lerobot_policy_pi05_rl.online.actor.recorder import Recorder
from lerobot_policy_pi05_rl.online.actor.threads import WeightsThread, wait_for_learner
from lerobot_policy_pi05_rl.online.episode import EpisodeSpec
from lerobot_policy_pi05_rl.online.transport import learner_pb2
from lerobot_policy_pi05_rl.online.transport.client import LearnerClient
from lerobot_policy_pi05_rl.online.transport.inbox import Inbox
from lerobot_policy_pi05_rl.online.transport.server import LearnerServer
from lerobot_policy_pi05_rl.online.transport.weights import WeightsBox, pack_weights

ACTIONS, CHUNK = 6, 50
TENSORS = 16


def learner(megabytes: int, period: float, port, stop, pushed) -> None:
    """Push so many megabytes every ``period`` seconds, or as soon as the last version is sent."""
    torch.set_num_threads(1)
    box = WeightsBox()
    tensors = {f"w{n}": torch.zeros(megabytes * 2**18 // TENSORS) for n in range(TENSORS)}
    spec = EpisodeSpec(ACTIONS, ACTIONS, {}, ("task",), 30.0)
    with tempfile.TemporaryDirectory() as folder:
        server = LearnerServer(
            ActorLearnerConfig(learner_port=0),
            setup=learner_pb2.ActorSetup(session="bench", tasks=["task"], fps=30.0),
            spec=spec,
            inbox=Inbox(Path(folder), lambda _: False),
            weights=box,
            on_report=lambda *_: None,
            step=lambda: 0,
        )
        with server:
            port.value, version, last = server.port, 0, -period
            data = pack_weights(tensors, torch.float32)
            while not stop.is_set():
                if box.pushes >= version and time.monotonic() - last >= period:
                    version, last = version + 1, time.monotonic()
                    box.publish("bench", version, data)
                pushed.value = box.pushes
                time.sleep(0.02)


class Environment:
    """Answers at once; two pictures."""

    task, real_robot, reports_success = "task", False, True

    def __init__(self, fps: float, steps: int, size: tuple[int, int]):
        self.fps, self.steps, self.done = fps, steps, 0
        self.action_names = [str(n) for n in range(ACTIONS)]
        picture = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
        cameras = {f"observation.images.{n}": picture for n in ("front", "wrist")}
        self.observation = {**cameras, "observation.state": np.zeros(ACTIONS, np.float32)}

    def reset(self, seed: int) -> dict:
        """The observation."""
        return self.observation

    def step(self, action: np.ndarray) -> Step:
        """The next one; truncated after so many steps."""
        self.done += 1
        return Step(self.observation, action, 0.0, False, self.done >= self.steps, False, False, False)

    def close(self) -> None:
        """Nothing."""


class SlowModel:
    """Chunks after 300 ms; weights are copied as an actor copies them."""

    def __init__(self, seconds: float, shapes: dict[str, torch.Size]):
        self.seconds, self.own = seconds, {name: torch.zeros(shape) for name, shape in shapes.items()}

    def load(self, weights) -> None:
        """In place."""
        for name, tensor in weights.tensors.items():
            self.own[name].copy_(tensor)

    def compute(self, *_) -> tuple[torch.Tensor, torch.Tensor]:
        """One chunk."""
        time.sleep(self.seconds)
        return torch.zeros(CHUNK, ACTIONS), torch.zeros(CHUNK, ACTIONS)


def main() -> int:
    """Measure; 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--chunk-ms", type=float, default=300.0)
    parser.add_argument("--megabytes", type=int, default=64, help="of each version of the weights")
    parser.add_argument(
        "--push-every",
        type=float,
        default=ActorLearnerConfig().policy_parameters_push_frequency,
        help="seconds between versions; 0: without a pause",
    )
    parser.add_argument("--picture", type=int, nargs=2, default=(240, 320))
    args = parser.parse_args()
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_S)  # as run_actor does
    context = multiprocessing.get_context("spawn")
    port, pushed, stop = context.Value("i", 0), context.Value("i", 0), context.Event()
    process = context.Process(target=learner, args=(args.megabytes, args.push_every, port, stop, pushed), daemon=True)
    process.start()
    while port.value == 0 and process.is_alive():
        time.sleep(0.05)
    client = LearnerClient(ActorLearnerConfig(learner_port=port.value), "bench")
    setup = wait_for_learner(client, lambda: False)
    shapes = {f"w{n}": torch.Size([args.megabytes * 2**18 // TENSORS]) for n in range(TENSORS)}
    rtc = RTCConfig(execution_horizon=CHUNK // 2)
    model = SlowModel(args.chunk_ms / 1000, shapes)
    source = ChunkSource(model, rtc, args.fps, threshold=CHUNK // 2, horizon=CHUNK)
    weights, chunks, stats = WeightsThread(client, setup, shapes, source), ChunkThread(source), Stats()
    recorder = Recorder("bench", "task", 95)
    environment = Environment(args.fps, round(args.fps * args.seconds), tuple(args.picture))
    for thread in (weights, chunks):
        thread.start()
    while not source.has_weights:
        time.sleep(0.05)
    first, began = pushed.value, time.perf_counter()
    control = Control(environment, source, recorder, ActorConfig(), lambda: False, stats)
    control.play(0)
    seconds, versions = time.perf_counter() - began, pushed.value - first
    for thread in (weights, chunks):
        thread.stop()
    stop.set()
    client.close()
    for thread in (weights, chunks):
        thread.join(10.0)
    process.join(10.0)
    recorder.close()
    periods, nominal = np.array(stats.periods) * 1000, 1000 / args.fps
    median, high = np.percentile(periods, [50, 99])
    print(
        f"{len(periods)} control periods of {nominal:.2f} ms: median {median:.2f}, 99th percentile {high:.2f} "
        f"({high / nominal - 1:+.1%}), longest {periods.max():.2f} ms; held {stats.held} steps"
    )
    print(
        f"meanwhile {versions} versions of {args.megabytes} MB were received "
        f"({versions * args.megabytes / seconds:.0f} MB/s), "
        f"{source.chunks} chunks of {args.chunk_ms:.0f} ms"
    )
    met = high <= 1.1 * nominal and versions > 0
    print(f"Goal, at most 10 % above at the 99th percentile: {'met' if met else 'MISSED'}.")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
