"""The report: its numbers are the labeling's, its moments the right ones, and the page needs nothing but itself."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import make_dataset
from tiny import write_config

from lerobot_policy_pi05_rl.cli import main as cli
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data import labeling
from lerobot_policy_pi05_rl.data.files.metadata import read_info
from lerobot_policy_pi05_rl.data.pictures.stored_frames import DatasetFrames
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.offline_learner import train_offline
from lerobot_policy_pi05_rl.report import labels, statistics
from lerobot_policy_pi05_rl.report.build import main as report
from lerobot_policy_pi05_rl.report.curves import CURVES, thinned
from lerobot_policy_pi05_rl.report.labels import read_labeling_table
from lerobot_policy_pi05_rl.report.strips import strip_steps
from lerobot_policy_pi05_rl.report.svg import nice_ticks

NASTY_TASK = 'stack <b>&"2" cubes</b>'
EPISODES = [
    {"length": 9, "success": True},
    {"length": 12},
    {"length": 7, "success": True, "intervention": 4},
    {"length": 10, "task": NASTY_TASK},
    {"length": 8, "success": True, "task": NASTY_TASK},
    {"length": 5, "truncated": True},
]
COLUMNS = ("next.success", "next.truncated", "intervention")
FPS = 10
THRESHOLD = 0.05


def write_labeling(root: Path, name: str, *, seed: int = 0, critic: str = "critic", n_step: int | None = None) -> Path:
    """A synthetic labeling: returns from outcome and length, a smooth noisy value, a threshold of ``THRESHOLD``."""
    rng = np.random.default_rng(seed)
    longest = max(episode["length"] for episode in EPISODES)
    parts = []
    for number, episode in enumerate(EPISODES):
        length = episode["length"]
        outcome = "success" if episode.get("success") else "truncated" if episode.get("truncated") else "failure"
        returns = -(np.arange(length - 1, -1, -1) + (outcome == "failure") * longest) / (2 * longest)
        noise = np.convolve(rng.normal(size=length + 2) * 0.15, np.ones(3) / 3, "valid")
        value = np.clip(returns + noise, -1, 0).astype(np.float32)
        known = np.where(outcome == "truncated", np.nan, returns).astype(np.float32)
        part = {
            "episode_index": number,
            "frame_index": np.arange(length),
            "task": episode.get("task", "pick the cube"),
            "outcome": outcome,
            "intervention": np.arange(length) >= episode.get("intervention", length),
            "reward": np.zeros(length, np.float32),
            "return": known,
            "value": value,
            "fold": np.int8(number % 2),
            "advantage": known - value,
        }
        parts.append(pd.DataFrame(part))
    frames = pd.concat(parts, ignore_index=True)
    frames.insert(0, "index", np.arange(len(frames)))
    frames["positive"] = (frames["advantage"] > THRESHOLD) | frames["intervention"]
    frames["tag"] = frames["positive"].astype(np.int8)
    tasks = sorted(set(frames["task"]))
    metadata = {
        "name": name,
        "dataset": {"repo_id": "test/tiny", "root": str(root), "fingerprint": "d0"},
        "critic": {"path": critic, "fingerprint": "c0"},
        "n_step": n_step,
        "positive_fraction": dict.fromkeys(tasks, 0.3),
        "thresholds": dict.fromkeys(tasks, THRESHOLD),
        "created": "2025-06-01T12:30:00+00:00",
    }
    path = Path(f"{root}.labels") / f"{name}.parquet"
    columns = {key: column.to_numpy() for key, column in frames.items()}
    labeling.write_labeling(path, labeling.Labeling(columns, metadata))
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Two tasks, one of them with markup in its text; every outcome; a correction; two labelings."""
    root = tmp_path_factory.mktemp("report") / "tiny"
    make_dataset(root, EPISODES, columns=COLUMNS, fps=FPS)
    write_labeling(root, "first")
    write_labeling(root, "second", seed=1, n_step=4)
    return root


