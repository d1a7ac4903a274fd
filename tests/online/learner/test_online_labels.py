"""An episode that arrives is labelled by the rule, and with the critics, that labelled the offline data."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recordings import make_dataset
from tiny import write_config

from lerobot_policy_pi05_rl.advantage import TAG_POSITIVE
from lerobot_policy_pi05_rl.checkpoint.critic_provenance import critic_fingerprint
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.resolve import changed, resolved
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.data.frames import FrameDataset
from lerobot_policy_pi05_rl.data.labeling import RUN_LABELS, read_labeling
from lerobot_policy_pi05_rl.data.sources import Source
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.labels import own_run
from lerobot_policy_pi05_rl.labels.command import main as label
from lerobot_policy_pi05_rl.noise import sample_noise
from lerobot_policy_pi05_rl.offline_learner import train_offline
from lerobot_policy_pi05_rl.online.config import OnlineTrainConfig
from lerobot_policy_pi05_rl.online.learner.batches import OnlineBatches, draw
from lerobot_policy_pi05_rl.online.learner.feed import arrival_labels
from lerobot_policy_pi05_rl.online.learner.learner import labelled
from lerobot_policy_pi05_rl.thresholds import upper_threshold
from lerobot_policy_pi05_rl.training.start import Run, start

EPISODES = [{"length": 9 + k % 3, "success": k % 2 == 0, "intervention": 5 if k == 3 else None} for k in range(8)]
FRAMES = sum(episode["length"] for episode in EPISODES)
CHANGES = {"policy__critic_folds": 2, "policy__advantage_positive_weight": 3.0, "env": {"type": "panda_pick_cube"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("arrivals") / "data"
    made = [{key: value for key, value in episode.items() if value is not None} for episode in EPISODES]
    make_dataset(root, made, columns=("next.reward", "next.success", "intervention"))
    return root


@pytest.fixture(scope="module")
def critic(data) -> Path:
    """The checkpoint of an offline run."""
    path = write_config(data.parent / "offline.json", data, data.parent / "offline", **CHANGES)
    return train_offline(load_config(path)) / "pretrained_model"


def config(folder: Path, data: Path, critic: Path | None, *overrides: str) -> OnlineTrainConfig:
    path = write_config(folder / "run.json", data, folder / "offline", **CHANGES)
    given = [f"--output_dir={folder / 'online'}", f"--policy.pi05_checkpoint={critic or 'null'}", *overrides]
    return resolved(load_config(path, given, OnlineTrainConfig))


@pytest.fixture
def run(tmp_path, data, critic) -> Run:
    return labelled(start(config(tmp_path, data, critic)))


def labels_of(run: Run) -> dict[str, np.ndarray]:
    (path,) = (run.cfg.run_dir / RUN_LABELS).glob("*.parquet")
    return read_labeling(path).columns


def frames_of(run: Run, source: Source | None = None) -> FrameDataset:
    """The offline data itself, as if it had arrived."""
    return arrival_labels(run.cfg, run.data, run.algorithm).frames(source or run.data.sources[0])


def test_the_offline_data_are_labelled_by_the_checkpoints_critics_as_the_command_does(run, critic, data):
    label([str(critic.parents[2]), "--name", "command"])
    expected = read_labeling(data.with_name("data.labels") / "command.parquet").columns
    for name, column in labels_of(run).items():
        if column.dtype.kind == "f":
            np.testing.assert_allclose(column, expected[name], rtol=1e-5, atol=1e-6)
        elif name not in ("tag", "positive"):  # those may turn where two advantages are nearly one
            np.testing.assert_array_equal(column, expected[name])


def test_offline_samples_are_drawn_and_tagged_by_those_labels(run):
    labels, frames = labels_of(run), run.data.train
    positive = labels["tag"] == TAG_POSITIVE
    assert 0 < positive.sum() < FRAMES
    np.testing.assert_array_equal(frames.precomputed[0].tags, labels["tag"])
    np.testing.assert_array_equal(frames.frames.repetitions, np.where(positive, 3.0, 1.0))


def test_an_episode_that_arrives_has_the_advantages_of_the_rule(run):
    """Each critic is asked of the episodes of its fold; which fold that is, the arrival decides anew."""
    labels = arrival_labels(run.cfg, run.data, run.algorithm)
    frames = labels.frames(run.data.sources[0])
    offline = labels_of(run)
    same = np.array([frames.folds[0, int(index)] for index in offline["episode_index"]]) == offline["fold"]
    assert same.any()
    advantages = frames.precomputed[0].advantages
    np.testing.assert_allclose(advantages[same], offline["advantage"][same], rtol=1e-4, atol=1e-5)
    assert not np.isnan(advantages).any()


def test_what_is_positive_is_so_beside_offline_data_and_replay(run):
    frames, offline = frames_of(run), labels_of(run)
    found, corrected = frames.precomputed[0], offline["intervention"]
    together = np.concatenate([offline["advantage"][~corrected], found.advantages[~corrected]])
    threshold = upper_threshold(together, run.cfg.policy.advantage_positive_fraction)
    np.testing.assert_array_equal(found.tags == TAG_POSITIVE, (found.advantages > threshold) | corrected)
    assert corrected.any() and (found.tags[corrected] == TAG_POSITIVE).all()


def test_positive_frames_of_the_replay_are_drawn_more_often_and_the_critic_takes_it_back(run):
    frames = frames_of(run)
    positive = frames.precomputed[0].tags == TAG_POSITIVE
    np.testing.assert_array_equal(frames.frames.repetitions, np.where(positive, 3.0, 1.0))
    drawn = np.bincount(draw(frames.frames, 100_000, np.random.default_rng(0)), minlength=FRAMES)
    expected = frames.frames.repetitions / frames.frames.repetitions.sum()
    np.testing.assert_allclose(drawn / drawn.sum(), expected, rtol=0.15)
    weighted = drawn * frames.frames.importance_weights
    np.testing.assert_allclose(weighted / weighted.sum(), 1 / FRAMES, rtol=0.15)
    batches = OnlineBatches(run.data, 4, 2, seed=0)
    batches.show(frames)
    batch = next(batches)
    batches.close()
    assert {"precomputed_advantage", "precomputed_tag", "importance_weight"} <= batch.keys()
    loss, metrics, _ = run.algorithm._forward(
        run.algorithm.preprocess(batch),
        sample_noise(0, batch["position"], run.algorithm.policy.config),
        train_actor=True,
        synchronise=True,
    )
    assert loss.isfinite() and metrics["loss_actor"] > 0


def test_later_arrivals_leave_the_advantages_of_earlier_ones_and_move_the_threshold_alone(run, monkeypatch):
    source = run.data.sources[0]
    end = int(source.ends[3])
    first = replace(
        source,
        columns={name: column[:end] for name, column in source.columns.items()},
        starts=source.starts[:4],
        ends=source.ends[:4],
        tasks=source.tasks[:4],
    )
    asked = []
    labels = arrival_labels(run.cfg, run.data, run.algorithm)
    values_of = labels._values
    monkeypatch.setattr(labels, "_values", lambda frames: asked.append(len(frames)) or values_of(frames))
    before = labels.frames(first).precomputed[0].advantages.copy()
    assert asked == [episode["length"] for episode in EPISODES[:4]]
    after = labels.frames(source).precomputed[0].advantages
    np.testing.assert_array_equal(after[:end], before)
    assert asked == [episode["length"] for episode in EPISODES], "no frame is asked about twice"


def test_labels_of_another_run_serve_and_their_rule_holds(tmp_path, data, critic, monkeypatch):
    label([str(critic.parents[2]), "--name", "short", "--n-step", "1", "--smoothing", "0"])
    monkeypatch.setattr(own_run, "source_values", None)  # nothing is labelled anew
    run = labelled(start(config(tmp_path, data, critic, "--dataset.labeling=short")))
    rule = arrival_labels(run.cfg, run.data, run.algorithm)._rule
    assert set(rule.n_steps.values()) == {1} and rule.smoothing is None
    assert not (run.cfg.run_dir / RUN_LABELS).exists()
    assert not np.isnan(frames_of(run).precomputed[0].advantages).any()


def test_a_critic_must_have_learnt(tmp_path, data, critic):
    with pytest.raises(ConfigError, match=r"has no critic that has learnt.*advantage_labels=running"):
        start(config(tmp_path, data, None))
    running = start(config(tmp_path, data, None, "--policy.advantage_labels=running"))
    assert arrival_labels(running.cfg, running.data, running.algorithm).frames(running.data.sources[0])


def test_a_stop_while_labelling_costs_no_value(tmp_path, data, critic, monkeypatch):
    asked, predict = [], own_run.predict

    def stopped(run, batch):
        asked.append(len(batch["action"]))
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return predict(run, batch)

    monkeypatch.setattr(own_run, "predict", stopped)
    cfg = config(tmp_path, data, critic)
    run = start(cfg)
    with run.stop, pytest.raises(UserError, match="stopped while the offline data were labelled"):
        labelled(run)
    before = sum(asked)
    assert 0 < before < FRAMES
    run = labelled(start(changed(cfg, resume=True)))
    assert sum(asked) == FRAMES and labels_of(run)["value"].shape == (FRAMES,)


def test_the_critics_that_labelled_are_told(run, critic):
    (path,) = (run.cfg.run_dir / RUN_LABELS).glob("*.parquet")
    policy = run.cfg.policy
    support = (policy.value_support_min, policy.value_support_max)
    assert read_labeling(path).meta["critic"] == {
        "path": str(critic.absolute()),
        "fingerprint": critic_fingerprint(critic, support),
    }
