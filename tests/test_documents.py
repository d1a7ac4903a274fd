"""Every command that README and docs give is run on a tiny model, or is listed here with the reason why it is not;
every file that they name is there.

The documents' files are there in small: ``configs/*.json`` with the sizes of a tiny model and everything else as it
is, a stock π0.5 with random weights as ``lerobot/pi05_base``, datasets of a few frames. Commands run in the order of
the document, in this process, and are otherwise as they are written.
"""

import json
import logging
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from commands import DOCUMENTS, REPOSITORY, Command, commands_of, links_of, paths_of
from lerobot.scripts import lerobot_eval
from recordings import make_dataset
from stock import stock_checkpoint
from tiny import TINY_SIZES

from lerobot_policy_pi05_rl import cli
from lerobot_policy_pi05_rl.demo import record

ROBOT = "needs the robot"
BESIDE = "needs a learner beside it: tests/online/"
MEASURES = "measures for minutes; its arguments are read here"
HOURS = "closed-loop training of hours"
OTHER = "runs in {}"
LISTED = {  # pattern of the whole command → why it is not run
    r"make (demo|demo-online)": OTHER.format("tests/test_main_job.py, with few steps"),
    r"make (test|test-slow|lint)": "is the suite itself",
    r"make install": "installs what this suite runs in",
    r"make configuration": "rewrites docs/configuration.md, which tests/config/test_config_keys.py compares",
    r"pip install -e \.": "is how this suite was installed",
    r"pip install 'lerobot\[hilserl\]'": "installs another package",
    r"hf (auth login|download .*)": "needs the Hub",
    r"lerobot-rollout .*": ROBOT,
    r"lerobot-eval --policy.path=outputs/pick_lora\S* …": "of another robot; tests/test_main_job.py evaluates LoRA",
    r"pi05-rl actor configs/so101\.json .*": ROBOT,
    r"pi05-rl actor configs/gym_hil\.json .*": "tests/online/actor/test_online_gym_hil.py; " + BESIDE,
    r"pi05-rl (learner|actor) … .*": "needs another machine; TLS: tests/online/transport/test_online_transport.py",
    r"openssl .*": "tests/online/transport/test_online_transport.py makes a certificate so",
    r"python -m lerobot\.rl\.gym_manipulator": "LeRobot's, for a person at a keyboard",
    r"pi05-rl label RUN( --from RUN --name OTHER --horizon F --smoothing F)?": "getting-started's of outputs/pick",
    r"pi05-rl label (CONFIG|RUN|pick\.json) --browser( --from NAME)?": "serves until it is ended",
    r"pi05-rl report <output_dir>": "the README's `pi05-rl report outputs/pick`",
    r"python examples/own_policy_extraction\.py .*": OTHER.format("tests/test_advantage.py"),
    r"python benchmarks/(closed_loop|demo_seeds|online_seeds)\.py( .*)?": HOURS,
    r"python benchmarks/label_quality\.py DATASET": "needs the recordings of benchmarks/closed_loop.py",
    r"python -m lerobot_policy_pi05_rl\.demo\.pretrain": "records and trains for a quarter of an hour",
    r"python benchmarks/kill_resume\.py": OTHER.format("tests/test_kill_resume.py, with three kills"),
    r"python benchmarks/online_faults\.py .*": OTHER.format("tests/test_main_job.py, with two cuts"),
    r"python benchmarks/rounds\.py .*": OTHER.format("tests/demo/test_rounds.py"),
    r"python benchmarks/memory\.py": OTHER.format("tests/plan/test_plan.py"),
    r"python benchmarks/(gpu|full_size)\.py.*": OTHER.format("tests/test_benchmarks.py, at the demo's size"),
    r"python -m torch\.distributed\.run .*scaling_check\.py": OTHER.format("tests/test_scaling.py"),
    r"python benchmarks/(vs_lerobot|compile|processes|flops|plan|guidance)\.py.*": MEASURES,
    r"python benchmarks/(scaling|data_memory|control_period|slow_actor|label_page)\.py.*": MEASURES,
}
DEPTH = 6  # of the language tower: as many layers as the critic has where nobody says how many
TINY = " ".join(  # of a configuration that is not there before
    [
        *(
            f"--policy.{key}={value}".replace(" ", "")
            for key, value in TINY_SIZES.items()
            if key not in ("critic_llm_depth", "llm_depth")
        ),
        *(f"--policy.llm_depth={DEPTH}", "--policy.device=cpu", "--policy.dtype=float32", "--policy.tokenizer=tasks"),
        *("--policy.offline_steps=10", "--num_workers=0", "--batch_size=4", "--policy.gradient_accumulation_steps=1"),
    ]
)
SHORTER = {  # in a command, or appended to it
    r"steps=2000": "steps=3",
    r"(profile_data\.py CONFIG)": r"\1 --batches=2 --skip=1",
    r"(profile_step\.py CONFIG)": r"\1 --steps=1 --skip=1",
    r"(demo\.record --root DIR)": r"\1 --episodes 1 --image-size 32",
    r"(pi05-rl cache CONFIG)": r"\1 --dataset.frame_cache=frames",
    r"(decoder_check\.py) DATASET": r"\1 outputs/demo/dataset",
    r"path=CHECKPOINT (.*)n_episodes=10": r"path=outputs/demo/recap/checkpoints/last/pretrained_model \1n_episodes=1",
    r"([= ])/data/": r"\1data/",
    r"(pi05-rl (?:init|report)) DATASET": r"\1 data/your_dataset",
    r"(pi05-rl init \S+)": rf"\1 {TINY}",
    r"CONFIG": "configs/so101.json",
    r"DIR": "recorded",
}


