"""A run killed at random instants and resumed equals the run nobody killed (``benchmarks/kill_resume.py``)."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"


def kill_resume(*arguments: str | Path) -> str:
    """What the script prints, in a process of its own: it forks."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "kill_resume.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def count(printed: str, what: str) -> int:
    return int(re.search(rf"{what}: (\d+)", printed)[1])


def test_killed_three_times_it_is_the_same_run(tmp_path):
    printed = kill_resume("--kills", "3", "--output", tmp_path)
    assert "3 kills in" in printed
    tenths = re.search(r"each tenth of the run: ([\d ]+)", printed)[1].split()
    assert len(tenths) == 10 and sum(map(int, tenths)) == 3
    # The comparison itself is not blind.
    from tiny_run import differences

    run, undisturbed = tmp_path / "1_processes" / "run", tmp_path / "1_processes" / "undisturbed"
    assert differences(undisturbed, run) == []
    state = next((run / "checkpoints" / "last" / "training_state").glob("optimizer_state*"))
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    shutil.rmtree(run / "checkpoints" / "000004")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    changed = json.loads(lines[5]) | {"loss_actor": 0.0}
    (run / "metrics.jsonl").write_text("\n".join([*lines[:5], json.dumps(changed), *lines[6:]]))
    newest = state.parent.parent.resolve().name
    found = differences(undisturbed, run)
    assert "line 6 is the first to differ" in found[0]
    assert f"checkpoints/{newest}/training_state/{state.name} differs" in found
    assert "checkpoints/000004 is in one of them only" in found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_a_hundred_times_it_is_the_same_run():
    printed = kill_resume("--kills", "100", "--seed", "2")
    tenths = list(map(int, re.search(r"each tenth of the run: ([\d ]+)", printed)[1].split()))
    assert all(tenths) and count(printed, "while saving") >= 10 and count(printed, "before the first checkpoint") >= 5
