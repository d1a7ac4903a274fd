"""The card beside a checkpoint: it says what the run did, in the run's own numbers, whatever things are called."""

import json
import shlex
from pathlib import Path

import pytest
from cards import blocks, section, shown, tables
from huggingface_hub import ModelCard
from recordings import MIXED_EPISODES, make_dataset
from runs import run, step_back
from tiny import write_config

from lerobot_policy_pi05_rl.cards.model import HELD_OUT, MOST_TASKS, OnlineEpisodes
from lerobot_policy_pi05_rl.cards.text import code, hub_id, is_untouched, plain, public_name, sealed
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.resolve import resolved
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.online.config import OnlineTrainConfig
from lerobot_policy_pi05_rl.runtime.files import damages
from lerobot_policy_pi05_rl.training.card import checkpoint_card
from lerobot_policy_pi05_rl.training.start import start

STRANGE = 'pick | the "cube"\n---\n```\n*now*: <b>`x`</b> #1 & [y](z) \\|'
MORE = {"dataset__eval_split": 0.5, "eval_steps": 2, "save_freq": 2, "policy__offline_steps": 6}


def card_of(checkpoint: Path) -> str:
    return (checkpoint / "pretrained_model" / "README.md").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, mixed_dataset) -> Path:
    """The folder of a run with held-out episodes, a checkpoint of its critics alone among those it has saved."""
    folder = tmp_path_factory.mktemp("card")
    more = {**MORE, "policy__critic_warmup_steps": 2, "policy__gradient_accumulation_steps": 3}
    asked = {"policy__guidance_scale": 2.5, "policy__tags": ["a: b"], "policy__license": "mit", "job_name": "pick"}
    private = {"wandb__entity": "somebody", "policy__actor_learner_config": {"token_file": "/root/secret"}}
    run(write_config(folder / "c.json", mixed_dataset, folder / "run", **more, **asked, **private))
    return folder / "run"


def test_the_card_says_what_the_run_did(finished, mixed_dataset):
    checkpoint = finished / "checkpoints" / "000006"
    text = card_of(checkpoint)
    assert (
        "# pick\n" in text
        and "policy with a value critic, at step 6 of 6, trained by offline reinforcement learning\nwith" in text
    )
    assert "- **Started from:** random weights" in text and "- **Trains:** the whole policy, and the critic" in text
    assert "- **Batch:** 4 samples × 1 process × 3 accumulation = 12 a step" in text
    policy = PI05RLPolicy.from_pretrained(checkpoint / "pretrained_model")
    numbers = [sum(p.numel() for p in module.parameters()) for module in (policy, policy.model.critic)]
    head, _, critic = next(line for line in text.splitlines() if "**Parameters" in line).partition("critic ")
    assert f" {numbers[0]:,}, of which train: policy " in head and critic == f"{numbers[1]:,}"

    (_, row), features = tables(section(text, "What it was trained on"))
    link = "[test/tiny](https://huggingface.co/datasets/test/tiny)"
    held_out = 2  # the half of each outcome
    state = json.loads((checkpoint / "training_state" / "data_state.json").read_text())
    frames = sum(episode["length"] for episode in MIXED_EPISODES) - state["held_out_frames"]
    assert row == [link, "4", "2", "2", "0", str(state["train_episodes"]), str(held_out), str(frames)]
    assert ["reads", "`observation.state`", "STATE", "(4,)"] in features and features[-1][1] == "`action`"
    assert '- "pick the cube"' in text


