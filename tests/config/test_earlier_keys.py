"""Configurations of LeRobot's RL server (0.3 to 0.6) and earlier π0.5 RL learners load; what is gone gets a word."""

import json

import pytest
from lerobot.envs.configs import HILSerlRobotEnvConfig

from lerobot_policy_pi05_rl.config.earlier_keys import EARLIER, EARLIER_ENV
from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError

NETWORK = {"hidden_dims": [256, 256], "activate_final": True, "final_activation": None}
# All fields of SACConfig, LeRobot 0.3 to 0.5, and of gaussian_actor and the algorithm "sac" of 0.6.
SAC = {
    "n_obs_steps": 1,
    "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"},
    "dataset_stats": {"action": {"min": [-1.0, -1.0, -1.0], "max": [1.0, 1.0, 1.0]}},
    "input_features": {"observation.state": {"type": "STATE", "shape": [18]}},
    "output_features": {"action": {"type": "ACTION", "shape": [3]}},
    "device": "cpu",
    "use_amp": False,
    "push_to_hub": True,
    "repo_id": "someone/policy",
    "private": None,
    "tags": None,
    "license": None,
    "camera_number": 2,
    "storage_device": "cpu",
    "vision_encoder_name": "helper2424/resnet10",
    "freeze_vision_encoder": True,
    "image_encoder_hidden_dim": 32,
    "shared_encoder": True,
    "num_discrete_actions": 3,
    "image_embedding_pooling_dim": 8,
    "online_steps": 1_000_000,
    "online_env_seed": 10_000,
    "online_buffer_capacity": 30_000,
    "offline_buffer_capacity": 10_000,
    "async_prefetch": False,
    "online_step_before_learning": 100,
    "policy_update_freq": 1,
    "discount": 0.97,
    "temperature_init": 0.01,
    "num_critics": 2,
    "num_subsample_critics": 1,
    "critic_lr": 3e-4,
    "actor_lr": 3e-4,
    "temperature_lr": 3e-4,
    "critic_target_update_weight": 0.005,
    "utd_ratio": 2,
    "state_encoder_hidden_dim": 256,
    "latent_dim": 256,
    "target_entropy": -2.0,
    "use_backup_entropy": True,
    "grad_clip_norm": 40.0,
    "critic_network_kwargs": NETWORK,
    "actor_network_kwargs": {"hidden_dims": [256, 256], "activate_final": True},
    "policy_kwargs": {"use_tanh_squash": True, "std_min": -5, "std_max": 2, "init_final": 0.05},
    "discrete_critic_network_kwargs": NETWORK,
    "actor_learner_config": {
        "learner_host": "127.0.0.1",
        "learner_port": 50051,
        "policy_parameters_push_frequency": 4,
        "queue_get_timeout": 5,
    },
    "concurrency": {"actor": "processes", "learner": "processes", "multiprocessing_context": "fork"},
    "use_torch_compile": True,
}
# Keys of it that are honoured, or say what is so anyway.
SAC_HONOURED = {
    *("n_obs_steps", "normalization_mapping", "input_features", "output_features", "device", "use_amp", "repo_id"),
    *("private", "tags", "license", "freeze_vision_encoder", "online_steps", "online_buffer_capacity", "discount"),
    *("offline_buffer_capacity", "online_step_before_learning", "policy_update_freq", "critic_lr", "actor_lr"),
    *("critic_target_update_weight", "utd_ratio", "grad_clip_norm"),
}
SERVER = {
    "output_dir": "outputs/online",
    "job_name": "default",
    "resume": False,
    "seed": 1000,
    "num_workers": 4,
    "batch_size": 256,
    "steps": 50_000,
    "eval_freq": 20_000,
    "log_freq": 1,
    "save_checkpoint": True,
    "save_freq": 1000,
    "use_policy_training_preset": True,
    "optimizer": {"type": "multi_adam", "lr": 1e-3, "weight_decay": 0.0, "grad_clip_norm": 10.0},
    "scheduler": None,
    "eval": {"n_episodes": 10, "batch_size": 10, "use_async_envs": False},
    "wandb": {"enable": False, "project": "so101_real", "disable_artifact": True},
    "dataset": {
        "repo_id": "someone/data",
        "root": None,
        "episodes": None,
        "use_imagenet_stats": False,
        "video_backend": "pyav",
        "streaming": False,
    },
    "algorithm": {"type": "sac", "critic_lr": 3e-4, "critic_network_kwargs": NETWORK, "policy_config": None},
    "mixer": "online_offline",
    "online_ratio": 0.5,
}
SERVER_WARNED = {
    "steps",
    "eval_freq",
    "optimizer",
    "eval",
    "wandb.disable_artifact",
    "dataset.use_imagenet_stats",
    "algorithm",
}
# What an earlier π0.5 RL learner had beyond that.
RECAP = {
    "task": "Pick up the cube",
    "pi05_checkpoint": "",
    "tokenizer_max_length": 64,
    "max_state_dim": 6,
    "num_inference_steps": 5,
    "use_separate_critic": True,
    "critic_llm_depth": 6,
    "knowledge_insulation": False,
    "loss_weight_flow": 1.0,
    "loss_weight_action_ce": 0.5,
    "loss_weight_subtask_ce": 0.5,
    "inference_advantage": 1.0,
    "subtask_regeneration_interval": 1.5,
    "advantage_scaling": 0.2,
    "reward_normalization_constant": 5.0,
    "terminal_failure_reward": -16.0,
    "rtc_config": {"enabled": True, "execution_horizon": 10, "prefix_attention_schedule": "LINEAR"},
    "action_encoding": "anchor",
    "action_encoding_stats_path": "outputs/stats.pt",
    "actor_device": "cuda:0",
    "learner_device": "cpu",
    "dtype": "bfloat16",
    "gradient_checkpointing": True,
    "gradient_accumulation_steps": 6,
    "offline_steps": 10_000,
    "trainable_params": {"language_from_layer": 15, "critic_language_from_layer": 5},
}


