"""Datasets with damaged metadata or columns open with frames that are right, or end in one clear error."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fuzz import (
    BYTES,
    FEW,
    MANY,
    TABLE,
    TREE,
    cases,
    copied,
    damage_bytes,
    damage_json,
    damage_table,
    outcome,
    unchanged,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny import write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.dataset import open_offline_data

INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES, DATA = "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"

METADATA = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([INFO, STATS]), TREE),
        st.tuples(st.sampled_from([EPISODES, TASKS]), TABLE),
        st.tuples(st.sampled_from([INFO, STATS, EPISODES, TASKS]), BYTES),
    ),
    min_size=1,
    max_size=2,
)
COLUMNS = st.lists(
    st.tuples(st.just(DATA), st.one_of(TABLE, TABLE, TABLE, BYTES)),
    min_size=1,
    max_size=2,
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, mixed_dataset):
    """(a copy of the dataset to damage, a configuration of it)."""
    folder = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        config = write_config(folder / "run.json", folder / "data", folder / "run")
        yield folder / "data", config


def apply(root: Path, name: str, how: tuple) -> None:
    file = root / name
    assume(file.is_file())
    if len(how) == 2:
        damage_bytes(file, how)
    elif len(how) == 3:
        try:
            damage_json(file, how)
        except ValueError:  # an earlier change has left no JSON
            assume(False)
    else:
        try:
            assume(damage_table(file, how))
        except (OSError, ValueError):  # an earlier change has left no table
            assume(False)


def check(workplace, original: Path, changes) -> None:
    root, config = workplace
    copied(original, root)
    for name, how in changes:
        apply(root, name, how)

    def read_all():
        data = open_offline_data(load_config(config))
        return data, [data.train[(number, number)] for number in range(len(data.train))]

    with unchanged(root):
        read = outcome(read_all, str(root), "test/tiny", "dataset.", "reward.", "meta/")
    if read is None:
        return
    data, samples = read
    columns = data.sources[0].columns
    rows = len(columns["index"])
    assert all(len(column) == rows for column in columns.values())
    assert (data.sources[0].ends > data.sources[0].starts).all() and data.sources[0].ends[-1] == rows
    actions = np.stack(list(pd.read_parquet(root / DATA)["action"])).astype(np.float32)
    order = pd.read_parquet(root / DATA)["episode_index"].to_numpy()
    assert (np.diff(order) >= 0).all() and len(order) == rows
    for number, sample in enumerate(samples):
        episode, row = data.train.frames[number]
        assert sample["observation.state"].isfinite().all() and sample["action"].isfinite().all()
        assert episode.start <= row < episode.end and order[row] == episode.index
        real = int((~sample["action_is_pad"]).sum())
        assert row + real <= episode.end, "a chunk reads across the end of its episode"
        assert np.array_equal(sample["action"][:real].numpy(), actions[row : row + real])
        assert np.isfinite(float(sample["return"]))
    for key in ("observation.state", "action"):
        for name in ("q01", "q99", "mean", "std"):
            assert np.isfinite(np.asarray(data.stats[key][name], dtype=np.float64)).all(), f"{name} of {key}"


@cases(FEW)
@given(changes=METADATA)
@pytest.mark.usefixtures("logging_as_before")
def test_any_metadata(workplace, mixed_dataset, changes):
    check(workplace, mixed_dataset, changes)


@cases(FEW)
@given(changes=COLUMNS)
@pytest.mark.usefixtures("logging_as_before")
def test_any_columns(workplace, mixed_dataset, changes):
    check(workplace, mixed_dataset, changes)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@cases(MANY)
@given(changes=METADATA)
@pytest.mark.usefixtures("logging_as_before")
def test_much_metadata(workplace, mixed_dataset, changes):
    check(workplace, mixed_dataset, changes)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@cases(MANY)
@given(changes=COLUMNS)
@pytest.mark.usefixtures("logging_as_before")
def test_many_columns(workplace, mixed_dataset, changes):
    check(workplace, mixed_dataset, changes)
