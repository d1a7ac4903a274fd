"""Names that lead to a key, and keys that earlier versions had.

They are those of LeRobot's SAC policy and RL server pipeline (0.3 to 0.6) and of earlier π0.5 RL learners, and are
taken out of the raw configuration before it is decoded, with one warning each.
"""

from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..options import INHERITED, REFUSED, by_name
from .arguments import assign
from .leaves import no_effect, not_supported

# Another name → the key. Those of LeRobot's own tools are said, a second spelling is not.
ALIASES = {
    "offline_output_dir": "output_dir_offline",
    "episode_logging_freq": "policy.episode_logging_freq",
    "policy.path": "policy.pi05_checkpoint",
    "policy.pretrained_path": "policy.pi05_checkpoint",
}
_SILENT = {"offline_output_dir", "episode_logging_freq"}

_FRAMES = "frames are decoded when drawn; dataset.frame_cache keeps them decoded"
_RECORDING = "record with lerobot-record"
# Of an environment of type gym_manipulator alone: others have fields of these names.
_EARLIER_ENV = {
    "env": {
        "wrapper": "its settings are below env.processor: observation, image_preprocessing, gripper, reset",
        "mode repo_id dataset_root": _RECORDING,
        "num_episodes": "set actor.episodes",
        "episode push_to_hub": _RECORDING,
        "video_record": "set policy.episode_logging_freq",
        "device": "set policy.actor_device",
        "pretrained_policy_name_or_path": "set policy.pi05_checkpoint",
        "reward_classifier_pretrained_path": "set env.processor.reward_classifier.pretrained_path",
        "number_of_steps_after_success": "an episode ends with its success; env.processor.reset.terminate_on_success",
    }
}
# Section → names → what to use instead.
_EARLIER = {
    "": {
        "eval_freq": "no episode is run while a policy trains; evaluate its checkpoints with lerobot-eval",
        "mode": "pi05-rl has a verb for each of them: offline, learner, actor",
        "device": "set policy.device",
        "interactive use_rerun video_logging_cameras": "pi05-rl report RUN and W&B show a run; "
        "policy.episode_logging_freq says how often videos are written",
        "episode_save_freq": "the replay is saved after every episode",
        "buffer_cache_dir cache_policy": _FRAMES,
        "skip_critic": "set policy.policy_extraction=none for cloning without a critic",
        "val_dataset_path val_split val_freq val_on_start": "dataset.eval_split holds episodes out, "
        "eval_steps says how often they are evaluated",
        "val_loss_frames": "max_eval_samples says how many held-out frames are evaluated",
        "probe_parameters": "pi05-rl report RUN shows what the critic and the policy learnt",
        "use_rabc rabc_progress_path rabc_kappa rabc_epsilon rabc_head_mode": "frames are weighed by "
        "policy.policy_extraction and policy.advantage_positive_weight",
    },
    "dataset": {
        "max_episodes": "dataset.episodes lists the episodes to learn from",
        "local_files_only": "dataset.root is the folder of a local dataset; HF_HUB_OFFLINE=1 keeps off the Hub",
        "task": "set policy.task",
        "num_episodes_to_record replay_episode push_to_hub": _RECORDING,
    },
    "policy": {
        "dataset_stats": "statistics are those of the data that a run trains on, or of its checkpoint",
        "use_dataset_stats": "a fresh run always takes its data's statistics",
        "num_critics num_subsample_critics critic_network_kwargs discrete_critic_network_kwargs": "the critic "
        "predicts returns from π0.5's layers; set policy.critic_llm_depth, policy.critic_folds",
        "critic_target_update_every": "the target moves at each update, by policy.critic_target_update_weight",
        "actor_network_kwargs policy_kwargs latent_dim": "the actor is π0.5; its sizes are policy.llm_width, "
        "policy.expert_width, …",
        "state_encoder_hidden_dim": "π0.5 reads the state as text in its prompt",
        "vision_encoder_name image_encoder_hidden_dim": "π0.5 has its own vision tower; "
        "policy.freeze_vision_encoder freezes it",
        "image_embedding_pooling_dim": "policy.critic_image_pooling pools what the critic sees",
        "camera_number": "cameras are those of the dataset, or of policy.input_features",
        "shared_encoder": "set policy.use_separate_critic=false for a critic on the actor's features",
        "num_discrete_actions": "π0.5's actions are continuous, the gripper's too",
        "temperature_init temperature_lr target_entropy use_backup_entropy": "RECAP has no entropy term; "
        "policy.advantage_dropout and policy.guidance_scale say how sharp the policy is",
        "online_env_seed": "set seed",
        "use_torch_compile torch_compile": "set policy.compile_model",
        "action_dim": "actions have the dimensions of the dataset",
        "drop_n_last_frames": "the last frames of an episode train like any other; chunks are cut at its end",
        "trainable_params": "set policy.freeze_vision_encoder and policy.train_language_from_layer",
        "freeze_vision_tower": "set policy.freeze_vision_encoder",
        "freeze_language_model": "set policy.train_expert_only, or policy.train_language_from_layer",
        "freeze_action_expert": "the action expert always trains",
        "action_encoding": "set policy.use_relative_actions for actions relative to the state",
        "action_encoding_stats_path": "statistics of relative actions are computed from the data",
        "action_tokenizer_name max_action_tokens fast_skip_tokens knowledge_insulation loss_weight_flow "
        "loss_weight_action_ce": "actions are learnt by flow matching alone; no action tokens",
        "loss_weight_subtask_ce subtask_regeneration_interval max_decoding_steps temperature": "the prompt is the "
        "dataset's task, or policy.task; no subtask is generated",
        "text_tokenizer_name": "set policy.tokenizer",
        "image_storage_size image_storage_dtype image_stride": _FRAMES,
        "weights_push_interval": "set policy.actor_learner_config.policy_parameters_push_frequency",
        "action_clamp_limits": "set actor.action_clamp_limits",
        "pretrained_merge_alpha pretrained_merge_every_n_steps pretrained_merge_targets": "weights are not pulled "
        "back; lower policy.actor_lr, or train an adapter (peft.r)",
    },
}
EARLIER_ENV = by_name(_EARLIER_ENV)
EARLIER = by_name(_EARLIER) | EARLIER_ENV
_FEW = 6
# Nodes that draccus would have to decode, though nothing reads what comes out.
_NODES = ("optimizer", "scheduler", "algorithm", "checkpoint_path", "reward_model", "sample_weighting")


