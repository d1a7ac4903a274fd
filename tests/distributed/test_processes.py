"""Several processes: two equal one with twice the batch, spread or replicated; what is sent; who writes; how they end.

All runs of two processes are jobs of one launch (``in_processes.py``), since a launch imports everything twice.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import REPOSITORY
from recordings import MIXED_EPISODES, make_dataset
from runs import metrics, run, step_back
from safetensors.torch import load_file
from tiny import write_config

SCHEDULE = {
    "policy__offline_steps": 12,
    "policy__policy_update_freq": 2,
    "policy__critic_warmup_steps": 3,
    "policy__gradient_accumulation_steps": 2,
    "policy__advantage_window": 32,
    "policy__critic_folds": 2,
    "policy__num_inference_steps": 2,
    # With 1e-8 Adam makes whole steps, of the learning rate, of gradients that are rounding alone. With 1e-3, the
    # learning rate, a parameter differs by no more than its gradients do: a few float32 roundings a step.
    "policy__optimizer_eps": 1e-3,
    "dataset__eval_split": 0.3,
    "log_freq": 1,
    "eval_steps": 6,
    "save_freq": 6,
}
TD = {"policy__critic_target": "td", "policy__n_step": 3, "policy__critic_early_stop": 1, "eval_steps": 2}
TD |= {"policy__gradient_checkpointing": True}
ADAPTERS = {"policy__critic_adapter_rank": 4, "policy__gradient_checkpointing": True, "eval_steps": 12}


def launch(*module: str) -> subprocess.Popen:
    """Start ``torch.distributed.run`` with two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *module]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "twelve"
    make_dataset(root, MIXED_EPISODES * 3)
    return root


class Jobs:
    """What became of the jobs."""

    def __init__(self, folder: Path, log: str):
        self.folder, self.log = folder, log

    def __getitem__(self, name: str) -> list[dict]:
        """Of each process."""
        return [json.loads((self.folder / f"{name}.{rank}.json").read_text()) for rank in range(2)]

    def parameters(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def run_dir(self, name: str) -> Path:
        return self.folder / "runs" / name

    def checkpoint(self, name: str) -> Path:
        return (self.run_dir(name) / "checkpoints" / "last").resolve()


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory):
    """One process with the batch of two: name → its last checkpoint."""
    folder, found = tmp_path_factory.mktemp("alone"), {}
    for name, changes in (("plain", {}), ("td", TD), ("adapters", ADAPTERS), ("lora", {"peft": {"r": 4}})):
        if name == "lora":
            changes["policy__pi05_checkpoint"] = str(found["plain"] / "pretrained_model")
        options = SCHEDULE | {"batch_size": 8} | changes
        found[name] = run(write_config(folder / f"{name}.json", dataset, folder / name, **options))
    return found


