"""What a run normalises with: true statistics of the frames it trains on, whatever was recorded of them."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lerobot.processor import NormalizerProcessorStep
from states import FRONT, assert_statistics_of, record
from tiny import write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.dataset import OfflineData, open_offline_data
from lerobot_policy_pi05_rl.data.sources import DatasetError
from lerobot_policy_pi05_rl.processor_pi05_rl import make_pi05_rl_pre_post_processors, make_tokenizer
from lerobot_policy_pi05_rl.training.build import make_processors

KEYS = {"observation.state": 4, "action": 3}


def uniform(low: float, high: float, length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, (length, 7))


SIDE_BY_SIDE = [uniform(number, number + 1, 40, number) for number in range(10)]


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory):
    """Ten episodes, each in another place: the mean of their quantiles is no quantile of theirs."""
    return record(tmp_path_factory.mktemp("data") / "side_by_side", SIDE_BY_SIDE)


@pytest.fixture
def opened(tmp_path):
    """Opens datasets under a configuration with the given changes."""

    def open_(first, *others, **changes) -> OfflineData:
        changes = {"dataset__additional_offline_dataset_paths": [str(other) for other in others], **changes}
        cfg = load_config(write_config(tmp_path / "run.json", first, tmp_path / "run", **changes))
        cfg.validate()
        return open_offline_data(cfg)

    return open_


def columns(episodes: list[np.ndarray]) -> dict[str, np.ndarray]:
    rows = np.concatenate(episodes).astype(np.float32)
    return {"observation.state": rows[:, :-3], "action": rows[:, -3:]}


@pytest.fixture(autouse=True)
def everything_said(caplog):
    caplog.set_level(logging.INFO)


def recorded_warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "recorded statistics" in record.getMessage()]


def test_episodes_side_by_side_have_the_quantiles_of_all_their_frames(side_by_side, opened, caplog):
    data = opened(side_by_side)
    for key, values in columns(SIDE_BY_SIDE).items():
        assert_statistics_of(data.stats[key], values)
        bounds = data.stats[key]
        assert ((values < bounds["q01"]) | (values > bounds["q99"])).mean() < 0.025  # of 0.9 by the recorded ones
    said = recorded_warnings(caplog)
    assert len(said) == 2 and "of action (meta/stats.json) are not the data's in dimensions 0, 1, 2: q01" in said[1]


def test_datasets_in_different_places_have_the_quantiles_of_both(tmp_path, opened):
    first = [uniform(-1, 0, 50, 0), uniform(-1, 0, 30, 1)]
    second = [uniform(0, 10, 60, 2), uniform(0, 10, 20, 3)]
    roots = record(tmp_path / "first", first), record(tmp_path / "second", second)
    for weights in (None, [1, 9]):  # how often a frame is drawn is not how often it counts
        data = opened(*roots, dataset__weights=weights)
        for key, values in columns([*first, *second]).items():
            assert_statistics_of(data.stats[key], values)


def test_held_out_and_filtered_episodes_do_not_count(side_by_side, opened):
    held_out = opened(side_by_side, dataset__eval_split=0.2)
    filtered = opened(side_by_side, policy__policy_extraction="filtered")
    assert len(held_out.held_out.frames.episodes) == 2 and len(filtered.train.frames.episodes) == 5
    for data in (held_out, filtered):
        trained = [SIDE_BY_SIDE[episode.index] for episode in data.train.frames.episodes]
        for key, values in columns(trained).items():
            assert_statistics_of(data.stats[key], values)


def without_file(path: Path) -> None:
    path.unlink()


def without_state(path: Path) -> None:
    change_stats(path, lambda stats: stats.pop("observation.state"))


def without_count(path: Path) -> None:
    change_stats(path, lambda stats: [of.pop("count") for of in stats.values()])


def of_other_dimensions(path: Path) -> None:
    change_stats(path, lambda stats: stats["action"].update(q01=[0.0], q99=[[1.0, 2.0], [3.0, 4.0]], mean=[]))


def without_quantiles(path: Path) -> None:
    change_stats(path, lambda stats: [of.pop("q01") for of in stats.values() if "q01" in of])


def of_nan(path: Path) -> None:
    change_stats(path, lambda stats: stats["observation.state"].update(q99=[float("nan")] * 4, std=[None] * 4))


def of_text(path: Path) -> None:
    change_stats(path, lambda stats: stats["action"].update(q01=["a", "b", "c"]))


def of_numbers_as_text(path: Path) -> None:
    change_stats(path, lambda stats: stats["action"].update(q01=["5", "5", "5"]))


def change_stats(path: Path, change) -> None:
    stats = json.loads(path.read_text())
    change(stats)
    path.write_text(json.dumps(stats))


@pytest.mark.parametrize(
    "damage",
    [
        without_file,
        without_state,
        without_count,
        of_other_dimensions,
        without_quantiles,
        of_nan,
        of_text,
        of_numbers_as_text,
    ],
)
def test_nothing_that_is_recorded_stops_or_changes_a_run(tmp_path, opened, damage):
    episodes = [uniform(0, 1, 20, 0), uniform(0, 1, 15, 1)]
    roots = [record(tmp_path / name, episodes) for name in ("first", "second")]
    for root in roots:
        damage(root / "meta" / "stats.json")
    for mapping in ("pooled", "own"):
        data = opened(*roots, dataset__statistics=mapping)
        for key, values in columns(episodes).items():
            assert_statistics_of(data.stats[key], np.tile(values, (2 if mapping == "pooled" else 1, 1)))


def test_statistics_that_agree_are_not_talked_about(tmp_path, opened, caplog):
    opened(record(tmp_path / "one", [uniform(0, 1, 500, 0)]))
    assert recorded_warnings(caplog) == []


def test_pictures_are_normalised_by_recorded_statistics_or_not_at_all(side_by_side, tmp_path, opened):
    assert FRONT not in opened(side_by_side).stats
    visual = {"policy__normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "QUANTILES", "ACTION": "QUANTILES"}}
    assert opened(side_by_side, **visual).stats[FRONT]["mean"].shape == (3, 1, 1)
    other = record(tmp_path / "other", SIDE_BY_SIDE[:2])
    change_stats(other / "meta" / "stats.json", lambda stats: stats[FRONT].pop("std"))
    with pytest.raises(DatasetError, match=r"no recorded statistics mean and std of .*VISUAL=IDENTITY"):
        opened(other, **visual)
    visual["policy__normalization_mapping"]["VISUAL"] = "IDENTITY"
    assert FRONT not in opened(other, **visual).stats


# ── A checkpoint's statistics ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("resumed", [True, False])
def test_a_continued_run_keeps_the_checkpoints_statistics_and_a_fresh_one_says_where_its_own_differ(
    tmp_path, opened, caplog, resumed
):
    earlier = opened(record(tmp_path / "earlier", [uniform(0, 1, 30, 0)]))
    data = opened(record(tmp_path / "later", [uniform(0, 1, 30, 0) + 5 * np.eye(7)[5]]))
    folder = tmp_path / "checkpoint" / "pretrained_model"
    tokenizer = make_tokenizer(data.policy, data.labels.tasks)
    for processor in make_pi05_rl_pre_post_processors(data.policy, earlier.stats, tokenizer=tokenizer):
        processor.save_pretrained(folder)
    data = replace(data, policy=replace(data.policy, pi05_checkpoint=str(folder)))
    before, _ = make_processors(data, folder.parent if resumed else None, keeps=False, tag="")
    normalizer = next(step for step in before.steps if isinstance(step, NormalizerProcessorStep))
    used = (earlier if resumed else data).stats["action"]
    np.testing.assert_allclose(normalizer.stats["action"]["q99"], used["q99"], rtol=1e-6)
    (said,) = [line.getMessage() for line in caplog.records if "statistics of the data are not" in line.getMessage()]
    whose = "the checkpoint's are used" if resumed else "the data's are used, which the weights must get used to"
    assert said.endswith(f"of {folder} in dimension 1 of action: {whose}")


# ── Outliers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_wild_value_stops_the_run_with_its_place_and_the_advice_works(tmp_path, opened):
    episodes = [uniform(0, 1, 60, seed) for seed in range(3)]
    episodes[1][3, 4 + 1] = 1e6
    root = record(tmp_path / "wild", episodes)
    with pytest.raises(DatasetError, match=r"action is 1000000\.0 at episode 1, frame 3, dimension 1, far") as error:
        opened(root)
    assert "1 of 3 episode(s) (1): --dataset.bad_values=drop_episode" in str(error.value)
    dropped = opened(root, dataset__bad_values="drop_episode")
    for key, values in columns([episodes[0], episodes[2]]).items():
        assert_statistics_of(dropped.stats[key], values)
    assert opened(root, dataset__bad_values="keep_outliers").stats["action"]["max"][1] == 1e6
