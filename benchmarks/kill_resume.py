"""A run that is killed again and again, and resumed each time, equals the run that nobody killed: bit for bit.

    python benchmarks/kill_resume.py [--kills 100] [--processes 1 2] [--seed 0] [--output DIR]

A tiny training (``tiny_run.py``: critics with a target network that label the data before the policy trains, held-out
evaluations, a checkpoint every few steps, in every other round written in the background) runs once undisturbed, and
its progress is timed. Then rounds begin: each draws the instants of its SIGKILLs, starts the same command with
``resume=true``, kills it there, starts it again, and in the end lets it finish. Most instants are uniform over the
undisturbed run's duration; some are meant for the middle of a save, some for the labelling, some for the start after a
kill. Every file of every checkpoint, every label and every line of ``metrics.jsonl``, apart from times, must be equal.
Exit code 0 says that they all were.

One process imports everything and forks a child for each start, so that a start costs a second. With ``--processes 2``
each start is two children with torchrun's environment; one or both are killed, and a survivor must end by itself.
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import synthetic_dataset
from tiny_run import CRITIC_STEPS, SAVES, STEPS, configuration, differences, last_step

import lerobot_policy_pi05_rl.offline_learner  # noqa: F401  (imported once, before the forks)
from lerobot_policy_pi05_rl import cli
from lerobot_policy_pi05_rl.labels import values

EPISODES, LENGTH, BATCH_SIZE = 6, 8, 4
KILLS_PER_ROUND = 6  # at most
SHARES = {"anywhere": 0.5, "saving": 0.2, "labelling": 0.15, "starting": 0.15}  # what an instant is meant for
POLL = 0.001  # s
SURVIVOR_LIMIT = 120.0  # s in which a process must notice that the others are gone
Event = tuple[str, int]  # ("start", 0), ("step", n) in metrics.jsonl, ("saving", n) or ("labelling", 0) has begun

values.FLUSH_FRAMES = BATCH_SIZE  # so that a kill finds a part of these few frames on the disk


@dataclass
class Result:
    """What the kills hit, and what became of the rounds."""

    instants: list[float] = field(default_factory=list)  # in shares of the undisturbed run
    hits: Counter = field(default_factory=Counter)
    rounds: int = 0
    failures: list[str] = field(default_factory=list)


def fork(work: Callable[[], None], log: Path, environment: dict[str, str] | None = None) -> int:
    """A child that does ``work`` with its output in ``log``; returns its process id."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of threads: the only other one is jemalloc's, made for it
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environment or {})
        work()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def start(folder: Path, processes: int, background: bool) -> list[int]:
    """The training's command, in ``processes`` processes."""
    arguments = ["offline", str(folder / "config.json"), f"--save_in_background={str(background).lower()}"]
    (folder / "log.txt").write_text("")
    if processes == 1:
        return [fork(lambda: cli.main(arguments), folder / "log.txt")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"LOCAL_WORLD_SIZE": str(processes)}
    return [
        fork(lambda: cli.main(arguments), folder / "log.txt", {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]


def happened(run: Path, event: Event) -> bool:
    """Whether the run has come as far as ``event``."""
    kind, number = event
    if kind == "start":
        return True
    if kind == "step":
        return last_step(run) >= number
    if kind == "labelling":
        return (run / "labels.partial").exists() or (run / "labels").exists()
    checkpoints = run / "checkpoints"
    return (checkpoints / f".{number:06d}.partial").exists() or (checkpoints / f"{number:06d}").exists()


def reap(pids: dict[int, int | None]) -> bool:
    """Note the exit codes of those that have ended; whether all have."""
    for pid in [pid for pid, code in pids.items() if code is None]:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            pids[pid] = os.waitstatus_to_exitcode(status)
    return all(code is not None for code in pids.values())


def undisturbed(folder: Path, processes: int) -> list[tuple[float, Event]]:
    """Run to the end; returns when each event came, in seconds, and last ("end", 0)."""
    began, timeline = time.perf_counter(), [(0.0, ("start", 0))]
    pids = dict.fromkeys(start(folder, processes, background=False))
    ahead = [("step", step) for step in range(1, STEPS + 1)]
    ahead += [("saving", step) for step in SAVES] + [("labelling", 0)]
    while not reap(pids):
        now = time.perf_counter() - began
        for event in [event for event in ahead if happened(folder / "run", event)]:
            timeline.append((now, event))
            ahead.remove(event)
        time.sleep(POLL)
    if any(pids.values()):
        raise SystemExit(f"the undisturbed run failed:\n{(folder / 'log.txt').read_text()[-3000:]}")
    return [*timeline, (time.perf_counter() - began, ("end", 0))]


def draw_instants(rng: random.Random, timeline: list[tuple[float, Event]], count: int) -> list[tuple[str, float]]:
    """(what it is meant for, seconds of the undisturbed run), in the order in which a round meets them."""
    end, first = timeline[-1][0], timeline[1][0]
    saves = [(at, after) for (at, event), (after, _) in itertools.pairwise(timeline) if event[0] == "saving"]
    labelling = next(at for at, event in timeline if event[0] == "labelling")
    labelled = next(at for at, event in timeline if event == ("step", CRITIC_STEPS + 1))
    drawn = []
    for kind in rng.choices(list(SHARES), list(SHARES.values()), k=count):
        spans = {"anywhere": (0, end), "starting": (0, first), "labelling": (labelling, labelled)}
        low, high = rng.choice(saves) if kind == "saving" else spans[kind]
        drawn.append((kind, rng.uniform(low, high)))
    ordered = iter(sorted(at for kind, at in drawn if kind != "starting"))
    kinds = iter([kind for kind, at in sorted(drawn, key=lambda pair: pair[1]) if kind != "starting"])
    return [(kind, at) if kind == "starting" else (next(kinds), next(ordered)) for kind, at in drawn]


def kill_at(folder: Path, pids: dict[int, int | None], wait_for: Event, delay: float, victims: list[int]) -> bool:
    """SIGKILL the ``victims`` among ``pids``, ``delay`` seconds after ``wait_for``; False if all ended before."""
    while not happened(folder / "run", wait_for):
        if reap(pids):
            return False
        time.sleep(POLL)
    until = time.perf_counter() + delay
    while time.perf_counter() < until:
        if reap(pids):
            return False
        time.sleep(POLL)
    for pid in [pid for pid in victims if pids[pid] is None]:
        os.kill(pid, signal.SIGKILL)
    return True


def wait_for_survivors(pids: dict[int, int | None]) -> int:
    """How many processes did not end by themselves in time, and were killed."""
    limit, stubborn = time.perf_counter() + SURVIVOR_LIMIT, 0
    while not reap(pids):
        if time.perf_counter() > limit:
            left = [pid for pid, code in pids.items() if code is None]
            stubborn, limit = len(left), limit + SURVIVOR_LIMIT
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL)
    return stubborn


def note_hit(run: Path, steps_before: int, result: Result) -> None:
    """What the kill has hit, as the folder shows it."""
    checkpoints = run / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    last = checkpoints / "last"
    newest = max((name for name in names if name.isdigit()), default=None)
    result.hits["before the first checkpoint"] += not last.exists()
    result.hits["while saving"] += any(name.startswith(".") for name in names) or newest not in (
        None,
        last.resolve().name,
    )
    result.hits["while labelling"] += (run / "labels.partial").exists()
    result.hits["before the first step of its start"] += last_step(run) <= steps_before


def play_round(folder: Path, timeline: list, processes: int, count: int, rng: random.Random, result: Result) -> None:
    """Kill a run ``count`` times, let it finish, compare."""
    run, background = folder / "run", bool(result.rounds % 2)
    shutil.rmtree(run, ignore_errors=True)
    result.rounds += 1
    instants: list[tuple[str, float] | None] = [*draw_instants(rng, timeline, count), None]
    for instant in instants:
        before = last_step(run)
        pids = dict.fromkeys(start(folder, processes, background))
        killed = False
        if instant is not None:
            kind, at = instant
            since, event = (0.0, ("start", 0)) if kind == "starting" else max(e for e in timeline if e[0] <= at)
            killed = kill_at(folder, pids, event, at - since, rng.sample(list(pids), rng.randint(1, processes)))
        result.hits["survivors that had to be killed"] += wait_for_survivors(pids) if killed else 0
        while not reap(pids):
            time.sleep(POLL)
        if killed:
            result.instants.append(at / timeline[-1][0])
            note_hit(run, before, result)
        elif any(pids.values()):
            log = (folder / "log.txt").read_text()[-3000:]
            result.failures.append(f"round {result.rounds}: exit codes {list(pids.values())}\n{log}")
            return
        else:
            break
    found = differences(folder / "undisturbed", run)
    if found:
        result.failures.append(f"round {result.rounds}: {'; '.join(found[:5])}; {len(found)} in all")


def report(processes: int, result: Result, timeline: list) -> None:
    """What was killed where."""
    tenths = Counter(min(9, int(10 * instant)) for instant in result.instants)
    print(
        f"{processes} process(es): {len(result.instants)} kills in {result.rounds} rounds of a run of {STEPS} steps "
        f"and {timeline[-1][0]:.1f} s, of which {timeline[1][0]:.1f} s before its first step"
    )
    print(f"  kills in each tenth of the run: {' '.join(str(tenths[tenth]) for tenth in range(10))}")
    for what, count in result.hits.items():
        if count or "survivors" not in what or processes > 1:
            print(f"  {what}: {count}")
    equal = result.rounds - len(result.failures)
    print(f"  rounds equal to the undisturbed run, bit for bit: {equal} of {result.rounds}")
    for failure in result.failures:
        print(failure)


def torment(folder: Path, processes: int, kills: int, rng: random.Random) -> bool:
    """Rounds until there were ``kills`` kills, or one went wrong; whether one did."""
    folder.mkdir(parents=True)
    recorder = fork(lambda: synthetic_dataset.record(folder / "data", EPISODES, LENGTH), folder / "record.txt")
    if os.waitpid(recorder, 0)[1]:
        raise SystemExit((folder / "record.txt").read_text()[-3000:])
    configuration(folder, batch_size=BATCH_SIZE // processes)
    timeline = undisturbed(folder, processes)
    (folder / "run").rename(folder / "undisturbed")
    result = Result()
    while len(result.instants) < kills and not result.failures:
        count = min(kills - len(result.instants), rng.randint(1, KILLS_PER_ROUND))
        play_round(folder, timeline, processes, count, rng, result)
    report(processes, result, timeline)
    return bool(result.failures)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: everything was equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="keep the runs here; default: a temporary folder")
    arguments = parser.parse_args(argv)
    failed = False
    for processes in arguments.processes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (arguments.output or Path(temporary)) / f"{processes}_processes"
            failed = torment(folder, processes, arguments.kills, random.Random(arguments.seed)) or failed
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
