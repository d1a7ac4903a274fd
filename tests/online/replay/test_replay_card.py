"""The card beside the replay counts what is in it, however the learner ended, and leaves a person's text alone."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from cards import blocks, shown, tables
from huggingface_hub import DatasetCard
from replays import ENCODER, OUTCOMES, SPEC, make_episode, open_replay

from lerobot_policy_pi05_rl.cards.text import is_untouched
from lerobot_policy_pi05_rl.online.episode import Episode
from lerobot_policy_pi05_rl.online.replay.replay import Replay
from lerobot_policy_pi05_rl.returns import Outcome

STRANGE = 'pick | the "cube"\n--- `x` <b> [y](z) \\|'


def card_of(root: Path) -> str:
    return (root / "README.md").read_text()


def counted(episodes: list[Episode], gone: int = 0) -> dict[str, str]:
    """What the first table must say of these episodes."""
    outcomes = [episode.outcome for episode in episodes]
    return {
        "episodes": str(len(episodes)),
        "succeeded": str(outcomes.count(Outcome.SUCCESS)),
        "failed": str(outcomes.count(Outcome.FAILURE)),
        "cut off, nobody knows how they would have ended": str(outcomes.count(Outcome.TRUNCATED)),
        "frames": str(sum(map(len, episodes))),
        "frames at which a person acted": str(sum(int(episode.intervention.sum()) for episode in episodes)),
        "episodes in which a person acted": str(sum(bool(episode.intervention.any()) for episode in episodes)),
        "earlier episodes that are gone": str(gone),
        "actors": str(len({episode.actor for episode in episodes})),
    }


def check_card(root: Path, episodes: list[Episode], gone: int = 0) -> None:
    text = card_of(root)
    (_, *rows), (_, *tasks) = tables(text)
    assert dict(rows) == counted(episodes, gone)
    names = [episode.task for episode in episodes]
    assert {shown(task): int(count) for task, count in tasks} == {name: names.count(name) for name in set(names)}
    versions = [int(version) for episode in episodes for version in episode.policy_version]
    steps = f"optimization steps {min(versions)} to {max(versions)} acted" if versions else ""
    assert steps in text and (versions or "**Policy:**" not in text)


def test_the_card_counts_what_is_there_and_a_new_start_writes_the_same(tmp_path):
    root, episodes = tmp_path / "replay", [make_episode(number, 3 + number) for number in range(5)]
    replay = open_replay(root)
    check_card(root, [])
    for number, episode in enumerate(episodes):
        replay.append(episode)
        check_card(root, episodes[: number + 1])
    assert replay.outcomes_received() == {
        outcome.value: [e.outcome for e in episodes].count(outcome) for outcome in OUTCOMES
    }
    text = card_of(root)
    assert "**Robot:** `tiny`" in text and "**Rate:** 10 frames" in text and "started from" not in text
    again = open_replay(root)
    assert card_of(root) == text and again.outcomes_received() == replay.outcomes_received()
    (root / "README.md").unlink()  # of an earlier version, or lost by a crash
    open_replay(root)
    assert card_of(root) == text


def test_episodes_that_are_gone_are_counted_as_gone(tmp_path):
    root, episodes = tmp_path / "replay", [make_episode(number) for number in range(8)]
    replay = open_replay(root, capacity=12)
    for episode in episodes:
        replay.append(episode)
    replay.compact()
    check_card(root, episodes[-replay.episodes :], gone=8 - replay.episodes)
    assert replay.episodes < 8 and sum(replay.outcomes_received().values()) == 8


def test_its_python_opens_the_replay_with_stock_lerobot(tmp_path, monkeypatch):
    replay = open_replay(tmp_path / "replay")
    replay.append(make_episode(0))
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    (code,) = blocks(card_of(tmp_path / "replay"), "python")
    exec(code, found)
    assert found["dataset"].repo_id == replay.repo_id and found["dataset"].num_episodes == 1
    assert (
        f"--dataset.repo_id={replay.repo_id} --dataset.root=replay" in blocks(card_of(tmp_path / "replay"), "bash")[0]
    )


def test_the_front_matter_is_lerobots_and_strange_names_break_nothing(tmp_path):
    spec = replace(SPEC, tasks=(STRANGE, *SPEC.tasks))
    root, name = tmp_path / "replay", 'local/it\'s "mine"\n---\n_replay'
    options = {"names": {}, "robot_type": None, "capacity": 100, "started_from": "/home/me/run/checkpoints/000002/x"}
    replay = Replay.open(root, spec, repo_id=name, encoder=ENCODER, **options)
    replay.append(replace(make_episode(0), task=STRANGE))
    text = card_of(root)
    assert DatasetCard(text).data.to_dict() == {
        "tags": ["LeRobot", "pi05_rl", "online-rl"],
        "task_categories": ["robotics"],
        "configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}],
    }
    assert [shown(row[0]) for row in tables(text)[1][1:]] == [" ".join(STRANGE.split())]
    assert f"# {shown(' '.join(name.split()))}" == shown(text.splitlines()[text.splitlines().index("") + 1])
    assert "**It started from:** `run/checkpoints/000002/x`" in text and "**Robot:**" not in text
    (code,) = blocks(text, "python")
    compile(code, "card", "exec")


def test_an_edited_card_stays(tmp_path):
    root = tmp_path / "replay"
    replay = open_replay(root)
    replay.append(make_episode(0))
    edited = card_of(root).replace("## Use", "## Mine")
    (root / "README.md").write_text(edited)
    replay.append(make_episode(1))
    assert card_of(open_replay(root).root) == edited and not is_untouched(edited)


def test_a_card_that_cannot_be_written_loses_no_episode(tmp_path, caplog):
    root = tmp_path / "replay"
    replay = open_replay(root)
    (root / "README.md").unlink()
    (root / "README.md").mkdir()
    with caplog.at_level(logging.WARNING):
        assert replay.append(make_episode(0))
    assert replay.episodes == 1 and "The card of the replay" in caplog.text and "Is a directory" in caplog.text


@pytest.mark.parametrize("number", [0, 1])
def test_what_a_crash_leaves_beside_the_card_does_not_matter(tmp_path, number):
    root = tmp_path / "replay"
    replay = open_replay(root)
    for episode in range(number):
        replay.append(make_episode(episode))
    (root / ".README.md.new").write_text("half")
    open_replay(root).append(make_episode(number))
    check_card(root, [make_episode(episode) for episode in range(number + 1)])
    assert not (root / ".README.md.new").exists()
