"""Outcomes set one by one: each is in the file at once, whole, and over what others say."""

import csv

import pytest
from recordings import make_dataset
from tiny import write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.sources import outcomes_path
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.labels.browser.session import LabelSession
from lerobot_policy_pi05_rl.labels.options import LabelOptions
from lerobot_policy_pi05_rl.labels.outcomes import outcome_sources, set_outcomes
from lerobot_policy_pi05_rl.returns import Outcome
from lerobot_policy_pi05_rl.runtime import files

EPISODES = [{"length": 5 + k, "success": k % 2 == 0} for k in range(4)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("session")
    make_dataset(folder / "first", EPISODES)
    make_dataset(folder / "second", EPISODES[:2], columns=(), seed=1)
    return folder


@pytest.fixture
def sources(recorded, tmp_path):
    """A dataset with a success column, and one of which nobody knows anything; what is set lies in ``tmp_path``."""
    for name in ("first", "second"):
        (tmp_path / name).symlink_to(recorded / name)
    others = [str(tmp_path / "second")]
    path = write_config(
        tmp_path / "c.json", tmp_path / "first", tmp_path / "run", dataset__additional_offline_dataset_paths=others
    )
    return outcome_sources(load_config(path))


def written(sources) -> list[dict]:
    with outcomes_path(sources[0]).open() as file:
        return list(csv.DictReader(file))


def test_each_outcome_is_in_the_file_before_the_next(sources):
    session = LabelSession(sources, None)
    assert session.found(0, 0) == (Outcome.SUCCESS, "next.success") and session.found(1, 0) == (None, None)
    assert dict(session.counts()) == {"success": 2, "failure": 2, "unlabelled": 2}
    session.set_outcome(0, 0, Outcome.FAILURE)
    assert written(sources) == [{"episode_index": "0", "outcome": "failure"}]
    session.set_outcome(1, 1, Outcome.TRUNCATED)
    assert written(sources) == [
        {"episode_index": "0", "outcome": "failure", "dataset": ""},
        {"episode_index": "1", "outcome": "truncated", "dataset": sources[1].name},
    ]
    assert session.found(0, 0) == (Outcome.FAILURE, "the outcome file")
    assert LabelSession(sources, None).counts() == session.counts(), "closing and coming back goes on"


def test_undo_takes_back_in_order_and_what_was_there_before_comes_back(sources):
    session = LabelSession(sources, None)
    assert not session.can_undo and session.undo() is None
    session.set_outcome(1, 0, Outcome.SUCCESS)
    session.set_outcome(1, 0, Outcome.FAILURE)
    session.set_outcome(0, 1, Outcome.SUCCESS)
    assert session.undo() == (0, 1) and session.found(0, 1) == (Outcome.FAILURE, "next.success")
    assert session.undo() == (1, 0) and session.found(1, 0).outcome is Outcome.SUCCESS
    assert session.undo() == (1, 0) and session.found(1, 0) == (None, None)
    assert written(sources) == [] and not session.can_undo


def test_what_another_command_sets_meanwhile_is_not_lost(sources):
    session = LabelSession(sources, None)
    session.set_outcome(0, 0, Outcome.FAILURE)
    set_outcomes(LabelOptions(success="3"), sources, None)
    session.set_outcome(0, 1, Outcome.SUCCESS)
    assert [(row["episode_index"], row["outcome"]) for row in written(sources)] == [
        ("0", "failure"),
        ("1", "success"),
        ("3", "success"),
    ]


def test_the_configurations_file_is_over_what_was_set_before(sources, tmp_path):
    LabelSession(sources, None).set_outcome(0, 2, Outcome.FAILURE)
    (tmp_path / "graded.csv").write_text("episode_index,outcome\n2,truncated\n3,success\n")
    session = LabelSession(sources, str(tmp_path / "graded.csv"))
    assert [session.found(0, episode).outcome for episode in (2, 3)] == [Outcome.TRUNCATED, Outcome.SUCCESS]
    session.set_outcome(0, 2, Outcome.SUCCESS)
    assert session.found(0, 2).outcome is Outcome.SUCCESS and len(written(sources)) == 2


def test_a_file_that_cannot_be_written_changes_nothing(sources, monkeypatch):
    session = LabelSession(sources, None)
    session.set_outcome(0, 0, Outcome.FAILURE)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            session.set_outcome(0, 1, Outcome.SUCCESS)
        with pytest.raises(OSError, match="No space"):
            session.undo()
    assert session.found(0, 1) == (Outcome.FAILURE, "next.success") and len(written(sources)) == 1
    assert session.undo() == (0, 0), "what could not be taken back can still be"


def test_a_file_that_was_damaged_meanwhile_is_said_and_kept(sources):
    session = LabelSession(sources, None)
    outcomes_path(sources[0]).parent.mkdir(exist_ok=True)
    outcomes_path(sources[0]).write_text("episode_index,outcome\n0,perhaps\n")
    with pytest.raises(UserError, match="perhaps"):
        session.set_outcome(0, 1, Outcome.SUCCESS)
    assert "perhaps" in outcomes_path(sources[0]).read_text()


@pytest.mark.parametrize("episode", [(0, 99), (2, 0), (-1, 0)])
def test_an_episode_that_is_not_there_is_refused(sources, episode):
    with pytest.raises(UserError, match="there is no episode"):
        LabelSession(sources, None).set_outcome(*episode, Outcome.SUCCESS)
    assert not outcomes_path(sources[0]).exists()
