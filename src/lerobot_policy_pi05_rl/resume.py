"""What a resume checks before it goes on: a whole checkpoint, the same data, and what differs in the configuration."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import draccus
from lerobot.configs.train import TRAIN_CONFIG_NAME
from lerobot.utils.constants import LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR, TRAINING_STATE_DIR

from .checkpoint_files import CheckpointError
from .checkpointing import DATA_STATE, checkpoints_of, has_parts, last_checkpoint
from .config import ConfigError, PI05RLTrainConfig
from .config_file import SIZE_FIELDS
from .data.loading import OfflineData
from .data.sources import DatasetError, dataset_fingerprint
from .manifest import MANIFEST, damages

logger = logging.getLogger(__name__)

MANY = 3  # of a list of files, so many are named

# Keys, or nodes with all below them, that say nothing of what is learnt.
HARMLESS = {
    *("job_name", "log_freq", "save_freq", "offline_save_freq", "save_checkpoint", "save_checkpoint_to_hub"),
    *("save_in_background", "keep_last_checkpoints", "num_workers", "prefetch_factor", "persistent_workers"),
    *("dataloader_multiprocessing_context", "wandb", "env", "eval", "job", "steps", "env_eval_freq", "optimizer"),
    *("scheduler", "use_policy_training_preset", "cudnn_deterministic", "tolerance_s", "actor", "replay"),
    *(f"dataset.{key}" for key in ("repo_id", "root", "revision", "additional_offline_dataset_paths")),
    *(f"dataset.{key}" for key in ("frame_cache", "video_backend", "use_imagenet_stats")),
    *(f"policy.{key}" for key in ("device", "learner_device", "actor_device", "storage_device")),
    *(f"policy.{key}" for key in ("gradient_checkpointing", "compile_model", "compile_mode", "pi05_checkpoint")),
    *(f"policy.{key}" for key in ("inference_advantage", "guidance_scale", "num_inference_steps", "rtc_config")),
    *(f"policy.{key}" for key in ("n_action_steps", "push_to_hub", "repo_id", "private", "tags", "license")),
    *(f"policy.{key}" for key in ("actor_learner_config", "concurrency", "online_steps", "advantage_scaling")),
    *(f"policy.{key}" for key in ("async_prefetch", "pretrained_revision", "online_buffer_capacity")),
    *(f"policy.{key}" for key in ("online_step_before_learning", "episode_logging_freq")),
}
EVALUATION = {"eval_steps", "max_eval_samples"}  # harmless unless the critic's early stop counts evaluations
# What a run itself fills in, or what names this start of it.
OWN = {
    *("resume", "resume_from", "checkpoint_path", "output_dir", "output_dir_offline", "wandb.run_id"),
    *("policy.input_features", "policy.output_features", "policy.pretrained_path", "policy.use_peft"),
}
# Another value is another network, or other parts that train: optimizer state and windows would not mean the same.
OTHER_RUN = {f"policy.{name}" for name in SIZE_FIELDS if name != "n_action_steps"} | {
    *("policy.type", "policy.freeze_vision_encoder", "policy.train_expert_only", "policy.train_critic"),
    *("policy.train_language_from_layer", "policy.critic_target", "policy.advantage_window"),
}


class Change(NamedTuple):
    """A key whose value differs, and both values."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {json.dumps(self.old)} → {json.dumps(self.new)}"


class Changes(NamedTuple):
    """What differs between two configurations, by what it means for a run that goes on."""

    impossible: list[Change]
    learning: list[Change]
    harmless: list[Change]


def checkpoint_to_resume(run_dir: Path, resume_from: str | int | None = None) -> Path | None:
    """The run's newest checkpoint, or the one that ``resume_from`` names, as whole as it was written; None if the run
    has saved nothing yet. Every byte is read, which a resume does anyway.

    Raises:
        CheckpointError: it is damaged; says which file, and which older one is whole.
        ConfigError: ``resume_from`` is no checkpoint of this run.
    """
    if resume_from is None:
        try:
            checkpoint = last_checkpoint(run_dir)
        except CheckpointError as error:
            target = (run_dir / "checkpoints" / LAST_CHECKPOINT_LINK).resolve()
            raise CheckpointError(f"{error}; {advice(run_dir, target)}") from error
    else:
        checkpoint = named_checkpoint(run_dir, resume_from)
    if checkpoint is None:
        return None
    found = complaints(checkpoint)
    if found:
        more = f" (and {len(found) - MANY} more)" if len(found) > MANY else ""
        raise CheckpointError(
            f"the checkpoint {checkpoint} is damaged: {'; '.join(found[:MANY])}{more}. {advice(run_dir, checkpoint)}. "
            f"If you changed it yourself, delete its {MANIFEST}"
        )
    later = [path.name for path in checkpoints_of(run_dir) if int(path.name) > int(checkpoint.name)]
    if later:
        logger.info(
            "Going on from %s; the later checkpoints (%s) stay until the run saves at their steps",
            checkpoint.name,
            ", ".join(later),
        )
    if resume_from is not None:
        logger.info("Leave resume_from out when you resume again, or the run goes back to %s", checkpoint.name)
    return checkpoint


def named_checkpoint(run_dir: Path, resume_from: str | int) -> Path:
    """The checkpoint of ``run_dir`` that a step or a path names.

    Raises:
        ConfigError: there is none.
    """
    known, text = checkpoints_of(run_dir), str(resume_from)
    step = int(text) if text.isdigit() else None
    for path in known:
        same = int(path.name) == step if step is not None else path.resolve() == Path(text).resolve()
        if same:
            return path.resolve()
    where = f"step {step}" if step is not None else text
    names = f"those there are: {', '.join(path.name for path in known)}" if known else "it has none"
    raise ConfigError(
        f"resume_from: {where} is no checkpoint of the run {run_dir}; {names}. To start from weights of another run, "
        "set policy.pi05_checkpoint"
    )