@pytest.fixture(scope="module")
def jobs(dataset, alone, tmp_path_factory) -> Jobs:
    folder = tmp_path_factory.mktemp("jobs")
    jobs = []

    def add(name: str, *arguments: str, config: dict | None = None, **job) -> None:
        run_dir = job.pop("run_dir", folder / "runs" / name)
        path = write_config(folder / f"config_{name}.json", dataset, run_dir, **SCHEDULE | (config or {}))
        jobs.append({"name": name, "arguments": [str(path), *arguments], **job})

    def half_way(source: Path, name: str) -> Path:
        """A copy of a finished run, as it was at step 6."""
        target = folder / "runs" / name
        shutil.copytree(source.parent.parent, target, symlinks=True)
        step_back(target, "000006")
        return target

    add("ddp")
    add("fsdp", fsdp=True)
    add("fifty", "--policy.offline_steps=50", "--save_checkpoint=false", "--eval_steps=0")
    add("td_ddp", config=TD)
    add("td_fsdp", config=TD, fsdp=True)
    for kind in ("ddp", "fsdp"):
        add(f"adapters_{kind}", config=ADAPTERS, fsdp=kind == "fsdp")
    add("bf16", "--save_checkpoint=false", config={"policy__gradient_checkpointing": True}, fsdp=True, bf16=True)
    for kind in ("ddp", "fsdp"):
        half_way(alone["td"], f"from_one_{kind}")
        add(f"from_one_{kind}", "--resume=true", config=TD, fsdp=kind == "fsdp")
    lora = {"peft": {"r": 4}, "policy__pi05_checkpoint": str(alone["plain"] / "pretrained_model")}
    for kind in ("ddp", "fsdp"):
        add(f"lora_{kind}", config=lora, fsdp=kind == "fsdp")
    add("lora_bf16", config=lora | {"policy__dtype": "bfloat16"}, fsdp=True, bf16=True)
    add("stop", stop={"rank": 1, "step": 7})
    add("exists", run_dir=folder / "runs" / "ddp")
    add("no_dataset", "--dataset.root=/nowhere")
    add("compiled", "--policy.compile_model=true", fsdp=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    process = launch(str(REPOSITORY / "tests/helpers/in_processes.py"), str(folder / "jobs.json"), str(folder))
    log, _ = process.communicate(timeout=400)
    (folder / "log").write_text(log)
    if process.returncode != 0:  # an assertion's own message would be cut
        pytest.fail(f"a job ended with {process.returncode}:\n" + "\n".join(log.splitlines()[-200:]), pytrace=False)
    return Jobs(folder, log)


def batch_and_rest(card: str) -> tuple[str, str]:
    """A card without what it says of the batch and its measured numbers; and the batch."""
    lines = [line for line in card.splitlines() if not re.match(r"\| `(batch_size|\w+` \| -?[\d.e-]+ \|)|<!--", line)]
    (batch,) = [line for line in lines if line.startswith("- **Batch:**")]
    lines.remove(batch)
    return "\n".join(lines), batch.removeprefix("- **Batch:** ").rpartition(" × ")[0]


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 2e-5) -> None:
    """The same parameters to rounding: sums are taken in another order (see ``policy__optimizer_eps``)."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_equal_one_with_twice_the_batch(jobs, alone, name):
    """Critic-only steps, accumulation, cross-fitting and held-out evaluations among them."""
    expected = load_file(alone["plain"] / "pretrained_model" / "model.safetensors")
    assert_near(jobs.parameters(name), expected)
    start = load_file(alone["plain"].parent / "000006" / "pretrained_model" / "model.safetensors")
    moved = max(float((expected[key] - start[key]).abs().max()) for key in expected)
    assert moved > 1e-3, "the tolerance is a small part of what the run learns"


@pytest.mark.parametrize("name", ["td_ddp", "td_fsdp"])
def test_target_critic_early_stop_and_checkpointing_do_so_as_well(jobs, alone, name):
    expected = load_file(alone["td"] / "pretrained_model" / "model.safetensors")
    assert_near(jobs.parameters(name), expected)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_critic_by_adapters_reads_the_same_layers_in_every_process(jobs, alone, kind):
    expected = load_file(alone["adapters"] / "pretrained_model" / "model.safetensors")
    assert_near(jobs.parameters(f"adapters_{kind}"), expected)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "fifty", "td_fsdp", "bf16", "lora_fsdp", "lora_bf16", "stop"])
def test_every_process_has_the_same_parameters_and_thresholds(jobs, name):
    first, second = jobs[name]
    assert first["error"] is None and first["step"] == second["step"]
    assert first["checksum"] == second["checksum"]
    assert first["thresholds"] == second["thresholds"]


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_metrics_are_those_of_the_whole_batch_in_one_file_without_a_doubled_line(jobs, alone, name):
    ours, theirs = metrics(jobs.run_dir(name)), metrics(alone["plain"].parent.parent)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, expected in zip(ours, theirs, strict=True):
        assert line.keys() == expected.keys()
        for key, value in expected.items():
            if "action_error" not in key and "tag_grip" not in key:  # sampled frames of each batch: others here
                ranks = 0.01 if "spearman" in key else 1e-5  # values that nearly tie may change places by rounding
                assert line[key] == pytest.approx(value, rel=1e-3, abs=ranks), key
    (effective,) = {line for line in jobs.log.splitlines() if "Effective batch size" in line and "8 x" in line} or {""}
    assert effective == ""
    assert "Effective batch size: 4 x 2 processes x 2 accumulation = 16" in jobs.log


def test_a_critic_only_step_sends_the_critics_gradients_alone_and_accumulation_sends_once(jobs):
    result = jobs["ddp"][0]
    critic, both = result["groups"]["critic"], sum(result["groups"].values())
    assert critic < both
    schedule = [step >= 3 and step % 2 == 0 for step in range(12)]
    assert result["sent_by_step"] == [both if actor else critic for actor in schedule]


def test_sharded_processes_hold_a_half_each(jobs):
    for name in ("fsdp", "td_fsdp"):
        first, second = jobs[name]
        assert first["held"] + second["held"] == first["all"]
        assert max(first["held"], second["held"]) < 0.51 * first["all"]
    assert jobs["ddp"][0]["held"] == jobs["ddp"][0]["all"]


@pytest.mark.parametrize("name", ["plain", "td"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_checkpoint_of_two_processes_has_the_tensors_of_one_and_one_goes_on_from_it(
    jobs, alone, dataset, tmp_path, name, kind
):
    source = {"plain": kind, "td": f"td_{kind}"}[name]
    for file in ("pretrained_model/model.safetensors", "training_state/optimizer_state.safetensors"):
        found, expected = load_file(jobs.checkpoint(source) / file), load_file(alone[name] / file)
        assert_near(found, expected)
    found, expected = (
        load_file(path / "training_state" / "recap_state.safetensors")
        for path in (jobs.checkpoint(source), alone[name])
    )
    assert found["sample_position"] == expected["sample_position"] == 12 * 2 * 8
    cards = [path / "pretrained_model" / "README.md" for path in (jobs.checkpoint(source), alone[name])]
    (ours, batch), (others, whole) = (batch_and_rest(card.read_text()) for card in cards)
    assert (batch, whole) == ("4 samples × 2 processes", "8 samples × 1 process") and ours == others
    target = tmp_path / "run"
    shutil.copytree(jobs.run_dir(source), target, symlinks=True)
    step_back(target, "000006")
    options = SCHEDULE | {"batch_size": 8, "resume": True} | (TD if name == "td" else {})
    resumed = run(write_config(tmp_path / "c.json", dataset, target, **options))
    whole = load_file(alone[name] / "pretrained_model" / "model.safetensors")
    assert_near(load_file(resumed / "pretrained_model" / "model.safetensors"), whole)
    assert len(metrics(target)) == len(metrics(alone[name].parent.parent))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_go_on_from_a_checkpoint_of_one(jobs, alone, kind):
    assert [result["step"] for result in jobs[f"from_one_{kind}"]] == [12, 12]
    assert_near(jobs.parameters(f"from_one_{kind}"), load_file(alone["td"] / "pretrained_model" / "model.safetensors"))
    assert len(metrics(jobs.run_dir(f"from_one_{kind}"))) == len(metrics(alone["td"].parent.parent))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "critic.safetensors"])
def test_an_adapter_and_its_critic_learn_in_two_processes_what_they_do_in_one(jobs, alone, kind, file):
    found, expected = (
        load_file(path / "pretrained_model" / file) for path in (jobs.checkpoint(f"lora_{kind}"), alone["lora"])
    )
    assert_near(found, expected)


def test_a_layer_of_a_base_in_bf16_and_an_adapter_in_fp32_is_sharded_as_one(jobs, alone):
    held = {tensor.dtype for tensor in jobs.parameters("lora_bf16").values()}
    assert held == {torch.bfloat16, torch.float32}
    for file in ("adapter_model.safetensors", "critic.safetensors"):
        found, expected = (
            load_file(path / "pretrained_model" / file) for path in (jobs.checkpoint("lora_bf16"), alone["lora"])
        )
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}
        assert_near(found, expected, tolerance=2e-2)
    base = load_file(alone["plain"] / "pretrained_model" / "model.safetensors")
    frozen = next(name for name in base if name.endswith("language_model.layers.0.mlp.up_proj.weight"))
    assert torch.equal(jobs.parameters("lora_bf16")[frozen], base[frozen].bfloat16())


def test_layers_that_travel_in_bf16_learn_what_fp32_does_to_its_precision(jobs):
    assert_near(jobs.parameters("bf16"), jobs.parameters("fsdp"), tolerance=2e-2)
    assert jobs["bf16"][0]["checksum"] != jobs["fsdp"][0]["checksum"]


def test_a_signal_to_one_process_stops_all_behind_the_same_step_and_one_of_them_saves(jobs):
    assert [result["step"] for result in jobs["stop"]] == [7, 7]
    assert jobs.checkpoint("stop").name == "000007"
    assert [line["step"] for line in metrics(jobs.run_dir("stop"))][-1] == 7


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("exists", "already exists"),
        ("no_dataset", "/nowhere"),
        ("compiled", "compile_model and FSDP"),
    ],
)
def test_bad_input_is_said_by_one_process_and_ends_all(jobs, name, complaint):
    first, second = jobs[name]
    assert complaint in first["error"]
    assert second["error"] == "SystemExit: 2"


def accelerate_launch(file: str, config: Path, *options: str) -> subprocess.Popen:
    """Start the offline learner by one of the files in ``configs/accelerate``."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(REPOSITORY / "configs" / "accelerate" / file), *options]
    command += ["-m", "lerobot_policy_pi05_rl.offline_learner", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("machines", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_accelerates_files_start_what_they_say(dataset, jobs, tmp_path, kind, machines):
    """Two machines are two launchers here, of one process each."""
    config = write_config(tmp_path / "c.json", dataset, tmp_path / "run", **SCHEDULE)
    if machines == 1:
        launched = [accelerate_launch(f"{kind}.yaml", config)]
    else:
        options = ["--num_processes=2", f"--main_process_port={free_port()}"]
        launched = [
            accelerate_launch(f"{kind}_machines.yaml", config, f"--machine_rank={rank}", *options) for rank in (0, 1)
        ]
    logs = [process.communicate(timeout=200)[0] for process in launched]
    assert [process.returncode for process in launched] == [0] * machines, logs
    assert "Effective batch size: 4 x 2 processes x 2 accumulation = 16" in logs[0]
    assert ("FSDP" in logs[0]) == (kind == "fsdp")
    found = load_file(tmp_path / "run" / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")
    assert_near(found, jobs.parameters(kind), tolerance=0)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_quickly_with_its_error_shown(dataset, tmp_path):
    config = write_config(tmp_path / "c.json", dataset, tmp_path / "run", policy__offline_steps=100_000, log_freq=1)
    process = launch("-m", "lerobot_policy_pi05_rl.offline_learner", str(config))
    lines = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not lines.exists() or len(lines.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[1]), signal.SIGKILL)
    log, _ = process.communicate(timeout=300)  # the survivor does not wait for the collective's own half an hour
    assert process.returncode != 0
    assert "another process of the run is gone" in log and "SIGKILL" in log
