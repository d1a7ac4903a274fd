"""What a run settles before it begins, each time as a new configuration: nobody writes to one that he was given.

:func:`resolved` at the start, the policy's features with the data (``data/compatibility.py``: ``with_features``);
:func:`recorded` is what a checkpoint says of it all.
"""

import copy
from typing import Any

from ..configuration_pi05_rl import PI05RLConfig
from .train import PI05RLTrainConfig


def changed[C](config: C, **values: Any) -> C:
    """``config`` with other values in some fields. Unlike ``dataclasses.replace`` it keeps fields that no constructor
    takes, and checks nothing again."""
    config = copy.copy(config)
    vars(config).update(values)
    return config


def resolved[C: PI05RLTrainConfig](cfg: C, device_key: str | None = "learner_device") -> C:
    """A checked configuration that shares nothing with ``cfg``: with its job's name, and the learner's device.

    Args:
        device_key: as :meth:`~.train.PI05RLTrainConfig.validate` has it.

    Raises:
        ConfigError: something is missing or impossible.
    """
    cfg = copy.deepcopy(cfg)
    cfg.validate(device_key)
    # LeRobot sets use_peft once there is an adapter; the peft section asks for one.
    use_peft = cfg.policy.use_peft and cfg.peft is None
    policy = changed(cfg.policy, device=cfg.policy.learner_device or cfg.policy.device, use_peft=use_peft)
    return changed(cfg, policy=policy, job_name=cfg.run_name)


def recorded[C: PI05RLTrainConfig](cfg: C, policy: PI05RLConfig, *, wandb_run_id: str | None) -> C:
    """What a checkpoint's train_config.json says.

    Args:
        policy: the network's own, in which LeRobot notes an adapter and its base.
        wandb_run_id: that LeRobot's train_config.json holds, too.
    """
    # resume_from is done: it must not send a later resume back again.
    return changed(cfg, policy=policy, wandb=changed(cfg.wandb, run_id=wandb_run_id), resume_from=None)
