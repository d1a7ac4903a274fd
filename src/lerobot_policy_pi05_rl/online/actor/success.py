"""Whether an environment says that an episode has succeeded, in whichever of the usual ways it says so.

LeRobot's own environments say ``is_success``, gym-hil ``succeed``, metaworld and ManiSkill ``success``; others only
give a reward when the episode ends.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch

from ...data.flags import NO, UNKNOWN, YES, parse_flag

logger = logging.getLogger(__name__)

FINAL = "final_info"  # what a vector environment's last step said, once it has begun the next episode
_KEY = re.compile(r"((is|next|task|episode)[_.])*(success|successful|succeed|succeeds|succeeded)", re.IGNORECASE)


class SuccessFlag(NamedTuple):
    """Success as one step's info has it."""

    success: bool | None  # None: nothing that is understood
    unparsed: dict[str, Any]  # keys that speak of success, with values that are neither yes nor no


def parse_success(info: Any, index: int = 0, envs: int = 1) -> SuccessFlag:
    """What an environment's ``info`` says, whatever it calls success and whichever form it gives it in.

    Understood are the keys ``is_success``, ``success``, ``succeed``, ``is_successful`` and their like (a ``next.``
    before them, too), at the top and in ``final_info``, each a flag, 0 or 1, or text, as such, as an array or tensor
    without dimensions, or as a list or array with one value for each environment. Any yes is a success.

    Args:
        info: of a single environment, or of a vector environment of ``envs``.
        index: of which of them.
    """
    final = _of_one(info.get(FINAL), index) if isinstance(info, Mapping) else None
    if final is None:
        return _parse(_of_one(info, index) or {}, index, envs)
    last = _parse(final, index, envs)
    # At the top may be what the next episode's reset said, of which a no means nothing.
    top = _parse(_of_one(info, index) or {}, index, envs)
    return SuccessFlag(True if top.success else last.success, last.unparsed)


def _of_one(info: Any, index: int) -> Mapping[Any, Any] | None:
    """The mapping that holds what is said of one environment; Gymnasium below 1.0 has a list of them."""
    if isinstance(info, Mapping) or info is None:
        return info
    each = list(info)
    return each[index] if index < len(each) and isinstance(each[index], Mapping) else None


def _parse(info: Mapping[Any, Any], index: int, envs: int) -> SuccessFlag:
    flags, unparsed = set(), {}
    for key, value in info.items():
        name = str(key.value if isinstance(key, Enum) else key)
        if not _KEY.fullmatch(name) or not _is_given(info.get(f"_{name}"), index):
            continue
        flag = _flag(value, index, envs)
        if flag == UNKNOWN:
            unparsed[name] = value
        flags.add(flag)
    return SuccessFlag(True if YES in flags else False if NO in flags else None, unparsed)


def _is_given(mask: Any, index: int) -> bool:
    """Whether a vector environment's value is this environment's own: Gymnasium's mask ``_key`` says so."""
    mask = np.atleast_1d(True if mask is None else mask)
    return bool(mask[index]) if index < len(mask) else True


def _flag(value: Any, index: int, envs: int) -> int:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, Mapping):
        return UNKNOWN
    if isinstance(value, np.ndarray | list | tuple):
        values = np.asarray(value, dtype=object).reshape(-1).tolist()
        if len(values) not in (1, envs):
            return UNKNOWN
        value = values[index if len(values) == envs else 0]
        return _flag(value, 0, 1) if isinstance(value, np.ndarray | list | tuple | torch.Tensor) else parse_flag(value)
    return parse_flag(value)


class SuccessReader:
    """Reads one environment's success, step by step, and says once what it does not understand.

    Attributes:
        reports_success: whether the environment has said anything about success so far.
    """

    def __init__(self) -> None:
        self.reports_success = False
        self._unparsed: set[str] = set()
        self._warned_of_silence = False

    def read(self, info: Any, *, reward: float, terminated: bool, truncated: bool) -> bool | None:
        """Whether the step succeeded; None: nobody knows.

        Only where the environment has never said anything is a positive reward, in the step with which it ends an
        episode, a success.
        """
        flag = parse_success(info)
        for name in flag.unparsed.keys() - self._unparsed:
            self._unparsed.add(name)
            logger.warning(
                "[ACTOR] The environment's info says %s=%r, which is neither yes nor no: it is not used",
                name,
                _shortened(flag.unparsed[name]),
            )
        self.reports_success |= flag.success is not None
        if flag.success is not None:
            return flag.success
        if self.reports_success:  # it speaks of success when there is one
            return False
        if self._unparsed or not (terminated or truncated):
            return None
        self._warn_of_silence(info)
        return True if terminated and reward > 0 else None

    def _warn_of_silence(self, info: Any) -> None:
        if not self._warned_of_silence:
            self._warned_of_silence = True
            logger.warning(
                "[ACTOR] The environment does not say whether an episode succeeded (its info has: %s). One that it "
                "ends with a positive reward is a success; any other is what actor.time_limit says, truncated if auto",
                ", ".join(_keys(info)) or "nothing",
            )


def _keys(info: Any) -> Iterable[str]:
    final = _of_one(info.get(FINAL), 0) if isinstance(info, Mapping) else None
    names = {str(key) for key in (final if final is not None else _of_one(info, 0) or {})}
    return sorted(name for name in names if not name.startswith(("_", "final_")))


def _shortened(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
