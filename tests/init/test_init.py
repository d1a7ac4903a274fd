"""`pi05-rl init`: what it finds, what it chooses, and that a run takes what it writes as it is."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from recordings import make_dataset
from runs import metrics
from tiny import tiny_config

from lerobot_policy_pi05_rl.cli import main as cli
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.files.metadata import INFO_PATH
from lerobot_policy_pi05_rl.init import choices
from lerobot_policy_pi05_rl.init.choices import choose_chunk, choose_steps, choose_training
from lerobot_policy_pi05_rl.init.command import nested
from lerobot_policy_pi05_rl.init.facts import Machine, read_facts
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy

GIB = 2**30
EPISODES = [{"length": 8 + k % 3, "success": k % 2 == 0} for k in range(24)]
# What the peak of a full-size step may be: everything at batch 8 is 55 GiB, at batch 1 53.
SIZES = {"everything": (53, 0.25), "expert": (10, 0.5), "adapter": (5, 0.25)}


def counted(keys: dict) -> int:
    """Stands for plan, with numbers like those of the full size."""
    kind = "adapter" if "peft.r" in keys else "expert" if "policy.train_expert_only" in keys else "everything"
    base, each = SIZES[kind]
    return int((base + each * keys.get("batch_size", 8)) * GIB)


def trained(gib: float, **given) -> dict:
    given = {key.replace("__", "."): value for key, value in given.items()}
    return choose_training(Machine(int(gib * GIB), "a card"), given, counted).keys


@pytest.mark.parametrize(
    ("gib", "expected"),
    [
        (80, {"batch_size": 32, "policy.gradient_accumulation_steps": 1}),
        (59, {"batch_size": 4, "policy.gradient_accumulation_steps": 8}),
        (24, {"policy.train_expert_only": True, "batch_size": 16, "policy.gradient_accumulation_steps": 2}),
        (12, {"policy.train_expert_only": True, "batch_size": 2, "policy.gradient_accumulation_steps": 16}),
        (8, {"peft.method_type": "LORA", "peft.r": 16, "batch_size": 8, "policy.gradient_accumulation_steps": 4}),
    ],
)
def test_the_most_trains_that_the_card_holds_with_the_largest_batch(gib, expected):
    assert trained(gib) == expected


def test_what_the_user_says_is_not_chosen():
    assert trained(24, batch_size=2) == {"policy.train_expert_only": True, "policy.gradient_accumulation_steps": 16}
    assert trained(24, peft__r=4) == {"batch_size": 1, "policy.gradient_accumulation_steps": 32}
    asked = choose_training(Machine(24 * GIB, "a card"), {"policy.train_expert_only": False}, counted)
    assert asked.fails and "nothing fits" in asked.reason


def test_the_count_is_asked_no_more_often_than_needed():
    asked = []
    machine = Machine(24 * GIB, "a card")
    choose_training(machine, {}, lambda keys: asked.append(keys) or counted(keys))
    assert [keys["batch_size"] for keys in asked] == [32, 1, 32, 1, 16]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("init") / "pick"
    make_dataset(root, EPISODES, columns=("next.success", "intervention"))
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny policy to start from."""
    folder = tmp_path_factory.mktemp("base") / "policy"
    PI05RLPolicy(tiny_config(), load_critic=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("frames", "steps"), [(100, 3000), (16_000, 5000), (10**6, 30_000)], ids=["least", "ten passes", "most"]
)
def test_steps_follow_the_amount_of_data(data, monkeypatch, frames, steps):
    facts = read_facts(str(data), tolerance_s=1e-4)
    monkeypatch.setattr(type(facts), "frames", frames)
    found = choose_steps(facts, {}, 32)
    assert found.keys["policy.offline_steps"] == steps
    assert found.keys["offline_save_freq"] == max(500, steps // 10)
    asked = choose_steps(facts, {"policy.offline_steps": 7}, 16)
    assert asked.keys == {"policy.offline_steps": 7} and f"{7 * 16 / frames:.1f} times" in asked.reason


def test_a_chunk_is_a_stretch_of_time(data):
    facts = read_facts(str(data), tolerance_s=1e-4)
    (choice,) = choose_chunk(facts)
    assert facts.fps == 10 and choice.keys == {"policy.chunk_size": 17, "policy.n_action_steps": 17}
    object.__setattr__(facts, "fps", 30.0)
    assert choose_chunk(facts) == []


ROBOT = ["--robot.type=so101_follower", "--robot.port=/dev/null", "--robot.id=arm"]
ROBOT += ["--teleop.type=so101_leader", "--teleop.port=/dev/null"]


def named(root: Path, names: list[str]) -> Path:
    """The dataset, its actions with names."""
    path = root / INFO_PATH
    info = json.loads(path.read_text())
    info["features"]["action"]["names"] = names
    path.write_text(json.dumps(info))
    return root


def test_the_robot_goes_no_further_and_no_faster_than_the_recording(data, base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    joints = named(Path(shutil.copytree(data, tmp_path / "joints")), ["pan.pos", "lift.pos", "gripper.pos"])
    start = f"--policy.pi05_checkpoint={base}"
    init(
        joints,
        start,
        *OWN,
        *ROBOT,
        "--robot.cameras={front: {type: opencv, index_or_path: 0, width: 32, height: 32, fps: 10}}",
    )
    said = capsys.readouterr().out
    assert "pi05-rl actor joints.json" in said and "the robot's cameras" not in said
    config = load_config("joints.json")
    assert (config.env.robot.id, config.env.teleop.port, config.env.fps) == ("arm", "/dev/null", 10)
    assert config.env.processor.control_mode == "leader" and config.env.robot.cameras["front"].index_or_path == 0
    table = pq.read_table(next((joints / "data").rglob("*.parquet"))).to_pandas()
    actions = np.stack(table["action"])
    steps = np.abs(np.diff(actions, axis=0))[np.diff(table["episode_index"]) == 0].max(axis=0)
    for number, name in enumerate(("pan.pos", "lift.pos", "gripper.pos")):
        least, greatest = config.actor.action_clamp_limits[name]
        assert least <= actions[:, number].min() and greatest >= actions[:, number].max()
        assert greatest - least < 1.02 * np.ptp(actions[:, number]) + 1e-3
        assert steps[number] <= config.actor.max_action_step[name] < 1.02 * steps[number]


def test_without_cameras_or_names_it_says_so(data, base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    init(data, f"--policy.pi05_checkpoint={base}", *OWN, *ROBOT)
    said = capsys.readouterr().out
    assert "--robot.cameras='{front: {type: opencv, index_or_path: 0, width: 32, height: 32, fps: 10}, wrist:" in said
    assert "gives its actions no names" in said


@pytest.mark.parametrize(("value", "down", "up"), [(1.2345, 1.23, 1.24), (-135.61, -136, -135), (0, 0, 0)])
def test_limits_are_rounded_outward(value, down, up):
    assert (choices._outward(value, -1), choices._outward(value, 1)) == (down, up)


def test_facts_are_the_datasets(data):
    facts = read_facts(str(data), tolerance_s=1e-4)
    assert facts.lengths == [episode["length"] for episode in EPISODES]
    assert (facts.state, facts.action, facts.outcomes) == (4, 3, {"success": 12, "failure": 12})
    assert list(facts.cameras.values()) == [(32, 32), (32, 32)] and not facts.unlabelled
    assert facts.root == data and facts.interventions == 0


def init(*arguments: object) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli(["init", *map(str, arguments)])
    assert exit_.value.code == 0


OWN = ["--policy.tokenizer=tasks", "--policy.device=cpu", "--policy.dtype=float32", "--num_workers=0"]
OWN += ["--policy.gradient_checkpointing=false", "--policy.offline_steps=10", "--batch_size=4", "--eval_steps=0"]


def test_a_run_takes_what_it_writes(data, base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    init(data, f"--policy.pi05_checkpoint={base}", "--policy.gradient_accumulation_steps=1", *OWN)
    said = capsys.readouterr().out
    assert f"{len(EPISODES)} episodes" in said and "12 success, 12 failure" in said
    assert "What is missing" not in said and "everything trains" in said
    raw = json.loads(Path("pick.json").read_text())
    assert raw["dataset"] == {"repo_id": f"{data.parent.name}/pick", "root": str(data)}
    assert "reward" not in raw and "chunk_size" not in raw["policy"] and "critic_adapter_rank" not in raw["policy"]
    with pytest.raises(SystemExit) as exit_:
        cli(["offline", "pick.json"])
    assert exit_.value.code == 0
    assert metrics(Path("outputs/pick"))[-1]["step"] == 10


def test_a_recording_without_outcomes_needs_no_file_written_by_hand(base, tmp_path, monkeypatch, capsys):
    make_dataset(tmp_path / "raw", EPISODES, columns=())
    monkeypatch.chdir(tmp_path)
    init("raw", f"--policy.pi05_checkpoint={base}", "--output=c.json", *OWN)
    assert "24 episodes have no outcome: `pi05-rl label c.json --browser` shows each one" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        cli(["offline", "c.json"])
    assert exit_.value.code == 2 and "pi05-rl label CONFIG --success" in capsys.readouterr().err
    success, failure = (",".join(str(n) for n in range(24) if n % 2 == odd) for odd in (0, 1))
    for command in (["label", "c.json", f"--success={success}", f"--failure={failure}"], ["offline", "c.json"]):
        with pytest.raises(SystemExit) as exit_:
            cli(command)
        assert exit_.value.code == 0
    assert "The configuration reads" in capsys.readouterr().out


def test_no_key_that_equals_its_default_is_written():
    chosen = choices.Choice("", {"batch_size": 8, "policy.offline_steps": 3000, "policy.type": "pi05_rl"})
    assert nested([chosen], {}) == {"policy": {"offline_steps": 3000, "type": "pi05_rl"}}
    assert nested([chosen], {"batch_size": 8})["batch_size"] == 8, "what the user says is written as it is"


def test_a_full_size_policy_is_planned_for_the_card(data, tmp_path, monkeypatch, capsys):
    """The real count, on the meta device."""
    monkeypatch.chdir(tmp_path)
    init(data, "--card=24")
    said = capsys.readouterr().out
    assert "the action expert alone trains" in said and "a chunk of 17 steps" in said
    config = load_config("pick.json")
    assert config.policy.train_expert_only and config.policy.dtype == "bfloat16"
    assert (config.batch_size, config.policy.gradient_accumulation_steps) == (32, 1)
    assert config.policy.pi05_checkpoint == "lerobot/pi05_base" and config.policy.critic_adapter_rank == 16


def damaged(root: Path, data: Path, **info) -> Path:
    shutil.copytree(data, root)
    path = root / INFO_PATH
    path.write_text(json.dumps(json.loads(path.read_text()) | info))
    return root


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a dataset"),
        (["/nowhere/at/all"], "is no folder, and no repository"),
        (["you/nothing_there"], "you/nothing_there"),
        ([""], "give a dataset"),
        (["there.json"], "is a file"),
        (["empty"], "no LeRobot dataset's folder"),
        (["DATA", "--output=empty"], "empty is a folder"),
        (["DATA", "--dataset.root=elsewhere"], "another dataset than the first argument"),
        (["OLD"], "v2.1"),
        (["BLIND"], "has no camera"),
        (["DATA", "--card=0"], "--card must be positive"),
        (["DATA", "--card=big"], "invalid float value"),
        (["DATA", "--output=there.json"], "there.json exists"),
        (["DATA", "--policy.offline_step=3"], "did you mean"),
        (["DATA", "--policy.offline_steps=many"], "policy.offline_steps"),
        (["DATA", "--batch_size=many"], "batch_size"),
        (["DATA", "--batch_size=0"], "batch_size must be at least 1"),
        (["DATA", "--output=/proc/nothing/c.json"], "/proc/nothing/c.json cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(data, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    old = damaged(tmp_path / "old", data, codebase_version="v2.1")
    blind = damaged(tmp_path / "blind", data)
    info = json.loads((blind / INFO_PATH).read_text())
    info["features"] = {key: value for key, value in info["features"].items() if "images" not in key}
    (blind / INFO_PATH).write_text(json.dumps(info))
    Path("there.json").write_text("{}")
    Path("empty").mkdir()
    before = sorted(os.listdir())
    names = {"DATA": str(data), "OLD": str(old), "BLIND": str(blind)}
    with pytest.raises(SystemExit) as exit_:
        cli(["init", *(names.get(argument, argument) for argument in arguments)])
    error = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2 and said in error[-1] and "/tmp/tmp" not in error[-1]
    assert sorted(os.listdir()) == before


def test_what_would_stop_the_run_is_listed(data, base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "wins", [{"length": 8, "success": True}] * 3, video=True)
    next((tmp_path / "wins/videos").rglob("*.mp4")).unlink()
    Path("outputs/wins").mkdir(parents=True)
    Path("outputs/wins/metrics.jsonl").write_text("")
    init("wins", f"--policy.pi05_checkpoint={base}", "--policy.offline_steps=10", "--policy.tokenizer=/nope")
    said = capsys.readouterr().out.partition("What is missing")[2]
    assert "/nope is no folder" in said
    assert "there is no failure" in said and ".mp4" in said and "holds a run already" in said
    assert json.loads(Path("wins.json").read_text())["dataset"]["eval_split"] == 0.0


@pytest.mark.parametrize("way", [".", "..", "../raw", "link"])
def test_a_dataset_is_where_it_lies_by_whichever_path(base, tmp_path, monkeypatch, way):
    """Outcomes set by hand lie beside it, where `label` puts them and `offline` looks."""
    make_dataset(tmp_path / "raw", EPISODES, columns=())
    (tmp_path / "link").symlink_to(tmp_path / "raw")
    monkeypatch.chdir({"..": tmp_path / "raw/meta", "link": tmp_path}.get(way, tmp_path / "raw"))
    output = tmp_path / "c.json"
    init(way, f"--policy.pi05_checkpoint={base}", f"--output={output}", *OWN)
    raw = json.loads(output.read_text())
    assert raw["dataset"]["root"] == str(tmp_path / "raw") and raw["output_dir_offline"] == "outputs/raw"
    assert raw["reward"]["outcome_file"] == str(tmp_path / "raw.labels" / "outcomes.csv")
    with pytest.raises(SystemExit) as exit_:
        cli(["label", str(output), "--success=0-11", "--failure=12-23"])
    assert exit_.value.code == 0 and (tmp_path / "raw.labels" / "outcomes.csv").is_file()


def test_a_start_that_is_not_there_is_missing(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    init(data, "--policy.pi05_checkpoint=/nope", "--card=4")
    said = capsys.readouterr().out.partition("What is missing")[2]
    assert "/nope does not exist" in said and "nothing fits" in said
