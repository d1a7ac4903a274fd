"""`pi05-rl report DATASET`: its lines and its page are those of the checks, on a whole dataset, by the command."""

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from damage import change_column, change_info, data_file, drop_column, set_entry, set_values
from recordings import make_dataset
from tiny import CAMERAS

from lerobot_policy_pi05_rl.cli import main as cli
from lerobot_policy_pi05_rl.report.build import report
from lerobot_policy_pi05_rl.report.dataset import report_dataset
from lerobot_policy_pi05_rl.report.inputs import is_dataset

EPISODES = [
    {"length": 12 + number, "success": number % 2 == 0, "task": "pick <b>&" if number < 11 else "place it"}
    for number in range(14)
]
TEXTURE = np.random.default_rng(3).integers(40, 220, (32, 32, 3), dtype=np.uint8)
CHECKS = ["outcomes", "spread of successes", "longest episode", "pauses", "frozen cameras", "dark cameras"]
CHECKS += ["bad values", "jumps", "saturation", "still dimensions", "duplicates", "time stamps", "action to state"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("worth") / "pick"
    make_dataset(root, EPISODES, columns=("next.success",))
    return root


@pytest.fixture(autouse=True)
def _logging(logging_as_before):
    """The command sets it up."""


def run(*arguments: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as end:
        cli(["report", *map(str, arguments)])
    assert end.value.code == code


def verdicts(printed: str) -> dict[str, str]:
    """Check → verdict, of the lines that begin with one."""
    found = re.findall(r"^(ok|look|harms RL)  +([a-z ]+): ", printed, re.MULTILINE)
    return {check: verdict for verdict, check in found}


def test_a_line_for_each_check_and_one_page_beside_the_dataset(data, capsys):
    before = sorted(data.rglob("*"))
    run(data)
    said = capsys.readouterr().out
    assert list(verdicts(said)) == CHECKS and set(verdicts(said).values()) == {"ok"}
    assert "13 checks: 0 harm RL, 0 to look at, 13 ok" in said and sorted(data.rglob("*")) == before
    page = Path(f"{data}.report.html")
    assert f"page: {page}\n" in said
    text = page.read_text()
    page.unlink()
    assert "http" not in text and "<b>&" not in text and "pick &lt;b&gt;&amp;" in text
    assert text.count('class="verdict ok"') == 13 and all(f"<b>{check}</b>" in text for check in CHECKS)
    assert text.count('data-chart="lengths"') == 2 and "nan" not in text.lower().split("data:image")[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text[text.index("Outcomes and lengths") :])
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    assert cells[1][:6] == ["pick &lt;b&gt;&amp;", "11", "6", "5", "0", "45.5 %"]
    assert cells[3][:6] == ["All tasks", "14", "7", "7", "0", "50.0 %"]
    assert re.findall(r'data-episode="(\d+)"', text) == ["0", "12", "7"]  # fastest, slowest, a failure


def test_the_python_way_in_writes_the_same_page(data, tmp_path):
    output = tmp_path / "deep" / "page.html"
    assert report(data, output=output) == output and output.is_file()


def stuck(episode: int, step: int) -> np.ndarray:
    """What a camera shows that froze in the fourth episode, and has its cap on in the fifth."""
    return TEXTURE // 60 if episode == 4 else np.roll(TEXTURE, 0 if episode == 3 else 5 * step, axis=1)


def test_planted_faults_are_in_the_lines_and_on_the_page(tmp_path, capsys):
    root = tmp_path / "faulty"
    make_dataset(root, EPISODES, columns=(), picture=stuck)
    row = sum(episode["length"] for episode in EPISODES[:9]) + 2
    set_entry(root, "action", row, 0, float("nan"))
    run(root, "--output", tmp_path / "page.html")
    said = capsys.readouterr().out
    found = verdicts(said)
    assert found["outcomes"] == "harms RL"
    assert "13 of 13 episodes have no outcome (episodes 0-8,10-13)" in said  # without that of the bad value
    assert found["bad values"] == "harms RL" and "action is nan at episode 9, frame 2, dimension 0" in said
    for check, words, episode in (("frozen", "stand still", 3), ("dark", "are dark", 4)):
        assert found[f"{check} cameras"] == "look"
        for camera in CAMERAS:
            assert re.search(rf"{words}.* {camera} in episode {episode}[; ]", said)
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="verdict harms"') == list(found.values()).count("harms RL") == 2
    assert "pi05-rl label faulty.json" in page and "bar unknown" in page and "a camera is frozen or dark" in page


def test_outcomes_set_by_hand_are_known(tmp_path, capsys):
    root = tmp_path / "byhand"
    make_dataset(root, [{"length": 9 + number} for number in range(12)], columns=())
    (tmp_path / "byhand.labels").mkdir()
    rows = "".join(f"{number},{'success' if number % 2 else 'failure'}\n" for number in range(12))
    (tmp_path / "byhand.labels" / "outcomes.csv").write_text(f"episode_index,outcome\n{rows}")
    run(root)
    assert verdicts(capsys.readouterr().out)["outcomes"] == "ok"


def test_without_failures_it_says_what_to_do(tmp_path, capsys):
    root = tmp_path / "good"
    make_dataset(root, [{"length": 9, "success": True}] * 6, columns=("next.success",))
    run(root)
    said = capsys.readouterr().out
    assert verdicts(said)["outcomes"] == "harms RL" and "pi05-rl label good.json --failure" in said
    assert verdicts(said)["spread of successes"] == "look"


def test_two_readings_of_one_word_are_told_apart(data, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert is_dataset(data) and is_dataset("you/dataset") and not is_dataset(tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "RUN_OR_DATASET"),
        (["nowhere"], "nowhere is not a folder; give a run directory, a LeRobot dataset's folder, or a dataset of"),
        (["/nowhere/at/all"], "is not a folder"),
        (["{file}"], "is not a folder"),
        (["{tmp}"], "neither a run (it has no checkpoints/) nor a LeRobot dataset (it has no meta/info.json)"),
        (["nobody/nothing"], "no dataset 'nobody/nothing'"),
        (["nobody/nothing", "--labels", "x"], "is not a folder"),
        (["{data}", "--output", "{tmp}"], "--output must be a file"),
        (["{data}", "--output", "{file}/page.html"], "cannot be written"),
        (["{data}", "--labels", "absent"], "no labeling 'absent'"),
        (["{data}", "--of", "2"], "--of"),
    ],
)
def test_bad_arguments_are_one_clear_line(data, tmp_path, capsys, arguments, said):
    (tmp_path / "file").write_text("x")
    run(*(each.format(data=data, tmp=tmp_path, file=tmp_path / "file") for each in arguments), code=2)
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-1] and "Traceback" not in "".join(lines)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"] and not Path(f"{data}.report.html").exists()


