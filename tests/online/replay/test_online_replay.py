"""The learner's replay: what stock LeRobot reads of it, what survives a crash, what is dropped."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from replays import OUTCOMES, SPEC, TASKS, make_episode, open_replay, uid_of
from tiny import CAMERAS, write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.dataset import open_offline_data
from lerobot_policy_pi05_rl.data.files.folder import open_dataset
from lerobot_policy_pi05_rl.data.outcomes import known_outcomes
from lerobot_policy_pi05_rl.data.pictures.video import read_frames
from lerobot_policy_pi05_rl.data.sources import dataset_fingerprint, load_source
from lerobot_policy_pi05_rl.online.episode import BadEpisodeError, Episode, EpisodeSpec, decode_picture
from lerobot_policy_pi05_rl.online.replay import files as replay_files
from lerobot_policy_pi05_rl.online.replay import replay as online_replay
from lerobot_policy_pi05_rl.online.replay.recovery import ReplayError
from lerobot_policy_pi05_rl.online.replay.replay import Replay
from lerobot_policy_pi05_rl.online.replay.stored_episode import uid_numbers
from lerobot_policy_pi05_rl.returns import Outcome


def filled(root: Path, numbers, capacity: int = 1000, length: int = 5) -> Replay:
    replay = open_replay(root, capacity)
    for number in numbers:
        assert replay.append(make_episode(number, length))
    return replay


def check_with_lerobot(root: Path, episodes: list[Episode]) -> None:
    """Stock LeRobot reads exactly ``episodes`` from ``root``: every column of every frame, and its pictures."""
    dataset = LeRobotDataset("test/replay", root=root, video_backend="pyav")
    assert dataset.num_episodes == len(episodes)
    assert len(dataset) == dataset.meta.total_frames == sum(map(len, episodes)) == len(dataset.hf_dataset)
    index = 0
    for number, episode in enumerate(episodes):
        row = dataset.meta.episodes[number]
        assert (row["dataset_from_index"], row["length"], row["tasks"]) == (index, len(episode), [episode.task])
        for step in range(len(episode)):
            last = step == len(episode) - 1
            frame = dataset[index]
            np.testing.assert_array_equal(frame["observation.state"], episode.state[step])
            np.testing.assert_array_equal(frame["action"], episode.action[step])
            assert frame["next.reward"].item() == episode.reward[step]
            assert frame["next.success"].item() == (last and episode.outcome is Outcome.SUCCESS)
            assert frame["next.done"].item() == last
            assert frame["next.cut_off"].item() == (last and episode.outcome is Outcome.TRUNCATED)
            assert frame["intervention"].item() == episode.intervention[step]
            assert frame["policy_version"].item() == episode.policy_version[step]
            assert b"".join(n.to_bytes(8, signed=True) for n in frame["episode_uid"].tolist()).hex() == episode.uid
            assert frame["task"] == episode.task
            assert (frame["episode_index"], frame["frame_index"], frame["index"]) == (number, step, index)
            for camera in CAMERAS:
                sent = decode_picture(episode.pictures[camera][step]).astype(int)
                stored = frame[camera].permute(1, 2, 0).numpy() * 255
                assert np.abs(stored - sent).mean() < 6
            index += 1


def check_snapshot(replay: Replay, episodes: list[Episode]) -> None:
    """The replay's own view: columns, outcomes, pictures."""
    assert len(replay) == sum(map(len, episodes)) and replay.episodes == len(episodes)
    source = replay.source()
    assert source.tasks == [episode.task for episode in episodes]
    np.testing.assert_array_equal(source.columns["episode_uid"][source.starts], [uid_numbers(e.uid) for e in episodes])
    assert known_outcomes(source, None, primary=True) == [episode.outcome for episode in episodes]
    np.testing.assert_array_equal(source.columns["action"], np.concatenate([e.action for e in episodes]))
    np.testing.assert_array_equal(source.columns["next.reward"], np.concatenate([e.reward for e in episodes]))
    for number, episode in enumerate(episodes):
        start, end = source.starts[number], source.ends[number]
        assert end - start == len(episode) and source.tasks[number] == episode.task
        for camera, files in source.videos.items():
            path, begin, _ = files[int(source.columns["episode_index"][start])]
            time = begin + float(source.columns["timestamp"][end - 1])
            tolerance_s, backend = source.dataset.tolerance_s, source.video_backend
            found = next(read_frames(path, [time], tolerance_s=tolerance_s, backend=backend))
            sent = decode_picture(episode.pictures[camera][-1]).astype(int)
            assert np.abs(found.permute(1, 2, 0).numpy() - sent).mean() < 6


