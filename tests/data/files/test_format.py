"""Datasets of older formats: the message holds the commands for exactly this one; they are all that is needed."""

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import CAMERAS, write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.dataset import open_offline_data
from lerobot_policy_pi05_rl.data.sources import DatasetError


def as_old(root: Path, version: str) -> None:
    """Write the v3.0 dataset of one data file in the files of v2.0 or v2.1."""
    table = pq.read_table(root / "data" / "chunk-000" / "file-000.parquet")
    indices = np.asarray(table["episode_index"])
    shutil.rmtree(root / "data")
    shutil.rmtree(root / "meta" / "episodes")
    (root / "meta" / "tasks.parquet").unlink()
    (root / "data" / "chunk-000").mkdir(parents=True)
    stats = json.loads((root / "meta" / "stats.json").read_text())
    for values in stats.values():
        for name in [name for name in values if name.startswith("q")]:
            del values[name]  # quantiles are younger
    episodes, per_episode = [], []
    for number in np.unique(indices).tolist():
        rows = np.flatnonzero(indices == number)
        part = table.slice(rows[0], len(rows))
        pq.write_table(part, root / "data" / "chunk-000" / f"episode_{number:06d}.parquet")
        episodes.append({"episode_index": number, "tasks": ["pick the cube"], "length": len(rows)})
        own = {key: {**values, "count": [len(rows)]} for key, values in stats.items()}
        per_episode.append({"episode_index": number, "stats": own})
    write_lines(root / "meta" / "episodes.jsonl", episodes)
    write_lines(root / "meta" / "tasks.jsonl", [{"task_index": 0, "task": "pick the cube"}])
    if version == "v2.1":
        write_lines(root / "meta" / "episodes_stats.jsonl", per_episode)
        (root / "meta" / "stats.json").unlink()
    else:
        (root / "meta" / "stats.json").write_text(json.dumps(stats))
    info = json.loads((root / "meta" / "info.json").read_text())
    info |= {
        "codebase_version": version,
        "total_chunks": 1,
        "total_videos": 0,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
    }
    (root / "meta" / "info.json").write_text(json.dumps(info))


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_the_commands_of_the_message_convert_the_dataset(mixed_dataset, tmp_path, monkeypatch, version):
    root = Path(shutil.copytree(mixed_dataset, tmp_path / "an old one"))
    config = load_config(write_config(tmp_path / "run.json", root, tmp_path / "run"))
    expected = open_offline_data(config)
    as_old(root, version)
    with pytest.raises(DatasetError) as error:
        open_offline_data(config)
    message = str(error.value)
    assert f"it is of format {version}; LeRobot reads v3.0" in message
    assert "--push-to-hub=false" in message
    commands = re.search(r"kept as .*?\): (.*)$", message)[1].split(" && ")
    assert len(commands) == (1 if version == "v2.1" else 2)
    for command in commands:
        python, dash, module, *arguments = shlex.split(command)
        assert (python, dash) == ("python", "-m")
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as exit_:
            assert exit_.code == 0
    data = open_offline_data(config)
    for number in (0, 20, 37):
        one, other = data.train[(0, number)], expected.train[(0, number)]
        assert all(bool((one[key] == other[key]).all()) for key in (*CAMERAS, "action", "observation.state", "return"))


def test_a_newer_or_unknown_format_is_named(mixed_dataset, tmp_path):
    root = Path(shutil.copytree(mixed_dataset, tmp_path / "other"))
    config = load_config(write_config(tmp_path / "run.json", root, tmp_path / "run"))
    for version, said in (("v4.0", "newer than v3.0"), ("v1.6", "converts from v2.1 only"), ("new", "is 'new'")):
        info = json.loads((root / "meta" / "info.json").read_text())
        (root / "meta" / "info.json").write_text(json.dumps({**info, "codebase_version": version}))
        with pytest.raises(DatasetError, match=re.escape(said)):
            open_offline_data(config)
