"""`pi05-rl label`: what a labeling holds, whom it belongs to, and training from it."""

import hashlib
import json
import logging
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from recordings import make_dataset
from tiny import write_config

from lerobot_policy_pi05_rl.cli import main as cli
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.batch import POSITION
from lerobot_policy_pi05_rl.data.dataset import open_sources
from lerobot_policy_pi05_rl.data.labeling import SCHEMA, out_of_fold, read_labelings
from lerobot_policy_pi05_rl.data.sampling import SampleOrder
from lerobot_policy_pi05_rl.data.sources import dataset_fingerprint
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.labels import command as label_command
from lerobot_policy_pi05_rl.labels import values as label_values
from lerobot_policy_pi05_rl.labels.options import parse_options
from lerobot_policy_pi05_rl.labels.outcomes import format_ranges, parse_ranges
from lerobot_policy_pi05_rl.losses import RecapLosses
from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.offline_learner import train_offline
from lerobot_policy_pi05_rl.returns import episode_advantages, smoothed
from lerobot_policy_pi05_rl.thresholds import upper_threshold

SHORT, LONG = "flip the switch", "fold the towel"
EPISODES = [
    *({"length": 5 + k % 3, "success": k % 2 == 0, "task": SHORT} for k in range(6)),
    {"length": 60, "success": True, "task": LONG},
    {"length": 55, "success": False, "task": LONG, "intervention": 40},
    {"length": 62, "success": True, "task": LONG},
    {"length": 58, "success": False, "task": LONG},
]
FRAMES = sum(episode["length"] for episode in EPISODES)
COLUMNS = ("next.reward", "next.success", "intervention")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two tasks whose lengths differ tenfold, and the checkpoints of two critics (two folds, one fold)."""
    folder = tmp_path_factory.mktemp("label")
    make_dataset(folder / "data", EPISODES, columns=COLUMNS)
    changes = {"policy__policy_extraction": "conditioning", "policy__offline_steps": 3, "dataset__eval_split": 0.2}
    for name, folds in (("a", 2), ("b", 1)):
        config = write_config(
            folder / f"{name}.json", folder / "data", folder / name, policy__critic_folds=folds, **changes
        )
        train_offline(load_config(config, ["--policy.critic_lr=0.01"]))
    return folder


@pytest.fixture
def world(made, tmp_path):
    """A copy of that, for one test to write beside."""
    shutil.copytree(made / "data", tmp_path / "data")
    for name in ("a", "b"):
        shutil.copytree(made / name, tmp_path / name, symlinks=True)
        write_config(tmp_path / f"{name}.json", tmp_path / "data", tmp_path / name)
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    """Nobody may build a network."""

    def refuse(*args, **kwargs):
        raise AssertionError("a network was built")

    monkeypatch.setattr(PI05RLPolicy, "__init__", refuse)


def label(world, *arguments, config="a.json") -> int:
    return label_command.main([str(world / config), *arguments])


def read(world, name: str, data="data") -> tuple[pd.DataFrame, dict]:
    table = pq.read_table(world / f"{data}.labels" / f"{name}.parquet")
    return table.to_pandas(), json.loads(table.schema.metadata[b"pi05_rl"])


def tree_hash(folder) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def count_frames(monkeypatch, *, fail_after: int | None = None) -> list[int]:
    """Frames of each batch the critic is asked about; raises instead of the batch after ``fail_after`` of them."""
    predict, sizes = PI05RLPolicy.predict_label_values, []

    def counted(self, batch):
        if fail_after is not None and len(sizes) == fail_after:
            raise RuntimeError("killed")
        values = predict(self, batch)
        sizes.append(len(values))
        return values

    monkeypatch.setattr(PI05RLPolicy, "predict_label_values", counted)
    return sizes


def test_one_row_per_frame_in_order_and_the_dataset_is_not_touched(world, capsys):
    before = tree_hash(world / "data")
    assert label(world, "--name", "first", "--n-step", "none", "--smoothing", "0", "--baseline", "all") == 0
    assert tree_hash(world / "data") == before
    frames, meta = read(world, "first")
    assert pq.read_schema(world / "data.labels" / "first.parquet").names == list(SCHEMA)
    assert frames["index"].tolist() == list(range(FRAMES))
    assert frames["episode_index"].tolist() == [k for k, e in enumerate(EPISODES) for _ in range(e["length"])]
    assert frames["task"].tolist() == [e["task"] for e in EPISODES for _ in range(e["length"])]
    assert (frames["outcome"] == "success").tolist() == [e["success"] for e in EPISODES for _ in range(e["length"])]
    assert set(meta) >= {
        *("name", "dataset", "critic", "baseline", "n_step", "trace", "discount"),
        *("positive_fraction", "thresholds", "created"),
    }
    assert meta["dataset"].keys() == {"repo_id", "root", "fingerprint"}
    assert meta["critic"].keys() == {"path", "fingerprint"}
    np.testing.assert_allclose(frames["advantage"], frames["return"] - frames["value"], atol=1e-6)
    assert (frames["positive"] == (frames["tag"] == 1)).all()
    assert not list((world / "data.labels").glob("*.partial"))
    out = capsys.readouterr().out
    assert SHORT in out and "--dataset.labeling=first" in out


def test_each_episode_is_valued_by_the_critic_that_has_not_seen_it(world):
    label(world, "--name", "first")
    frames, _ = read(world, "first")
    seen = json.loads((world / "a/checkpoints/last/pretrained_model/critic_data.json").read_text())
    folds = {int(k): v for k, v in seen["datasets"][0]["folds"].items()}
    assert set(folds.values()) == {-1, 0, 1}  # held-out episodes are unseen
    assert frames["fold"].tolist() == [folds[k] for k in frames["episode_index"]]
    every = np.array([[0.25, -1.0], [0.5, -2.0], [1.0, -4.0]], dtype=np.float32)
    np.testing.assert_array_equal(out_of_fold(every, np.array([0, 1, -1], dtype=np.int8)), [0.25, -2.0, -1.5])


def test_each_task_gets_the_asked_fraction_whatever_its_length(world):
    label(world, "--name", "half", "--positive-fraction", "0.5", "--n-step", "3")
    frames, meta = read(world, "half")
    assert meta["n_step"] == {SHORT: 3, LONG: 3} and meta["positive_fraction"] == {SHORT: 0.5, LONG: 0.5}
    for task in (SHORT, LONG):
        own = frames[(frames["task"] == task) & ~frames["intervention"]]
        assert own["positive"].sum() == pytest.approx(0.5 * len(own), abs=1)
        assert (own["advantage"] > meta["thresholds"][task]).tolist() == own["positive"].tolist()
    corrected = frames[frames["intervention"]]
    assert len(corrected) == 15 and (corrected["tag"] == 1).all()


def test_a_task_may_have_its_own_fraction(world):
    per_task = f"--policy.advantage_positive_fraction_per_task={{{SHORT}: 0.8}}"
    label(world, "--name", "own", "--positive-fraction=0.1", "--baseline=all", per_task)
    frames, meta = read(world, "own")
    assert meta["positive_fraction"] == {SHORT: 0.8, LONG: 0.1}
    assert frames[frames["task"] == SHORT]["positive"].mean() == pytest.approx(0.8, abs=0.03)
    with pytest.raises(UserError, match="no task 'sweep'"):
        label(world, "--name", "own", "--policy.advantage_positive_fraction_per_task={sweep: 0.8}")


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_the_threshold_is_exceeded_by_the_asked_number(fraction, count):
    values = np.random.default_rng(count).normal(size=count).astype(np.float32)
    assert (values > upper_threshold(values, fraction)).sum() == round(fraction * count)
    assert np.isnan(upper_threshold(values[:0], fraction))


def test_two_critics_lie_side_by_side_under_their_runs_names(world):
    label(world)
    label(world, f"--dataset.root={world / 'data'}", config="b")  # a run's folder instead of a configuration
    (first, one), (second, other) = read(world, "a-000003"), read(world, "b-000003")
    assert one["critic"]["fingerprint"] != other["critic"]["fingerprint"]
    assert one["dataset"] == other["dataset"]
    assert not np.allclose(first["value"], second["value"])


def test_another_critics_name_is_refused(world, capsys):
    label(world, "--name", "mine")
    before = (world / "data.labels" / "mine.parquet").read_bytes()
    with pytest.raises(SystemExit) as stop:
        cli(["label", str(world / "b.json"), "--name", "mine"])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert "'mine'" in error and str(world / "a") in error and "--name" in error
    assert (world / "data.labels" / "mine.parquet").read_bytes() == before


def test_another_datasets_labeling_is_refused_by_name(world, tmp_path):
    label(world, "--name", "mine")
    make_dataset(world / "other", EPISODES, columns=COLUMNS, seed=5)
    shutil.copytree(world / "data.labels", world / "other.labels")
    other = write_config(tmp_path / "c.json", world / "other", world / "a")
    for extra in ([], ["--from", "mine"]):
        with pytest.raises(UserError, match=r"'mine'.*made for (another dataset|other frames)"):
            label_command.main([str(other), "--name", "mine", *extra])
    sources, _ = open_sources(load_config(other))
    with pytest.raises(UserError, match="labeling 'mine' was made for other frames"):
        read_labelings(sources, "mine")
    with pytest.raises(UserError, match=r"no labeling 'none'.*mine"):
        read_labelings(sources, "none")


def test_a_labeling_with_missing_rows_is_refused(world):
    label(world, "--name", "mine")
    path = world / "data.labels" / "mine.parquet"
    pq.write_table(pq.read_table(path).slice(3), path)
    with pytest.raises(UserError, match=f"'mine'.*{FRAMES - 3} frames"):
        read_labelings(open_sources(load_config(world / "a.json"))[0], "mine")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        read_labelings(open_sources(load_config(world / "a.json"))[0], "mine")


def test_the_fingerprint_is_of_frames_not_of_paths_or_outcomes(world):
    def fingerprint(root):
        sources, _ = open_sources(load_config(write_config(world / "f.json", root, world / "f")))
        return dataset_fingerprint(sources[0])

    shutil.copytree(world / "data", world / "moved")
    assert fingerprint(world / "data") == fingerprint(world / "moved")
    label(world, "--failure", "0", "--name", "x")
    assert fingerprint(world / "data") == fingerprint(world / "moved")
    make_dataset(world / "other", EPISODES, columns=COLUMNS, seed=5)
    assert fingerprint(world / "other") != fingerprint(world / "data")


def test_thresholds_and_advantage_estimator_change_without_a_network(world, request):
    label(world, "--name", "first")
    request.getfixturevalue("no_network")
    sharp = ("--smoothing", "0")
    assert label(world, "--name", "second", "--from", "first", "--n-step", "4", "--positive-fraction", "0.6") == 0
    assert label(world, "--name", "third", "--from", "first", "--gae-lambda", "0.9", *sharp) == 0
    whole = ("--n-step", "none", "--positive-fraction", "0.6", *sharp)
    assert label(world, "--name", "first", *whole) == 0  # the same critic: its values stay
    assert label(world, "--name", "fourth", "--from", "first") == 0
    assert label(world, "--name", "fifth", "--from", "first", "--baseline", "all") == 0
    names = ("first", "second", "third", "fourth", "fifth")
    first, second, third, fourth, fifth_all = (read(world, name)[0] for name in names)
    assert [read(world, name)[1]["baseline"] for name in names] == ["success"] * 4 + ["all"]
    longest = first.groupby("task")["frame_index"].max() + 1
    quarter = {task: max(1, round(0.25 * length)) for task, length in longest.items()}
    fifth = {task: max(1, round(0.2 * length)) for task, length in longest.items()}
    meta = read(world, "fourth")[1]
    assert meta["n_step"] == quarter and meta["smoothing"] == fifth and len(set(quarter.values())) == 2
    none, same = dict.fromkeys(longest.index), dict.fromkeys(longest.index, 0.9)
    for frames, value, n_steps, lambdas, windows in (
        (first, "success_value", none, none, none),
        (second, "success_value", dict.fromkeys(longest.index, 4), none, fifth),
        (third, "success_value", none, same, none),
        (fourth, "success_value", quarter, none, fifth),
        (fifth_all, "value", quarter, none, fifth),
    ):
        np.testing.assert_array_equal(frames[["value", "success_value"]], first[["value", "success_value"]])
        for _, episode in frames.groupby("episode_index"):
            columns = (episode[name].to_numpy() for name in ("return", "reward", value))
            task = episode["task"].iloc[0]
            expected = episode_advantages(*columns, n_step=n_steps[task], gae_lambda=lambdas[task])
            expected = expected if windows[task] is None else smoothed(expected, windows[task])
            if value == "success_value" and episode["outcome"].iloc[0] == "failure":
                expected = np.full(len(episode), -1.0)
            np.testing.assert_array_equal(episode["advantage"], expected)
    assert first["positive"].mean() > 0.5
    with pytest.raises(UserError, match="no labeling 'forth'"):
        label(world, "--name", "sixth", "--from", "forth")


@pytest.mark.parametrize("torn", [0, 5])
def test_a_killed_command_goes_on_and_equals_an_uninterrupted_one(world, monkeypatch, torn):
    monkeypatch.setattr(label_values, "FLUSH_FRAMES", 16)
    with monkeypatch.context() as patch:
        count_frames(patch, fail_after=30)
        with pytest.raises(RuntimeError, match="killed"):
            label(world, "--name", "resumed")
    partial = world / "data.labels" / "resumed.partial"
    with pytest.raises(UserError, match="unfinished"):
        label(world, "--name", "resumed", config="b.json")
    with partial.open("ab") as file:
        file.write(b"\0" * torn)  # the kill came while a row was written
    with monkeypatch.context() as patch:
        sizes = count_frames(patch)
        assert label(world, "--name", "resumed") == 0
    assert sum(sizes) == FRAMES - 28 * 4  # 30 batches of 4 were computed, every 4 of them flushed
    assert not partial.exists()
    label(world, "--name", "whole")
    pd.testing.assert_frame_equal(read(world, "resumed")[0], read(world, "whole")[0])


def test_a_signal_loses_nothing(world, monkeypatch):
    predict, asked = PI05RLPolicy.predict_label_values, []

    def interrupt(self, batch):
        asked.append(None)
        if len(asked) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return predict(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PI05RLPolicy, "predict_label_values", interrupt)
        assert label(world, "--name", "s") == 130
    sizes = count_frames(monkeypatch)
    assert label(world, "--name", "s") == 0
    assert sum(sizes) == FRAMES - 5 * 4


def test_workers_change_nothing(world):
    label(world, "--name", "none")
    label(world, "--name", "two", "--num_workers=2", "--dataloader_multiprocessing_context=fork")
    pd.testing.assert_frame_equal(read(world, "none")[0], read(world, "two")[0])


def test_one_critic_that_labels_what_it_learnt_says_so(world, caplog):
    label(world, config="b.json")
    assert caplog.text.count("labels its own training episodes") == 1
    caplog.clear()
    label(world, config="a.json")
    assert "labels its own" not in caplog.text


def test_each_dataset_gets_its_own_side_car_under_common_thresholds(world):
    make_dataset(world / "more", EPISODES[:4], columns=COLUMNS, seed=9)
    label(world, "--name", "both", f"--dataset.additional_offline_dataset_paths=[{world / 'more'}]")
    (first, one), (second, other) = read(world, "both"), read(world, "both", data="more")
    assert other["thresholds"] == {SHORT: one["thresholds"][SHORT]}
    assert (second["fold"] == -1).all()
    both = pd.concat([first, second])
    assert both[both["task"] == SHORT]["positive"].mean() == pytest.approx(0.2, abs=0.02)


def test_returns_on_another_scale_than_the_critics_are_pointed_out(world, caplog):
    make_dataset(world / "longer", [{"length": 90, "success": True, "task": LONG}], columns=COLUMNS)
    label(world, "--name", "x", f"--dataset.root={world / 'longer'}")
    assert "on another scale" in caplog.text and "62 steps, here 90" in caplog.text


def test_what_the_first_run_saw_is_not_forgotten_by_the_next(world, caplog):
    make_dataset(world / "more", EPISODES[:4], columns=COLUMNS, seed=9)
    start = str(world / "a/checkpoints/last/pretrained_model")
    changes = {"policy__pi05_checkpoint": start, "policy__critic_folds": 2, "policy__offline_steps": 1}
    next_run = train_offline(load_config(write_config(world / "n.json", world / "more", world / "n", **changes)))
    assert "other folds" not in caplog.text
    first, second = (
        json.loads((folder / "critic_data.json").read_text())["datasets"]
        for folder in (world / "a/checkpoints/last/pretrained_model", next_run / "pretrained_model")
    )
    assert len(second) == 2 and second[1] == first[0]
    changes["dataset__eval_split"] = 0.0
    train_offline(load_config(write_config(world / "o.json", world / "data", world / "o", **changes)))
    assert "other folds" in caplog.text


def test_a_run_that_trained_no_critic_cannot_label(world):
    config = write_config(world / "n.json", world / "data", world / "n", policy__policy_extraction="none")
    train_offline(load_config(config))
    checkpoint = (world / "n/checkpoints/000004/pretrained_model").resolve()
    for given in ([str(world / "n")], [str(config)]):
        with pytest.raises(UserError, match="no critic to label with") as caught:
            label_command.main(given)
        assert f"the checkpoint {checkpoint} holds no critic" in str(caught.value)
        assert "policy.policy_extraction=conditioning" in str(caught.value) and "--checkpoint DIR" in str(caught.value)
    again = [str(config), f"--output_dir_offline={world / 'new'}", f"--policy.pi05_checkpoint={checkpoint}"]
    with pytest.raises(UserError) as caught:
        label_command.main(again)
    assert f"{world / 'new'} has no checkpoint, and the checkpoint policy.pi05_checkpoint" in str(caught.value)
    with pytest.raises(UserError, match="holds no critic"):
        label(world, "--checkpoint", str(world / "n"))


# Outcomes set by hand


@pytest.fixture
def unlabelled(tmp_path):
    """A dataset that tells no outcome, and a configuration whose run has not begun."""
    make_dataset(tmp_path / "data", [{"length": 4}] * 8, columns=())
    write_config(tmp_path / "a.json", tmp_path / "data", tmp_path / "run")
    return tmp_path


def outcomes(folder) -> dict[int, str]:
    table = pd.read_csv(folder / "data.labels" / "outcomes.csv")
    assert list(table.columns) == ["episode_index", "outcome"]
    return dict(zip(table["episode_index"], table["outcome"], strict=True))


def test_outcomes_by_hand_need_no_critic_and_add_up(unlabelled, capsys):
    before = tree_hash(unlabelled / "data")
    assert label(unlabelled, "--list-unlabelled") == 0
    assert "8 of 8 episodes have no outcome: 0-7" in capsys.readouterr().out
    assert label(unlabelled, "--success", "0-2,5", "--failure=7") == 0
    path = unlabelled / "data.labels" / "outcomes.csv"
    assert f"--reward.outcome_file={path}" in capsys.readouterr().out
    (unlabelled / "more.csv").write_text("episode_index,outcome\n3,truncated\n2,failure\n")
    assert label(unlabelled, "--outcomes", str(unlabelled / "more.csv"), "--list-unlabelled") == 0
    assert "2 of 8 episodes have no outcome: 4,6; cut by a time limit: 3" in capsys.readouterr().out
    expected = {0: "success", 1: "success", 2: "failure", 3: "truncated", 5: "success", 7: "failure"}
    assert outcomes(unlabelled) == expected
    assert tree_hash(unlabelled / "data") == before


def test_outcomes_of_an_additional_dataset_by_hand_name_it_and_leave_the_first_alone(unlabelled, no_network):
    more = str(unlabelled / "more")
    make_dataset(Path(more), [{"length": 4}] * 10, columns=())
    both = f'--dataset.additional_offline_dataset_paths=["{more}"]'
    assert label(unlabelled, "--success=0-7") == 0
    assert label(unlabelled, both, "--of", more, "--success=0,9", "--failure=1-8") == 0
    table = pd.read_csv(unlabelled / "data.labels" / "outcomes.csv")
    rows = table.set_index(table["dataset"].fillna("first"))
    assert rows.loc["first", "outcome"].tolist() == ["success"] * 8
    assert rows.loc[more, "outcome"].tolist() == ["success", *["failure"] * 8, "success"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--of=more"], "--of says which dataset --success and --failure speak of"),
        (["--of=more", "--success=0"], "--of names the dataset more, which is not one of test/tiny"),
        (["--success=0-3", "--failure=3,4"], "--failure gives episode 3 another outcome"),
        (["--success=0-9"], "--success names episode 8-9, but dataset test/tiny has 0-7"),
        (["--success=4-2"], "'4-2' is not an episode or a range"),
        (["--success=all"], "'all' is not"),
        (["--outcomes=nowhere.csv"], "nowhere.csv does not exist"),
        (["--n-step=0"], "--n-step takes"),
        (["--gae-lambda=2"], "--gae-lambda must be"),
        (["--gae-lambda=x"], "--gae-lambda"),
        (["--trace=0.5", "--n-step=3"], "--n-step and --gae-lambda exclude"),
        (["--horizon=0.5", "--n-step=none"], "--n-step and --horizon exclude"),
        (["--horizon=-1"], "--horizon must be"),
        (["--from=x"], "--from needs --name"),
        (["--name=../x"], "--name '../x'"),
        (["--checkpoint=/nowhere"], "does not exist"),
        ([], "no critic to label with"),
    ],
)
def test_bad_input_is_one_clear_error_and_nothing_is_written(unlabelled, arguments, message):
    with pytest.raises(UserError) as caught:
        label(unlabelled, *arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (unlabelled / "data.labels").exists()


def test_lambdas_earlier_name_is_accepted_with_one_warning(caplog):
    for arguments in (["--trace", "0.5"], ["--trace=0.5"]):
        caplog.clear()
        assert parse_options(arguments)[0].gae_lambda == 0.5
        assert caplog.messages == ["[LABEL] --trace is called --gae-lambda now"]


def test_label_uses_the_outcomes_beside_the_dataset_and_training_only_on_request(world, caplog):
    caplog.set_level(logging.INFO)  # whatever an earlier test has left
    make_dataset(world / "bare", EPISODES, columns=("intervention",))
    config = write_config(world / "bare.json", world / "bare", world / "new")
    successes = ",".join(str(k) for k, episode in enumerate(EPISODES) if episode["success"])
    failures = ",".join(str(k) for k, episode in enumerate(EPISODES) if not episode["success"])
    label_command.main([str(config), "--success", successes, "--failure", failures])
    assert label_command.main([str(config), "--name", "x", "--checkpoint", str(world / "a")]) == 0
    assert "Outcomes set by hand are used" in caplog.text
    frames, _ = read(world, "x", data="bare")
    assert (frames["outcome"] == "success").tolist() == [e["success"] for e in EPISODES for _ in range(e["length"])]
    path = world / "bare.labels" / "outcomes.csv"
    with pytest.raises(UserError, match=f"have no outcome .* --reward.outcome_file={path}"):
        train_offline(load_config(config))


def test_ranges_and_back():
    assert parse_ranges("0-3, 7,9-9") == [0, 1, 2, 3, 7, 9]
    assert format_ranges([0, 1, 2, 3, 7, 9]) == "0-3,7,9"


# Training from a labeling


@pytest.mark.parametrize("train_critic", [False, True])
def test_training_uses_exactly_the_labelings_tags(world, monkeypatch, train_critic):
    label(world, "--name", "stored", "--positive-fraction", "0.4")
    frames, _ = read(world, "stored")
    used: dict[int, int] = {}
    order = SampleOrder(FRAMES, 7)
    actor_loss = RecapLosses.actor_loss

    def record(self, prefix, tags, batch, sampled, **kwargs):
        for position, tag, dropped in zip(batch[POSITION].tolist(), tags.tolist(), sampled.dropped, strict=True):
            assert not dropped
            used[order[position]] = tag
        return actor_loss(self, prefix, tags, batch, sampled, **kwargs)

    monkeypatch.setattr(RecapLosses, "actor_loss", record)
    config = write_config(
        world / "t.json",
        world / "data",
        world / "t",
        batch_size=24,
        dataset__labeling="stored",
        policy__train_critic=train_critic,
        policy__advantage_dropout=0.0,
        policy__advantage_positive_weight=1.0,
        dataset__eval_split=0.0,
    )
    checkpoint = train_offline(load_config(config))
    assert len(used) == 4 * 24
    assert used == frames["tag"].loc[list(used)].replace(0, -1).to_dict(), "negative actions have no tag"
    assert {-1, 1} == set(used.values())
    lines = [json.loads(line) for line in (world / "t" / "metrics.jsonl").read_text().splitlines()]
    assert all(("loss_critic" in line) == train_critic for line in lines)
    assert (checkpoint / "pretrained_model" / "critic_data.json").exists() == train_critic
