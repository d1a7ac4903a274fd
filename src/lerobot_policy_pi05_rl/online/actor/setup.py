"""From the configuration to an environment, and from what the learner says at the join to a policy, its processors and
its task."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import torch
from draccus.utils import DraccusException
from lerobot.configs import PolicyFeature
from lerobot.configs.default import PeftConfig
from lerobot.envs import EnvConfig, HILSerlRobotEnvConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.processor import NormalizerProcessorStep, RelativeActionsProcessorStep
from lerobot.utils.constants import ACTION

from ...config.actor import ActorConfig
from ...config.keys import ACTED_WITH, LEARNERS_OWN
from ...config.resolve import changed
from ...config.train import ConfigError
from ...configuration_pi05_rl import PI05RLConfig
from ...errors import UserError, one_line
from ...model.lora import add_adapter
from ...model.trainable import select_trainable
from ...modeling_pi05_rl import PI05RLPolicy
from ...training.build import load_processors
from ..transport.weights import frozen_fingerprint
from .environment import ActorEnvironment
from .registered import RegisteredEnvironment

logger = logging.getLogger(__name__)


class SetupError(UserError):
    """What the learner sent does not fit this actor, or is not to be trusted."""


def decode_policy_config(text: str, own: PI05RLConfig, *, adapts: bool, inference: str) -> PI05RLConfig:
    """The learner's policy configuration, on the actor's device and with its real-time chunking.

    Args:
        own: the actor's, of which little counts.
        adapts: whether the actor is asked for an adapter.
        inference: ``actor.inference``.

    Raises:
        SetupError: it cannot be read.
    """
    try:
        raw: dict[str, Any] = json.loads(text)
        if raw.pop("type", "pi05_rl") != "pi05_rl":
            raise SetupError("the learner's policy is not pi05_rl")
        if raw.get("use_peft", False) != adapts:
            raise SetupError(
                "the learner trains an adapter; give this actor the same --peft.* settings"
                if not adapts
                else "this actor has --peft.* settings, but the learner trains no adapter; leave them out"
            )
        device = own.actor_device or ("cuda" if torch.cuda.is_available() else "cpu")
        checkpoint = own.pi05_checkpoint
        raw |= {"device": device, "gradient_checkpointing": False, "use_peft": False, "rtc_config": None}
        raw |= {"pi05_checkpoint": checkpoint, "pretrained_path": checkpoint}
        config = draccus.decode(PI05RLConfig, raw)
    except (ValueError, TypeError, AttributeError, DraccusException) as error:
        raise SetupError(f"the learner's policy configuration cannot be read: {one_line(error)}") from error
    for key in ACTED_WITH:
        ours, theirs = getattr(own, key), getattr(config, key)
        if ours != theirs:
            logger.warning(
                "[ACTOR] policy.%s=%s has no effect here: the learner's, %s, is acted with", key, ours, theirs
            )
    rtc = None if inference == "sync" else own.rtc_config or RTCConfig()
    return changed(config, rtc_config=rtc)


def make_environment(
    env: EnvConfig | None,
    actor: ActorConfig,
    features: dict[str, PolicyFeature],
    action_names: list[str],
    *,
    rename_map: dict[str, str],
) -> ActorEnvironment:
    """The configuration's environment, with the limits of its actions inside.

    Args:
        actor: holds the limits.
        features: the policy's inputs and its action, by the policy's keys.
        action_names: of the policy's actions, as the dataset has them; empty: it has none.
        rename_map: the observations' names → the policy's.

    Raises:
        UserError: there is no such environment, it lacks a limit, or its hardware cannot be opened.
    """
    if env is None:
        raise ConfigError("env is missing: what shall the actor act in? Set env.type")
    width = features[ACTION].shape[0]
    if action_names and len(action_names) != width:
        raise ConfigError(f"the learner names {len(action_names)} actions, but its policy has {width}")
    names = action_names or [str(index) for index in range(width)]
    if isinstance(env, HILSerlRobotEnvConfig):
        from .manipulator import make_manipulator  # with all of LeRobot's robots, which a simulator does not need

        return make_manipulator(env, actor, features, names, rename_map)
    return RegisteredEnvironment(env, actor, features, names, rename_map)


def acts_alike(text: str, other: str) -> bool:
    """Whether two policy configurations of a learner mean the same to its actors.

    A run that goes on may have other lengths, devices or directories, and names an adapter's base in its own way.
    """

    def acting(config: str) -> dict[str, Any]:
        return {key: value for key, value in json.loads(config).items() if key not in LEARNERS_OWN}

    return acting(text) == acting(other)


def build_policy(config: PI05RLConfig, peft: PeftConfig | None) -> PI05RLPolicy:
    """The actor's network without a critic; what is pushed comes from the learner, the rest from the checkpoint.

    Args:
        peft: of the adapter that the learner trains; None: it trains none.
    """
    source = config.pi05_checkpoint
    if source is None:
        policy = PI05RLPolicy(config, load_critic=False).to(config.device)
    else:
        logger.info("[ACTOR] Loading weights from %s", source)
        adapting = peft is not None
        policy = PI05RLPolicy.from_pretrained(
            source, config=config, load_critic=False, keep_adapter=adapting, purpose="act"
        )
        if adapting and policy.adapter is None:
            add_adapter(policy, peft, source)
    policy.init_rtc_processor()
    select_trainable(policy)
    return policy.eval()


def check_frozen(policy: PI05RLPolicy, pushed: list[str], theirs: str) -> None:
    """Refuse to act with weights that are never pushed and differ from the learner's.

    Args:
        pushed: names of the tensors that are.
        theirs: the learner's fingerprint of the others; empty: there are none.

    Raises:
        SetupError: they differ.
    """
    if theirs and frozen_fingerprint(policy, pushed) != theirs:
        also = ", or the adapter's settings" if policy.adapter is not None else ""
        too = ", and --peft.* to its settings" if policy.adapter is not None else ""
        raise SetupError(
            f"what the learner never sends (the weights that do not train{also}) differs from this actor's; set "
            f"policy.pi05_checkpoint to the checkpoint that the learner started from{too}"
        )


def read_processors(files: dict[str, bytes], config: PI05RLConfig) -> tuple[Any, Any]:
    """The policy's preprocessor and postprocessor, as a checkpoint has them.

    Raises:
        SetupError: a file's name leads elsewhere, or a step is code of the learner's choice.
        UserError: they are damaged.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            if name != Path(name).name or "\\" in name or name in ("", ".", ".."):
                raise SetupError(f"the learner sent a processor file called {name!r}; only plain names are taken")
            if Path(name).suffix not in (".json", ".safetensors"):
                raise SetupError(f"the learner sent {name!r}; processors are JSON and safetensors files")
            if name.endswith(".json"):
                _check_steps(name, data)
            (Path(folder) / name).write_bytes(data)
        return load_processors(config, folder)


