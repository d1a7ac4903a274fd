"""Every key of the configuration: who reads it, or what answers it, and what another value means for a resumed run.

This is the only such list: validation, resume, ``docs/configuration.md`` (:mod:`.config_page` writes it) and the tests
read it. Keys that earlier versions of LeRobot and earlier π0.5 RL learners had are in ``earlier_keys.py``.
"""

import dataclasses
import typing
from collections.abc import Iterator, Set
from typing import Any, NamedTuple

import draccus

from ..configuration_pi05_rl import PI05RLConfig
from .errors import nested_dataclass

READ, WARNED, REFUSED = "read", "warned", "refused"
# What a run that goes on with another value does.
OWN = "names this start of the run"
NOTE = "another way to the same weights: a note"
START = "has no effect: it matters when a run starts"
LEARNING = "takes effect, with a warning"
DATA = "an error if it changes which frames are drawn or how they look, else takes effect, with a warning"
OTHER_RUN = "an error: another run"
FILLED = "an error if it differs from what the data filled in"
UNUSED = "nothing"
GRAVITY = (UNUSED, OWN, START, NOTE, LEARNING, DATA, FILLED, OTHER_RUN)
# Who reads a key: any run, the offline learner, the online learner and its actors.
RUNS, OFFLINE, ONLINE = "runs", "offline", "online"


class Key(NamedTuple):
    """What is made of a key, or of all keys below a node."""

    status: str
    readers: str = ""
    on_resume: str = UNUSED
    advice: str = ""  # of a key that nothing reads: what to use instead


# Fields that the shapes of a checkpoint's tensors and what its networks read (and its chunks) depend on.
ACTOR_SIZES = (
    *("llm_width", "llm_mlp_dim", "llm_depth", "expert_width", "expert_mlp_dim", "head_dim", "num_kv_heads"),
    *("vision_width", "vision_mlp_dim", "vision_depth", "vision_heads", "vision_patch_size", "vocab_size"),
    *("image_resolution", "max_action_dim"),
)
CRITIC_SIZES = (
    *("num_value_bins", "use_separate_critic", "critic_llm_depth", "critic_image_pooling", "critic_folds"),
    "num_value_queries",
)
FREE_SIZES = ("chunk_size", "n_action_steps", "max_state_dim")  # inherited, but no tensor's shape
SIZE_FIELDS = [*ACTOR_SIZES, *FREE_SIZES, *CRITIC_SIZES]

