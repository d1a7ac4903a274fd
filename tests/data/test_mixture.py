"""Several datasets in one run: weights, names, scales, frame rates."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.configs import NormalizationMode
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from recordings import make_dataset
from tiny import CAMERAS, write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.data.alignment import Alignment, affine_to, own_names
from lerobot_policy_pi05_rl.data.dataset import OfflineData, open_offline_data
from lerobot_policy_pi05_rl.data.labeling import advantages, frame_columns
from lerobot_policy_pi05_rl.data.loaders import make_train_loader
from lerobot_policy_pi05_rl.data.sampling import MixedOrder
from lerobot_policy_pi05_rl.data.sources import DatasetError

FIRST = [{"length": 9, "success": True}, {"length": 12, "success": False}]
TOTAL = 21


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    root = tmp_path_factory.mktemp("first") / "first"
    make_dataset(root, FIRST)
    return root


@pytest.fixture
def opened(tmp_path, first):
    """Opens the first dataset and others under a configuration with the given changes."""

    def open_(*others, **changes) -> OfflineData:
        paths = [str(other) for other in others]
        path = write_config(
            tmp_path / "run.json",
            first,
            tmp_path / "run",
            dataset__additional_offline_dataset_paths=paths,
            **changes,
        )
        open_.cfg = load_config(path)
        open_.cfg.validate()
        return open_offline_data(open_.cfg)

    return open_


@pytest.fixture
def second(tmp_path):
    root = tmp_path / "second"
    make_dataset(root, [{"length": 5, "success": True}, {"length": 4, "success": False}], seed=2)
    return root


def rename_feature(root, old, new):
    """The dataset at ``root`` with another name for one of its cameras."""
    path = root / "meta" / "info.json"
    path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"'))
    stats = root / "meta" / "stats.json"
    stats.write_text(stats.read_text().replace(f'"{old}"', f'"{new}"'))
    for file in (root / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        table = table.rename_columns([new if name == old else name for name in table.column_names])
        meta = {key: value.replace(old.encode(), new.encode()) for key, value in (table.schema.metadata or {}).items()}
        pq.write_table(table.replace_schema_metadata(meta), file)


# ── Weights ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_dataset_is_drawn_by_its_weight_and_every_frame_of_it_before_any_comes_again():
    order = MixedOrder([300, 7, 50], [1.0, 2.0, 1.0], seed=3)
    drawn = np.array([order[position] for position in range(4096)])
    sources = np.searchsorted([300, 307], drawn, side="right")
    assert np.bincount(sources).tolist() == [1024, 2048, 1024]
    assert np.bincount(sources[1000:1100], minlength=3).min() > 10  # mixed, not one after the other
    small = drawn[sources == 1]
    for epoch in range(len(small) // 7):
        assert sorted(small[7 * epoch : 7 * epoch + 7]) == list(range(300, 307))
    assert sorted(drawn[sources == 0][:300]) == list(range(300))


def test_a_mixed_order_is_a_function_of_the_position_alone():
    order, again = (MixedOrder([30, 9], [0.7, 0.3], seed=5) for _ in range(2))
    drawn = [order[position] for position in range(2500)]
    assert [again[position] for position in range(2000, 2500)] == drawn[2000:]
    assert [MixedOrder([30, 9], [0.7, 0.3], seed=6)[position] for position in range(50)] != drawn[:50]


def test_batches_hold_the_datasets_in_their_share(opened, second):
    data = opened(second, dataset__weights=[1, 3], batch_size=64)
    batches = list(make_train_loader(data, batch_size=opened.cfg.batch_size, batches=16))
    numbers = [data.order[position] for position in range(1024)]
    assert sum(number >= TOTAL for number in numbers) == 768
    first = data.train[(0, numbers[0])]
    assert torch.equal(batches[0]["action"][0], first["action"])


def test_weights_count_what_is_left_of_each_dataset_after_filtering(opened, second, tmp_path):
    data = opened(second, dataset__weights=[1, 1], policy__policy_extraction="filtered")
    assert data.train.frames.frames_per_source(2) == [9, 5]
    failures = tmp_path / "failures"
    make_dataset(failures, [{"length": 4, "success": False}])
    with pytest.raises(DatasetError, match=f"nothing is left to draw of the dataset {failures}"):
        opened(failures, dataset__weights=[1, 1], policy__policy_extraction="filtered")


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"dataset__weights": [1, 2, 3]}, DatasetError, "dataset.weights has 3 number"),
        ({"dataset__weights": [1, 0]}, ConfigError, "must be positive"),
        ({"dataset__statistics": "mine"}, ConfigError, "pooled, own"),
        ({"dataset__statistics": "own", "policy__use_relative_actions": True}, ConfigError, "use pooled"),
        ({"rename_map": {"observation.images.forehead": CAMERAS[0]}}, DatasetError, "which no dataset has"),
        ({"rename_map": {CAMERAS[0]: CAMERAS[1]}}, DatasetError, f"calls {CAMERAS[0]} {CAMERAS[1]}"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(opened, second, changes, error, complaint):
    with pytest.raises(error, match=complaint):
        opened(second, **changes)


# ── Names ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_camera_of_another_name_is_read_under_the_policys(opened, second):
    plain = opened(second)
    expected = [plain.train[(0, TOTAL + row)] for row in range(9)]
    rename_feature(second, CAMERAS[1], "observation.images.hand")
    with pytest.raises(DatasetError, match="rename_map="):
        opened(second)
    data = opened(second, rename_map={"observation.images.hand": CAMERAS[1]})
    for row, sample in enumerate(expected):
        found = data.train[(0, TOTAL + row)]
        assert found.keys() == sample.keys()
        assert torch.equal(found[CAMERAS[1]], sample[CAMERAS[1]])
    assert data.stats.keys() == plain.stats.keys()


def test_cameras_may_swap_names():
    features = {"a": 1, "b": 2}
    assert own_names(features, {"a": "b", "b": "a"}) == {"b": "a", "a": "b"}
    assert own_names(features, {"c": "a"}) == {}


# ── Scales ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["QUANTILES", "QUANTILE10", "MIN_MAX", "MEAN_STD"])
def test_own_statistics_normalise_a_dataset_as_if_it_were_alone(mode):
    rng = np.random.default_rng(0)
    own_values, first_values = rng.normal(3.0, 0.1, (500, 2)), rng.normal(-1.0, 5.0, (500, 2))

    def statistics(values):
        quantiles = {f"q{q:02d}": np.quantile(values, q / 100, axis=0) for q in (1, 10, 90, 99)}
        ends = {"min": values.min(axis=0), "max": values.max(axis=0)}
        return {**quantiles, **ends, "mean": values.mean(axis=0), "std": values.std(axis=0)}

    def normalised(values, stats):
        if mode == "MEAN_STD":
            return (values - stats["mean"]) / stats["std"]
        low, high = {"QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90"), "MIN_MAX": ("min", "max")}[mode]
        return 2 * (values - stats[low]) / (stats[high] - stats[low]) - 1

    own, first = statistics(own_values), statistics(first_values)
    alignment = Alignment(scale={"action": affine_to(own, first, NormalizationMode(mode))})
    # What is scaled is float32: a rounding of 2^-24 of numbers below 200, over a range of 10 and more.
    np.testing.assert_allclose(
        normalised(alignment.scaled("action", own_values), first), normalised(own_values, own), atol=1e-4
    )


def test_a_dimension_that_never_moves_stays_finite_and_identity_scales_nothing():
    still, moving = {"min": np.zeros(1), "max": np.zeros(1)}, {"min": np.ones(1), "max": np.full(1, 3.0)}
    factor, offset = affine_to(still, moving, NormalizationMode.MIN_MAX)
    assert (factor.item(), offset.item()) == (1.0, 1.0)
    assert affine_to(still, moving, NormalizationMode.IDENTITY) is None


def test_pooled_and_own_statistics_reach_samples_and_processors(opened, second):
    pooled, own = opened(second), opened(second, dataset__statistics="own")
    recorded = LeRobotDataset("test/second", root=second)[3]["action"]
    assert torch.equal(pooled.train[(0, TOTAL + 3)]["action"][0], recorded)
    assert not torch.allclose(own.train[(0, TOTAL + 3)]["action"][0], recorded)
    assert torch.equal(own.train[(0, 3)]["action"], pooled.train[(0, 3)]["action"])  # the first one's stay
    first, all_of_them = (
        np.concatenate([source.recorded("action") for source in sources]) for sources in (own.sources[:1], own.sources)
    )
    np.testing.assert_allclose(own.stats["action"]["q01"], np.quantile(first, 0.01, axis=0))
    np.testing.assert_allclose(pooled.stats["action"]["q01"], np.quantile(all_of_them, 0.01, axis=0))
    scaled = own.sources[1].alignment.scaled("action", own.sources[1].recorded("action"))
    for name, share in {"q01": 0.01, "q99": 0.99}.items():  # each by its own true statistics
        np.testing.assert_allclose(np.quantile(scaled, share, axis=0), own.stats["action"][name], atol=1e-5)


# ── Frame rates ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def fast(tmp_path):
    """Recorded twice as fast as the first; its first action counts frames."""
    root = tmp_path / "fast"
    make_dataset(root, [{"length": 16, "success": True}, {"length": 20, "success": False}], fps=20, seed=4)
    return root


def test_another_frame_rate_needs_to_be_allowed(opened, fast):
    with pytest.raises(DatasetError, match=r"20 frames per second.*resample_actions=true"):
        opened(fast)


def test_chunks_of_a_faster_recording_run_at_the_policys_rate(opened, fast):
    data = opened(fast, dataset__resample_actions=True)
    sample = data.train[(0, TOTAL + 3)]
    assert sample["action"][:, 0].tolist() == [3, 5, 7, 9, 11, 13]
    late = data.train[(0, TOTAL + 12)]
    assert late["action"][:, 0].tolist() == [12, 14, 15, 15, 15, 15]
    assert late["action_is_pad"].tolist() == [False, False, True, True, True, True]


def test_a_slower_recordings_commands_hold(tmp_path, opened):
    slow = tmp_path / "slow"
    make_dataset(slow, [{"length": 6, "success": True}], fps=5)
    data = opened(slow, dataset__resample_actions=True)
    assert data.train[(0, TOTAL + 1)]["action"][:, 0].tolist() == [1, 1, 2, 2, 3, 3]


def test_returns_count_the_policys_steps_whatever_the_frame_rate(opened, fast):
    data = opened(fast, dataset__resample_actions=True)
    assert data.labels.task_lengths.tolist() == [12]  # 20 frames are ten steps
    success = data.labels.returns[1][:16]
    np.testing.assert_allclose(success, -np.arange(15, -1, -1) / 2 / 24, atol=1e-6)
    assert data.labels.returns[1].min() >= -1.0 and data.labels.returns[1][16:].max() <= -0.5


def test_n_step_returns_reach_as_far_in_time_whatever_the_frame_rate(opened, fast):
    changes = {"policy__critic_target": "td", "policy__n_step": 3}
    data = opened(fast, dataset__resample_actions=True, **changes)
    (steps,) = data.train.n_step_returns.values()
    assert steps[0].offset[0] == 3
    assert steps[1].offset[0] == 6
    columns = {**frame_columns(1, data.sources[1], data.labels), "value": np.zeros(36, dtype=np.float32)}
    found = advantages(
        columns, n_steps=dict.fromkeys(data.labels.tasks, 3), discount=1.0, alignment=data.sources[1].alignment
    )
    assert found[0] == pytest.approx(-6 / 2 / 24)


def test_discounts_and_lambdas_are_per_step():
    alignment = Alignment(rate=2.0)
    assert alignment.per_frame(0.81) == pytest.approx(0.9)
    assert Alignment().per_frame(0.81) == 0.81


def test_what_is_translated_is_logged(opened, fast, caplog):
    with caplog.at_level("INFO"):
        opened(fast, dataset__resample_actions=True, dataset__statistics="own")
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("[DATA] Of")]
    assert line == (
        f"[DATA] Of {fast}: actions every 2 frames, observation.state scaled from its own statistics, "
        "action scaled from its own statistics"
    )
