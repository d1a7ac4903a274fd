"""The main job as a user runs it: record, pretrain, compare, and stock `lerobot-eval` on the checkpoint.

A short form of `make demo`, through the console scripts, in processes that import nothing of ours by hand. What a
process of its own shows of a tool once is run in this one from then on.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import REPOSITORY
from lerobot.scripts import lerobot_eval
from runs import step_back
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore

from lerobot_policy_pi05_rl import cli

SCRIPTS = Path(sys.executable).parent
CONFIG = REPOSITORY / "configs" / "demo.json"


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, (
        f"{command} exited with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done


@pytest.fixture
def here(tmp_path, monkeypatch, logging_as_before) -> Path:
    """The working directory of what runs in this process."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offline(*arguments: object) -> None:
    """``pi05-rl offline`` in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(["offline", str(CONFIG), *map(str, arguments)])
    assert end.value.code == 0


def evaluate(monkeypatch, folder: Path, checkpoint: Path, *options: str) -> dict:
    """``lerobot-eval`` in this process, of a run of the demo; what it wrote of all episodes."""
    arguments = [f"--policy.path={checkpoint}", "--env.type=panda_pick_cube", f"--output_dir={folder}", *options]
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *arguments])
    lerobot_eval.main()
    return json.loads((folder / "eval_info.json").read_text())["overall"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    sizes = ("--episodes", "6", "--steps", "6", "--critic-steps", "4", "--eval-episodes", "2")
    done = run(SCRIPTS / "pi05-rl", "demo", "--output", folder / "out", "--config", CONFIG, *sizes, cwd=folder)
    assert "successes per 1000" in done.stdout
    return folder / "out"


def test_the_demo_writes_its_results(demo):
    results = json.loads((demo / "results.json").read_text())
    assert set(results) == {"bc", "recap"}
    for result in results.values():
        assert set(result) == {"success", "steps"}
        assert len(result["success"]) == len(result["steps"]) == 2
        assert all(isinstance(value, bool) for value in result["success"])
        assert all(1 <= steps <= 40 for steps in result["steps"])
    assert (demo / "results.png").stat().st_size > 5000
    assert "<title>" in (demo / "report.html").read_text()


def test_both_policies_learn_from_the_same_samples_for_as_many_steps(demo):
    last, held_out = {}, {}
    for name in ("bc", "recap"):
        lines = [json.loads(line) for line in (demo / name / "metrics.jsonl").read_text().splitlines()]
        last[name] = [line for line in lines if "lr_actor" in line][-1]
        held_out[name] = lines[-1]
    assert last["bc"]["step"] == 6 and last["recap"]["step"] == 4 + 6  # of which 4 are the critics' alone
    assert "loss_critic" in last["recap"] and "loss_critic" not in last["bc"]
    assert all("eval/loss_actor_none" in line for line in held_out.values())
    assert "eval/critic_gap" in held_out["recap"] and "eval/critic_gap" not in held_out["bc"]


def test_stock_lerobot_eval_runs_the_checkpoint_with_no_flag_of_ours(demo, tmp_path):
    checkpoint = (demo / "recap" / "checkpoints" / "last" / "pretrained_model").resolve()
    run(
        SCRIPTS / "lerobot-eval",
        f"--policy.path={checkpoint}",
        "--env.type=panda_pick_cube",
        "--eval.n_episodes=2",
        cwd=tmp_path,
    )
    info = json.loads(next(tmp_path.rglob("eval_info.json")).read_text())
    assert info["overall"]["n_episodes"] == 2


def test_stock_lerobot_train_goes_on_from_the_checkpoint(demo, tmp_path):
    checkpoint = (demo / "recap" / "checkpoints" / "last" / "pretrained_model").resolve()
    run(
        SCRIPTS / "lerobot-train",
        f"--policy.path={checkpoint}",
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=local/panda_pick_cube",
        f"--dataset.root={demo / 'dataset'}",
        f"--output_dir={tmp_path / 'run'}",
        "--steps=2",
        "--batch_size=2",
        "--num_workers=0",
        "--env_eval_freq=0",
        cwd=tmp_path,
    )
    config = json.loads((tmp_path / "run/checkpoints/last/pretrained_model/config.json").read_text())
    assert config["type"] == "pi05_rl"
    assert config["inference_advantage"] == "none"  # cloning saw no tag, and says so


def test_stock_lerobot_eval_runs_a_lora_checkpoint_that_was_stopped_and_resumed(demo, here, monkeypatch):
    base = (demo / "bc" / "checkpoints" / "last" / "pretrained_model").resolve()
    options = (
        *("--peft.method_type=LORA", "--peft.r=4"),
        *(f"--policy.pi05_checkpoint={base}", f"--dataset.root={demo / 'dataset'}", "--policy.offline_steps=4"),
        "--policy.critic_warmup_steps=2",
        *("--save_freq=2", "--keep_last_checkpoints=2", "--output_dir_offline=lora"),
    )
    offline(*options)
    step_back(here / "lora", "000002")
    offline(*options, "--resume=true")
    checkpoint = (here / "lora" / "checkpoints" / "000004" / "pretrained_model").resolve()
    assert not (checkpoint / "model.safetensors").exists()
    sizes = ("--eval.n_episodes=2", "--eval.batch_size=2", "--eval.use_async_envs=false")
    assert evaluate(monkeypatch, here / "eval", checkpoint, *sizes)["n_episodes"] == 2


@pytest.fixture(scope="module")
def online(demo) -> Path:
    """Learner and actor from the demo's checkpoint, and from scratch, until each learner has made its steps."""
    # As many episodes as the demo's own evaluation, which is not made again.
    sizes = ("--steps", "6", "--eval-episodes", "2", "--wandb.enable=true", "--wandb.mode=offline")
    done = run(SCRIPTS / "pi05-rl", "demo-online", "--output", demo, "--config", CONFIG, *sizes, cwd=demo.parent)
    assert "after online RL" in done.stdout
    return demo / "online"


