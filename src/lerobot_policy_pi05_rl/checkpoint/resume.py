"""What a resume checks before it goes on: a whole checkpoint, the same data, and what differs in the configuration."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from lerobot.configs.train import TRAIN_CONFIG_NAME
from lerobot.utils.constants import LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR, TRAINING_STATE_DIR

from ..advantage import find_extraction
from ..config.keys import on_resume, readers
from ..config.train import ConfigError
from ..configuration_pi05_rl import PI05RLConfig
from ..data.dataset import OfflineData
from ..data.sources import DatasetError, dataset_fingerprint
from ..errors import typed_line
from ..options import DATA, FILLED, LEARNING, NOTE, OTHER_RUN, OWN, START
from ..runtime.files import MANIFEST, damages
from ..stored.files import CheckpointError
from .write import DATA_STATE, checkpoints_of, has_parts, last_checkpoint

logger = logging.getLogger(__name__)

MANY = 3  # of a list of files, so many are named
EVALUATION = ("eval_steps", "max_eval_samples")  # a note, unless the critic's early stop counts evaluations


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
    without_effect: list[Change]


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
            raise CheckpointError(f"{error}; {resume_advice(run_dir, target)}") from error
    else:
        checkpoint = named_checkpoint(run_dir, resume_from)
    if checkpoint is None:
        return None
    found = checkpoint_problems(checkpoint)
    if found:
        more = f" (and {len(found) - MANY} more)" if len(found) > MANY else ""
        raise CheckpointError(
            f"the checkpoint {checkpoint} is damaged: {'; '.join(found[:MANY])}{more}. "
            f"{resume_advice(run_dir, checkpoint)}. If you changed it yourself, delete its {MANIFEST}"
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


def checkpoint_problems(checkpoint: Path) -> list[str]:
    """Why a checkpoint is not whole; empty if it is."""
    return damages(checkpoint) if has_parts(checkpoint) else [f"{MANIFEST} and its folders are not all there"]


def resume_advice(run_dir: Path, damaged: Path) -> str:
    """Where to go on instead: the newest whole checkpoint before ``damaged``. Reads them until one is."""
    older = [path for path in checkpoints_of(run_dir) if damaged.name.isdigit() and int(path.name) < int(damaged.name)]
    for path in reversed(older):
        if not checkpoint_problems(path):
            return f"The newest whole one before it is {path.name}: --resume_from={int(path.name)}"
    return "No checkpoint before it is whole: start anew in another output_dir_offline"


def check_config(checkpoint: Path, config: dict[str, Any], reads: frozenset[str]) -> None:
    """The configuration must be of the same run as the one that the checkpoint was made with. What else differs,
    :func:`check_data` says, once it is certain that the run goes on.

    Args:
        config: as a file has it (:func:`~..config.encoding.encoded`).
        reads: the readers (:mod:`..config.keys`) that this run is among.

    Raises:
        ConfigError: something that makes it another run.
        CheckpointError: the stored configuration is unreadable.
    """
    impossible = _changes(checkpoint, config, reads).impossible
    if impossible:
        raise ConfigError(
            f"{checkpoint} cannot go on with {'; '.join(map(str, impossible))}: another network, other parts of it "
            "that train, or another scale of what it reads. Start a run of its own; policy.pi05_checkpoint gives it "
            "these weights"
        )


def _changes(checkpoint: Path, config: dict[str, Any], reads: frozenset[str]) -> Changes:
    return read_train_config(checkpoint, lambda stored: compare_configs(stored, config, reads))


def read_train_config[T](checkpoint: Path, read: Callable[[dict[str, Any]], T]) -> T:
    """What ``read`` makes of the configuration that the checkpoint was made with.

    Raises:
        CheckpointError: the file is missing, or nothing that ``read`` can read.
    """
    file = checkpoint / PRETRAINED_MODEL_DIR / TRAIN_CONFIG_NAME
    try:
        return read(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is missing or damaged ({typed_line(error)})") from error


def log_changes(checkpoint: Path, changes: Changes) -> None:
    """What differs from the configuration that the checkpoint was made with, and what that means."""
    if changes.learning:
        text = "; ".join(map(str, changes.learning))
        if any(change.key in ("policy.offline_steps", "policy.online_steps") for change in changes.learning):
            text += " (from here on the learning rates are those of a schedule of the new length)"
        logger.warning("Going on from %s with settings that change what is learnt: %s", checkpoint.name, text)
    if changes.harmless:
        logger.info("Other settings than in %s: %s", checkpoint.name, "; ".join(map(str, changes.harmless)))
    if changes.without_effect:
        text = "; ".join(map(str, changes.without_effect))
        logger.info("Settings of a run's start, without effect on one that goes on: %s", text)


def compare_configs(old: dict[str, Any], new: dict[str, Any], reads: frozenset[str]) -> Changes:
    """What differs between two configurations as JSON has them.

    Args:
        reads: the readers (:mod:`..options`) that this run is among.
    """
    changes = Changes([], [], [], [])
    for change in differences(old, new):
        if change.key == "peft":  # an adapter or none: preparation.make_policy refuses the other
            continue
        meaning = on_resume(change.key)
        if meaning == NOTE and change.key in EVALUATION and new["policy"].get("critic_early_stop") is not None:
            meaning = LEARNING
        if meaning == FILLED:
            meaning = OTHER_RUN if change.old and change.new else OWN
        elif meaning in (LEARNING, DATA) and readers(change.key) not in reads:
            meaning = NOTE
        kept = {OTHER_RUN: changes.impossible, NOTE: changes.harmless, START: changes.without_effect}
        kept |= {LEARNING: changes.learning, DATA: changes.learning}
        if meaning in kept:
            kept[meaning].append(change)
    if _needs(old["policy"]) != _needs(new["policy"]):
        deciding = ("policy.policy_extraction", "policy.filter_by")
        moved = [change for change in changes.learning if change.key in deciding]
        changes.impossible.extend(moved)
        changes.learning[:] = [change for change in changes.learning if change not in moved]
    return changes


def _needs(policy: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the policy extraction of a stored configuration needs advantages, and outcomes.

    Raises:
        UserError: nobody registered it here.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(PI05RLConfig)}
    stored = SimpleNamespace(**defaults | policy)
    extraction = find_extraction(stored.policy_extraction)(stored)
    return extraction.needs_advantage, extraction.needs_outcomes


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
    """A mapping that the user or the data fill (task → fraction, camera → shape) may differ in its keys alone."""
    free = name.endswith(("per_task", "_map", "_features", ".tfs"))
    return [Change(name, before, after)] if free and before != after else []


def data_state(data: OfflineData) -> dict[str, Any]:
    """What the order of samples refers to: which frames there are, and how many are drawn from."""
    return {
        "datasets": [{"name": source.name, "fingerprint": dataset_fingerprint(source)} for source in data.sources],
        "train_episodes": len(data.train.frames.episodes),
        "train_draws": data.train.frames.samples_per_epoch,
        "held_out_frames": 0 if data.held_out is None else len(data.held_out),
    }


def check_data(checkpoint: Path, data: OfflineData, config: dict[str, Any], reads: frozenset[str]) -> None:
    """The run must go on with the data it began with; if it does, its other settings are said. Checkpoints of versions
    that did not note their data pass.

    Raises:
        ConfigError: as :func:`check_config`.
        DatasetError: it is other data.
        CheckpointError: the note is damaged.
    """
    check_config(checkpoint, config, reads)  # with what the data filled in
    changes = _changes(checkpoint, config, reads)
    file = checkpoint / TRAINING_STATE_DIR / DATA_STATE
    if not file.is_file():
        log_changes(checkpoint, changes)
        return
    try:
        differing = data_differences(json.loads(file.read_text()), data_state(data))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({typed_line(error)})") from error
    if differing:
        deciding = [change for change in changes.learning if on_resume(change.key) == DATA]
        settings = f" (changed: {'; '.join(map(str, deciding))})" if deciding else ""
        raise DatasetError(
            f"{checkpoint} learnt from other data: {'; '.join(differing)}{settings}. Resume with the data it began "
            "with, or start a run of its own; policy.pi05_checkpoint gives it these weights"
        )
    log_changes(checkpoint, changes)


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
