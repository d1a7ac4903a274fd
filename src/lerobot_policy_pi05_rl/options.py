"""What a key of the configuration means, beside its type and default: who reads it, what another value does to a run
that goes on, which values there are.

A field of ours carries it as metadata (:func:`option`). The fields of LeRobot's own classes cannot, writing into them
would change LeRobot for everybody: :data:`INHERITED` is the one list of theirs. The checks, resume, the actor,
``docs/configuration.md`` and the tests read it from here. Keys that earlier versions had: ``config/earlier_keys.py``.
"""

from collections.abc import Callable, Iterable, Set
from dataclasses import Field, field, fields
from typing import Any, NamedTuple

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
# Whose tensors' shapes and inputs follow a size, so that it comes with a checkpoint; FREE: nobody's tensors.
ACTOR, CRITIC, FREE = "actor", "critic", "free"


class Option(NamedTuple):
    """What is made of a key, or of all keys below a section."""

    on_resume: str = UNUSED
    reads: str = RUNS
    advice: str = ""  # of a key that nothing reads: what to use instead
    refused: bool = False  # another value than the default is an error, not a warning
    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: Iterable[str] | Callable[[], Iterable[str]] | None = None
    more: str = ""  # how there can be other choices, said to who asks for one
    size: str = ""  # whose
    acts: bool = False  # an actor acts with the learner's value, though another one is the same run

    @property
    def status(self) -> str:
        """Whether the key is read, or what answers it."""
        return READ if not self.advice else REFUSED if self.refused else WARNED

    @property
    def readers(self) -> str:
        """Who reads the key; empty: nobody."""
        return "" if self.advice else self.reads

    @property
    def learners_own(self) -> bool:
        """Whether another value of the learner's means nothing to its actors."""
        return not self.acts and (self.on_resume in (NOTE, START, UNUSED) or self.reads == ONLINE)

    def wrong(self, value: Any) -> str:
        """What the value must be, if it is not; else nothing."""
        choices = self.choices() if callable(self.choices) else self.choices
        if choices is not None and value not in choices:
            return f"must be one of {', '.join(choices)}; got {value!r}" + (f". {self.more}" if self.more else "")
        inside = (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
        )
        if inside:
            return ""
        bounds = {"above": self.above, "at least": self.least, "at most": self.most}
        said = " and ".join(f"{name} {bound}" for name, bound in bounds.items() if bound is not None)
        if self.least is not None and self.most is not None:
            said = f"in [{self.least}, {self.most}]"
        return f"must be {said}, got {value}"


def option[T](default: T | Callable[[], T], on_resume: str = UNUSED, reads: str = RUNS, **more: Any) -> T:
    """A dataclass field of this default, or of what this function makes, that carries its :class:`Option`."""
    made: dict[str, Any] = {"default_factory" if callable(default) else "default": default}
    return field(**made, metadata={"option": Option(on_resume, reads, **more)})  # type: ignore[no-any-return]


def option_of(name: str, declared: Field) -> Option | None:
    """What is said of the field itself; ``name`` has the sections it lies in."""
    return declared.metadata.get("option") or INHERITED.get(name)


