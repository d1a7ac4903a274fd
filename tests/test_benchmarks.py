"""The profilers and the synthetic dataset of ``benchmarks/``, in short."""

import json
import math
import re
import runpy
import subprocess
import sys

import pytest
from commands import REPOSITORY
from tiny import write_config

from lerobot_policy_pi05_rl.configuration_pi05_rl import PI05RLConfig
from lerobot_policy_pi05_rl.plan.meta_step import build, with_cameras
from lerobot_policy_pi05_rl.stored.keys import ACTOR_HEAD, is_unused, our_key

BENCHMARKS = REPOSITORY / "benchmarks"


@pytest.fixture
def run_benchmark(monkeypatch, capfd):
    """Runs a script of ``benchmarks/`` in this process and returns what it printed."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setenv("COLUMNS", "120")
        capfd.readouterr()
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        return capfd.readouterr().out

    return run


def milliseconds(table: str) -> dict[str, float]:
    """First column → second column of a printed table."""
    rows = re.findall(r"^│ (\S.*?) +│ +([\d.]+) │", table, flags=re.MULTILINE)
    return {name: float(value) for name, value in rows}


def test_profile_step_says_where_a_step_goes_and_saves_nothing(run_benchmark, mixed_dataset, tmp_path):
    config = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run")
    spent = milliseconds(run_benchmark("profile_step.py", str(config), "--steps=2", "--skip=1"))
    assert all(spent[phase] > 0 for phase in ("data", "preprocess", "forward", "backward", "optimizer"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])  # a worker imports everything anew
def test_profile_data_tells_pictures_from_the_rest_and_who_waits(run_benchmark, mixed_dataset, tmp_path, workers):
    config = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", num_workers=workers)
    printed = run_benchmark("profile_data.py", str(config), "--batches=3", "--skip=1")
    spent = milliseconds(printed)
    assert spent["pictures"] > 0 and spent["other columns"] > 0 and spent["collate"] > 0
    assert "the loader alone gives" in printed and "training waits for data" in printed
    assert ("workers are idle" in printed) == (workers > 0)
    assert not (tmp_path / "run").exists()


def test_copied_episodes_are_read_by_lerobot_as_the_recorded_ones(tmp_path):
    from synthetic_dataset import check, copy_episodes, record

    small = record(tmp_path / "small", 2, 6)
    large = copy_episodes(small, tmp_path / "large", 12)  # more copies than one video file holds
    check(small, large)
    with pytest.raises(ValueError, match=r"frame 0 of .* is not its original's"):
        check(record(tmp_path / "other", 2, 6, seed=1), large)


@pytest.mark.parametrize("encoder", ["hevc, g=12", "images"])
def test_the_decoder_check_counts_every_frame(run_benchmark, capfd, encoder):
    with pytest.raises(SystemExit) as ended:
        run_benchmark("decoder_check.py", f"--only={encoder}")
    assert ended.value.code == 0
    printed = capfd.readouterr().out
    assert "120 frames; different/unreadable: random order 0/0, in a run 0/0, frame cache 0/0" in printed


def test_the_decoder_check_finds_a_frame_that_is_not_its_rows(tmp_path, monkeypatch):
    import decoder_check

    root = decoder_check.record(tmp_path / "data", None)
    right = decoder_check.read_picture
    monkeypatch.setattr(decoder_check, "read_picture", lambda source, camera, row: right(source, camera, max(row, 1)))
    assert decoder_check.check("images", root, "pyav", tmp_path) == 1


@pytest.mark.slow
def test_the_gpu_benchmark_measures_and_says_beside_it_what_plan_predicts(run_benchmark, tmp_path):
    """On the CPU at the demo's size, in a process of its own, which forks before any backward has run."""
    file, names = tmp_path / "gpu.json", ["one chunk", "labelling", "cloning, without checkpointing"]
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), f"--output={file}", "--device=cpu", "--size=demo"]
    subprocess.run([*command, "--only", *names], check=True, capture_output=True)
    measured = json.loads(file.read_text())
    assert [found["name"] for found in measured] == names and all(found["seconds"] > 0 for found in measured)
    for found in measured:
        found["allocated"] = 2**30  # of the card, which is not here
    failed = {**measured[2], "name": "RL", "error": "OutOfMemoryError: of 80 GiB"}
    file.write_text(json.dumps([*measured, failed]))
    printed = run_benchmark("gpu.py", "--report", str(file))
    training = next(line for line in printed.splitlines() if line.startswith(f"| {names[2]} | 8 |"))
    peak, predicted, ratio = (float(cell) for cell in training.split("|")[8:11])
    assert peak == 1.0 and predicted > 40 and ratio == pytest.approx(predicted, abs=0.01)
    assert "guided × plain" in printed and "| labelling | 64 |" in printed
    assert "- RL, batch 8: OutOfMemoryError: of 80 GiB" in printed


@pytest.mark.slow
def test_the_full_size_benchmark_at_the_demos_size(capfd, monkeypatch, tmp_path):
    import full_size

    monkeypatch.setattr(sys, "argv", ["full_size.py", f"--folder={tmp_path}", "--size=demo"])
    assert full_size.main() == 0
    printed = capfd.readouterr().out
    assert "171 of 171 tensors that train moved, 0 that do not" in printed
    assert "the last checkpoint is the undisturbed run's bit for bit" in printed and "(β = 5)" in printed


def test_the_full_size_start_has_stocks_names_and_shapes_and_ours_loads_all_of_it():
    """On the meta device, against what a π0.5 of ours holds."""
    import full_size

    held = full_size.shapes("full")
    assert sum(math.prod(shape) for shape in held.values()) > 3.6e9
    ours = build(with_cameras(PI05RLConfig(device="cpu", policy_extraction="none"), 2)).policy.state_dict()
    ours = {name: tuple(tensor.shape) for name, tensor in ours.items() if "advantage_embedding" not in name}
    assert {our_key(name): shape for name, shape in held.items() if our_key(name) in ours} == ours
    assert all(is_unused(our_key(name)) or our_key(name) in {*ours, ACTOR_HEAD} for name in held)


def test_the_closed_loop_table_names_each_seed_above_its_own_number(tmp_path, monkeypatch):
    """Seed 10 comes behind seed 3, whatever its folder's name does; trainings of a seed stay in their order."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import closed_loop_report

    for seed, steps in ((10, 20), (3, 10), (4, 5)):
        folder = tmp_path / "demo" / f"seed{seed}"
        folder.mkdir(parents=True)
        for name, length in (("eval_recap.json", steps), ("eval_recap.training1.json", 2 * steps)):
            (folder / name).write_text(json.dumps({"success": [True], "steps": [length]}))
    cells = closed_loop_report.read_results(tmp_path)["demo"]["recap"]
    assert list(cells) == [3, 4, 10]
    row = closed_loop_report.summarize("recap", cells, {"recap": cells})
    assert [trainings[0] for trainings in row["per_training"].values()] == pytest.approx([100, 200, 50])
    assert closed_loop_report.per_seed(row) == "66.7, 133.3, 33.3"