DAMAGES = {
    "no data": (lambda root: data_file(root).unlink(), "is missing"),
    "data of junk": (lambda root: data_file(root).write_bytes(b"junk"), "cannot be read"),
    "no action": (lambda root: drop_column(root, "action"), "has no column action"),
    "wrong index": (lambda root: set_values(root, "index", [22], 5), "has index 5"),
    "no fps": (lambda root: change_info(root, lambda info: info.pop("fps")), "fps"),
    "no camera": (
        lambda root: change_info(root, lambda info: [info["features"].pop(camera) for camera in CAMERAS]),
        "no camera",
    ),
    "pictures as text": (
        lambda root: change_column(root, CAMERAS[0], lambda column: pa.array(["a picture"] * len(column))),
        "cannot be decoded",
    ),
    "no pictures": (lambda root: drop_column(root, CAMERAS[0]), "cannot be decoded"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_dataset_is_one_clear_line(data, tmp_path, capsys, name):
    damage, said = DAMAGES[name]
    root = Path(shutil.copytree(data, tmp_path / "damaged"))
    damage(root)
    run(root, code=2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pi05-rl: error: ")]
    assert len(lines) == 1 and said in lines[0] and "damaged" in lines[0]
    assert not (tmp_path / "damaged.report.html").exists()


def test_no_episode_is_left_of_bad_values(tmp_path, capsys):
    make_dataset(tmp_path / "bad", [{"length": 3}])
    set_entry(tmp_path / "bad", "action", 1, 0, float("inf"))
    run(tmp_path / "bad", code=2)
    assert "no episode is left" in capsys.readouterr().err


def test_a_labeling_is_said_to_have_a_page_of_its_own(data):
    folder = Path(f"{data}.labels")
    folder.mkdir()
    (folder / "recap.parquet").touch()
    try:
        assert report_dataset(data, folder / "page.html").labelings == ["recap"]
    finally:
        shutil.rmtree(folder)
