"""LoRA on chosen parts of the actor, through PEFT and in LeRobot's form; the critic beside it trains in full.

A checkpoint is then ``adapter_config.json`` (which names the base), ``adapter_model.safetensors`` and, where the
critic is not the base's own, ``critic.safetensors``: PEFT's ``modules_to_save`` would hold a second, frozen critic in
memory. LeRobot's ``make_policy`` loads all of it (``locate_for`` is how it gets the critic).
"""

import dataclasses
import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lerobot.configs.default import PeftConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..configuration_pi05_rl import PI05RLConfig
from ..errors import UserError, one_line
from ..stored.files import (
    ADAPTER_CONFIG,
    CRITIC_PREFIX,
    CRITIC_WEIGHTS,
    PEFT_PREFIX,
    CheckpointError,
    CheckpointFiles,
    find_file,
    locate,
    missing_base,
)
from .trainable import frozen_modules

if TYPE_CHECKING:
    from peft import PeftModel

SETTINGS = ("r", "lora_alpha", "target_modules", "modules_to_save")  # what makes two adapters differ
ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What PEFT has put into a policy."""

    model: "PeftModel"  # wraps the policy that holds this
    names: frozenset[str]  # of the policy's parameters; FSDP puts other objects in their places
    owns_critic: bool  # false: the critic is the base's, and stored there


def add_adapter(policy: PreTrainedPolicy, peft: PeftConfig, base: str | Path) -> None:
    """Put a fresh adapter on the actor, as ``lerobot-train`` does; everything else of the actor is frozen.

    Args:
        base: the checkpoint that the policy's weights are from.

    Raises:
        UserError: a named module is not the actor's.
    """
    path = Path(base)  # the link `last` moves on, and a relative path holds in one folder alone
    policy.config.pretrained_path = path.resolve() if path.is_dir() else path
    model = policy.wrap_with_peft(peft_cli_overrides=dataclasses.asdict(peft))
    policy.adapter = Adapter(model, _trainable(policy), policy.config.trains_critic)


def load_adapter(policy: PreTrainedPolicy, files: CheckpointFiles) -> None:
    """Put the checkpoint's adapter on the actor, to be trained on.

    Raises:
        CheckpointError: it is damaged or does not fit the base.
    """
    model = _load(policy, files, trainable=True)
    policy.adapter = Adapter(model, _trainable(policy), files.critic is not None or policy.config.trains_critic)
    policy.config.use_peft = True


def merge_adapter(policy: PreTrainedPolicy, files: CheckpointFiles) -> None:
    """Add the checkpoint's adapter to the actor's weights.

    Raises:
        CheckpointError: as :func:`load_adapter`.
    """
    _load(policy, files, trainable=False).merge_and_unload()
    policy.config.use_peft = False


def save_adapter(policy: PreTrainedPolicy, directory: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write adapter, critic and configuration; no tensor of the base, nothing twice.

    Args:
        state: :func:`stored_state` of an earlier moment; None: of this one.
    """
    state = stored_state(policy) if state is None else state
    policy.config.save_pretrained(directory)
    # "auto" would compare vocabularies through the base's configuration, which for a stock π0.5 has no such field.
    policy.adapter.model.save_pretrained(
        str(directory),
        save_embedding_layers=False,
        state_dict={f"{PEFT_PREFIX}{name}": tensor for name, tensor in state.items()},
    )
    critic = {name: tensor.contiguous() for name, tensor in state.items() if name.startswith(CRITIC_PREFIX)}
    if critic:
        save_file(critic, directory / CRITIC_WEIGHTS)


def stored_state(policy: PreTrainedPolicy) -> dict[str, Tensor]:
    """What a checkpoint stores of the policy: everything, or with an adapter what is not the base's.

    Parameters come as themselves, so that a frozen one is known by its identity."""
    state = policy.state_dict(keep_vars=True)
    if policy.adapter is None:
        return state
    base = {name for name, _ in policy.named_parameters(remove_duplicate=False)} - policy.adapter.names
    return {
        name: tensor
        for name, tensor in state.items()
        if (policy.adapter.owns_critic if name.startswith(CRITIC_PREFIX) else name not in base)
    }