# Section of the configuration → (who reads, on resume, names).
_READ = {
    "": [
        (OFFLINE, OWN, "output_dir_offline"),
        (RUNS, OWN, "output_dir resume resume_from"),
        (RUNS, NOTE, "job_name log_freq save_checkpoint save_checkpoint_to_hub save_freq save_in_background"),
        (RUNS, NOTE, "keep_last_checkpoints num_workers prefetch_factor dataloader_multiprocessing_context"),
        (RUNS, NOTE, "cudnn_deterministic tolerance_s eval_steps max_eval_samples"),
        (OFFLINE, NOTE, "offline_save_freq"),
        (RUNS, LEARNING, "seed batch_size"),
        (RUNS, DATA, "rename_map"),
        (ONLINE, LEARNING, "online_ratio"),
        (ONLINE, NOTE, "env"),
    ],
    "dataset": [
        (RUNS, NOTE, "repo_id root revision additional_offline_dataset_paths frame_cache video_backend"),
        (RUNS, DATA, "episodes bad_values eval_split labeling"),
        (RUNS, LEARNING, "weights image_transforms"),
        (RUNS, NOTE, "resample_actions"),
        (RUNS, OTHER_RUN, "statistics"),
    ],
    "reward": [(RUNS, LEARNING, "source"), (RUNS, DATA, "outcome_file unlabelled")],
    "wandb": [
        (RUNS, NOTE, "enable project entity notes mode add_tags"),
        (OFFLINE, NOTE, "offline_project"),
        (RUNS, OWN, "run_id"),
    ],
    "peft": [
        (RUNS, OTHER_RUN, "target_modules full_training_modules method_type r lora_alpha"),
        (RUNS, START, "init_type"),
    ],
    "policy": [
        (RUNS, OTHER_RUN, " ".join(name for name in SIZE_FIELDS if name != "n_action_steps")),
        (RUNS, OTHER_RUN, "type task freeze_vision_encoder train_expert_only train_language_from_layer train_critic"),
        (RUNS, OTHER_RUN, "critic_target advantage_window tokenizer tokenizer_max_length normalization_mapping"),
        (RUNS, OTHER_RUN, "use_relative_actions relative_exclude_joints"),
        (RUNS, FILLED, "input_features output_features action_feature_names"),
        (RUNS, START, "pi05_checkpoint pretrained_path"),
        (RUNS, NOTE, "device learner_device gradient_checkpointing compile_model compile_mode repo_id private"),
        (RUNS, NOTE, "n_action_steps num_inference_steps inference_advantage guidance_scale rtc_config"),
        (ONLINE, NOTE, "actor_device episode_logging_freq"),
        (RUNS, LEARNING, "dtype time_sampling_beta_alpha time_sampling_beta_beta time_sampling_scale"),
        (RUNS, LEARNING, "time_sampling_offset min_period max_period"),
        (RUNS, LEARNING, "actor_lr critic_lr grad_clip_norm optimizer_lr optimizer_betas optimizer_eps"),
        (RUNS, LEARNING, "optimizer_weight_decay optimizer_grad_clip_norm scheduler_warmup_steps"),
        (RUNS, LEARNING, "scheduler_decay_steps scheduler_decay_lr policy_update_freq critic_warmup_steps utd_ratio"),
        (RUNS, LEARNING, "gradient_accumulation_steps value_support_min value_support_max hl_gauss_sigma_ratio"),
        (RUNS, LEARNING, "n_step critic_target_update_weight critic_early_stop discount"),
        (RUNS, LEARNING, "reward_normalization_constant terminal_failure_reward awr_temperature awr_max_weight"),
        (RUNS, LEARNING, "advantage_n_step advantage_positive_fraction advantage_positive_fraction_per_task"),
        (RUNS, LEARNING, "advantage_dropout"),
        (RUNS, DATA, "policy_extraction filter_by advantage_positive_weight offline_buffer_capacity"),
        (OFFLINE, LEARNING, "offline_steps"),
        (ONLINE, LEARNING, "online_steps online_updates_per_transition online_buffer_capacity"),
        (ONLINE, LEARNING, "online_step_before_learning"),
    ],
    "policy.actor_learner_config": [
        (
            ONLINE,
            NOTE,
            "learner_host learner_port policy_parameters_push_frequency token_file tls_certificate tls_key",
        ),
        (ONLINE, NOTE, "push_dtype"),
    ],
    "actor": [
        (ONLINE, NOTE, "name episodes inference realtime queue_threshold action_clamp_limits max_action_step"),
        (ONLINE, NOTE, "allow_unlimited_actions hold_action stale_observation_s on_fault fault_timeout_s time_limit"),
        (ONLINE, NOTE, "spool_dir spool_gb jpeg_quality"),
    ],
    "replay": [(ONLINE, NOTE, "rgb_encoder max_episode_mb max_episode_frames")],
}
_NO_EPISODES = "no episode is run while a policy trains; evaluate its checkpoints with lerobot-eval"
_RATES = "the optimizer is AdamW with policy.actor_lr, policy.critic_lr, policy.optimizer_* and policy.scheduler_*"
_NOT_THREADS = "learner and actor are processes with threads inside"
_WARNED = {
    "steps": "policy.offline_steps is the length of an offline run, policy.online_steps of an online one",
    "env_eval_freq": _NO_EPISODES,
    "eval": _NO_EPISODES,
    "use_policy_training_preset": _RATES,
    "optimizer": _RATES,
    "scheduler": f"{_RATES}; the schedule's length is policy.offline_steps or policy.online_steps",
    "persistent_workers": "the workers of num_workers live as long as the run",
    "job.image": "start the command on the machine that shall train",
    "job.timeout": "start the command on the machine that shall train",
    "job.detach": "start the command on the machine that shall train",
    "job.tags": "start the command on the machine that shall train",
    "algorithm": "the algorithm is RECAP; its settings are fields of policy (policy.actor_lr, policy.discount, …)",
    "checkpoint_path": "set resume=true, and resume_from to another checkpoint than the newest",
    "dataset.use_imagenet_stats": "pictures go into π0.5 as they are, scaled to [-1, 1]; no statistics touch them",
    "dataset.return_uint8": "pictures are always read as uint8",
    "dataset.depth_output_unit": "the policy's cameras are colour cameras",
    "wandb.disable_artifact": "checkpoints never go to W&B; save_checkpoint_to_hub=true sends them to the Hub",
    "policy.use_amp": "policy.dtype=bfloat16 computes in bf16 over fp32 weights",
    "policy.use_peft": "the peft section asks for an adapter (peft.r, peft.target_modules, …)",
    "policy.push_to_hub": "save_checkpoint_to_hub=true sends each checkpoint to policy.repo_id",
    "policy.tags": "write them into the README.md of policy.repo_id on the Hub",
    "policy.license": "write it into the README.md of policy.repo_id on the Hub",
    "policy.empty_cameras": "a camera that a dataset lacks is left out, not replaced by a black picture",
    "policy.actor_learner_config.queue_get_timeout": "nothing polls a queue",
    "policy.concurrency.actor": _NOT_THREADS,
    "policy.concurrency.learner": _NOT_THREADS,
    "policy.concurrency.multiprocessing_context": f"{_NOT_THREADS}; the data loader's is "
    "dataloader_multiprocessing_context",
    "policy.advantage_scaling": "the advantage is a tag, not a number: set policy.advantage_positive_fraction",
    "policy.storage_device": "frames stay in the dataset's own files and are decoded when drawn",
    "policy.async_prefetch": "num_workers and prefetch_factor of the data loader prefetch",
}
_REFUSED = {
    "dataset.repo_type": "buckets can only be streamed; download the dataset and set dataset.root to its folder",
    "dataset.streaming": "samples are drawn in random order from local files; set it to false",
    "reward_model": "this trains a policy and its critic; where rewards come from is reward.source",
    "sample_weighting": "how often frames are drawn is set by dataset.weights and policy.advantage_positive_weight",
    "mixer": "leave it at online_offline; the online share of a batch is online_ratio",
    "job.target": "no job is submitted: leave it out and start the command on the machine that shall train",
    "policy.n_obs_steps": "π0.5 reads one observation; set it to 1",
    "policy.paligemma_variant": "sizes are fields of their own; set policy.llm_width, policy.llm_depth, …",
    "policy.action_expert_variant": "sizes are fields of their own; set policy.expert_width, policy.expert_mlp_dim, …",
    "policy.pretrained_revision": "download that revision (hf download REPO --revision REVISION --local-dir DIR) and "
    "set policy.pi05_checkpoint to the folder",
}