def test_online_goes_on_from_the_offline_checkpoint(demo, online):
    results = json.loads((demo / "results_online.json").read_text())
    assert set(results) == {"before", "online", "scratch"}
    assert all(result["episodes"] == 2 for result in results.values())
    lines = [json.loads(line) for line in (online / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)  # one step axis
    assert any("episode_return" in line for line in lines)
    last = [line for line in lines if "loss_actor" in line][-1]
    assert last["step"] == 6 and last["weights_pushed"] >= 1 and last["replay_transitions"] >= 200
    assert 0 < last["replay_positive_fraction"] < 1
    assert list((online / "labels").glob("*.parquet")), "by the critics that it starts from"
    held_out = [line for line in lines if "eval/loss_critic" in line]
    assert [line["step"] for line in held_out] == [6]
    assert list((online / "videos").glob("episode_*.mp4"))


def test_wandb_gets_the_numbers_of_both_under_one_step_axis(online):
    (run_file,) = (online / "wandb").glob("offline-run-*/run-*.wandb")
    rows = []
    store = DataStore()
    store.open_for_scan(str(run_file))
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        rows.append({item.key or "/".join(item.nested_key): item.value_json for item in record.history.item})
    for key in ("train/loss_actor", "train/episode_return", "train/replay_transitions", "eval/loss_critic"):
        assert any(key in row and any("Optimization step" in name for name in row) for row in rows), key
    (video,) = {json.loads(row["train/episode/path"]) for row in rows if "train/episode/path" in row}
    assert (run_file.parent / "files" / video).stat().st_size > 1000


def test_stock_lerobot_eval_runs_the_online_checkpoint(online, here, monkeypatch):
    checkpoint = (online / "checkpoints" / "last" / "pretrained_model").resolve()
    sizes = ("--eval.n_episodes=1", "--eval.batch_size=1", "--eval.use_async_envs=false")
    assert evaluate(monkeypatch, here / "eval", checkpoint, *sizes)["n_episodes"] == 1


def test_the_replay_is_a_dataset_of_the_next_offline_run(demo, online, here, capfd):
    pretrained = (demo / "recap" / "checkpoints" / "last" / "pretrained_model").resolve()
    offline(
        *(f"--dataset.root={demo / 'dataset'}", "--policy.offline_steps=2", "--policy.critic_warmup_steps=1"),
        f"--dataset.additional_offline_dataset_paths=[{online / 'replay'}]",
        *(f"--policy.pi05_checkpoint={pretrained}", "--output_dir_offline=next", "--batch_size=4"),
    )
    assert "in 2 dataset(s)" in "".join(capfd.readouterr())
    assert (here / "next" / "checkpoints" / "000002").is_dir()


@pytest.mark.slow  # tests/online has each fault alone
def test_no_episode_is_lost_or_doubled_by_kills_and_cuts(demo, tmp_path):
    """A short form of benchmarks/online_faults.py: the learner is dead for some seconds instead of a minute."""
    script = CONFIG.parent.parent / "benchmarks" / "online_faults.py"
    pretrained = (demo / "recap" / "checkpoints" / "last" / "pretrained_model").resolve()
    done = run(
        *(sys.executable, script, CONFIG, "--down", "8", "--cuts", "2", "--output", tmp_path / "faults"),
        *(f"--dataset.root={demo / 'dataset'}", f"--policy.pi05_checkpoint={pretrained}"),
        cwd=tmp_path,
    )
    assert "lost: 0, doubled: 0" in done.stdout
