"""From LeRobot datasets to samples: chunks, order, pictures, labels, and what is refused."""

import json
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from recordings import MIXED_EPISODES, make_dataset
from tiny import CAMERAS, write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data import frames as frames_module
from lerobot_policy_pi05_rl.data.dataset import OfflineData, open_offline_data
from lerobot_policy_pi05_rl.data.loaders import make_held_out_loader, make_train_loader
from lerobot_policy_pi05_rl.data.pictures.decoding import read_picture
from lerobot_policy_pi05_rl.data.sampling import BatchPositions, SampleOrder
from lerobot_policy_pi05_rl.data.sources import DatasetError

LENGTHS = [episode["length"] for episode in MIXED_EPISODES]
TOTAL = sum(LENGTHS)
CHUNK = 6
VIDEO_EPISODES = [
    {"length": 8, "truncated": True, "task": "lift", "intervention": 5},
    {"length": 5, "task": "push", "reward": 1.0},
    {"length": 6, "task": "lift", "reward": 1.0},
    {"length": 7, "task": "push", "reward": 1.0},
]


@pytest.fixture(scope="module")
def video_dataset(tmp_path_factory):
    """Two tasks, two cameras as videos; labelled by reward and time limit."""
    root = tmp_path_factory.mktemp("data") / "video"
    make_dataset(root, VIDEO_EPISODES, video=True, columns=("next.reward", "next.truncated", "intervention"), seed=1)
    return root


@pytest.fixture
def open_data(tmp_path):
    """Opens a dataset under a configuration with the given changes."""

    def open_(dataset, **changes) -> OfflineData:
        cfg = load_config(write_config(tmp_path / "run.json", dataset, tmp_path / "run", **changes))
        cfg.validate()
        open_.cfg = cfg
        return open_offline_data(cfg)

    return open_


@pytest.fixture
def outcome_file(tmp_path):
    """Writes a CSV and returns its path."""

    def write(*lines: str) -> str:
        (tmp_path / "outcomes.csv").write_text("\n".join(lines) + "\n")
        return str(tmp_path / "outcomes.csv")

    return write


def drawn_rows(data: OfflineData) -> list[tuple[int, int]]:
    """(source, row) of every frame that can be drawn."""
    found = (data.train.frames[number] for number in range(len(data.train)))
    return [(episode.source, row) for episode, row in found]


def samples_by_row(data: OfflineData) -> list[dict]:
    """The samples of the first dataset in file order."""
    rows = [row for _, row in drawn_rows(data)]
    return [data.train[(0, rows.index(row))] for row in sorted(rows)]


def outcomes(data: OfflineData) -> list[str]:
    return [episode.outcome.value for episode in data.labels.episodes]


# ── Samples ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_sample_equals_the_datasets_columns_and_no_chunk_crosses_an_episodes_end(mixed_dataset, open_data):
    data = open_data(mixed_dataset)
    columns = data.sources[0].columns
    stock = LeRobotDataset("test/tiny", root=mixed_dataset)
    ends = np.cumsum(LENGTHS)
    assert drawn_rows(data) == [(0, row) for row in range(TOTAL)]  # each episode's last frame among them
    for row in range(TOTAL):
        end = ends[ends > row][0]
        inside = min(CHUNK, end - row)
        sample, reference = data.train[(1000 + row, row)], stock[row]
        assert sample["action"].shape == (CHUNK, 3)
        np.testing.assert_array_equal(sample["action"][:inside], columns["action"][row : row + inside])
        np.testing.assert_array_equal(sample["action"][inside:], np.tile(columns["action"][end - 1], (6 - inside, 1)))
        assert sample["action_is_pad"].tolist() == [step >= inside for step in range(CHUNK)]
        assert torch.equal(sample["action"][0], reference["action"])
        assert torch.equal(sample["observation.state"], reference["observation.state"])
        for camera in CAMERAS:
            assert sample[camera].dtype == torch.uint8
            assert torch.equal(sample[camera], (reference[camera] * 255).round().to(torch.uint8))
        assert sample["task"] == reference["task"]
        assert sample["position"] == 1000 + row


