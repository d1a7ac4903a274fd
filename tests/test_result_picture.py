"""README's picture and table are of the numbers that the benchmark left."""

import json
import runpy

import pytest
from commands import REPOSITORY
from PIL import Image

SCRIPT = REPOSITORY / "benchmarks" / "result_picture.py"


@pytest.fixture
def script() -> dict:
    return runpy.run_path(str(SCRIPT))


def test_the_picture_is_drawn_from_the_results(script, tmp_path, capsys):
    assert script["main"]([f"--output={tmp_path}/result.png"]) == 0
    with Image.open(tmp_path / "result.png") as picture:
        assert picture.width > 2 * picture.height
    assert (tmp_path / "result.png").stat().st_size < 200_000
    assert "results.json" in capsys.readouterr().out


def test_a_mix_that_is_not_there_is_named(script):
    with pytest.raises(ValueError, match=r"no bc, .* of the mix other; its mixes are demo"):
        script["read_rows"](script["RESULTS"], "other")


@pytest.mark.parametrize("mix", ["demo", "recovers"])
def test_the_readmes_table_has_the_benchmarks_numbers(script, mix):
    rows = {row["variant"]: row for row in json.loads(script["RESULTS"].read_text())[mix]}
    cloning, recap = (rows[name]["per_1000_steps"][0] for name in ("bc", "recap"))
    ratio, low, high = rows["recap"]["ratio_to_bc"]
    line = f"| {cloning:.1f} | {recap:.1f} | {ratio:.2f} [{low:.2f}, {high:.2f}] |"
    readme = (REPOSITORY / "README.md").read_text().splitlines()
    assert next(row for row in readme if row.startswith(f"| `{mix}`")).endswith(line)


def test_the_readme_is_one_screen_and_some():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 120