def _table() -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for section, groups in _READ.items():
        prefix = f"{section}." if section else ""
        for readers, on_resume, names in groups:
            keys |= {prefix + name: Key(READ, readers, on_resume) for name in names.split()}
    keys |= {name: Key(WARNED, advice=advice) for name, advice in _WARNED.items()}
    return keys | {name: Key(REFUSED, advice=advice) for name, advice in _REFUSED.items()}


KEYS: dict[str, Key] = _table()


class Leaf(NamedTuple):
    """A field of the configuration that holds a value."""

    name: str  # with dots
    type: Any
    default: Any


def entry(name: str) -> str | None:
    """The key or node of :data:`KEYS` that speaks for ``name``; None: nothing does."""
    parts = name.split(".")
    return next((node for length in range(len(parts), 0, -1) if (node := ".".join(parts[:length])) in KEYS), None)


def on_resume(name: str) -> str:
    """What another value means for a run that goes on; of a node the gravest of all below it."""
    node = entry(name)
    if node is not None:
        return KEYS[node].on_resume
    below = [key.on_resume for own, key in KEYS.items() if own.startswith(f"{name}.")]
    return max(below, key=GRAVITY.index, default=LEARNING)


def readers(name: str) -> str:
    """Who reads a key."""
    node = entry(name)
    return RUNS if node is None else KEYS[node].readers


def leaves(cls: type, prefix: str = "") -> Iterator[Leaf]:
    """All fields of a configuration class that hold a value, with their types and defaults. A section whose fields
    depend on its own ``type`` is one of them."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        nested = None if typing.get_origin(hint) is dict else nested_dataclass(hint)
        if nested is None or (issubclass(nested, draccus.ChoiceRegistry) and nested is not PI05RLConfig):
            yield Leaf(prefix + field.name, hint, _default(field))
        else:
            yield from leaves(nested, f"{prefix}{field.name}.")


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def value_of(config: Any, name: str) -> Any:
    """The value of a key; None below a section that is not there."""
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


def set_names(config: Any, status: str) -> dict[str, list[str]]:
    """Entry of :data:`KEYS` with this status → the keys it speaks for that differ from their defaults."""
    found: dict[str, list[str]] = {}
    for leaf in leaves(type(config)):
        node = entry(leaf.name)
        if node is None or KEYS[node].status != status:
            continue
        value = value_of(config, leaf.name)
        absent = value is None or (leaf.name == "eval.batch_size" and _is_automatic(config.eval))
        if not absent and value != leaf.default:
            found.setdefault(node, []).append(leaf.name)
    return found


def _is_automatic(evaluation: Any) -> bool:
    """LeRobot fills ``eval.batch_size`` in by the number of cores."""
    return evaluation.batch_size == min(evaluation._auto_batch_size(), evaluation.n_episodes)


def no_effect(names: list[str], advice: str) -> str:
    """The warning for keys that are accepted and do nothing."""
    are = "is" if len(names) == 1 else "are"
    return f"{', '.join(names)} {are} accepted and {'has' if len(names) == 1 else 'have'} no effect: {advice}"


def policy_fields(meanings: Set[str]) -> set[str]:
    """Fields of the policy of which another value means one of these for a run that goes on."""
    policy = {name: key for name, key in KEYS.items() if name.startswith("policy.")}
    return {name.split(".")[1] for name, key in policy.items() if key.on_resume in meanings}
