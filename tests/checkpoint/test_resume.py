"""Checkpoints: their layout, loading by stock LeRobot, and a resume equal to never having stopped."""

import logging
import os
import signal
import threading

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_policy as lerobot_make_policy
from lerobot.policies.factory import make_pre_post_processors
from runs import metrics, run, step_back
from safetensors.torch import load_file
from tiny import write_config

from lerobot_policy_pi05_rl import offline_learner
from lerobot_policy_pi05_rl.recap import RecapAlgorithm
from lerobot_policy_pi05_rl.runtime.files import damages


@pytest.mark.parametrize(
    "changes",
    [
        {"log_freq": 1},
        {"log_freq": 3},
        {"policy__critic_target": "td", "policy__n_step": 3, "policy__critic_folds": 2},
        {"policy__critic_folds": 2, "policy__advantage_n_step": 3},
        {"policy__policy_extraction": "weighted"},
    ],
    ids=["log_freq=1", "log_freq=3", "td", "folds", "weighted"],
)
def test_a_run_equals_its_half_stopped_and_resumed(tmp_path, mixed_dataset, changes):
    """Warm-up, critic-only steps, accumulation and a log window across the stop are all in play."""
    options = {
        "policy__offline_steps": 16,
        "policy__policy_update_freq": 2,
        "policy__critic_warmup_steps": 3,
        "policy__gradient_accumulation_steps": 2,
        "policy__advantage_window": 32,
        "save_freq": 8,
        "log_freq": 1,
        **changes,
    }
    whole = run(write_config(tmp_path / "a.json", mixed_dataset, tmp_path / "a", **options))
    config = write_config(tmp_path / "b.json", mixed_dataset, tmp_path / "b", **options)
    run(config)
    step_back(tmp_path / "b", "000008")
    torch.manual_seed(12345)  # a new process has another random state
    resumed = run(config, resume="true")

    for name in ("pretrained_model/model.safetensors", "training_state/optimizer_state.safetensors"):
        first, second = load_file(whole / name), load_file(resumed / name)
        assert first.keys() == second.keys()
        different = [key for key in first if not torch.equal(first[key], second[key])]
        assert different == []
    first, second = (load_file(c / "training_state" / "recap_state.safetensors") for c in (whole, resumed))
    assert any("target_critic" in name for name in first) == (changes.get("policy__critic_target") == "td")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k].nan_to_num(-9), second[k].nan_to_num(-9)) for k in first)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_the_checkpoint_has_lerobots_layout(tmp_path, mixed_dataset):
    checkpoint = run(
        write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", save_freq=2, policy__critic_warmup_steps=2)
    )
    assert checkpoint == tmp_path / "run" / "checkpoints" / "000004"
    assert os.readlink(checkpoint.parent / "last") == "000004"
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["000002", "000004", "last"]
    names = {str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file()}
    assert names == {
        "manifest.json",
        "pretrained_model/README.md",
        "pretrained_model/config.json",
        "pretrained_model/model.safetensors",
        "pretrained_model/train_config.json",
        "pretrained_model/critic_data.json",
        "pretrained_model/policy_preprocessor.json",
        "pretrained_model/policy_preprocessor_step_3_normalizer_processor.safetensors",
        "pretrained_model/policy_preprocessor_step_5_pi05_rl_tokenizer.safetensors",
        "pretrained_model/policy_postprocessor.json",
        "pretrained_model/policy_postprocessor_step_0_unnormalizer_processor.safetensors",
        "training_state/optimizer_param_groups.json",
        "training_state/optimizer_state.safetensors",
        "training_state/scheduler_state.json",
        "training_state/rng_state.safetensors",
        "training_state/training_step.json",
        "training_state/recap_state.safetensors",
        "training_state/metrics_state.json",
        "training_state/data_state.json",
    }