def complaints(checkpoint: Path) -> list[str]:
    """Why a checkpoint is not whole; empty if it is."""
    return damages(checkpoint) if has_parts(checkpoint) else [f"{MANIFEST} and its folders are not all there"]


def advice(run_dir: Path, damaged: Path) -> str:
    """Where to go on instead: the newest whole checkpoint before ``damaged``. Reads them until one is."""
    older = [path for path in checkpoints_of(run_dir) if damaged.name.isdigit() and int(path.name) < int(damaged.name)]
    for path in reversed(older):
        if not complaints(path):
            return f"The newest whole one before it is {path.name}: --resume_from={int(path.name)}"
    return "No checkpoint before it is whole: start anew in another output_dir_offline"


def check_config(checkpoint: Path, cfg: PI05RLTrainConfig) -> None:
    """Say what differs from the configuration that the checkpoint was made with.

    Raises:
        ConfigError: something that makes it another run.
        CheckpointError: the stored configuration is unreadable.
    """
    file = checkpoint / PRETRAINED_MODEL_DIR / TRAIN_CONFIG_NAME
    try:
        stored = json.loads(file.read_text())
        changes = compare_configs(stored, json.loads(json.dumps(draccus.encode(cfg))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is missing or damaged ({type(error).__name__}: {error})") from error
    if changes.impossible:
        raise ConfigError(
            f"{checkpoint} cannot go on with {'; '.join(map(str, changes.impossible))}: another network, or other "
            "parts of it that train. Start a run of its own; policy.pi05_checkpoint gives it these weights"
        )
    if changes.learning:
        text = "; ".join(map(str, changes.learning))
        if any(change.key == "policy.offline_steps" for change in changes.learning):
            text += " (from here on the learning rates are those of a schedule of the new length)"
        logger.warning("Going on from %s with settings that change what is learnt: %s", checkpoint.name, text)
    if changes.harmless:
        logger.info("Other settings than in %s: %s", checkpoint.name, "; ".join(map(str, changes.harmless)))


def compare_configs(old: dict[str, Any], new: dict[str, Any]) -> Changes:
    """What differs between two configurations as JSON has them."""
    harmless = HARMLESS | (set() if new["policy"].get("critic_early_stop") is not None else EVALUATION)
    changes = Changes([], [], [])
    for change in differences(old, new):
        if _within(change.key, OWN):
            continue
        baseline = "none" in (change.old, change.new) and change.key == "policy.policy_extraction"
        if baseline or _within(change.key, OTHER_RUN):
            changes.impossible.append(change)
        elif _within(change.key, harmless):
            changes.harmless.append(change)
        else:
            changes.learning.append(change)
    return changes


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[Change]:
    """Keys of both whose values differ; a key that only one version of this package knows says nothing."""
    found = []
    for key in sorted(old.keys() & new.keys()):
        name, before, after = f"{prefix}{key}", old[key], new[key]
        if isinstance(before, dict) and isinstance(after, dict) and before and after:
            found += differences(before, after, f"{name}.") or _other_keys(name, before, after)
        elif before != after:
            found.append(Change(name, before, after))
    return found


def _other_keys(name: str, before: dict, after: dict) -> list[Change]:
    """A mapping that the user fills (task → fraction) may differ in its keys alone."""
    free = "per_task" in name or name.endswith("_map")
    return [Change(name, before, after)] if free and before != after else []


def _within(key: str, nodes: set[str]) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:length]) in nodes for length in range(1, len(parts) + 1))


def data_state(data: OfflineData) -> dict[str, Any]:
    """What the order of samples refers to: which frames there are, and how many are drawn from."""
    return {
        "datasets": [{"name": source.name, "fingerprint": dataset_fingerprint(source)} for source in data.sources],
        "train_episodes": len(data.train.frames.episodes),
        "train_draws": len(data.train),
        "held_out_frames": 0 if data.held_out is None else len(data.held_out),
    }


def check_data(checkpoint: Path, data: OfflineData) -> None:
    """The run must go on with the data it began with. Checkpoints of versions that did not note it pass.

    Raises:
        DatasetError: it is other data.
        CheckpointError: the note is damaged.
    """
    file = checkpoint / TRAINING_STATE_DIR / DATA_STATE
    if not file.is_file():
        return
    try:
        differing = data_differences(json.loads(file.read_text()), data_state(data))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({type(error).__name__}: {error})") from error
    if differing:
        raise DatasetError(
            f"{checkpoint} learnt from other data: {'; '.join(differing)}. Resume with the data it began with, or "
            "start a run of its own; policy.pi05_checkpoint gives it these weights"
        )


def data_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """In words, where two :func:`data_state` differ; a dataset that has only moved is the same."""
    before, after = old["datasets"], new["datasets"]
    if len(before) != len(after):
        return [f"{len(before)} dataset(s) then, {len(after)} now"]
    others = [
        f"dataset {then['name']} has other frames than {now['name']}"
        for then, now in zip(before, after, strict=True)
        if then["fingerprint"] != now["fingerprint"]
    ]
    counts = [
        f"{name.replace('_', ' ')} {old[name]} then, {new[name]} now"
        for name in ("train_episodes", "train_draws", "held_out_frames")
        if old[name] != new[name]
    ]
    if counts and not others:
        counts[-1] += " (dataset.eval_split, dataset.episodes, outcomes, labels and filters decide these)"
    return others or counts
