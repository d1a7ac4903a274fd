"""One round in the simulator: attempts of a policy, some of them corrected, recorded by `lerobot-rollout`.

python benchmarks/rounds.py POLICY --root data/rounds/1 --attempts 6

It sits at the terminal as a person would: starts `lerobot-rollout --strategy.type=dagger` once per attempt (LeRobot's
strategy has no episodes, it cuts by video size), presses ESC when the log says that the cube is lifted, and loses
patience after a while: then it corrects the arm (space, tab) in one attempt and gives up (ESC) in the next. It prints
what `pi05-rl label` is to be told. Flags that it does not know go to `lerobot-rollout`.
"""

import argparse
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lerobot.datasets.lerobot_dataset import LeRobotDataset
from panda_sim.sim_robot import LIFTED, NOT_LIFTED

from lerobot_policy_pi05_rl.demo.constants import CONTROL_HZ, TASK
from lerobot_policy_pi05_rl.labels.outcomes import format_ranges

SPACE, TAB, ESC = b" ", b"\t", b"\x1b"
# What LeRobot's DAgger strategy logs (rollout/strategies/dagger.py); a key counts from there on.
STARTED = "DAgger continuous recording started"
PAUSED, CORRECTING = "autonomous -> paused", "paused -> correcting"
PATIENCE_WITH_THE_MACHINE_S = 300.0
CORRECTION_STEPS = 40


@dataclass(frozen=True)
class Attempt:
    """How one attempt went."""

    lifted: bool
    corrected: bool


class Terminal:
    """A process whose keyboard is ours, and the lines it has written."""

    def __init__(self, process: subprocess.Popen[str], keyboard: int) -> None:
        self.process, self.keyboard = process, keyboard
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def press(self, key: bytes) -> None:
        """One key."""
        os.write(self.keyboard, key)

    def wait_for(self, *texts: str) -> str:
        """The first of ``texts`` that some line holds, once one does.

        Raises:
            RuntimeError: the process ends, or is silent for too long, before.
        """

        def found() -> str | None:
            return next((text for text in texts if any(text in line for line in self.lines)), None)

        with self._news:
            self._news.wait_for(lambda: found() or self._ended, PATIENCE_WITH_THE_MACHINE_S)
            text = found()
        if text is None:
            tail = "\n".join(self.lines[-20:])
            raise RuntimeError(f"lerobot-rollout did not log {' or '.join(map(repr, texts))}; its last lines:\n{tail}")
        return text