def test_every_video_frame_equals_lerobots(video_dataset, open_data):
    data = open_data(video_dataset)
    stock = LeRobotDataset("test/tiny", root=video_dataset, return_uint8=True)
    rows = [row for _, row in drawn_rows(data)]
    assert sorted(rows) == list(range(26))
    for row in np.random.default_rng(0).permutation(26).tolist():  # decoders are reused out of order
        sample, reference = data.train[(0, rows.index(row))], stock[row]
        for camera in CAMERAS:
            assert sample[camera].dtype == torch.uint8
            assert torch.equal(sample[camera], reference[camera])


def test_a_selection_of_episodes_reads_those_episodes(video_dataset, open_data):
    data = open_data(video_dataset, dataset__episodes=[1, 3])
    stock = LeRobotDataset("test/tiny", root=video_dataset, return_uint8=True)
    rows = [*range(8, 13), *range(19, 26)]  # episodes 1 and 3
    assert len(data.train) == len(rows)
    for number, row in enumerate(rows):
        sample, reference = data.train[(0, number)], stock[row]
        assert torch.equal(sample["action"][0], reference["action"])
        assert torch.equal(sample[CAMERAS[0]], reference[CAMERAS[0]])
        assert sample["task"] == "push"


@pytest.mark.parametrize("cameras", [CAMERAS, CAMERAS[1:]])
def test_only_the_declared_cameras_are_decoded_once_each(video_dataset, open_data, monkeypatch, cameras):
    features = {camera: {"type": "VISUAL", "shape": [3, 32, 32]} for camera in cameras}
    features["observation.state"] = {"type": "STATE", "shape": [4]}
    data = open_data(video_dataset, policy__input_features=features)
    read = []

    def counted(source, camera, row):
        read.append(camera)
        return read_picture(source, camera, row)

    monkeypatch.setattr(frames_module, "read_picture", counted)
    sample = data.train[(0, 3)]
    assert read == list(cameras)
    assert [key for key in sample if key.startswith("observation.images")] == list(cameras)


def test_labels_reach_the_samples(video_dataset, open_data):
    data = open_data(video_dataset)
    samples = samples_by_row(data)
    assert data.labels.tasks == ["lift", "push"]
    assert data.labels.task_lengths.tolist() == [8, 7]
    assert [int(sample["task_index"]) for sample in samples] == [0] * 8 + [1] * 5 + [0] * 6 + [1] * 7
    assert [bool(sample["intervention"]) for sample in samples] == [False] * 5 + [True] * 3 + [False] * 18
    returns = torch.stack([sample["return"] for sample in samples])
    assert returns[:8].isnan().all()  # cut by the time limit
    torch.testing.assert_close(returns[8:13], -torch.arange(4, -1, -1) / 14)
    torch.testing.assert_close(returns[13:19], -torch.arange(5, -1, -1) / 16)
    torch.testing.assert_close(returns[19:], -torch.arange(6, -1, -1) / 14)


def test_the_configured_task_replaces_the_datasets(video_dataset, open_data):
    data = open_data(video_dataset, policy__task="tidy up")
    assert {sample["task"] for sample in samples_by_row(data)} == {"tidy up"}
    assert data.labels.tasks == ["tidy up"]
    assert data.labels.task_lengths.tolist() == [8]


def test_a_dataset_without_interventions_has_none(mixed_dataset, open_data):
    assert not open_data(mixed_dataset).labels.interventions[0].any()