def test_lerobots_own_functions_load_the_checkpoint_and_act(tmp_path, mixed_dataset):
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    checkpoint = run(write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run"))
    path = checkpoint / "pretrained_model"
    config = PreTrainedConfig.from_pretrained(path)
    config.pretrained_path = path
    policy = lerobot_make_policy(config, ds_meta=LeRobotDatasetMetadata("test/tiny", root=mixed_dataset))
    stored = load_file(path / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in policy.state_dict().items())
    assert not policy.training
    pre, post = make_pre_post_processors(config, pretrained_path=str(path))
    observation = {
        "observation.images.front": torch.rand(1, 3, 32, 32),
        "observation.images.wrist": torch.rand(1, 3, 32, 32),
        "observation.state": torch.randn(1, 4),
        "task": ["pick the cube"],
    }
    action = post(policy.select_action(pre(observation)))
    assert action.shape == (1, 3) and action.isfinite().all()


def test_keep_last_checkpoints_bounds_the_disk(tmp_path, mixed_dataset):
    config = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", save_freq=1, keep_last_checkpoints=2)
    run(config)
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["000003", "000004", "last"]


@pytest.mark.parametrize("background", [False, True])
def test_sigterm_finishes_the_step_saves_and_the_run_goes_on(tmp_path, mixed_dataset, background):
    options = {"policy__offline_steps": 2000, "log_freq": 1, "save_freq": 2, "save_in_background": background}
    options["policy__advantage_labels"] = "running"  # of which a shorter run is one, too
    config = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", **options)
    lines = tmp_path / "run" / "metrics.jsonl"

    def stop_after_some_steps():
        while not lines.exists() or len(lines.read_text().splitlines()) < 3:
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_after_some_steps, daemon=True).start()
    checkpoint = run(config)
    step = int(checkpoint.name)
    assert damages(checkpoint) == [] and (checkpoint / "manifest.json").exists()
    assert 3 <= step < 2000
    assert metrics(tmp_path / "run")[-1]["step"] == step
    # The schedule belongs to the configuration: going on with the same one continues it.
    resumed = run(config, resume="true", **{"policy.offline_steps": step + 1})
    assert int(resumed.name) == step + 1


def test_a_run_that_was_stopped_is_not_done(tmp_path, mixed_dataset, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    config = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", policy__offline_steps=3, save_freq=1)
    update = RecapAlgorithm.update

    def stop_behind_the_second(algorithm, batches):
        stats = update(algorithm, batches)
        if algorithm.optimization_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return stats

    monkeypatch.setattr(RecapAlgorithm, "update", stop_behind_the_second)
    assert offline_learner.main([str(config)]) == 130 and "Done:" not in caplog.text
    assert offline_learner.main([str(config), "--resume=true"]) == 0 and "Done:" in caplog.text
    assert offline_learner.main([str(config), "--resume=true"]) == 0, "there is nothing left to do"


def test_resume_without_a_checkpoint_starts_fresh_and_says_so(tmp_path, mixed_dataset, caplog):
    config = write_config(tmp_path / "c.json", mixed_dataset, tmp_path / "run", resume=True)
    with caplog.at_level("INFO"):
        run(config)
    assert "starting a fresh run" in caplog.text
    assert metrics(tmp_path / "run")[0]["step"] == 1


def test_a_run_starts_from_one_of_our_checkpoints(tmp_path, mixed_dataset):
    first = run(write_config(tmp_path / "a.json", mixed_dataset, tmp_path / "a"))
    config = write_config(
        tmp_path / "b.json",
        mixed_dataset,
        tmp_path / "b",
        policy__pi05_checkpoint=str(first / "pretrained_model"),
        policy__actor_lr=1e-12,
        policy__critic_lr=1e-12,
        policy__optimizer_weight_decay=0.0,
        policy__offline_steps=1,
    )
    second = run(config)
    before, after = (load_file(c / "pretrained_model" / "model.safetensors") for c in (first, second))
    for name in before:
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-6, msg=name)


def test_cloning_is_the_same_code_and_asks_for_no_label(tmp_path, mixed_dataset):
    run(
        write_config(
            tmp_path / "c.json", mixed_dataset, tmp_path / "run", policy__policy_extraction="none", save_freq=1
        )
    )
    assert all("loss_critic" not in line and "loss_actor" in line for line in metrics(tmp_path / "run"))