def test_the_held_out_numbers_are_the_last_of_the_log(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for step in (2, 4, 6):
        logged = next(line for line in lines if line["step"] == step and "eval/loss_critic" in line)
        text = section(card_of(finished / "checkpoints" / f"{step:06}"), "Held-out episodes")
        assert f"At step {step}," in text
        (_, *rows) = tables(text)[0]
        said = {name.strip("`"): value for name, value, _ in rows}
        expected = {name.removeprefix("eval/"): value for name, value in logged.items() if name != "step"}
        assert said == {name: f"{value:.4g}" for name, value in expected.items()} and len(said) > 3
        assert [name for name, _, _ in rows] == [f"`{name}`" for name in HELD_OUT if name in expected]


def test_a_checkpoint_of_the_critics_says_that_the_policy_is_as_it_was(finished):
    said = [step for step in (2, 4, 6) if "critics alone" in card_of(finished / "checkpoints" / f"{step:06}")]
    assert said == [2]


def test_what_differs_from_the_defaults_is_listed_and_nothing_private(finished):
    text = card_of(finished / "checkpoints" / "000006")
    ((_, *rows),) = tables(section(text, "Settings that differ from the defaults"))
    settings = {shown(key): shown(value) for key, value in rows}
    stored = json.loads((finished / "checkpoints/000006/pretrained_model/train_config.json").read_text())
    for key, value in settings.items():
        found = stored
        for part in key.split("."):
            found = found[part]
        assert value == (found if isinstance(found, str) else json.dumps(found)), key
    given = {"batch_size", "seed", "dataset.eval_split", "policy.offline_steps", "policy.actor_lr", "policy.tokenizer"}
    given |= {"policy.gradient_accumulation_steps", "policy.guidance_scale", "policy.critic_warmup_steps"}
    assert given <= settings.keys()
    # Given as they are by default, filled in by the data, or nobody else's business.
    others = {"policy.critic_target", "policy.dtype", "policy.input_features", "policy.normalization_mapping"}
    assert not settings.keys() & (others | {"output_dir_offline", "dataset.root", "wandb.entity", "eval_steps"})
    assert "`policy.llm_width` `" in text and "policy.llm_width" not in settings
    for private in ("somebody", "secret", str(finished.parent), "/root"):
        assert private not in text


def test_the_front_matter_is_lerobots(finished):
    data = ModelCard.load(finished / "checkpoints/last/pretrained_model/README.md").data.to_dict()
    assert data == {
        "library_name": "lerobot",
        "pipeline_tag": "robotics",
        "license": "mit",
        "model_name": "pi05_rl",
        "tags": ["a: b", "lerobot", "pi05_rl", "recap", "robotics"],
        "datasets": ["test/tiny"],
    }


def test_its_python_loads_the_checkpoint_and_guidance_is_what_it_says(finished, monkeypatch):
    text = card_of(finished / "checkpoints" / "000006")
    monkeypatch.chdir(finished)
    found: dict = {}
    exec(blocks(text, "python")[0], found)
    assert found["policy"].model.critic is None and found["policy"].config.guidance_scale == 2.5
    assert "`guidance_scale` 2.5 and the tag `positive`" in text
    lines = blocks(text, "bash")[0].replace("\\\n", "").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    assert "--policy.path=checkpoints/000006/pretrained_model" in commands[1]
    assert "No evaluation of this checkpoint was made" in section(text, "In closed loop")


def test_names_of_every_kind_break_neither_tables_nor_front_matter(tmp_path, mixed_dataset):
    strange = tmp_path / "a|b `c` - x"
    episodes = [{**MIXED_EPISODES[n], "task": f"{STRANGE} {n // 2}"} for n in range(4)]
    make_dataset(strange, episodes)
    options = {"dataset__additional_offline_dataset_paths": [str(strange)], "policy__tags": ["---", "x: |\n y"]}
    options["policy__tokenizer_max_length"] = 96
    per_task = {f"{STRANGE} 1": 0.25}
    options["policy__advantage_positive_fraction_per_task"] = per_task
    text = card_of(run(write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", **options)))
    data = ModelCard(text).data
    assert {"---", "x: |\n y"} < set(data.tags) and data.datasets == ["test/tiny"]
    trained_on = section(text, "What it was trained on")
    (_, first, second), _ = tables(trained_on)
    assert first[1:4] == second[1:4] == ["4", "2", "2"] and shown(second[0]) == strange.name
    tasks = [shown(line[3:-1]) for line in trained_on.splitlines() if line.startswith('- "')]
    assert tasks == ["pick the cube", *(" ".join(f"{STRANGE} {n}".split()) for n in range(2))]
    ((_, *rows),) = tables(section(text, "Settings that differ from the defaults"))
    settings = {shown(key): shown(value) for key, value in rows}
    assert json.loads(settings["policy.advantage_positive_fraction_per_task"]) == per_task
    assert len(blocks(text, "bash")) == len(blocks(text, "python")) == 1
    assert str(tmp_path) not in text


def test_a_cloning_says_that_it_asked_for_no_outcome(tmp_path):
    make_dataset(tmp_path / "data", MIXED_EPISODES, columns=())
    options = {"policy__policy_extraction": "none", "policy__train_expert_only": True}
    text = card_of(run(write_config(tmp_path / "c.json", tmp_path / "data", tmp_path / "run", **options)))
    assert "A π0.5 policy, at step 4 of 4, trained by cloning\nwith [LeRobot]" in text
    assert "- **Method:** cloning" in text and "- **Trains:** the action expert; no critic" in text
    assert "truncated or unknown" in text and "guidance_scale" not in section(text, "Use")
    assert "Not measured up to this step." in section(text, "Held-out episodes")


def test_a_resumed_run_writes_the_same_bytes(finished, tmp_path, mixed_dataset):
    config = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "a", **MORE)
    run(config)
    whole = {step: card_of(tmp_path / "a" / "checkpoints" / step) for step in ("000004", "000006")}
    step_back(tmp_path / "a", "000004")
    run(config, resume="true", eval_steps=3)  # the last evaluation is one of the log's until there is another
    assert "At step 6," in card_of(tmp_path / "a" / "checkpoints" / "000006")
    step_back(tmp_path / "a", "000004")
    run(config, resume="true")
    assert whole == {step: card_of(tmp_path / "a" / "checkpoints" / step) for step in whole}
    step_back(tmp_path / "a", "000004")
    run(config, resume="true", **{"policy.offline_steps": 5, "eval_steps": 0})
    assert "At step 4," in card_of(tmp_path / "a" / "checkpoints" / "000005")


def test_an_edited_card_stays_and_the_checkpoint_is_whole(tmp_path, mixed_dataset):
    config = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", save_freq=2)
    run(config)
    step_back(tmp_path / "run", "000002")
    checkpoint = tmp_path / "run" / "checkpoints" / "000002"
    card = checkpoint / "pretrained_model" / "README.md"
    card.write_text("Ten of ten on my robot.")
    assert damages(checkpoint) == []
    last = run(config, resume="true")
    assert last.name == "000004" and is_untouched(card_of(last))
    assert card.read_text() == "Ten of ten on my robot." and damages(checkpoint) == []


def test_an_adapters_card_is_ours_and_names_the_base(finished, tmp_path, mixed_dataset):
    base = finished / "checkpoints" / "last" / "pretrained_model"
    options = {"policy__pi05_checkpoint": str(base), "peft": {"r": 4}, "policy__offline_steps": 2}
    checkpoint = run(write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "lora", **options))
    text = card_of(checkpoint)
    assert is_untouched(text) and "library_name: lerobot" in text and "base_model:" not in text
    assert "- **Started from:** `run/checkpoints/last/pretrained_model`" in text
    assert "- **Trains:** a LoRA adapter of rank 4 on the policy, and the critic" in text
    assert "It holds a LoRA adapter and the critic;" in section(text, "Use")
    assert ["`peft.r`", "`4`"] in tables(section(text, "Settings that differ from the defaults"))[0]
    assert str(finished.parent) not in text


def test_an_online_checkpoints_card_says_what_actors_have_sent(tmp_path, mixed_dataset):
    path = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "offline", env={"type": "panda_pick_cube"})
    given = [f"--output_dir={tmp_path / 'online'}", "--policy.advantage_labels=running", "--policy.online_steps=7"]
    started = start(resolved(load_config(path, given, OnlineTrainConfig)))
    sent = OnlineEpisodes(6, 1234, {"success": 3, "failure": 2, "truncated": 1})
    text = checkpoint_card(started, None, sent)
    assert "at step 0 of 7, trained by offline and online reinforcement" in text
    assert "actors had sent 6 episodes by this step, 1,234 transitions in all" in text
    assert "3 succeeded, 2 failed and 1 were cut off" in section(text, "In closed loop")
    assert "--env.type=panda_pick_cube" in text
    assert ["`policy.online_steps`", "`7`"] in tables(section(text, "Settings that differ from the defaults"))[0]


