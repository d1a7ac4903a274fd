"""``benchmarks/scaling.py``: formulas against cases counted by hand, collectives against two real processes."""

import json
import subprocess
import sys
from collections import Counter

import pytest
from commands import REPOSITORY


@pytest.fixture
def model_of():
    import scaling

    return scaling


def test_a_ring_passes_every_gradient_on_twice_and_every_gather_once(model_of):
    traffic = model_of.Traffic(Counter({model_of.ROOT: 1, "layer": 4}), ((3, 10), (4,)))
    units = {
        model_of.ROOT: model_of.Unit(((4,),), (4,), ((4,),), False),
        "layer": model_of.Unit(((3, 10),), (4,), ((3, 10),), True),
    }
    assert model_of.ddp_bytes(traffic, 2) == 2 * 1 / 2 * 4 * 34
    # three rows on two processes are four: 4 gathers of 40 and one of 4, 44 numbers of gradients
    assert model_of.fsdp_bytes(traffic, units, 2) == 1 / 2 * 4 * (4 * 40 + 4 + 44)
    assert model_of.fsdp_bytes(traffic, units, 2, layer_bytes=2) == 1 / 2 * (2 * 4 * 40 + 4 * 4 + 4 * 44)


def test_backward_gathers_again_what_it_let_go_and_one_call_ahead(model_of):
    frozen, read_twice = ("frozen", False, False), ("layer", True, True)
    assert model_of.count_gathers([frozen, read_twice, read_twice]) == {"frozen": 2, "layer": 4, model_of.ROOT: 1}
    # behind a call whose inputs need no gradient the layer is kept to the end
    kept = ("layer", True, False)
    assert model_of.count_gathers([kept, kept]) == {"layer": 3, model_of.ROOT: 1}
    assert model_of.count_gathers([frozen, kept, read_twice, kept])["frozen"] == 1, "nothing in front is fetched"


def test_time_is_of_the_slowest_edge(model_of):
    assert model_of.seconds(8e9, 8, 10e9) == 8e9 / (model_of.LINK_EFFICIENCY * model_of.INSIDE)
    assert model_of.seconds(8e9, 64, 10e9) == 8e9 / (model_of.LINK_EFFICIENCY * 10e9)


@pytest.mark.slow
def test_two_processes_send_what_the_formulas_say():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "benchmarks/scaling_check.py", "--json"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert {row["operation"] for row in rows} == {"all-gather", "reduce-scatter", "all-reduce"}
    for row in rows:
        assert row["numbers"] == row["numbers by formula"], row
        assert row["calls by formula"] in (None, row["calls"]), row