# ── Order ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_epoch_draws_every_frame_exactly_once_in_an_order_of_its_own():
    order = SampleOrder(TOTAL, seed=7)
    first, second = ([order[position] for position in range(epoch * TOTAL, (epoch + 1) * TOTAL)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(TOTAL))
    assert first != second
    again = SampleOrder(TOTAL, seed=7)
    assert [again[position] for position in range(TOTAL, 2 * TOTAL)] == second  # without having been asked for epoch 0
    assert [again[position] for position in range(TOTAL)] == first
    assert [SampleOrder(TOTAL, seed=8)[position] for position in range(TOTAL)] != first


def test_the_loader_draws_every_frame_once_per_epoch_the_last_of_each_episode_too(mixed_dataset, open_data):
    data = open_data(mixed_dataset, batch_size=TOTAL)
    (batch,) = make_train_loader(data, batch_size=open_data.cfg.batch_size, batches=1)
    assert batch["position"].tolist() == list(range(TOTAL))
    drawn = {tuple(state) for state in batch["observation.state"].tolist()}
    assert drawn == {tuple(state) for state in data.sources[0].columns["observation.state"].tolist()}
    only_one_step = batch["action_is_pad"].sum(dim=1) == CHUNK - 1
    assert int(only_one_step.sum()) == len(LENGTHS)
    assert sorted(batch["return"][only_one_step].tolist()) == [-0.5, -0.5, 0.0, 0.0]


def test_two_ranks_draw_together_what_one_draws_with_twice_the_batch():
    def batches(size, **kwargs):
        return list(BatchPositions(SampleOrder(TOTAL, seed=7), size, batches=20, **kwargs))

    whole = batches(6)
    ranks = [batches(3, rank=rank, world_size=2) for rank in (0, 1)]
    assert [left + right for left, right in zip(*ranks, strict=True)] == whole
    positions = [position for batch in whole for position, _ in batch]
    assert positions == list(range(120))  # over three epochs: no batch is cut, nothing is drawn twice


def test_a_resumed_sequence_is_the_tail_of_the_whole_one():
    def batches(first):
        return BatchPositions(SampleOrder(TOTAL, seed=7), 4, start=4 * first, batches=25 - first)

    assert list(batches(11)) == list(batches(0))[11:]
    assert len(batches(11)) == len(list(batches(11))) == 14


# ── Outcomes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_outcomes_come_from_the_success_column(mixed_dataset, open_data):
    data = open_data(mixed_dataset)
    assert outcomes(data) == ["success", "failure", "success", "failure"]
    assert data.labels.returns[0][[0, 8, 9, 20]] == pytest.approx([-8 / 24, 0, -(11 + 12) / 24, -0.5])


def test_outcomes_come_from_reward_and_time_limit(video_dataset, open_data):
    assert outcomes(open_data(video_dataset)) == ["truncated", "success", "success", "success"]


def test_an_outcome_file_wins_over_the_columns(mixed_dataset, open_data, outcome_file):
    path = outcome_file("episode_index,outcome", "0,failure", "1, Success ", "2,truncated")
    data = open_data(mixed_dataset, reward__outcome_file=path)
    assert outcomes(data) == ["failure", "success", "truncated", "failure"]


@pytest.mark.parametrize("column", [(), ("next.reward",), ("next.truncated",)])
def test_unlabelled_episodes_are_named_or_become_what_the_configuration_says(
    tmp_path, open_data, outcome_file, column
):
    make_dataset(tmp_path / "data", [{"length": 3}, {"length": 4, "reward": 1.0}, {"length": 3}], columns=column)
    known = [1] if column == ("next.reward",) else []
    unknown = [f"test/tiny#{index}" for index in range(3) if index not in known]
    with pytest.raises(DatasetError) as error:
        open_data(tmp_path / "data")
    assert f"{len(unknown)} of 3 episodes have no outcome ({', '.join(unknown)})" in str(error.value)
    expected = ["success" if index in known else "failure" for index in range(3)]
    assert outcomes(open_data(tmp_path / "data", reward__unlabelled="failure")) == expected
    path = outcome_file("episode_index,outcome", "0,success", "1,failure", "2,success")
    assert outcomes(open_data(tmp_path / "data", reward__outcome_file=path)) == ["success", "failure", "success"]


def test_plain_cloning_needs_no_label(tmp_path, open_data):
    make_dataset(tmp_path / "data", [{"length": 3}], columns=())
    assert len(open_data(tmp_path / "data", policy__policy_extraction="none").train) == 3


def test_a_dataset_of_time_limits_alone_is_refused(tmp_path, open_data):
    make_dataset(tmp_path / "data", [{"length": 3, "truncated": True}] * 2, columns=("next.truncated",))
    with pytest.raises(DatasetError, match="every episode was cut by a time limit"):
        open_data(tmp_path / "data")


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["episode_index,outcome", "4,success"], "test/tiny has no episode 4"),
        (["episode_index,outcome", "-1,success"], "test/tiny has no episode -1"),
        (["episode_index,outcome", "0.5,success"], "test/tiny has no episode 0.5"),
        (["episode_index,outcome", "0,won"], "episode 0 has the outcome 'won'; it must be one of success, failure"),
        (["episode_index,outcome", "0,"], "episode 0 has the outcome nan"),
        (["episode_index,outcome", "0,success", "0,failure"], "episode 0 of dataset test/tiny twice"),
        (["episode,outcome", "0,success"], "lacks the column(s) episode_index"),
        (["episode_index;outcome", "0;success"], "lacks the column(s) episode_index, outcome"),
        (["episode_index,outcome,dataset", "0,success,other"], "names the dataset other"),
        ([""], "is not a CSV"),
        (['"episode_index,outcome', "0,success"], "is not a CSV"),
    ],
)
def test_a_wrong_outcome_file_is_refused(mixed_dataset, open_data, outcome_file, lines, complaint):
    path = outcome_file(*lines)
    with pytest.raises(DatasetError) as error:
        open_data(mixed_dataset, reward__outcome_file=path)
    assert path in str(error.value)
    assert complaint in str(error.value)