def test_of_many_tasks_the_first_are_named(tmp_path, mixed_dataset):
    data = tmp_path / "data"
    make_dataset(data, [{"length": 3, "success": n % 2 == 0, "task": f"task {n:02}"} for n in range(MOST_TASKS + 3)])
    path = write_config(tmp_path / "c.json", data, tmp_path / "run")
    text = checkpoint_card(start(resolved(load_config(path))), None)
    assert f'- "task {MOST_TASKS - 1}"\n- and 3 more\n' in text and f"task {MOST_TASKS}" not in text


@pytest.mark.parametrize("text", ["a", "`", "``a`", "a|b", "\\|", " a ", STRANGE])
def test_a_reader_sees_the_text(text):
    one_line = " ".join(text.split())
    assert shown(plain(text)) == one_line
    assert "\n" not in code(text) and one_line in code(text)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/outputs/pick/checkpoints/last/pretrained_model", "pick/checkpoints/last/pretrained_model"),
        ("/data/online/replay", "online/replay"),
        ("/data/base", "base"),
        ("~/base", "base"),
        ("../base", "base"),
        ("outputs/pick", "outputs/pick"),
        ("lerobot/pi05_base", "lerobot/pi05_base"),
    ],
)
def test_a_path_is_named_without_the_machines_folders(path, name):
    assert public_name(path) == name


@pytest.mark.parametrize("name", ["local/pick", "pick", "a/b/c", "/a/b", "../b", "a b/c", "a/b|c"])
def test_what_lies_on_this_machine_is_no_repository(name):
    assert hub_id(name) is None and hub_id("you/pick_2.0") == "you/pick_2.0"


def test_a_card_knows_whether_it_was_edited():
    card = sealed("---\na: b\n---\n\ntext\n")
    assert is_untouched(card)
    for other in (card.replace("text", "more"), card + "more\n", card[:-1], "", "text", card.replace("card", "cards")):
        assert not is_untouched(other)
