"""A checkpoint from before the modules moved into folders starts a run, and runs in the stock tools."""

import shutil
from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors
from safetensors.torch import load_file

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.model.weights import ADVANTAGE_EMBEDDING, CheckpointError
from lerobot_policy_pi05_rl.offline_learner import train_offline

EARLIER = Path(__file__).parent / "earlier_run"


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A copy with step 2 as the last checkpoint; its configuration's paths are relative."""
    shutil.copytree(EARLIER, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    Path("run/checkpoints/last").symlink_to("000002")
    return tmp_path / "run"


def test_its_run_does_not_go_on_which_one_line_says_and_nothing_changes(run):
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    advice = r"--policy\.pi05_checkpoint=/.*/000002/pretrained_model and"
    with pytest.raises(ConfigError, match=rf"^an earlier version began the run in run.*{advice}"):
        train_offline(load_config("config.json", ["--resume=true"]))
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"policy": 3}'])
def test_a_stored_configuration_that_says_nothing_is_named(run, text):
    """Of a checkpoint without a manifest, which would know the file's size."""
    checkpoint = Path("run/checkpoints/000002")
    (checkpoint / "manifest.json").unlink()
    (checkpoint / "pretrained_model/train_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"000002/pretrained_model/train_config\.json is missing or damaged"):
        train_offline(load_config("config.json", ["--resume=true"]))


def test_a_run_starts_from_it_with_its_critics(run, caplog):
    start = "run/checkpoints/000002/pretrained_model"
    overrides = [f"--policy.pi05_checkpoint={start}", "--output_dir_offline=next", "--policy.critic_warmup_steps=1"]
    with caplog.at_level("INFO"):
        last = train_offline(load_config("config.json", overrides))
    assert "no advantage tag: its vector is 0" in caplog.text and "has no critic" not in caplog.text
    found, began = (load_file(f"{folder}/model.safetensors") for folder in (last / "pretrained_model", start))
    assert found.keys() - began.keys() == {ADVANTAGE_EMBEDDING}
    assert any(not torch.equal(found[name], began[name]) for name in began)


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
