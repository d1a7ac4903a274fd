"""A checkpoint from before the modules moved into folders goes on, and runs in the stock tools."""

import shutil
from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors
from safetensors.torch import load_file

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.offline_learner import train_offline

EARLIER = Path(__file__).parent / "earlier_run"


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A copy with step 2 as the last checkpoint; its configuration's paths are relative."""
    shutil.copytree(EARLIER, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    Path("run/checkpoints/last").symlink_to("000002")
    return tmp_path / "run"


def test_it_resumes_and_learns_what_it_would_have_learnt(run, caplog):
    """But for its tags, which positive actions alone have now: of two steps, most of what it learns is as it was. The
    user is told."""
    before = load_file("run/checkpoints/000002/pretrained_model/model.safetensors")
    with caplog.at_level("WARNING"):
        last = train_offline(load_config("config.json", ["--resume=true"]))
    assert "An earlier version began this run" in caplog.text
    assert last.name == "000004"
    found, expected = load_file(last / "pretrained_model" / "model.safetensors"), load_file("expected.safetensors")
    assert found.keys() == expected.keys() == before.keys()

    def apart(first: dict, second: dict) -> float:
        return float(torch.cat([(first[name] - second[name]).abs().flatten() for name in first]).mean())

    assert apart(found, expected) < 0.5 * apart(before, expected)


def test_stock_lerobot_loads_it_and_acts(run):
    checkpoint = "run/checkpoints/000002/pretrained_model"
    dataset = LeRobotDataset("test/tiny", root="dataset")
    config = PreTrainedConfig.from_pretrained(checkpoint)
    config.pretrained_path = checkpoint
    policy = make_policy(config, ds_meta=dataset.meta)
    preprocess, postprocess = make_pre_post_processors(config, pretrained_path=checkpoint)
    frame = {key: value for key, value in dataset[0].items() if key.startswith("observation.")} | {"task": "pick"}
    action = postprocess(policy.select_action(preprocess(frame)))
    assert action.shape[-1] == 3 and torch.isfinite(action).all()