def test_stock_lerobot_reads_every_frame_as_it_was_appended(tmp_path):
    episodes = [make_episode(number, length) for number, length in enumerate((5, 1, 8))]
    replay = open_replay(tmp_path / "replay")
    for episode in episodes:
        assert replay.append(episode)
    check_with_lerobot(tmp_path / "replay", episodes)
    check_snapshot(replay, episodes)
    info = json.loads((tmp_path / "replay/meta/info.json").read_text())
    assert info["features"]["action"]["names"] == ["x", "y", "z"] and info["robot_type"] == "tiny"
    assert info["features"][CAMERAS[0]]["info"]["video.codec"] == "h264"


def test_a_snapshot_is_what_the_offline_code_loads_from_the_folder(tmp_path):
    replay = filled(tmp_path / "replay", range(4))
    own = replay.source()
    stock = load_source("test/replay", open_dataset("test/replay", tmp_path / "replay"), "pyav")
    assert stock.columns.keys() <= own.columns.keys()  # offline reads what it needs, the replay keeps all
    assert {"action", "observation.state", "next.success", "next.reward", "timestamp"} <= stock.columns.keys()
    for key, values in stock.columns.items():
        np.testing.assert_array_equal(own.columns[key], values)
        assert own.columns[key].dtype == values.dtype
    assert own.videos == stock.videos and own.tasks == stock.tasks
    assert dataset_fingerprint(own) == dataset_fingerprint(stock)
    assert own.stats.keys() == stock.stats.keys()
    for key, stats in stock.stats.items():
        for name, value in stats.items():
            np.testing.assert_allclose(own.stats[key][name], value)


def test_pi05_rl_offline_reads_the_folder_with_its_outcomes(tmp_path):
    filled(tmp_path / "replay", range(6))
    path = write_config(tmp_path / "run.json", tmp_path / "replay", tmp_path / "run")
    cfg = load_config(path, ["--dataset.video_backend=pyav"])
    cfg.validate()
    data = open_offline_data(cfg)
    assert [episode.outcome for episode in data.labels.episodes] == list(OUTCOMES) * 2
    sample = data.train[(0, 3)]
    assert sample[CAMERAS[0]].shape == (3, 32, 32) and sample["action"].shape == (6, 3)


def test_snapshots_never_change_and_hold_columns_only(tmp_path):
    replay = filled(tmp_path / "replay", range(2))
    before = replay.source()
    copy = {key: values.copy() for key, values in before.columns.items()}
    for number in range(2, 12):
        replay.append(make_episode(number, 150))
    for key, values in copy.items():
        np.testing.assert_array_equal(before.columns[key], values)
        assert not before.columns[key].flags.writeable
    assert not set(before.columns) & set(CAMERAS)
    assert all(values.size <= 4 * len(replay) for values in replay.source().columns.values())


def test_a_duplicate_is_refused_before_and_after_it_was_evicted(tmp_path):
    replay = filled(tmp_path / "replay", range(6), capacity=12)
    for again in (replay, open_replay(tmp_path / "replay", 12)):
        assert [again.append(make_episode(number)) for number in range(6)] == [False] * 6
        assert again.episodes_received == 6 and all(uid_of(number) in again for number in range(6))
        assert (again.transitions_received, again.episodes_received) == (30, 6)
        check_snapshot(again, [make_episode(4), make_episode(5)])


def test_the_newest_episodes_are_kept_and_everything_else_leaves_the_disk(tmp_path):
    root = tmp_path / "replay"
    replay = open_replay(root, capacity=22)
    for number in range(9):
        replay.append(make_episode(number))
        kept = [make_episode(n) for n in range(max(0, number - 3), number + 1)]
        check_snapshot(replay, kept)
        assert LeRobotDataset("test/replay", root=root).meta.total_frames <= 22 * 1.1
    replay.compact()
    check_with_lerobot(root, kept)
    assert len(list(root.glob("data/*/*"))) == 1 and len(list(root.glob("meta/episodes/*/*"))) == 1
    replay.append(make_episode(9))
    reopened = open_replay(root, capacity=22)
    check_snapshot(reopened, [make_episode(n) for n in range(6, 10)])
    check_with_lerobot(root, [make_episode(n) for n in range(6, 10)])
    assert len(list(root.glob("videos/*/*/*.mp4"))) == 4 * len(CAMERAS)


def test_a_snapshot_taken_before_an_eviction_can_still_be_read(tmp_path):
    replay = filled(tmp_path / "replay", range(4), capacity=20)
    source = replay.source()
    replay.append(make_episode(4))  # 25 > 22: the oldest is evicted
    assert json.loads((tmp_path / "replay/meta/info.json").read_text())["total_frames"] == 20
    assert all(path.exists() for files in source.videos.values() for path, *_ in files.values())


