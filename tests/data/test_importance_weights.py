"""However often a labeling's positive frames are drawn, critic and held-out numbers follow the recorded data."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import MIXED_EPISODES, make_dataset, make_labeling
from tiny import make_algorithm, write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.batch import FOLD, IMPORTANCE_WEIGHT, POSITION, RETURN
from lerobot_policy_pi05_rl.data.dataset import open_offline_data
from lerobot_policy_pi05_rl.data.frames import FrameIndex
from lerobot_policy_pi05_rl.data.loaders import make_probe_loader, make_train_loader
from lerobot_policy_pi05_rl.data.sampling import BatchPositions, MixedOrder, SampleOrder
from lerobot_policy_pi05_rl.losses import weighted_moments

TOTAL = sum(episode["length"] for episode in MIXED_EPISODES)
OTHER = [{"length": 5, "success": True}, {"length": 8, "success": False}]


def positive(count: int) -> np.ndarray:
    """The first quarter."""
    return np.arange(count) < count // 4


@pytest.fixture
def precomputed(mixed_dataset, tmp_path):
    """Opens two datasets under a labeling in which the first quarter is positive; (cfg, data)."""
    roots = [Path(shutil.copytree(mixed_dataset, tmp_path / "data")), tmp_path / "second"]
    make_dataset(roots[1], OTHER, seed=3)

    def open_(**changes):
        path = write_config(tmp_path / "run.json", roots[0], tmp_path / "run", dataset__labeling="mine", **changes)
        cfg = load_config(path)
        make_labeling(cfg, "mine", positive)
        return cfg, open_offline_data(cfg)

    open_.second = str(roots[1])
    return open_


@pytest.mark.parametrize(("weight", "epochs"), [(1.0, 1), (1.5, 2), (2.7, 10), (20.0, 1), (3.25, 4)])
def test_a_frame_is_drawn_exactly_in_proportion_to_its_weight(weight, epochs):
    repetitions = np.where(positive(TOTAL), weight, 1.0)
    order = SampleOrder(TOTAL, 7, repetitions)
    length = round(epochs * repetitions.sum())
    counts = Counter(order[position] for position in range(length))
    assert [counts[frame] for frame in range(TOTAL)] == np.rint(epochs * repetitions).astype(int).tolist()
    for few in range(1, length):  # and never off by a whole repetition of an epoch's
        begin = order._begin(few)
        if begin > length:
            break
        counts = Counter(order[position] for position in range(begin))
        assert all(abs(counts[frame] - few * repetitions[frame]) < 1 for frame in range(TOTAL))


def test_whole_weights_keep_the_order_of_repeated_frames():
    repetitions = np.where(positive(TOTAL), 3.0, 1.0)
    repeated = np.repeat(np.arange(TOTAL), repetitions.astype(int))
    before, now = SampleOrder(len(repeated), 7), SampleOrder(TOTAL, 7, repetitions)
    assert [now[position] for position in range(300)] == [repeated[before[position]] for position in range(300)]


@pytest.mark.parametrize("weight", [2.0, 2.7])
def test_the_order_is_a_pure_function_of_seed_and_position(weight):
    repetitions = np.where(positive(TOTAL), weight, 1.0)
    orders = [
        lambda: SampleOrder(TOTAL, 7, repetitions),
        lambda: MixedOrder([TOTAL - 10, 10], [1, 2], 7, [repetitions[:-10], repetitions[-10:]]),
    ]
    for make in orders:
        order = make()
        whole = [order[position] for position in range(2500)]
        for position in np.random.default_rng(0).permutation(2500)[:40].tolist():
            assert make()[position] == order[position] == whole[position]
        ranks = [BatchPositions(make(), 3, batches=20, rank=rank, world_size=2) for rank in (0, 1)]
        joined = [sample for pair in zip(*ranks, strict=True) for part in pair for sample in part]
        assert [frame for _, frame in joined] == whole[:120]
        tail = BatchPositions(make(), 3, batches=5, start=60)
        assert [frame for batch in tail for _, frame in batch] == whole[60:75]


def drawn(order, count: int) -> np.ndarray:
    return np.array([order[position] for position in range(count)])


@pytest.mark.parametrize(("weight", "epochs"), [(1.5, 2), (2.7, 10), (20.0, 1)])
def test_the_weighted_mean_over_epochs_of_draws_is_the_mean_over_the_frames(precomputed, weight, epochs):
    _, data = precomputed(policy__advantage_positive_weight=weight)
    frames = data.train.frames
    numbers = drawn(data.order, round(epochs * frames.repetitions.sum()))
    natural = data.labels.returns[0].astype(np.float64)
    mean = (natural[numbers] * frames.importance_weights[numbers]).mean()
    assert mean == pytest.approx(natural.mean(), rel=1e-12)
    assert abs(natural[numbers].mean() - natural.mean()) > 1e-3  # without the weight it is another


def test_shares_of_datasets_stay_and_within_each_the_mean_is_the_recorded_one(precomputed):
    _, data = precomputed(
        policy__advantage_positive_weight=3.0,
        dataset__weights=[3, 1],
        dataset__additional_offline_dataset_paths=[precomputed.second],
    )
    frames, order = data.train.frames, data.order
    counts = frames.frames_per_source(2)
    assert counts == [TOTAL, 13]
    per_source = [frames.repetitions[:TOTAL].sum(), frames.repetitions[TOTAL:].sum()]
    numbers = drawn(order, 1024 * 40)
    assert (numbers >= TOTAL).mean() == pytest.approx(0.25, abs=1e-3)
    for first, count, epoch in ((0, TOTAL, per_source[0]), (TOTAL, 13, per_source[1])):
        own = numbers[(numbers >= first) & (numbers < first + count)]
        own = own[: int(len(own) // epoch * epoch)]  # whole epochs of it
        values = np.arange(TOTAL + 13, dtype=np.float64)
        mean = (values[own] * frames.importance_weights[own]).mean()
        assert mean == pytest.approx(values[first : first + count].mean(), rel=1e-12)
        assert np.mean(frames.importance_weights[own]) == pytest.approx(1.0, rel=1e-12)


def test_the_critics_loss_gradient_and_metrics_are_those_of_the_recorded_frames(monkeypatch):
    """The samples of two epochs in one batch, against every frame once, from the same logits in float64."""
    algorithm = make_algorithm(critic_folds=2)
    critic = algorithm.policy.model.critic.double()
    repetitions = np.array([1.5, 1.0, 1.5, 1.0, 1.0, 1.5])
    index = FrameIndex([], np.array([0, 6]), np.arange(6), repetitions)
    numbers = torch.from_numpy(drawn(SampleOrder(6, 7, repetitions), 15))
    assert sorted(Counter(numbers.tolist()).values()) == [2, 2, 2, 3, 3, 3]
    logits = torch.randn(6, len(critic.members), len(critic.bins.centers), dtype=torch.float64, requires_grad=True)
    recorded = {FOLD: torch.tensor([0, 1, 0, 1, 0, -1]), RETURN: -torch.rand(6, dtype=torch.float64)}
    recorded[RETURN][4] = torch.nan
    as_drawn = {key: value[numbers] for key, value in recorded.items()}
    as_drawn[IMPORTANCE_WEIGHT] = torch.from_numpy(index.importance_weights)[numbers]
    results = []
    for batch, rows in ((recorded, torch.arange(6)), (as_drawn, numbers)):
        monkeypatch.setattr(critic, "forward", lambda rows, _: logits[rows])
        loss, _, metrics = algorithm.losses.critic_loss((rows,), {}, batch)
        (gradient,) = torch.autograd.grad(loss, logits)
        results.append({**metrics, "loss": loss.detach(), "gradient": gradient})
    of_recorded, of_drawn = results
    assert of_recorded["gradient"].any()
    for name, expected in of_recorded.items():
        torch.testing.assert_close(of_drawn[name], expected, rtol=1e-12, atol=1e-14)


def test_moments_without_weights_are_torchs_own():
    values = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, std = weighted_moments(values, torch.ones_like(values))
    torch.testing.assert_close(torch.stack([mean, std]), torch.stack([values.mean(), values.std(correction=0)]))


def test_samples_carry_their_weight_and_frames_not_repetitions_are_counted(precomputed):
    cfg, data = precomputed(policy__advantage_positive_weight=2.5)
    assert f"{TOTAL} frames to train on" in data.description
    (batch,) = make_train_loader(data, batch_size=cfg.batch_size, batches=1)
    rows = drawn(data.order, len(batch[POSITION]))
    mean = (2.5 * positive(TOTAL).sum() + (~positive(TOTAL)).sum()) / TOTAL
    expected = np.where(positive(TOTAL)[rows], mean / 2.5, mean)
    np.testing.assert_allclose(batch[IMPORTANCE_WEIGHT].numpy(), expected, rtol=1e-6)


def test_the_probe_behind_the_critics_gap_reads_every_frame_alike(precomputed):
    cfg, data = precomputed(policy__advantage_positive_weight=20, dataset__eval_split=0.25, max_eval_samples=0)
    cfg.max_eval_samples = 0
    loader = make_probe_loader(data, batch_size=cfg.batch_size, most=0)
    probe = torch.cat([batch[POSITION] for batch in loader]).tolist()
    held_out = len(data.held_out)
    assert len(probe) == min(held_out, len(data.train)) == len(set(probe))
    np.testing.assert_array_equal(probe, np.linspace(0, len(data.train) - 1, len(probe)).astype(int))


def test_filtering_by_a_labeling_leaves_a_critic_that_trains_all_frames(precomputed):
    changes = {"policy__policy_extraction": "filtered", "policy__filter_by": "advantage"}
    _, beside = precomputed(**changes)
    assert len(beside.train) == TOTAL and beside.train.frames.repetitions is None
    _, alone = precomputed(**changes, policy__train_critic=False)
    rows = [alone.train.frames[number][1] for number in range(len(alone.train))]
    np.testing.assert_array_equal(rows, np.flatnonzero(positive(TOTAL)))
