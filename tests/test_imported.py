"""What a process has imported behind each of these imports, made one after the other in a process of its own."""

import json
import subprocess
import sys

import pytest
from commands import REPOSITORY

STAGES = {
    "the package": "import lerobot_policy_pi05_rl as package",
    "environments": "import lerobot_policy_pi05_rl.demo.env_config, metaworld_tasks",
    "offline": "import lerobot_policy_pi05_rl.offline_learner, lerobot_policy_pi05_rl.labels.command",
    "the API": "package.api",
}
TELLING = "print(json.dumps(sorted(sys.modules)))"


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """Stage → the names of all modules behind it."""
    code = "\n".join(["import json, sys", *(f"{stage}\n{TELLING}" for stage in STAGES.values())])
    command, benchmarks = [sys.executable, "-c", code], REPOSITORY / "benchmarks"
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=benchmarks, timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    return {stage: set(json.loads(line)) for stage, line in zip(STAGES, lines, strict=True)}


def test_the_api_is_loaded_when_it_is_asked_for(imported):
    assert "lerobot_policy_pi05_rl.offline_learner" not in imported["the package"]
    assert "lerobot_policy_pi05_rl.api" not in imported["offline"]
    assert "lerobot_policy_pi05_rl.api" in imported["the API"]


def test_the_configurations_of_environments_do_not_import_the_simulators(imported):
    assert "lerobot_policy_pi05_rl.demo.env_config" in imported["environments"]
    assert {"mujoco", "gym_hil", "metaworld"} & imported["environments"] == set()


def test_training_and_labels_import_nothing_of_online(imported):
    assert "lerobot_policy_pi05_rl.offline_learner" in imported["offline"]
    prefixes = ("grpc.", "lerobot.transport", "lerobot_policy_pi05_rl.online")
    names = {"grpc", "lerobot.rl.actor", "lerobot.rl.learner", "lerobot.rl.learner_service"}
    assert [name for name in imported["offline"] if name.startswith(prefixes) or name in names] == []
