"""The online learner's data and rules. The whole of it, with actors, is in test_main_job.py."""

from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from recordings import MIXED_EPISODES, make_dataset
from tiny import write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.data.batch import POSITION
from lerobot_policy_pi05_rl.data.dataset import OfflineData, open_offline_data
from lerobot_policy_pi05_rl.data.sources import Source
from lerobot_policy_pi05_rl.offline_learner import train_offline
from lerobot_policy_pi05_rl.online.config import OnlineTrainConfig
from lerobot_policy_pi05_rl.online.learner.batches import OnlineBatches, joined, online_count
from lerobot_policy_pi05_rl.online.learner.feed import may_update
from lerobot_policy_pi05_rl.online.learner.learner import check_unused
from lerobot_policy_pi05_rl.online.replay import labels as replay_labels
from lerobot_policy_pi05_rl.online.replay.labels import ReplayLabels
from lerobot_policy_pi05_rl.recap import RecapAlgorithm
from lerobot_policy_pi05_rl.training.start import find_checkpoint


@pytest.fixture(scope="module")
def corrected_dataset(tmp_path_factory) -> Path:
    """Episodes of both outcomes, some corrected by hand, as the replay's are."""
    root = tmp_path_factory.mktemp("online") / "data"
    make_dataset(
        root,
        [{**episode, "intervention": 5} for episode in MIXED_EPISODES],
        columns=("next.reward", "next.success", "intervention"),
    )
    return root


@pytest.fixture
def run(tmp_path: Path, corrected_dataset: Path) -> tuple[OnlineTrainConfig, object]:
    """Configuration and data of an online run whose "replay" is the dataset itself."""
    path = write_config(tmp_path / "run.json", corrected_dataset, tmp_path / "offline")
    cfg = load_config(path, [f"--output_dir={tmp_path / 'online'}", "--batch_size=4"], OnlineTrainConfig)
    return cfg, open_offline_data(cfg)


def labels_of(cfg: OnlineTrainConfig, data: OfflineData) -> ReplayLabels:
    return ReplayLabels(data, cfg.reward, cfg.seed)


def test_both_learners_call_the_same_update():
    import lerobot_policy_pi05_rl.offline_learner as offline
    from lerobot_policy_pi05_rl.online.learner import learner as online
    from lerobot_policy_pi05_rl.training import loop
    from lerobot_policy_pi05_rl.training.start import Run

    assert offline.start is online.start and offline.train is online.train is loop.train
    assert get_type_hints(Run)["algorithm"] is RecapAlgorithm
    for module in (offline, online, loop):
        text = Path(module.__file__).read_text()
        assert text.count("algorithm.update(") == (module is loop), "one loop calls it, once"


def test_batches_mix_by_ratio_and_keep_the_offline_order(run):
    cfg, data = run
    frames = labels_of(cfg, data).frames(data.sources[0])
    batches = OnlineBatches(data, 4, 2, seed=cfg.seed)
    batches.show(frames)
    first, second = next(batches), next(batches)
    batches.close()
    assert (batches.online, batches.offline) == (online_count(4, cfg.online_ratio), 2)
    assert first[POSITION].tolist() == [0, 1, 2, 3] and second[POSITION].tolist() == [4, 5, 6, 7]
    later = OnlineBatches(data, 4, 2, seed=cfg.seed, start=4)  # what a resumed run reads next
    later.show(frames)
    resumed = next(later)
    later.close()
    torch.testing.assert_close(resumed["action"], second["action"], rtol=0, atol=0)
    assert not torch.equal(first["action"], second["action"])


@pytest.mark.parametrize(("size", "ratio", "count"), [(8, 0.5, 4), (8, 1.0, 8), (3, 0.1, 1), (32, 0.3, 9)])
def test_at_least_one_sample_is_online(size, ratio, count):
    assert online_count(size, ratio) == count