def test_a_missing_outcome_file_is_named(mixed_dataset, open_data, tmp_path):
    with pytest.raises(DatasetError, match=r"outcome_file .*none\.csv does not exist"):
        open_data(mixed_dataset, reward__outcome_file=str(tmp_path / "none.csv"))


def test_rewards_of_the_dataset_become_discounted_returns(video_dataset, open_data):
    data = open_data(
        video_dataset,
        reward__source="dataset",
        policy__discount=0.5,
        policy__reward_normalization_constant=4.0,
        policy__value_support_max=1.0,
    )
    np.testing.assert_allclose(data.labels.returns[0][8:13], 0.25 * 0.5 ** np.arange(4, -1, -1))


def test_a_missing_reward_column_is_named(tmp_path, open_data):
    make_dataset(tmp_path / "data", [{"length": 3, "success": True}], columns=("next.success",))
    with pytest.raises(DatasetError, match=r"test/tiny has no next\.reward"):
        open_data(tmp_path / "data", reward__source="dataset")


def test_returns_outside_the_critics_support_are_refused(mixed_dataset, video_dataset, open_data):
    with pytest.raises(DatasetError, match=r"\[-0\.9583, 0\], outside the critic's support \[-0\.5, 0\]"):
        open_data(mixed_dataset, policy__value_support_min=-0.5)
    with pytest.raises(DatasetError, match=r"outside the critic's support \[-1, 0\].*value_support_min"):
        open_data(video_dataset, reward__source="dataset")


# ── More datasets, less data ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def other_dataset(tmp_path):
    root = tmp_path / "other"
    make_dataset(root, [{"length": 4, "task": "push"}, {"length": 15}], columns=(), seed=2)
    return root


def test_additional_datasets_are_drawn_with_their_own_outcomes(mixed_dataset, other_dataset, open_data, outcome_file):
    path = outcome_file(
        "episode_index,outcome,dataset", "1,success,", f"0,failure,{other_dataset}", f"1,success,{other_dataset}"
    )
    data = open_data(
        mixed_dataset,
        dataset__additional_offline_dataset_paths=[str(other_dataset)],
        reward__outcome_file=path,
        batch_size=TOTAL + 19,
    )
    assert outcomes(data) == ["success", "success", "success", "failure", "failure", "success"]
    assert drawn_rows(data) == [(0, row) for row in range(TOTAL)] + [(1, row) for row in range(19)]
    stock = LeRobotDataset("test/other", root=other_dataset)
    for row in (0, 3, 18):
        sample = data.train[(0, TOTAL + row)]
        assert torch.equal(sample["action"][0], stock[row]["action"])
        assert torch.equal(sample[CAMERAS[1]], (stock[row][CAMERAS[1]] * 255).round().to(torch.uint8))
        assert sample["task"] == stock[row]["task"]
    assert data.labels.task_lengths.tolist() == [15, 4]  # the longest of a task, whichever dataset it is in
    assert data.labels.returns[0][0] == pytest.approx(-8 / 30)
    (batch,) = make_train_loader(data, batch_size=open_data.cfg.batch_size, batches=1)
    assert sorted(set(batch["task"])) == ["pick the cube", "push"]
    low = min(source.columns["action"].min() for source in data.sources)
    assert data.stats["action"]["min"].min() == pytest.approx(low)