class ParsedError(Exception):
    """The arguments of a benchmark were read without complaint."""


def tiny(config: dict) -> dict:
    """The same configuration for a tiny model on a CPU; a step is a step of four samples."""
    policy = config["policy"]
    policy |= {key: size for key, size in TINY_SIZES.items() if key != "critic_llm_depth"} | {"llm_depth": DEPTH}
    policy |= {"device": "cpu", "dtype": "float32", "tokenizer": "tasks", "tokenizer_max_length": 48}
    policy |= {"offline_steps": 3, "num_inference_steps": 1, "gradient_accumulation_steps": 1}
    policy |= {key: "cpu" for key in ("learner_device", "actor_device") if key in policy}
    policy["actor_learner_config"]["learner_port"] = 0
    return config | {"num_workers": 0, "batch_size": 4, "log_freq": 1, "save_freq": 100, "offline_save_freq": 100}


@pytest.fixture(scope="session")
def templates(tmp_path_factory) -> Path:
    """Configurations, weights and datasets that every sequence starts from."""
    root = tmp_path_factory.mktemp("clone")
    for file in (REPOSITORY / "configs").glob("*.json"):
        (root / "configs").mkdir(exist_ok=True)
        (root / "configs" / file.name).write_text(json.dumps(tiny(json.loads(file.read_text()))))
    shutil.copytree(REPOSITORY / "configs" / "accelerate", root / "configs" / "accelerate")
    (root / "lerobot").mkdir()
    stock_checkpoint(root / "lerobot" / "pi05_base", llm_depth=DEPTH)
    mixed = [{"length": 4 + number % 3, "success": number % 2 == 0} for number in range(20)]
    for name, rate, episodes, columns in (
        ("so101_pick", 30, mixed, ("next.success",)),
        ("gym_hil_pick", 10, mixed, ("next.reward", "next.success")),
        ("rounds/1", 30, mixed, ("intervention",)),
        ("unlabelled", 30, [{"length": 2}] * 53, ()),
    ):
        episodes = [{"task": "Pick up the cube and put it into the box.", **episode} for episode in episodes]
        make_dataset(root / "data" / name, episodes, fps=rate, columns=columns)
    return root


@pytest.fixture(scope="session")
def demo(templates, tmp_path_factory) -> Path:
    """``outputs/demo`` of the simulator: a recording of twelve episodes and a policy trained on it for three steps."""
    root = tmp_path_factory.mktemp("demo")
    record.record_dataset(root / "dataset", "local/panda_pick_cube", 12, image_size=32)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="0"):
        patch.chdir(templates)
        cli.main(
            ["offline", "configs/demo.json", f"--dataset.root={root}/dataset", f"--output_dir_offline={root}/recap"]
        )
    return root


@pytest.fixture
def clone(templates, demo, tmp_path, monkeypatch, logging_as_before) -> Path:
    """The working directory: a fresh clone with the files that the documents speak of."""
    shutil.copytree(templates, tmp_path, dirs_exist_ok=True, symlinks=True)
    shutil.copytree(demo, tmp_path / "outputs" / "demo", symlinks=True)
    for name in ("your_dataset", "demos"):
        shutil.copytree(tmp_path / "data" / "so101_pick", tmp_path / "data" / name)
    (tmp_path / "benchmarks").symlink_to(REPOSITORY / "benchmarks")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class StopWhenWaiting(logging.Handler):
    """What a person does who has seen that the learner waits for its actors: Ctrl-C."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("[LEARNER] Waiting for episodes"):
            os.kill(os.getpid(), signal.SIGINT)


def run_cli(words: list[str]) -> None:
    stop = StopWhenWaiting()
    logger = logging.getLogger("lerobot_policy_pi05_rl.online.learner")
    logger.addHandler(stop)
    try:
        with pytest.raises(SystemExit) as end:
            cli.main(words)
    finally:
        logger.removeHandler(stop)
    assert end.value.code == 0, f"{words} exited with {end.value.code}"


def run_script(monkeypatch, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", words)
    try:
        runpy.run_path(str(REPOSITORY / words[0]), run_name="__main__")
    except SystemExit as end:
        assert end.code in (0, None), f"{words} exited with {end.code}"


def run_words(words: list[str], monkeypatch) -> None:
    """In this process, what the console script of that name would do."""
    match words:
        case ["pi05-rl", *rest]:
            run_cli(rest)
        case ["accelerate", "launch", *rest]:
            args = launch_command_parser().parse_args(rest)
            load_config_from_file(args.config_file)
            assert args.module and args.training_script == "lerobot_policy_pi05_rl.offline_learner"
            run_cli(["offline", *args.training_script_args])
        case ["lerobot-eval", *rest]:
            monkeypatch.setattr(sys, "argv", ["lerobot-eval", *rest])
            lerobot_eval.main()
        case ["python", "-m", "lerobot_policy_pi05_rl.demo.record", *rest]:
            record.main(rest)
        case ["python", script, *rest]:
            run_script(monkeypatch, [script, *rest])
        case _:
            pytest.fail(f"no test knows how to run {words}; list it with the reason")


def is_listed(command: Command) -> bool:
    return any(re.fullmatch(pattern, command.text) for pattern in LISTED)


def sequence(document: Path) -> list[tuple[Command, dict[str, str]]]:
    """The document's commands that run here, each once, with its shell variables: the blocks', then the text's."""
    commands, variables = commands_of(document)
    ordered = sorted(dict.fromkeys(commands), key=lambda command: command.block == 0)
    return [(command, variables.get(command.block, {})) for command in ordered if not is_listed(command)]