def test_many_small_tables_are_merged_without_losing_an_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(online_replay, "MOST_TABLES", 3)
    replay = filled(tmp_path / "replay", range(4))
    assert len(list((tmp_path / "replay").glob("data/*/*"))) == 2
    check_snapshot(replay, [make_episode(n) for n in range(4)])
    check_with_lerobot(tmp_path / "replay", [make_episode(n) for n in range(4)])
    check_snapshot(open_replay(tmp_path / "replay"), [make_episode(n) for n in range(4)])


def test_an_episode_longer_than_the_capacity_is_kept_alone(tmp_path):
    replay = filled(tmp_path / "replay", range(3), capacity=3)
    check_snapshot(replay, [make_episode(2)])
    check_with_lerobot(tmp_path / "replay", [make_episode(2)])


def test_the_ledger_tells_what_came_from_whom_and_survives_a_torn_line(tmp_path):
    root = tmp_path / "replay"
    filled(root, range(3))
    ledger = root / replay_files.LEDGER
    lines = ledger.read_text().splitlines()
    assert json.loads(lines[1]) == {
        "uid": uid_of(1),
        "length": 5,
        "outcome": "failure",
        "actor": "robot-1",
        "started": 1e9 + 1,
    }
    ledger.write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])
    assert open_replay(root).episodes_received == 3
    assert ledger.read_text().splitlines() == lines


class Killed(BaseException):
    """The process is gone."""


CALLS = ("replace", "rename", "fsync", "unlink", "mkdir", "rmdir")


def dying(monkeypatch, after: int):
    """From the ``after``-th change of the disk on, nothing happens any more."""
    counter = {"left": after}

    def wrap(name: str):
        real = getattr(os, name)

        def call(*args, **kwargs):
            counter["left"] -= 1
            if counter["left"] < 0:
                raise Killed
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, wrap(name))
    return counter


def die_everywhere(monkeypatch, root: Path, act, check) -> int:
    """Copy ``root``, kill ``act`` at its first, second, … change of the disk, and ``check`` each folder that is left;
    how many there were."""
    for after in range(1000):
        copy = root.with_name(f"crash-{after}")
        shutil.copytree(root, copy) if root.exists() else None
        replay = act(copy, None)  # what is done before the clock runs
        with monkeypatch.context() as patch:
            counter = dying(patch, after)
            try:
                act(copy, replay)
                survived = True
            except Killed:
                survived = False
        if survived:
            assert counter["left"] >= 0
            return after
        check(copy)
        shutil.rmtree(copy)
    raise AssertionError("it never ends")


def test_an_append_that_is_killed_anywhere_is_there_or_not(tmp_path, monkeypatch):
    root = tmp_path / "replay"
    filled(root, range(2))
    seen = set()

    def act(copy, replay):
        return open_replay(copy) if replay is None else replay.append(make_episode(2))

    def check(copy):
        replay = open_replay(copy)
        there = uid_of(2) in replay
        seen.add(there)
        check_snapshot(replay, [make_episode(n) for n in range(3 if there else 2)])
        assert replay.append(make_episode(2)) is not there
        assert replay.append(make_episode(3))
        check_snapshot(replay, [make_episode(n) for n in range(4)])
        lines = (copy / replay_files.LEDGER).read_text().splitlines()
        assert [json.loads(line)["uid"] for line in lines] == [uid_of(n) for n in range(4)]
        assert len(list(copy.glob("videos/*/*/*"))) == 4 * len(CAMERAS)
        assert len(list(copy.glob("data/*/*"))) == 4

    assert die_everywhere(monkeypatch, root, act, check) > 15
    assert seen == {True, False}


def test_a_compaction_that_is_killed_anywhere_loses_nothing(tmp_path, monkeypatch):
    root = tmp_path / "replay"
    filled(root, range(4), capacity=8, length=2)
    points = []

    def act(copy, replay):
        return open_replay(copy, capacity=4) if replay is None else replay.compact()

    def check(copy):
        points.append(len(list(copy.glob("data/*/*"))))
        replay = open_replay(copy, capacity=4)
        assert not [path for path in copy.iterdir() if path.name.startswith(".")]
        check_snapshot(replay, [make_episode(n, 2) for n in (2, 3)])
        assert replay.episodes_received == 4
        if len(points) % 5 == 0:
            assert replay.append(make_episode(4, 2))
            check_snapshot(replay, [make_episode(n, 2) for n in (3, 4)])

    assert die_everywhere(monkeypatch, root, act, check) > 15