def test_an_outcome_file_without_a_dataset_column_speaks_of_the_first_dataset(
    mixed_dataset, other_dataset, open_data, outcome_file
):
    path = outcome_file("episode_index,outcome", "0,failure", "1,success")
    with pytest.raises(DatasetError) as error:
        open_data(
            mixed_dataset,
            dataset__additional_offline_dataset_paths=[str(other_dataset)],
            reward__outcome_file=path,
        )
    assert f"2 of 6 episodes have no outcome ({other_dataset}#0, {other_dataset}#1)" in str(error.value)


def change_info(root, change):
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda info: info["features"]["action"].update(shape=[2]),
            "action has the shape (2,), the policy expects (3,)",
        ),
        (lambda info: info["features"]["observation.state"].update(shape=[9]), "observation.state has the shape (9,)"),
        (lambda info: info["features"].pop(CAMERAS[1]), f"has no {CAMERAS[1]}"),
        (lambda info: info.update(fps=30), "was recorded at 30 frames per second"),
    ],
)
def test_an_additional_dataset_that_does_not_fit_is_named(mixed_dataset, tmp_path, open_data, change, complaint):
    other = tmp_path / "other"
    make_dataset(other, [{"length": 4, "success": True}])
    change_info(other, change)
    follow_info(other)
    with pytest.raises(DatasetError) as error:
        open_data(mixed_dataset, dataset__additional_offline_dataset_paths=[str(other)])
    assert str(other) in str(error.value)
    assert complaint in str(error.value)


def follow_info(root):
    """Rewrite the data file with the columns and shapes that info.json declares."""
    features = json.loads((root / "meta" / "info.json").read_text())["features"]
    (path,) = (root / "data").rglob("*.parquet")
    table = pd.read_parquet(path)
    table = table[[key for key in table.columns if key in features]]
    for key in ("action", "observation.state"):
        table[key] = [np.zeros(features[key]["shape"], dtype=np.float32) for _ in range(len(table))]
    path.unlink()
    table.to_parquet(path)


@pytest.mark.parametrize("capacity", [1, 11, TOTAL - 1, TOTAL, 1000])
def test_the_buffer_capacity_caps_the_frames_that_are_drawn(mixed_dataset, open_data, capacity):
    data = open_data(mixed_dataset, policy__offline_buffer_capacity=capacity)
    whole = open_data(mixed_dataset)
    assert len(data.train) == len(set(drawn_rows(data))) == min(capacity, TOTAL)
    for number, (_, row) in enumerate(drawn_rows(data)):  # a frame's labels do not depend on the cap
        capped, reference = data.train[(0, number)], whole.train[(0, row)]
        for key in ("action", "action_is_pad", "return", CAMERAS[0]):
            assert torch.equal(capped[key], reference[key])


def test_which_frames_a_cap_keeps_depends_on_the_seed_alone(mixed_dataset, open_data):
    kept = {
        seed: [drawn_rows(open_data(mixed_dataset, policy__offline_buffer_capacity=11, seed=seed)) for _ in range(2)]
        for seed in range(4)
    }
    assert all(first == second for first, second in kept.values())
    assert len({tuple(first) for first, _ in kept.values()}) > 1


def test_both_outcomes_of_each_task_are_held_out_and_never_drawn(tmp_path, open_data):
    """As people record: the failures in a row."""
    kinds = [("lift", True)] * 6 + [("lift", False)] * 4 + [("push", True)] * 2 + [("push", False)] * 2
    make_dataset(tmp_path / "data", [{"length": 2, "task": task, "success": success} for task, success in kinds])
    data = open_data(tmp_path / "data", dataset__eval_split=0.4)
    held_out = [kinds[episode.index] for episode in data.held_out.frames.episodes]
    assert Counter(held_out) == {("lift", True): 2, ("lift", False): 2, ("push", True): 1, ("push", False): 1}
    indices = [[e.index for e in part.frames.episodes] for part in (data.train, data.held_out)]
    assert sorted(indices[0] + indices[1]) == list(range(14))
    loader = make_held_out_loader(data, batch_size=4, most=open_data.cfg.max_eval_samples)
    seen = [batch["position"] for batch in loader]
    assert torch.cat(seen).tolist() == list(range(12))  # each held-out frame once
    first = data.held_out.frames.episodes[0]
    assert data.held_out[(0, 0)]["action"][0].tolist() == data.sources[0].columns["action"][first.start].tolist()
    again = open_data(tmp_path / "data", dataset__eval_split=0.4, policy__policy_extraction="none")
    assert again.held_out.frames.episodes == data.held_out.frames.episodes  # so variants can be compared