def needs(command: Command, clone: Path) -> None:
    """What an earlier part of the document has left behind."""
    found = re.search(r"=outputs/pick/checkpoints|report outputs/pick$", command.text)
    if found and not (clone / "outputs" / "pick").exists():
        run_cli(["offline", "configs/so101.json", "--output_dir_offline=outputs/pick"])
    if "configs/demo.json" in command.text and "--of data/rounds/1" in command.text:
        shutil.rmtree(clone / "data" / "rounds" / "1")
        shutil.copytree(clone / "outputs" / "demo" / "dataset", clone / "data" / "rounds" / "1")


RUN = {document.name: found for document in DOCUMENTS if (found := sequence(document))}


@pytest.mark.parametrize("document", RUN)
def test_a_documents_commands_run_one_behind_the_other(document, clone, monkeypatch):
    for command, variables in RUN[document]:
        needs(command, clone)
        text = command.text
        for pattern, shorter in SHORTER.items():
            text = re.sub(pattern, shorter, text)
        if command.block == 0 and text.startswith("pi05-rl label"):
            text += " --dataset.root=data/unlabelled"  # what the text speaks of there
        run_words(replace(command, text=text).words(variables), monkeypatch)


def test_what_is_listed_is_still_in_a_document():
    texts = [command.text for document in DOCUMENTS for command in commands_of(document)[0]]
    unused = [pattern for pattern in LISTED if not any(re.fullmatch(pattern, text) for text in texts)]
    assert unused == []


BENCHMARKS = sorted(
    {
        command.text
        for document in DOCUMENTS
        for command in commands_of(document)[0]
        if command.text.startswith("python benchmarks/") and is_listed(command)
    }
)


@pytest.mark.parametrize("text", BENCHMARKS)
def test_the_arguments_of_benchmarks_are_theirs(text, monkeypatch):
    import argparse

    read = argparse.ArgumentParser.parse_known_args

    def parse(*args, **kwargs):
        read(*args, **kwargs)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    with pytest.raises(ParsedError):
        run_script(monkeypatch, Command("", 0, text).words({})[1:])


def test_the_targets_of_make_are_there():
    texts = {command.text for document in DOCUMENTS for command in commands_of(document)[0]}
    for text in sorted(text for text in texts if text.startswith("make ")):
        done = subprocess.run(["make", "-n", *text.split()[1:]], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


PACKAGE = REPOSITORY / "src" / "lerobot_policy_pi05_rl"
WRITTEN = {  # files that a run or a dataset has, and configs/accelerate's where its page has named the folder
    *("adapter_config.json", "critic_data.json", "info.json", "stats.json"),
    *("ddp.yaml", "fsdp.yaml", "ddp_machines.yaml", "fsdp_machines.yaml"),
}


@pytest.mark.parametrize("document", [pytest.param(document, id=document.name) for document in DOCUMENTS])
def test_what_a_document_names_is_there(document):
    roots = (REPOSITORY, PACKAGE, document.parent)
    missing = [path for path in paths_of(document) if not any((root / path).is_file() for root in roots)]
    assert [path for path in missing if Path(path).name not in WRITTEN] == []
    assert [link for link in links_of(document) if not (document.parent / link).exists()] == []


def test_what_is_said_to_be_written_elsewhere_is_named_in_a_document():
    named = {Path(path).name for document in DOCUMENTS for path in paths_of(document)}
    assert [name for name in sorted(WRITTEN) if name not in named] == []


def test_paths_and_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("`a/b.py`, `config.json`\n```bash\n`c.md`\n```\n[x](y.md#z) ![p](q.png) [w](https://x.org/r.md)")
    assert paths_of(page) == ["a/b.py", "config.json"]
    assert links_of(page) == ["y.md", "q.png"]