APPENDING = """
import sys
from pathlib import Path
from replays import make_episode, open_replay
replay = open_replay(Path(sys.argv[1]), capacity=10)
for number in range(100):
    replay.append(make_episode(number))
    print(number, flush=True)
"""


def test_a_process_that_is_killed_leaves_what_it_said_was_stored(tmp_path):
    paths = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", APPENDING, str(tmp_path / "replay")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    ) as child:
        stored = next(int(line) for line in child.stdout if line.strip() == "6")
        child.kill()  # in the middle of the next ones
    replay = open_replay(tmp_path / "replay", capacity=10)
    number = replay.episodes_received
    assert stored < number < 100 and replay.episodes_received == number
    assert all(uid_of(n) in replay for n in range(number))
    check_snapshot(replay, [make_episode(n) for n in range(number - 2, number)])
    assert replay.append(make_episode(number))
    replay.compact()
    check_with_lerobot(tmp_path / "replay", [make_episode(n) for n in (number - 1, number)])


@pytest.mark.parametrize("after", [3, 9, 14, 17, 20, 24, 40])
def test_stock_lerobot_reads_what_is_recovered(tmp_path, monkeypatch, after):
    root = tmp_path / "replay"
    replay = filled(root, range(3), capacity=15)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dying(patch, after)
        replay.append(make_episode(3))  # 20 > 16.5: it is compacted too
    replay = open_replay(root, capacity=15)
    replay.append(make_episode(3))
    replay.compact()
    check_with_lerobot(root, [make_episode(n) for n in (1, 2, 3)])


def test_an_interrupted_creation_starts_over(tmp_path, monkeypatch):
    def act(copy, replay):
        return 1 if replay is None else open_replay(copy)

    def check(copy):
        check_snapshot(filled(copy, range(1)), [make_episode(0)])

    assert die_everywhere(monkeypatch, tmp_path / "replay", act, check) > 5


def test_a_damaged_picture_is_refused_and_nothing_of_it_stays(tmp_path):
    replay = filled(tmp_path / "replay", range(1))
    bad = make_episode(1)
    bad.pictures[CAMERAS[1]][3] = b"\xff\xd8 no picture"
    with pytest.raises(BadEpisodeError, match="decoded"):
        replay.append(bad)
    assert replay.append(make_episode(1))
    check_with_lerobot(tmp_path / "replay", [make_episode(0), make_episode(1)])


def test_after_a_failed_write_nothing_more_is_taken_until_it_is_opened_again(tmp_path, monkeypatch):
    replay = filled(tmp_path / "replay", range(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(replay_files, "write_json", full)
        replay.append(make_episode(1))
    with pytest.raises(ReplayError, match="free the disk"):
        replay.append(make_episode(2))
    replay = open_replay(tmp_path / "replay")
    assert replay.append(make_episode(1))
    check_snapshot(replay, [make_episode(0), make_episode(1)])


def test_a_new_task_is_added_behind_the_old_ones(tmp_path):
    filled(tmp_path / "replay", range(2))
    spec = EpisodeSpec(4, 3, SPEC.cameras, ("close the drawer", *TASKS), fps=10)
    replay = open_replay(tmp_path / "replay", spec=spec)
    third = Episode(**{**vars(make_episode(2)), "task": "close the drawer"})
    assert replay.append(third)
    check_with_lerobot(tmp_path / "replay", [make_episode(0), make_episode(1), third])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fps": 20}, "10 frames per second, not 20"),
        ({"action_dim": 5}, "action is"),
        ({"cameras": {CAMERAS[0]: (32, 32)}}, CAMERAS[1]),
        ({"fps": 12.5}, "whole frames"),
    ],
)
def test_a_replay_of_another_run_is_one_clear_error(tmp_path, change, words):
    filled(tmp_path / "replay", range(1))
    with pytest.raises(ReplayError, match=words):
        open_replay(tmp_path / "replay", spec=EpisodeSpec(**{**vars(SPEC), **change}))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "replay").mkdir()
    (tmp_path / "replay" / "notes.txt").write_text("mine")
    with pytest.raises(ReplayError, match=r"notes\.txt"):
        open_replay(tmp_path / "replay")
    assert (tmp_path / "replay" / "notes.txt").read_text() == "mine"


def test_removed_files_are_named(tmp_path):
    filled(tmp_path / "replay", range(2))
    next((tmp_path / "replay/data").rglob("file-001.parquet")).unlink()
    with pytest.raises(ReplayError, match=r"lacks data/chunk-000/file-001"):
        open_replay(tmp_path / "replay")