def test_a_task_keeps_its_only_episode(tmp_path, open_data, caplog):
    make_dataset(tmp_path / "data", [{"length": 2, "success": True}] * 2 + [{"length": 2, "task": "push"}])
    with caplog.at_level("INFO"):
        data = open_data(tmp_path / "data", dataset__eval_split=0.3)
    assert [episode.index for episode in data.held_out.frames.episodes] == [1]
    assert "1 task(s) with a single episode" in caplog.text


def test_the_held_out_frames_can_be_thinned(video_dataset, open_data):
    data = open_data(video_dataset, dataset__eval_split=0.5, max_eval_samples=5)
    loader = make_held_out_loader(data, batch_size=4, most=open_data.cfg.max_eval_samples)
    seen = [batch["position"] for batch in loader]
    assert torch.cat(seen).tolist() == [0, 3, 6, 8, 11, 14]  # of eight and seven frames, from their middles on


def test_a_split_that_leaves_nothing_to_train_on_is_refused(mixed_dataset, open_data):
    with pytest.raises(DatasetError, match=r"eval_split=0\.9 leaves no episode"):
        open_data(mixed_dataset, dataset__eval_split=0.9)
    assert make_held_out_loader(open_data(mixed_dataset), batch_size=4, most=0) is None


# ── n-step returns, folds, filters ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("target", ["monte_carlo", "td"])
def test_samples_carry_the_frames_n_steps_later_of_their_own_episode(video_dataset, open_data, target):
    data = open_data(
        video_dataset,
        policy__advantage_labels="running",
        policy__advantage_n_step=3,
        policy__critic_target=target,
        policy__n_step=6,
        policy__discount=0.5,
    )
    truncated = range(8)  # the first episode
    for n in (3, 6) if target == "td" else (3,):
        for row, sample in enumerate(samples := samples_by_row(data)):
            end = next(end for end in (8, 13, 19, 26) if end > row)
            later = row + n if row + n < end else 7 if row in truncated else row
            for key in (*CAMERAS, "observation.state"):
                assert torch.equal(sample[f"n_step_{n}.{key}"], samples[later][key])
            inside = row + n < end or row in truncated
            assert float(sample[f"n_step_{n}.discount"]) == (1.0 if inside else 0.0)  # steps-to-success: undiscounted
            unit = 16 if row < 8 or 13 <= row < 19 else 14
            cost = (later - row) / unit if inside else (end - 1 - row) / unit
            expected = float("nan") if row == 7 else -cost
            assert float(sample[f"n_step_{n}.reward"]) == pytest.approx(expected, nan_ok=True)
    assert any(key.startswith("n_step_6") for key in samples[0]) == (target == "td")


def test_a_later_frame_is_decoded_only_where_there_is_one(video_dataset, open_data, monkeypatch):
    data, read = open_data(video_dataset, policy__advantage_labels="running", policy__advantage_n_step=3), []
    rows = [row for _, row in drawn_rows(data)]

    def counted(source, camera, row):
        read.append(row)
        return read_picture(source, camera, row)

    monkeypatch.setattr(frames_module, "read_picture", counted)
    for row, frames in [(8, 2), (9, 2), (10, 1), (12, 1), (6, 2), (7, 1)]:  # 13 ends a success, 8 a cut episode
        read.clear()
        _ = data.train[(0, rows.index(row))]
        assert len(read) == frames * len(CAMERAS), row


def test_by_default_no_later_frame_is_read(video_dataset, open_data):
    assert not any(key.startswith("n_step") for key in open_data(video_dataset).train[(0, 0)])
    none = open_data(video_dataset, policy__advantage_n_step=3, policy__policy_extraction="none")
    assert not any(key.startswith("n_step") for key in none.train[(0, 0)])