@contextmanager
def terminal(command: Sequence[str]) -> Iterator[Terminal]:
    """Run ``command`` at a terminal of its own without a display, so that LeRobot reads keys from it; ends it."""
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    paths = [str(Path(__file__).parent), *filter(None, [environment.get("PYTHONPATH")])]  # of the robot below
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    keyboard, end = pty.openpty()
    try:
        with subprocess.Popen(
            command, stdin=end, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process:
            try:
                yield Terminal(process, keyboard)
            finally:
                if process.poll() is None:
                    process.kill()
    finally:
        os.close(keyboard)
        os.close(end)


def rollout_command(policy: str, root: Path, seed: int, flags: Sequence[str] = ()) -> list[str]:
    """`lerobot-rollout` for one attempt, appended to the dataset in ``root`` if there is one; with further flags."""
    return [
        *(sys.executable, "-m", "lerobot.scripts.lerobot_rollout", f"--policy.path={policy}"),
        *("--robot.discover_packages_path=panda_sim", "--robot.type=panda_sim", f"--robot.seed={seed}"),
        "--teleop.type=panda_sim_operator",
        *("--strategy.type=dagger", "--strategy.record_autonomous=true"),
        # The operator commands steps from where the arm is; there is no pose to slide to, and none to return to.
        *("--strategy.smooth_handover=false", "--return_to_initial_position=false"),
        *(f"--fps={CONTROL_HZ}", f"--dataset.fps={CONTROL_HZ}", f"--dataset.single_task={TASK}"),
        *(f"--dataset.repo_id=local/rollout_{root.name}", f"--dataset.root={root}", "--dataset.no_stamp=true"),
        *("--dataset.push_to_hub=false", "--dataset.streaming_encoding=true", "--dataset.encoder_threads=1"),
        *("--dataset.encoder_queue_maxsize=300", "--dataset.rgb_encoder.vcodec=h264", "--dataset.rgb_encoder.g=2"),
        *(f"--resume={str(root.exists()).lower()}", "--play_sounds=false"),
        *flags,
    ]


def not_lifted_after(steps: int) -> str:
    """The first report that so many steps were not enough; the robot reports once per second."""
    return f"{NOT_LIFTED} after {-(-steps // CONTROL_HZ) * CONTROL_HZ} steps"


def attempt(command: Sequence[str], patience: int, corrects: bool) -> Attempt:
    """Watch one attempt; without success after ``patience`` steps correct it or give up.

    Raises:
        RuntimeError: `lerobot-rollout` failed or did not react.
    """
    corrected = False
    with terminal(command) as session:
        session.wait_for(STARTED)
        lifted = session.wait_for(LIFTED, not_lifted_after(patience)) == LIFTED
        if not lifted and corrects:
            session.press(SPACE)
            session.wait_for(PAUSED)
            session.press(TAB)
            session.wait_for(CORRECTING)
            corrected = True
            lifted = session.wait_for(LIFTED, not_lifted_after(patience + CORRECTION_STEPS)) == LIFTED
        session.press(ESC)
        if session.process.wait(PATIENCE_WITH_THE_MACHINE_S):
            raise RuntimeError("lerobot-rollout failed:\n" + "\n".join(session.lines[-20:]))
    return Attempt(lifted, corrected)


def record_round(
    policy: str, root: Path, attempts: int, seed: int, patience: int, flags: Sequence[str] = ()
) -> list[Attempt]:
    """Record the attempts into ``root``; one that is to be corrected alternates with one that is given up."""
    done: list[Attempt] = []
    corrects = True
    for number in range(attempts):
        started = time.perf_counter()
        done.append(attempt(rollout_command(policy, root, seed + number, flags), patience, corrects))
        if done[-1].corrected or not done[-1].lifted:
            corrects = not corrects
        outcome = ("lifted" if done[-1].lifted else "not lifted") + (", corrected" if done[-1].corrected else "")
        print(f"Attempt {number + 1}/{attempts}: {outcome}, {time.perf_counter() - started:.0f} s", flush=True)
    return done


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Record one round in the simulator.")
    parser.add_argument("policy", help="folder of the checkpoint that acts")
    parser.add_argument("--root", type=Path, required=True, help="folder of the new dataset")
    parser.add_argument("--attempts", type=int, default=6)
    parser.add_argument("--seed", type=int, default=500_000, help="of the first start state")
    parser.add_argument("--patience", type=int, default=30, help="steps without success before a reaction")
    args, flags = parser.parse_known_args()
    if args.root.exists():
        parser.error(f"{args.root} exists; a round is a dataset of its own, choose another --root")
    args.root.parent.mkdir(parents=True, exist_ok=True)
    done = record_round(args.policy, args.root, args.attempts, args.seed, args.patience, flags)
    dataset = LeRobotDataset(f"local/rollout_{args.root.name}", root=args.root, video_backend="pyav")
    corrected = int(sum(bool(flag) for flag in dataset.hf_dataset["intervention"]))
    print(f"{dataset.num_episodes} episodes, {dataset.num_frames} frames, {corrected} of them corrections")
    outcomes = [
        f"{option} {format_ranges(episodes)}"
        for option, episodes in (
            ("--success", [number for number, one in enumerate(done) if one.lifted]),
            ("--failure", [number for number, one in enumerate(done) if not one.lifted]),
        )
        if episodes
    ]
    print(f"Outcomes: --of {args.root} {' '.join(outcomes)}")


if __name__ == "__main__":
    main()