def load(tmp_path, caplog, raw: dict) -> tuple:
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(raw))
    cfg = load_config(path)
    cfg.validate()
    return cfg, [r.getMessage() for r in caplog.records if r.name.startswith("lerobot_policy_pi05_rl")]


def test_a_configuration_of_lerobots_rl_server_loads_with_one_word_for_each_key_without_effect(tmp_path, caplog):
    cfg, said = load(tmp_path, caplog, {**SERVER, "policy": {"type": "pi05_rl", **SAC}})
    policy = SAC.keys() - SAC_HONOURED - {"actor_learner_config", "concurrency"}
    nested = {
        "policy.actor_learner_config.queue_get_timeout",
        *(f"policy.concurrency.{key}" for key in SAC["concurrency"]),
    }
    for key in {f"policy.{key}" for key in policy} | nested | SERVER_WARNED:
        assert sum(message.startswith((f"{key} ", f"{key}.", f"{key},")) for message in said) == 1, key
    assert len(said) == len(policy) + len(nested) + len(SERVER_WARNED)
    assert "policy.critic_network_kwargs.hidden_dims" in " ".join(said)
    for key in ("utd_ratio", "discount", "grad_clip_norm", "online_buffer_capacity", "freeze_vision_encoder"):
        assert getattr(cfg.policy, key) == SAC[key]
    assert (cfg.batch_size, cfg.policy.output_features["action"].shape) == (256, (3,))


def test_a_configuration_of_an_earlier_pi05_learner_loads(tmp_path, caplog):
    top = {"offline_output_dir": "outputs/offline", "offline_save_freq": 2500, "episode_logging_freq": 4}
    more = {"buffer_cache_dir": "c", "use_rerun": False, "interactive": True, "video_logging_cameras": ["top"]}
    raw = {**SERVER, **top, **more, "episode_save_freq": 6, "policy": {"type": "pi05_rl", **SAC, **RECAP}}
    raw["dataset"] = {**SERVER["dataset"], "max_episodes": 10}
    cfg, said = load(tmp_path, caplog, raw)
    for key in (*more, "dataset.max_episodes", "policy.knowledge_insulation", "policy.trainable_params"):
        assert sum(message.startswith((f"{key} ", f"{key}.")) for message in said) == 1, key
    assert str(cfg.run_dir) == "outputs/offline" and cfg.checkpoint_freq == 2500
    policy = cfg.policy
    assert (policy.pi05_checkpoint, policy.inference_advantage, policy.episode_logging_freq) == (None, "positive", 4)
    assert (policy.terminal_failure_reward, policy.rtc_config.execution_horizon) == (-16.0, 10)


@pytest.mark.parametrize("key", sorted(EARLIER.keys() - EARLIER_ENV.keys()))
@pytest.mark.parametrize("value", [1, "x", [1], {"below": {"it": 1}}])
def test_each_earlier_key_is_accepted_with_one_warning_in_the_file_and_on_the_command_line(
    tmp_path, caplog, key, value
):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"dataset": {"repo_id": "a/b"}, "policy": {"device": "cpu"}}))
    load_config(path, [f"--{key}={json.dumps(value)}"])
    (said,) = [r.getMessage() for r in caplog.records if r.name.startswith("lerobot_policy_pi05_rl")]
    assert said.startswith(key) and said.endswith(EARLIER[key])


def test_earlier_keys_of_the_robots_environment_are_answered_and_another_environments_are_its_own(tmp_path, caplog):
    env = {"type": "gym_manipulator", **{key.removeprefix("env."): {"x": 1} for key in EARLIER_ENV}}
    cfg, said = load(tmp_path, caplog, {"dataset": {"repo_id": "a/b"}, "policy": {"device": "cpu"}, "env": env})
    assert isinstance(cfg.env, HILSerlRobotEnvConfig) and len(said) == len(EARLIER_ENV)
    with pytest.raises(ConfigError, match=r"unknown key env\.wrapper"):
        load(tmp_path, caplog, {"dataset": {"repo_id": "a/b"}, "env": {"type": "pusht", "wrapper": {"x": 1}}})


def test_a_null_says_nothing(tmp_path, caplog):
    raw = {"dataset": {"repo_id": "a/b"}, "policy": {"device": "cpu", "dataset_stats": None, "target_entropy": None}}
    assert load(tmp_path, caplog, {**raw, "optimizer": None, "eval_freq": None})[1] == []


def test_a_key_nobody_ever_knew_is_still_an_error(tmp_path, caplog):
    with pytest.raises(ConfigError, match=r"unknown key policy\.num_critic\b"):
        load(tmp_path, caplog, {"dataset": {"repo_id": "a/b"}, "policy": {"num_critic": 2}})