def rename_aliases(raw: dict[str, Any]) -> list[str]:
    """Move the values of :data:`ALIASES` to their keys, in place; returns warnings.

    Raises:
        ConfigError: two names of one key hold different values.
    """
    warnings = []
    for alias, key in ALIASES.items():
        value = _pop(raw, alias)
        if value is None or (alias == "policy.pretrained_path" and _is_our_own(raw, value)):
            continue
        given = _get(raw, key)
        if given is not None and Path(str(given)) != Path(str(value)):
            raise ConfigError(
                f"{alias} is {value!r} and {key} is {given!r}: two names of one setting; leave {alias} out"
            )
        assign(raw, key, value)
        if alias not in _SILENT:
            warnings.append(f"{alias} is read as {key}: {value}")
    return warnings


def _is_our_own(raw: dict[str, Any], path: Any) -> bool:
    """Stored configurations hold what LeRobot's tools shall load beside what our run started from: the same, or the
    base of its adapter."""
    policy = raw["policy"]
    same = policy.get("pi05_checkpoint") is not None and Path(str(policy["pi05_checkpoint"])) == Path(str(path))
    return same or policy.get("use_peft") is True


def remove_unread_keys(raw: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Remove what draccus shall not see, in place; returns the warnings and the refusals."""
    warnings, refused = [], []
    for name in _NODES:
        value = _pop(raw, name)
        if value is None:
            continue
        if INHERITED[name].status == REFUSED:
            refused.append(not_supported(_names(name, value), INHERITED[name].advice))
        else:
            warnings.append(no_effect(_names(name, value), INHERITED[name].advice))
    env = raw.get("env")
    manipulator = isinstance(env, dict) and env.get("type") == "gym_manipulator"
    for name, advice in EARLIER.items():
        if name in EARLIER_ENV and not manipulator:
            continue
        value = _pop(raw, name)
        if value is not None:
            warnings.append(no_effect(_names(name, value), advice))
    return warnings, refused


def _names(name: str, value: Any) -> list[str]:
    """Of a key that held a section, those below it, if they are few."""
    if not isinstance(value, dict) or not 0 < len(value) <= _FEW:
        return [name]
    return [f"{name}.{key}" for key in value]


def _parent(raw: dict[str, Any], name: str) -> tuple[dict[str, Any] | None, str]:
    *parents, last = name.split(".")
    node: Any = raw
    for part in parents:
        node = node.get(part)
        if not isinstance(node, dict):
            return None, last
    return node, last


def _get(raw: dict[str, Any], name: str) -> Any:
    node, last = _parent(raw, name)
    return None if node is None else node.get(last)


def _pop(raw: dict[str, Any], name: str) -> Any:
    node, last = _parent(raw, name)
    return None if node is None else node.pop(last, None)