def locate_for(config: PI05RLConfig, name_or_path: str | Path, **hub_kwargs) -> CheckpointFiles:
    """As :func:`.weights.locate`. Where LeRobot asks for the base of the adapter in ``config.pretrained_path``, on
    which it will put the adapter itself: the base with that adapter's critic.

    Raises:
        CheckpointError: a file is missing.
    """
    own = config.pretrained_path if config.use_peft else None
    if own is None or str(own) == str(name_or_path):
        return locate(name_or_path, **hub_kwargs)
    settings_file = Path(own) / ADAPTER_CONFIG
    try:
        files = locate(name_or_path, **hub_kwargs)
    except CheckpointError as error:
        if settings_file.is_file():
            raise missing_base(settings_file, str(name_or_path)) from error
        raise
    if files.adapter is not None:  # asked for the adapter's checkpoint itself: its configuration names the base
        return files
    critic = find_file(own, CRITIC_WEIGHTS, **hub_kwargs | {"revision": config.pretrained_revision})
    return dataclasses.replace(files, critic=critic)


def untouched_modules(policy: PreTrainedPolicy) -> str:
    """A regular expression that matches the modules no adapter may touch: the critic, which trains in full, and what
    never trains."""
    untouched = {id(module) for module in frozen_modules(policy)}
    names = [name for name, module in policy.named_modules() if id(module) in untouched]
    return "|".join(re.escape(name) + r"(\..+)?" for name in [CRITIC_PREFIX.removesuffix("."), *names])


def check_targets(
    policy: PreTrainedPolicy, target_modules: str | list[str] | None, modules_to_save: list[str] | None
) -> None:
    """Each name must be of the actor's; PEFT passes over a wrong name as long as another one is right.

    Raises:
        UserError: it is not, or the critic is meant, which trains in full as it is.
    """
    names = [name for name, _ in policy.named_modules() if name]
    actor = [name for name in names if not re.fullmatch(untouched_modules(policy), name)]
    if isinstance(target_modules, str):
        if target_modules.lower() != ALL_LINEAR:
            _check_pattern(target_modules, actor)
        target_modules = []
    for key, chosen in (("target_modules", target_modules), ("full_training_modules", modules_to_save)):
        for name in chosen or ():
            if not any(_names(name, module) for module in actor):
                near = difflib.get_close_matches(name, {m.rpartition(".")[2] for m in actor} | set(actor), n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"peft.{key}: no part of the actor that trains is called {name!r}{hint}")
    critics = {name for name in modules_to_save or () if any(_names(name, m) for m in names if m not in actor)}
    if critics:
        raise UserError(
            f"peft.full_training_modules: {', '.join(sorted(critics))} would take in the critic, which trains in full "
            "without being named, or what never trains; give the whole name of the actor's part"
        )


def check_same_settings(policy: PreTrainedPolicy, peft: PeftConfig, directory: str | Path) -> None:
    """The adapter that was loaded must be the one the configuration asks for.

    Raises:
        UserError: it is another one.
    """
    asked = policy._build_peft_config(dataclasses.asdict(peft))
    stored = policy.adapter.model.peft_config["default"]
    differences = [
        f"{name} {getattr(stored, name)}, not {getattr(asked, name)}"
        for name in SETTINGS
        if (getattr(stored, name) or None) != (getattr(asked, name) or None)
    ]
    if differences:
        raise UserError(
            f"the adapter in {directory} has {'; '.join(differences)}; give the --peft.* settings it was made with"
        )


def _check_pattern(pattern: str, actor: list[str]) -> None:
    try:
        found = any(re.fullmatch(pattern, name) for name in actor)
    except re.error as error:
        raise UserError(f"peft.target_modules: {pattern!r} is no regular expression ({error})") from error
    if not found:
        example = next(name for name in actor if name.endswith(".v_proj"))
        raise UserError(
            f"peft.target_modules: {pattern!r} matches the whole name of no part of the actor that trains, such as "
            f"{example}"
        )


def _names(chosen: str, module: str) -> bool:
    """Whether PEFT takes ``chosen`` for this module."""
    return module == chosen or module.endswith(f".{chosen}")


def _trainable(policy: nn.Module) -> frozenset[str]:
    return frozenset(name for name, parameter in policy.named_parameters() if parameter.requires_grad)


def _load(policy: PreTrainedPolicy, files: CheckpointFiles, *, trainable: bool) -> "PeftModel":
    from peft import PeftModel, get_peft_model_state_dict

    policy.requires_grad_(False)
    try:
        model = PeftModel.from_pretrained(policy, str(files.directory), is_trainable=trainable)
        wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
        with safe_open(files.adapter, framework="pt") as stored:
            differing = sorted(wanted.keys() ^ set(stored.keys()))
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the adapter in {files.directory} is damaged or does not fit its base {files.weights.parent}: "
            f"{one_line(error)}"
        ) from error
    if differing:  # PEFT warns
        raise CheckpointError(
            f"{files.adapter} does not fit {ADAPTER_CONFIG} beside it; {len(differing)} tensors are missing or "
            f"unexpected ({differing[0]}{', …' if len(differing) > 1 else ''})"
        )
    return model