def test_returns_are_in_the_offline_unit_and_cut_off_ones_unknown(run):
    cfg, data = run
    source = data.sources[0]
    np.testing.assert_array_equal(labels_of(cfg, data).frames(source).labels.returns[0], data.labels.returns[0])
    cut_off = {"next.cut_off": np.isin(np.arange(len(source.columns["index"])), source.ends - 1)}
    unknown = replace(source, columns={**source.columns, **cut_off})
    assert np.isnan(labels_of(cfg, data).frames(unknown).labels.returns[0]).all()
    shorter = replace(data.labels, task_lengths=data.labels.task_lengths // 4)  # online ones are four times as long
    longer = labels_of(cfg, replace(data, labels=shorter)).frames(source).labels.returns[0]
    assert longer.min() == cfg.policy.value_support_min and not np.isnan(longer).any()


def part_of(source: Source, first: int, last: int) -> Source:
    """A snapshot of a replay that holds the episodes ``first`` to ``last`` − 1."""
    begin, end = int(source.starts[first]), int(source.ends[last - 1])
    columns = {name: values[begin:end] for name, values in source.columns.items()}
    bounds = {"starts": source.starts[first:last] - begin, "ends": source.ends[first:last] - begin}
    return replace(source, columns=columns, tasks=source.tasks[first:last], **bounds)


def test_the_fold_of_an_episode_does_not_depend_on_what_was_evicted_before(run):
    cfg, data = run
    data = replace(data, policy=replace(data.policy, critic_folds=3))
    source = data.sources[0]
    count = len(source.starts)
    whole, rest = (labels_of(cfg, data).frames(part_of(source, first, count)).folds for first in (0, 1))
    assert rest == {key: fold for key, fold in whole.items() if key[1] != 0} and len(rest) == len(whole) - 1


def test_an_episode_is_labelled_once_and_as_if_it_were_the_first_time(run, monkeypatch):
    cfg, data = run
    data = replace(data, policy=replace(data.policy, critic_folds=3, advantage_n_step=2))
    source, labelled = data.sources[0], []
    label_frames = replay_labels.label_frames
    monkeypatch.setattr(
        replay_labels, "label_frames", lambda episode, *rest: labelled.append(episode) or label_frames(episode, *rest)
    )
    labels = labels_of(cfg, data)
    for first, last in ((0, 1), (0, 2), (0, 2), (1, 4), (3, 4)):
        found = labels.frames(part_of(source, first, last))
        assert [episode.index for episode in labelled] == list(range(last))
        fresh = labels_of(cfg, data).frames(part_of(source, first, last))
        del labelled[last:]
        assert found.labels.episodes == fresh.labels.episodes and found.folds == fresh.folds
        for number in range(len(fresh)):
            own, other = found[number, number], fresh[number, number]
            assert own.keys() == other.keys() and "n_step_2.reward" in own
            for key, value in other.items():
                if isinstance(value, str):
                    assert value == own[key]
                else:
                    torch.testing.assert_close(own[key], value, rtol=0, atol=0, equal_nan=True)


def test_unlike_samples_are_not_joined():
    with pytest.raises(KeyError, match="differ in \\['b'\\]"):
        joined({"a": torch.zeros(1)}, {"a": torch.zeros(1), "b": torch.zeros(1)})


def test_updates_wait_for_transitions(run):
    policy = replace(run[0].policy, online_step_before_learning=10)

    class Replay:
        def __init__(self, count):
            self.transitions_received = count

        def __len__(self):
            return self.transitions_received

    assert not may_update(policy, Replay(9), 0) and may_update(policy, Replay(10), 10_000)
    policy = replace(policy, online_updates_per_transition=2.0)
    assert may_update(policy, Replay(10), 19) and not may_update(policy, Replay(10), 20)


def test_a_run_is_not_overwritten_but_actors_may_be_there(run):
    cfg, _ = run
    (cfg.run_dir / "actors" / "one").mkdir(parents=True)
    assert find_checkpoint(cfg, check_unused) is None
    (cfg.run_dir / "replay").mkdir()
    with pytest.raises(ConfigError, match="already holds a learner's replay"):
        find_checkpoint(cfg, check_unused)
    cfg.resume = True
    assert find_checkpoint(cfg, check_unused) is None  # killed before its first checkpoint


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--online_ratio=0", "online_ratio"),
        ("--dataset.labeling=first --policy.advantage_labels=running", "dataset.labeling"),
        ("--output_dir=null", "output_dir is missing"),
        ("--policy.actor_learner_config.push_dtype=float16", "push_dtype"),
        ("--policy.actor_learner_config.policy_parameters_push_frequency=0", "policy_parameters_push_frequency"),
        ("--policy.critic_early_stop=3", "critic_early_stop"),
    ],
)
def test_what_an_online_run_cannot_have(tmp_path: Path, corrected_dataset: Path, override: str, message: str):
    path = write_config(tmp_path / "run.json", corrected_dataset, tmp_path / "offline")
    with pytest.raises(ConfigError, match=message):
        load_config(path, [f"--output_dir={tmp_path / 'online'}", *override.split()], OnlineTrainConfig).validate()


def test_offline_run_reads_the_same_file(tmp_path: Path, corrected_dataset: Path):
    path = write_config(tmp_path / "run.json", corrected_dataset, tmp_path / "offline")
    cfg = load_config(path, ["--actor.name=arm", "--policy.online_steps=7", "--policy.offline_steps=2"])
    assert train_offline(cfg).name == "000002"
    assert cfg.total_steps == 2 and cfg.actor.name == "arm"
    assert load_config(path, ["--policy.online_steps=7"], OnlineTrainConfig).total_steps == 7