def test_every_frame_of_an_episode_has_the_episodes_fold_and_held_out_ones_none(mixed_dataset, open_data):
    data = open_data(mixed_dataset, policy__critic_folds=2, dataset__eval_split=0.25)
    folds = {}
    for number in range(len(data.train)):
        episode, _ = data.train.frames[number]
        folds.setdefault(episode.index, set()).add(int(data.train[(0, number)]["fold"]))
    assert all(len(found) == 1 for found in folds.values())
    assert set.union(*folds.values()) == {0, 1}
    assert {int(data.held_out[(0, number)]["fold"]) for number in range(len(data.held_out))} == {-1}
    with pytest.raises(DatasetError, match="critic_folds is 5"):
        open_data(mixed_dataset, policy__critic_folds=5)


def test_filtering_by_outcome_draws_successful_episodes_alone(mixed_dataset, open_data):
    data = open_data(mixed_dataset, policy__policy_extraction="filtered")
    assert [episode.index for episode in data.train.frames.episodes] == [0, 2]
    assert not open_data.cfg.policy.trains_critic
    by_advantage = open_data(mixed_dataset, policy__policy_extraction="filtered", policy__filter_by="advantage")
    assert len(by_advantage.train) == TOTAL  # the critic decides as they are drawn


def test_filtering_by_outcome_needs_a_success(tmp_path, open_data):
    make_dataset(tmp_path / "data", [{"length": 3}] * 2)
    with pytest.raises(DatasetError, match="no episode to train on is a success"):
        open_data(tmp_path / "data", policy__policy_extraction="filtered")


# ── Damage ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def damaged(mixed_dataset, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(mixed_dataset, root)
    return root


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: (root / "meta" / "info.json").write_text("{"),
        lambda root: (root / "meta" / "info.json").write_text("{}"),
        lambda root: change_info(root, lambda info: info.update(codebase_version="v2.1")),
        lambda root: (root / "meta" / "stats.json").write_text("{"),
        lambda root: (root / "meta" / "stats.json").write_text('{"observation.state": [0, 1]}'),
        lambda root: (root / "meta" / "tasks.parquet").unlink(),
        lambda root: shutil.rmtree(root / "data"),
        lambda root: truncate(next((root / "data").rglob("*.parquet"))),
        lambda root: truncate(next((root / "meta" / "episodes").rglob("*.parquet"))),
    ],
)
def test_a_damaged_dataset_is_a_one_line_error_that_names_its_folder(damaged, open_data, damage):
    damage(damaged)
    with pytest.raises(DatasetError, match=f"^the dataset in {damaged} cannot be read: .+") as error:
        open_data(damaged)
    assert "\n" not in str(error.value)


def test_a_missing_dataset_leaves_no_folder_behind(tmp_path, open_data):
    with pytest.raises(DatasetError, match=f"{tmp_path}/a/b/c has no meta/info.json"):
        open_data(tmp_path / "a" / "b" / "c")
    assert not (tmp_path / "a").exists()


def test_a_missing_additional_dataset_is_named(mixed_dataset, tmp_path, open_data):
    with pytest.raises(DatasetError, match=f"{tmp_path}/none"):
        open_data(mixed_dataset, dataset__additional_offline_dataset_paths=[f"{tmp_path}/none"])
    assert not (tmp_path / "none").exists()


def test_a_dataset_without_cameras_or_with_too_many_actions_is_refused(mixed_dataset, open_data):
    state = {"observation.state": {"type": "STATE", "shape": [4]}}
    with pytest.raises(DatasetError, match="no camera"):
        open_data(mixed_dataset, policy__input_features=state)
    with pytest.raises(DatasetError, match=r"3 dimensions, policy\.max_action_dim is 2"):
        open_data(mixed_dataset, policy__max_action_dim=2)


def test_an_episode_the_dataset_does_not_have_is_named(tmp_path, mixed_dataset):
    path = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", dataset__episodes=[1, 30])
    with pytest.raises(DatasetError, match=r"episode 30, but the dataset in .* has 4"):
        open_offline_data(load_config(path))