def check_options(config: Any, section: str, readers: Set[str] = frozenset({RUNS, OFFLINE, ONLINE})) -> None:
    """Compare the fields of a section with the values there are. Of a mapping each value counts; null always passes.

    Args:
        readers: those whose keys are looked at.

    Raises:
        ValueError: there is no such value; it names the key.
    """
    for declared in fields(config):
        name = f"{section}.{declared.name}" if section else declared.name
        option = option_of(name, declared)
        value = getattr(config, declared.name)
        if option is None or value is None or option.reads not in readers:
            continue
        values = {f"{name}[{key!r}]": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        for which, one in values.items():
            wrong = option.wrong(one)
            if wrong:
                raise ValueError(f"{which} {wrong}")


def by_name[T](table: dict[str, dict[str, T]]) -> dict[str, T]:
    """Section → names, apart by spaces → what is said of each: as full name → what is said."""
    return {
        f"{section}.{name}".removeprefix("."): said
        for section, rows in table.items()
        for names, said in rows.items()
        for name in names.split()
    }


# Section of the configuration → names → what they mean.
_READ = {
    "": {
        "output_dir resume": Option(OWN),
        "job_name save_checkpoint save_checkpoint_to_hub save_freq cudnn_deterministic": Option(NOTE),
        "dataloader_multiprocessing_context": Option(NOTE),
        "num_workers tolerance_s": Option(NOTE, least=0),
        "log_freq prefetch_factor": Option(NOTE, least=1),
        "batch_size": Option(LEARNING, least=1),
        "rename_map": Option(DATA),
        "online_ratio": Option(LEARNING, ONLINE, above=0, most=1),
        "env": Option(NOTE, ONLINE),
    },
    "dataset": {
        "repo_id root revision": Option(NOTE),
        "video_backend": Option(NOTE, choices=("torchcodec", "pyav", "video_reader")),  # the last: once pyav's name
        "episodes": Option(DATA),
        "image_transforms": Option(LEARNING),
    },
    "wandb": {
        "enable project entity notes add_tags": Option(NOTE),
        "mode": Option(NOTE, choices=("online", "offline", "disabled")),
        "run_id": Option(OWN),
    },
    "peft": {
        "target_modules full_training_modules method_type": Option(OTHER_RUN),
        "r lora_alpha": Option(OTHER_RUN, least=1),
        "init_type": Option(START),
    },
    "policy": {
        "type freeze_vision_encoder train_expert_only normalization_mapping": Option(OTHER_RUN),
        "use_relative_actions relative_exclude_joints": Option(OTHER_RUN),
        "tokenizer_max_length": Option(OTHER_RUN, least=1),
        "image_resolution": Option(OTHER_RUN, size=ACTOR),
        "max_action_dim": Option(OTHER_RUN, least=1, size=ACTOR),
        "chunk_size max_state_dim": Option(OTHER_RUN, least=1, size=FREE),
        "n_action_steps": Option(NOTE, least=1, size=FREE, acts=True),
        "num_inference_steps": Option(NOTE, least=1, acts=True),
        "input_features output_features action_feature_names": Option(FILLED),
        "pretrained_path": Option(START),
        "device gradient_checkpointing compile_model repo_id private tags license rtc_config": Option(NOTE),
        "dtype time_sampling_scale time_sampling_offset optimizer_betas": Option(LEARNING),
        "time_sampling_beta_alpha time_sampling_beta_beta min_period max_period": Option(LEARNING, above=0),
        "optimizer_lr optimizer_eps optimizer_grad_clip_norm": Option(LEARNING, above=0),
        "optimizer_weight_decay scheduler_warmup_steps": Option(LEARNING, least=0),
        "scheduler_decay_steps": Option(LEARNING, least=1),
    },
}
_RATES = "the optimizer is AdamW with policy.actor_lr, policy.critic_lr, policy.optimizer_* and policy.scheduler_*"
# Names → what to use instead.
_WARNED = {
    "steps": "policy.offline_steps is the length of an offline run, policy.online_steps of an online one",
    "env_eval_freq eval": "no episode is run while a policy trains; evaluate its checkpoints with lerobot-eval",
    "use_policy_training_preset optimizer": _RATES,
    "scheduler": f"{_RATES}; the schedule's length is policy.offline_steps or policy.online_steps",
    "persistent_workers": "the workers of num_workers live as long as the run",
    "job.image job.timeout job.detach job.tags": "start the command on the machine that shall train",
    "algorithm": "the algorithm is RECAP; its settings are fields of policy (policy.actor_lr, policy.discount, …)",
    "checkpoint_path": "set resume=true, and resume_from to another checkpoint than the newest",
    "dataset.use_imagenet_stats": "pictures go into π0.5 as they are, scaled to [-1, 1]; no statistics touch them",
    "dataset.return_uint8": "pictures are always read as uint8",
    "dataset.depth_output_unit": "the policy's cameras are colour cameras",
    "wandb.disable_artifact": "checkpoints never go to W&B; save_checkpoint_to_hub=true sends them to the Hub",
    "policy.use_amp": "policy.dtype=bfloat16 computes in bf16, and holds what trains in fp32",
    "policy.use_peft": "the peft section asks for an adapter (peft.r, peft.target_modules, …)",
    "policy.empty_cameras": "a camera that a dataset lacks is left out, not replaced by a black picture",
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
INHERITED: dict[str, Option] = {
    **by_name(_READ),
    **{name: Option(advice=advice) for name, advice in by_name({"": _WARNED}).items()},
    **{name: Option(advice=advice, refused=True) for name, advice in _REFUSED.items()},
}