@pytest.fixture(scope="module")
def run_dir(dataset, tmp_path_factory) -> Path:
    """A run on the dataset: a checkpoint's configuration and metrics."""
    run = tmp_path_factory.mktemp("runs") / "recap"
    checkpoint = run / "checkpoints" / "000200" / "pretrained_model"
    checkpoint.mkdir(parents=True)
    config = {"dataset": {"repo_id": "test/tiny", "root": str(dataset)}}
    (checkpoint / "train_config.json").write_text(json.dumps(config))
    (run / "checkpoints" / "last").symlink_to("000200")
    lines = [{"step": step, "loss_critic": 5 - step / 100, "loss_actor": 1.0} for step in (50, 100, 150, 200)]
    lines += [{"step": step, "eval/loss_critic": 4.0, "eval/tag_grip": 0.1} for step in (100, 200)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2')
    return run


@pytest.fixture(scope="module")
def page(dataset, tmp_path_factory) -> str:
    """The page of both labelings."""
    output = tmp_path_factory.mktemp("page") / "report.html"
    assert report([str(dataset), "--labels", "first", "second", "--output", str(output)]) == 0
    return output.read_text()


class Balance(HTMLParser):
    """Counts what a browser would have to fetch, and tags that are not closed."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, page: str):
        super().__init__()
        self.open, self.fetched, self.tags = [], [], set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "srcset", "poster", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def table_rows(page: str, title: str) -> list[list[str]]:
    """The cells of the first table behind a heading."""
    table = page[page.index(f"<h2>{title}</h2>") :].split("<tbody>")[1].split("</tbody>")[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def charts(page: str) -> list[str]:
    return re.findall(r'<svg class="chart".*?</svg>', page, flags=re.DOTALL)


def test_the_page_needs_nothing_but_itself(page):
    parsed = Balance(page)
    assert not parsed.open
    assert parsed.fetched and all(value.startswith("data:image/jpeg;base64,") for value in parsed.fetched)
    assert not {"script", "link", "iframe", "object"} & parsed.tags
    assert "http://" not in page and "https://" not in page and "@import" not in page
    assert set(re.findall(r"url\((.)", page)) == {"#"}
    assert len(page) < 2_000_000  # drawn noise, the worst case for JPEG


def test_every_chart_names_both_axes_and_has_a_caption(page):
    assert len(charts(page)) == page.count("<figcaption>") >= 10
    for chart in charts(page):
        for axis in ("x-label", "y-label"):
            assert re.search(rf'<text class="{axis}"[^>]*>[^<]+</text>', chart), chart[:200]
        assert "nan" not in chart


def test_task_texts_are_escaped(page):
    assert "<b>&" not in page and "cubes</b>" not in page
    assert "stack &lt;b&gt;&amp;&#34;2&#34; cubes&lt;/b&gt;" in page


def test_the_table_counts_what_the_labeling_says(page):
    pick, stack, total = table_rows(page, "What is in the data")
    assert pick == ["pick the cube", "4", "2", "1", "1", "3", "0.5", "0.8", "1.2"]
    assert stack[1:] == ["2", "1", "1", "0", "0", "0.8", "0.9", "1.0"]
    assert total[:6] == ["All tasks", "6", "3", "2", "1", "3"]


def test_thresholds_and_shares_are_the_labelings(page, dataset):
    frames = pd.read_parquet(f"{dataset}.labels/first.parquet")
    for row, task in zip(table_rows(page, "Advantage"), ("pick the cube", NASTY_TASK), strict=True):
        of_task = frames[frames["task"] == task]
        success = of_task[of_task["outcome"] == "success"]
        assert row[1:3] == ["0.0500", "30.0 %"]
        assert row[3] == f"{100 * of_task['positive'].mean():.1f} %"
        assert row[4] == f"{100 * success['positive'].mean():.1f} %"
    assert table_rows(page, "Advantage")[0][6] == "100.0 %"  # corrections


def test_moments_are_the_extremes_of_different_episodes(page, dataset):
    frames = pd.read_parquet(f"{dataset}.labels/first.parquet").dropna(subset="advantage")
    per_episode = frames.groupby("episode_index")["advantage"]
    best = frames.loc[per_episode.idxmax()].nlargest(3, "advantage")
    worst = frames.loc[per_episode.idxmin()].nsmallest(3, "advantage")
    expected = [(str(row.episode_index), str(row.frame_index)) for row in [*best.itertuples(), *worst.itertuples()]]
    assert re.findall(r'data-episode="(\d+)" data-frame="(\d+)"', page) == expected
    assert page.count('class="now"') == 6


def test_under_the_baseline_of_a_success_what_holds_by_rule_is_not_shown_as_found(dataset, tmp_path):
    """All frames of a failure have the same advantage there: none of them is worth a film strip."""
    path = write_labeling(dataset, "of_success")
    table = pq.read_table(path)
    frames, metadata = table.to_pandas(), json.loads(table.schema.metadata[b"pi05_rl"]) | {"baseline": "success"}
    failed = frames["outcome"] == "failure"
    frames.loc[failed, "advantage"] = np.float32(labeling.OF_A_FAILURE)
    frames["success_value"] = frames["value"].clip(-0.5) / 2
    frames["positive"] = ~failed & (frames["advantage"] > THRESHOLD) | frames["intervention"]
    labeling.write_labeling(path, labeling.Labeling({key: frames[key].to_numpy() for key in frames}, metadata))
    report([str(dataset), "--labels", "of_success", "--output", str(tmp_path / "page.html")])
    path.unlink()
    page = (tmp_path / "page.html").read_text()
    judged = frames[~failed].dropna(subset="advantage")
    worst = judged.loc[judged.groupby("episode_index")["advantage"].idxmin()].nsmallest(3, "advantage")
    expected = [(str(row.episode_index), str(row.frame_index)) for row in worst.itertuples()]
    assert re.findall(r'data-episode="(\d+)" data-frame="(\d+)"', page)[3:] == expected
    assert "failed episodes apart" in page and "by the rule of the advantage" in page
    first = worst.iloc[0]
    assert f"value {first['value']:.2f} ({first['success_value']:.2f} of a success)".replace("-", "−") in page


def test_histograms_count_every_frame_and_episode(page, dataset):
    frames = pd.read_parquet(f"{dataset}.labels/first.parquet")
    histograms = [chart for chart in charts(page) if 'data-chart="advantages"' in chart][:2]
    for chart, task in zip(histograms, ("pick the cube", NASTY_TASK), strict=True):
        known = frames[(frames["task"] == task) & frames["advantage"].notna()]
        for tag, rows in (("positive", known["positive"]), ("negative", ~known["positive"])):
            assert sum(map(int, re.findall(rf"(\d+) frames {tag}", chart))) == rows.sum()
    lengths = " ".join(chart for chart in charts(page) if 'data-chart="lengths"' in chart)
    for outcome, count in (("success", 3), ("failure", 2), ("truncated", 1)):
        assert sum(map(int, re.findall(rf"(\d+) {outcome}", lengths))) == count


@pytest.mark.parametrize("change", ["constant", "unknown", "no thresholds"])
def test_degenerate_labelings_still_give_a_page(dataset, tmp_path, change):
    path = write_labeling(dataset, "odd")
    table = pq.read_table(path)
    frames = table.to_pandas()
    metadata = json.loads(table.schema.metadata[b"pi05_rl"])
    if change == "constant":
        frames[["value", "advantage", "return"]] = np.float32(-0.5)
    elif change == "unknown":
        frames[["advantage", "return"]] = np.float32(np.nan)
    else:
        metadata = {"name": "odd"}
    table = pa.Table.from_pandas(frames, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({b"pi05_rl": json.dumps(metadata).encode()}), path)
    report([str(dataset), "--labels", "odd", "--output", str(tmp_path / "page.html")])
    path.unlink()
    page = (tmp_path / "page.html").read_text()
    assert not Balance(page).open
    assert all("nan" not in chart and "inf" not in chart for chart in charts(page))


def test_two_labelings_are_compared_frame_by_frame(page, dataset):
    first, second = (pd.read_parquet(f"{dataset}.labels/{name}.parquet") for name in ("first", "second"))
    assert [row[0] for row in table_rows(page, "Labelings compared")] == ["first", "second"]
    agreement = page[page.index("<h3>Which frames first and second tag positive</h3>") :]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", agreement.split("</tbody>")[0])
    rows = first["task"] == "pick the cube"
    a, b = first["positive"][rows], second["positive"][rows]
    shares = [(a & b).mean(), (a & ~b).mean(), (~a & b).mean(), (~a & ~b).mean()]
    assert cells[1:6] == [str(rows.sum()), *(f"{100 * share:.1f} %" for share in shares)]


def test_a_run_shows_its_own_labeling_and_its_curves(run_dir, dataset):
    with pytest.raises(UserError, match="not a whole checkpoint"):
        report([str(run_dir)])
    path = write_labeling(dataset, "own", seed=2, critic=str(run_dir / "checkpoints" / "000200" / "pretrained_model"))
    write_labeling(dataset, "second", seed=1, n_step=4)  # newer, but another critic's
    assert report([str(run_dir)]) == 0
    page = (run_dir / "report.html").read_text()
    path.unlink()
    assert "<dd>own" in page and "newest checkpoint at step 200" in page
    names = {re.search(r'data-chart="curve-([^"]+)"', chart)[1] for chart in charts(page) if "curve-" in chart}
    assert names == {"loss_critic", "loss_actor", "eval-tag_grip"}


def make_run(folder: Path, **dataset) -> Path:
    """A run whose checkpoint names this dataset and nothing else."""
    checkpoint = folder / "checkpoints" / "000200" / "pretrained_model"
    checkpoint.mkdir(parents=True)
    (checkpoint / "train_config.json").write_text(json.dumps({"dataset": {"repo_id": "test/tiny", **dataset}}))
    (folder / "checkpoints" / "last").symlink_to("000200")
    return folder


def test_a_run_that_was_trained_from_a_labeling_shows_that_one(dataset, tmp_path):
    run = make_run(tmp_path / "run", root=str(dataset), labeling="first")
    assert report([str(run)]) == 0
    assert "<dd>first" in (run / "report.html").read_text()
    gone = make_run(tmp_path / "gone", root=str(dataset), labeling="deleted")
    with pytest.raises(UserError, match=r"no labeling 'deleted' \(there: first, second\)"):
        report([str(gone)])


def clone(folder: Path, dataset: Path, **changes) -> Path:
    """A run of a few steps that trains no critic."""
    changes = {"policy__policy_extraction": "none", "dataset__eval_split": 0.2, **changes}
    train_offline(load_config(write_config(folder.with_suffix(".json"), dataset, folder, **changes)))
    return folder


def sections(page: str) -> list[str]:
    assert not Balance(page).open
    return re.findall("<h2>(.*?)</h2>", page)


@pytest.mark.parametrize("extraction", ["none", "filtered"])
def test_a_run_without_a_critic_shows_its_data_and_curves_and_why_there_are_no_values(dataset, tmp_path, extraction):
    run = clone(tmp_path / "run", dataset, policy__policy_extraction=extraction)
    before = sorted(Path(f"{dataset}.labels").iterdir())
    assert report([str(run)]) == 0
    assert sorted(Path(f"{dataset}.labels").iterdir()) == before
    page = (run / "report.html").read_text()
    assert sections(page) == ["What was trained on", "Learning curves", "Values"]
    assert page.count("This run trained no critic") == 1 and f"{run} --labels NAME</code> shows a labeling" in page
    assert {re.search('data-chart="([^"]+)"', chart)[1] for chart in charts(page)} == {"lengths", "curve-loss_actor"}
    # next.success, which comes before next.truncated, says no of the truncated one
    assert table_rows(page, "What was trained on")[-1][:6] == ["All tasks", "6", "3", "3", "0", "3"]
    assert "<b>50.0 %</b><span>of labelled episodes succeed" in page and "have no outcome" not in page
    with pytest.raises(UserError, match=r"--video-episodes draws values.*trained no critic.*--labels NAME"):
        report([str(run), "--video-episodes", "0"])
    assert report([str(run), "--labels", "first", "second"]) == 0
    page = (run / "report.html").read_text()
    assert {"Value over time", "Calibration of the value", "Moments", "Labelings compared"} < set(sections(page))
    assert "trained no critic" not in page and "<dd>first" in page


def test_episodes_without_an_outcome_are_told_from_truncated_ones(tmp_path):
    make_dataset(tmp_path / "data", [{"length": 5}] * 4, columns=())
    run = clone(tmp_path / "run", tmp_path / "data")
    assert report([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "4 of 4 episodes have no outcome and are counted as truncated." in page and "succeed" not in page
    outcomes = tmp_path / "data.labels" / "outcomes.csv"  # set by hand, after the run
    outcomes.parent.mkdir()
    outcomes.write_text("episode_index,outcome\n0,success\n1,success\n3,failure\n")
    assert report([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "1 of 4 episodes have no outcome" in page and "66.7 %" in page


def test_a_run_without_a_critic_asks_nobody_for_what_it_started_from(dataset, tmp_path, monkeypatch):
    run = clone(tmp_path / "run", dataset)
    monkeypatch.setattr("lerobot_policy_pi05_rl.stored.files.hf_hub_download", None)  # whoever asks fails
    path = run / "checkpoints/last/pretrained_model/train_config.json"
    config = json.loads(path.read_text())
    config["policy"]["pi05_checkpoint"] = "somebody/pi05"
    path.write_text(json.dumps(config))
    assert report([str(run)]) == 0


@pytest.mark.parametrize("noted", [False, True])
def test_a_run_on_some_episodes_shows_the_labeling_of_those(dataset, tmp_path, noted):
    path, chosen = write_labeling(dataset, "some"), [0, 2, 3]
    found = labeling.read_labeling(path)
    rows = np.isin(found.columns["episode_index"], chosen)
    if noted:
        found.meta["dataset"]["episodes"] = chosen
    columns = {name: column[rows] for name, column in found.columns.items()}
    labeling.write_labeling(path, labeling.Labeling(columns, found.meta))
    run = make_run(tmp_path / "run", root=str(dataset), labeling="some", episodes=chosen)
    other = make_run(tmp_path / "other", root=str(dataset), labeling="some", episodes=[0, 1])
    try:
        assert report([str(run)]) == 0
        assert "3 episodes, 26 frames" in (run / "report.html").read_text()
        if not noted:
            with pytest.raises(UserError, match="has 26 rows but the dataset has 51 frames"):
                report([str(other)])
    finally:
        path.unlink()


def test_a_labeling_of_a_critic_that_lay_in_the_runs_folder_before_is_not_the_runs(dataset, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", root=str(dataset))
    path = write_labeling(dataset, "own", critic=str(run / "checkpoints" / "000200" / "pretrained_model"))
    try:
        assert labels.newest_labeling(dataset, run) == "own"  # without weights nobody can tell
        for fingerprint, name in (("c0", "own"), ("c1", None)):
            monkeypatch.setattr(labels, "load_critic", lambda path, f=fingerprint: SimpleNamespace(fingerprint=f))
            assert labels.newest_labeling(dataset, run) == name
    finally:
        path.unlink()


def test_a_score_that_rests_on_few_failures_is_no_headline(page):
    tiles = page[page.index("rank correlation of value") :]
    assert "AUC of mid-episode values: 2 failures, too few to say" in tiles
    assert table_rows(page, "Labelings compared")[0][4] == "– (2 failures)"


@pytest.mark.parametrize(
    ("successes", "failures", "said"),
    [(40, 1, "1 failure"), (1, 40, "1 success"), (5, 5, None), (4, 9, "4 successes"), (9, 0, "0 failures")],
)
def test_few_outcomes_are_counted_by_episode(successes, failures, said):
    outcomes = ["success"] * successes + ["failure"] * failures + ["truncated"]
    frames = pd.DataFrame({"episode_index": np.repeat(range(len(outcomes)), 3), "outcome": np.repeat(outcomes, 3)})
    assert statistics.few_outcomes(frames) == said


def test_an_episode_whose_task_changes_counts_for_each_and_once_in_all(dataset, tmp_path):
    path = write_labeling(dataset, "changing")
    found = labeling.read_labeling(path)
    tasks = found.columns["task"].copy()
    tasks[:4] = "approach"  # of episode 0, a success of nine frames
    labeling.write_labeling(path, labeling.Labeling({**found.columns, "task": tasks}, found.meta))
    assert report([str(dataset), "--labels", "changing", "--output", str(tmp_path / "page.html")]) == 0
    path.unlink()
    page = (tmp_path / "page.html").read_text()
    pick, _, approach, total = table_rows(page, "What is in the data")
    assert approach == ["approach", "1", "1", "0", "0", "0", "0.4", "0.4", "0.4"]
    assert pick[:4] == ["pick the cube", "4", "2", "1"] and pick[6] == "0.5"
    assert total[:6] == ["All tasks", "6", "3", "2", "1", "3"]


def test_videos_show_every_frame_of_the_episode(tmp_path):
    root = tmp_path / "video"
    make_dataset(root, EPISODES, columns=COLUMNS, fps=FPS, video=True)
    write_labeling(root, "first")
    output = tmp_path / "out" / "page.html"
    report([str(root), "--output", str(output), "--video-episodes", "0,4"])
    for episode in (0, 4):
        path = output.with_name(f"page_episode_{episode:03d}.mp4")
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == EPISODES[episode]["length"] + FPS  # held for a second
        assert f'href="{path.name}"' in output.read_text()


@pytest.mark.parametrize("video", [False, True])
def test_pictures_are_those_lerobot_reads(tmp_path, video):
    dataset = make_dataset(tmp_path / "data", EPISODES[:3], columns=COLUMNS, fps=FPS, video=video)
    pictures = DatasetFrames(dataset.root, read_info(dataset.root, "test/tiny"))
    camera = pictures.cameras[0]
    for step, picture in zip((2, 5, 11), pictures.read(1, [2, 5, 11], camera), strict=True):
        expected = dataset[EPISODES[0]["length"] + step][camera].numpy().transpose(1, 2, 0) * 255
        assert np.abs(np.asarray(picture, dtype=float) - expected).max() <= 3  # two converters from YUV


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nowhere"], "is not a folder"),
        (["{tmp}"], "neither a run .* nor a LeRobot dataset"),
        (["{data}", "--labels", "absent"], r"no labeling 'absent' \(there: first, second\)"),
        (["{data}", "--video-episodes", "99"], "episode 99"),
        (["{data}", "--video-episodes", "x"], "takes episode numbers"),
    ],
)
def test_bad_input_is_one_clear_sentence(dataset, tmp_path, arguments, message):
    filled = [argument.format(tmp=tmp_path, data=dataset) for argument in arguments]
    with pytest.raises(UserError, match=message):
        report([*filled, "--output", str(tmp_path / "page.html")])
    assert not (tmp_path / "page.html").exists()


def test_a_run_without_checkpoint_or_dataset_says_so(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no finished checkpoint"):
        report([str(tmp_path)])
    config = tmp_path / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"dataset": {"repo_id": "test/gone", "root": str(tmp_path / "gone")}}))
    with pytest.raises(UserError, match=r"gone, which has no meta/info\.json"):
        report([str(tmp_path)])
    config.write_text("{}")
    with pytest.raises(UserError, match="names no dataset"):
        report([str(tmp_path)])


def test_a_damaged_labeling_is_refused(dataset, tmp_path):
    root = tmp_path / "copy"
    path = write_labeling(root, "short")
    table = pq.read_table(path)
    with pytest.raises(UserError, match="has 51 rows but the dataset has 52 frames"):
        read_labeling_table(root, "short", 52)
    for damage in (table.drop_columns(["value"]), table.replace_schema_metadata(None)):
        pq.write_table(damage, path)
        with pytest.raises(UserError, match="is not a labeling"):
            read_labeling_table(root, "short", 51)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="or damaged"):
        read_labeling_table(root, "short", 51)


def test_the_verb_prints_one_line_on_bad_input(tmp_path, capsys, logging_as_before):
    with pytest.raises(SystemExit) as stopped:
        cli(["report", str(tmp_path / "nowhere")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_ranks_calibration_and_auc_of_known_cases():
    frames = pd.DataFrame(
        {
            "index": range(6),
            "episode_index": [0, 0, 0, 1, 1, 1],
            "value": [-0.9, -0.8, -0.7, -0.3, -0.2, -0.1],
            "return": [-0.7, -0.6, -0.5, -0.5, -0.4, -0.3],
            "outcome": ["failure"] * 3 + ["success"] * 3,
        }
    )
    assert statistics.spearman(frames) == pytest.approx(1)
    assert statistics.outcome_auc(frames) == 1
    assert statistics.outcome_auc(frames.assign(value=-0.5)) == 0.5
    bins = statistics.calibration(frames, bins=2)
    assert [(item.count, item.mean_value, item.mean_return) for item in bins] == [
        (3, pytest.approx(-0.8), pytest.approx(-0.6)),
        (3, pytest.approx(-0.2), pytest.approx(-0.4)),
    ]
    assert statistics.calibration_error(frames) == pytest.approx(0.2)


@pytest.mark.parametrize("length", [1, 4, 6, 7, 20, 100])
@pytest.mark.parametrize("fps", [5, 10, 30])
def test_a_strip_stays_in_its_episode_and_holds_the_moment(length, fps):
    for moment in range(length):
        steps = strip_steps(moment, length, fps)
        assert moment in steps and len(steps) == min(6, length)
        assert steps[0] >= 0 and steps[-1] < length and len(set(np.diff(steps))) <= 1


def test_ticks_are_round_and_few():
    assert nice_ticks(-1, 0) == pytest.approx([-1, -0.8, -0.6, -0.4, -0.2, 0])
    assert nice_ticks(0, 5000, 5) == [0, 2000, 4000]
    for low, high in [(0, 3), (-0.13, 0.41), (1e-5, 3e-5), (0, 123456)]:
        assert 1 <= len(nice_ticks(low, high)) <= 6


def test_long_curves_are_thinned_to_their_means():
    points = [(step, float(step)) for step in range(10_000)]
    assert len(thinned(points, 100)) == 100
    assert thinned(points[:5]) == points[:5]
    assert len({curve.title for curve in CURVES}) == len(CURVES)
