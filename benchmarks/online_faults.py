"""Kill the learner while actors drive, kill an actor, cut connections in the middle of messages; count episodes.

    python benchmarks/online_faults.py configs/demo.json --down 60

Two actors (simulator, real processes) talk to the learner through a proxy that can cut. Every episode that an actor
finished must be in the learner's replay exactly once, and training must go on. Exit code 1 where it is not so.
"""

import argparse
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

FINISHED = re.compile(r"\[ACTOR\] Episode .*uid ([0-9a-f]{32})")
STEP = re.compile(r"\[LEARNER\] Optimization step: (\d+)/")
POLL_S = 0.2
PATIENCE_S = 180.0


class Proxy:
    """Forwards bytes between actors and the learner; :meth:`cut` ends every connection behind the next bytes sent."""

    def __init__(self, target: int):
        self.target, self.cuts, self._armed = target, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, times: int) -> None:
        """Cut so many connections, each in the middle of what an actor sends."""
        self._armed += times

    def _accept(self) -> None:
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            client.close()  # the learner is dead
            return
        selector = selectors.DefaultSelector()
        for source, sink in ((client, server), (server, client)):
            selector.register(source, selectors.EVENT_READ, sink)
        with client, server:
            while True:
                for key, _ in selector.select():
                    try:
                        data = key.fileobj.recv(1 << 16)
                        # An episode is the only large thing that actors send.
                        if self._armed and key.fileobj is client and len(data) > 8192:
                            self._armed, self.cuts = self._armed - 1, self.cuts + 1
                            server.sendall(data[: len(data) // 2])
                            return
                        if not data:
                            return
                        key.data.sendall(data)
                    except OSError:
                        return


class Run:
    """The processes of one online run, and what they have said."""

    def __init__(self, args: argparse.Namespace, output: Path):
        self.args, self.output, self.run_dir = args, output, output / "online"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.proxy = Proxy(self.port)
        self.processes: dict[str, subprocess.Popen] = {}

    def start(self, name: str) -> None:
        """Start the learner, or the actor of that name; output is appended to its log."""
        role = "learner" if name == "learner" else "actor"
        port = self.port if role == "learner" else self.proxy.port
        command = [
            *(sys.executable, "-m", f"lerobot_policy_pi05_rl.online.{role}", str(self.args.config)),
            *(f"--output_dir={self.run_dir}", f"--policy.actor_learner_config.learner_port={port}"),
            *("--policy.online_steps=1000000", "--save_freq=20", "--log_freq=5", "--keep_last_checkpoints=2"),
            *("--policy.online_step_before_learning=50", "--eval_steps=0", "--policy.episode_logging_freq=0"),
            *("--batch_size=4", "--policy.actor_learner_config.policy_parameters_push_frequency=1"),
            *self.args.overrides,
        ]
        if role == "learner":
            command += [f"--resume={str(self.run_dir.exists()).lower()}"]
        else:
            command += [f"--actor.name={name}", "--actor.realtime=true"]  # at full speed a simulator outruns the disk
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
        environment.setdefault("MUJOCO_GL", "egl")
        with (self.output / f"{name}.log").open("a") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def end(self, name: str, number: signal.Signals) -> int:
        """Send a signal and wait; the exit code."""
        self.processes[name].send_signal(number)
        return self.processes[name].wait(PATIENCE_S)

    def log(self, name: str) -> str:
        """All that a process has written."""
        return (self.output / f"{name}.log").read_text()

    def finished(self) -> list[str]:
        """Uids of the episodes that actors have finished."""
        names = [name for name in self.processes if name != "learner"]
        return [uid for name in names for uid in FINISHED.findall(self.log(name))]

    def received(self) -> list[str]:
        """Uids in the learner's ledger: what is, or was, in its replay."""
        ledger = self.run_dir / "replay" / "received.jsonl"
        lines = ledger.read_text().splitlines(keepends=True) if ledger.is_file() else []
        return [json.loads(line)["uid"] for line in lines if line.endswith("\n")]

    def step(self) -> int:
        """The learner's last logged step."""
        steps = STEP.findall(self.log("learner"))
        return int(steps[-1]) if steps else 0

    def wait(self, what: str, condition) -> None:
        """Until it is so; SystemExit if it never is."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"waited {PATIENCE_S:.0f} s in vain for {what}\n{self.log('learner')[-2000:]}")
            time.sleep(POLL_S)

    def say(self, text: str) -> None:
        """One line of the report."""
        counts = f"{len(self.finished())} episodes finished, {len(set(self.received()))} received, step {self.step()}"
        print(f"{text}: {counts}", flush=True)


def main() -> int:
    """Run all faults; 1 if an episode was lost or doubled, or training stood still."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--down", type=float, default=60.0, help="seconds that the learner is dead")
    parser.add_argument("--cuts", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args, args.overrides = parser.parse_known_args()
    output = args.output or Path(tempfile.mkdtemp(prefix="online_faults_"))
    output.mkdir(parents=True, exist_ok=True)
    run = Run(args, output)
    try:
        return faults(run, args)
    finally:
        for process in run.processes.values():
            if process.poll() is None:
                process.kill()


def faults(run: Run, args: argparse.Namespace) -> int:
    """The faults, one after the other."""
    for name in ("learner", "one", "two"):
        run.start(name)
    run.wait("training with both actors", lambda: run.step() >= 20 and len(run.received()) >= 6)
    run.say("two actors")

    run.end("learner", signal.SIGKILL)
    before = len(run.finished())
    time.sleep(args.down)
    meanwhile = len(run.finished()) - before
    run.say(f"learner dead for {args.down:.0f} s, {meanwhile} episodes meanwhile")
    run.start("learner")
    known = run.step()
    run.wait("what was spooled", lambda: set(run.received()) >= set(run.finished()[: before + meanwhile]))
    run.wait("training after the kill", lambda: run.step() > known)
    run.say("learner resumed")

    run.end("one", signal.SIGKILL)
    alone = len(run.finished())
    run.wait("the other actor", lambda: len(run.finished()) > alone)
    run.start("one")
    back = run.log("one").count("[ACTOR] Episode")
    run.wait("the killed actor", lambda: run.log("one").count("[ACTOR] Episode") > back)
    run.say("actor killed and started again")

    run.proxy.cut(args.cuts)
    run.wait("cuts", lambda: run.proxy.cuts >= args.cuts)
    run.say(f"{run.proxy.cuts} connections cut in the middle of an episode")

    last = run.step()
    run.wait("training at the end", lambda: run.step() > last)
    for name in ("one", "two", "learner"):
        code = run.end(name, signal.SIGINT)
        if code:
            print(f"{name} ended with exit code {code}\n{run.log(name)[-1500:]}")
            return 1
    finished, received = Counter(run.finished()), Counter(run.received())
    lost, doubled = finished - received, [uid for uid, count in received.items() if count > 1]
    run.say("end")
    print(f"lost: {len(lost)}, doubled: {len(doubled)}, received and unknown to an actor: {len(received - finished)}")
    return 1 if lost or doubled or meanwhile == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