def absolute_statistics(preprocessor: Any) -> dict[str, np.ndarray] | None:
    """statistic → (A,) of the recorded actions, which the policy's preprocessor normalises with; None if it normalises
    none, or relative ones."""
    steps = getattr(preprocessor, "steps", [])
    relative = any(isinstance(step, RelativeActionsProcessorStep) and step.enabled for step in steps)
    normalizer = next((step for step in steps if isinstance(step, NormalizerProcessorStep)), None)
    if relative or normalizer is None or ACTION not in (normalizer.stats or {}):
        return None
    return {name: np.asarray(torch.as_tensor(value).cpu()) for name, value in normalizer.stats[ACTION].items()}


def _check_steps(name: str, data: bytes) -> None:
    """Only steps that LeRobot or this package has registered: any other would be imported by its name."""
    try:
        content = json.loads(data)
        steps = content.get("steps", [])
        foreign = [step for step in steps if not step.get("registry_name") or "class" in step]
    except (ValueError, AttributeError, TypeError) as error:
        raise SetupError(f"the learner's {name} is no processor configuration") from error
    if foreign:
        raise SetupError(f"the learner's {name} names a class of its own choice instead of a registered step")


def choose_task(own: str | None, environments: str, learners: list[str]) -> str:
    """The instruction: the configuration's, else the environment's, else the learner's only one.

    Raises:
        SetupError: the learner does not know it.
    """
    task = own or environments
    if task in learners:
        return task
    if own is None and len(learners) == 1:
        logger.info("[ACTOR] The task is the learner's: %s", learners[0])
        return learners[0]
    raise SetupError(
        f"the learner does not know the task {task!r}; set policy.task to one of: {'; '.join(learners) or '(none)'}"
    )
