"""What a policy extraction answers, checked where it is used: a class of one's own may return anything.

Each function asks one method. A wrong answer is a :class:`UserError` of one line that says whose it is, what came and
what is expected.
"""

import numpy as np
import torch
from torch import Tensor

from .advantage import TAG_NEGATIVE, TAG_NONE, TAG_POSITIVE, PolicyExtraction, SampleLabels
from .errors import UserError
from .returns import Outcome

TAG_VALUES = (TAG_POSITIVE, TAG_NEGATIVE, TAG_NONE)
ANY_TAG = f"{TAG_POSITIVE} (positive), {TAG_NEGATIVE} (negative) or {TAG_NONE} (none)"


def keeps_episode(extraction: PolicyExtraction, outcome: Outcome) -> bool:
    """``extraction.keeps``."""
    answer = extraction.keeps(outcome)
    if not isinstance(answer, bool | np.bool_):
        raise _wrong(extraction, "keeps", _kind(answer), "True or False")
    return bool(answer)


def asked_repetitions(extraction: PolicyExtraction, tags: np.ndarray, advantages: np.ndarray) -> np.ndarray | None:
    """(N,) ``extraction.repetitions``, finite and not negative; all zero is the caller's to refuse."""
    answer = extraction.repetitions(tags, advantages)
    if answer is None:
        return None
    expected = f"None or a numpy array of shape {tags.shape}, of finite numbers not below 0"
    if not isinstance(answer, np.ndarray) or answer.shape != tags.shape or answer.dtype.kind not in "buif":
        raise _wrong(extraction, "repetitions", _kind(answer), expected)
    bad = ~(np.isfinite(answer) & (answer >= 0))
    if bad.any():
        raise _wrong(extraction, "repetitions", _first(answer, bad), expected)
    return answer


def reads_values(device: torch.device, *, first: bool) -> bool:
    """Whether values there are looked at: on a GPU, which one waits for, in the ``first`` batch; on meta never."""
    return device.type == "cpu" or (first and device.type != "meta")


def sample_tags(extraction: PolicyExtraction, labels: SampleLabels, *, first: bool) -> Tensor | None:
    """(B,) int64 ``extraction.tags``; ``first`` as of :func:`reads_values`."""
    answer = extraction.tags(labels)
    if answer is None:
        return None
    like = labels.advantages
    expected = f"None or an int64 tensor of shape {tuple(like.shape)} on {like.device}, each {ANY_TAG}"
    if not _is_column(answer, like) or answer.dtype != torch.int64:
        raise _wrong(extraction, "tags", _kind(answer), expected)
    if reads_values(answer.device, first=first):
        bad = ~torch.isin(answer, answer.new_tensor(TAG_VALUES))
        if bad.any():
            raise _wrong(extraction, "tags", _first(answer, bad), expected)
    return answer


def sample_weights(extraction: PolicyExtraction, labels: SampleLabels, *, first: bool) -> Tensor | None:
    """(B,) ``extraction.weights``, finite and not negative; ``first`` as of :func:`reads_values`."""
    answer = extraction.weights(labels)
    if answer is None:
        return None
    like = labels.advantages
    expected = f"None or a tensor of shape {tuple(like.shape)} on {like.device}, of finite numbers not below 0"
    if not _is_column(answer, like) or answer.is_complex():
        raise _wrong(extraction, "weights", _kind(answer), expected)
    if reads_values(answer.device, first=first):
        bad = ~(answer.isfinite() & (answer >= 0))
        if bad.any():
            raise _wrong(extraction, "weights", _first(answer, bad), expected)
    return answer


def asked_inference_tag(extraction: PolicyExtraction) -> int | None:
    """``extraction.inference_tag``."""
    answer = extraction.inference_tag()
    if answer is not None and (type(answer) is not int or answer not in TAG_VALUES):
        raise _wrong(extraction, "inference_tag", _kind(answer), f"None, {ANY_TAG}")
    return answer


def _is_column(answer: object, like: Tensor) -> bool:
    return isinstance(answer, Tensor) and answer.shape == like.shape and answer.device == like.device


def _kind(answer: object) -> str:
    """What it is; of an array or tensor without its values."""
    if isinstance(answer, np.ndarray | Tensor):
        kind = "numpy array" if isinstance(answer, np.ndarray) else "tensor"
        where = f" on {answer.device}" if isinstance(answer, Tensor) else ""
        return f"a {kind} of shape {tuple(answer.shape)} and {answer.dtype}{where}"
    return f"{type(answer).__name__} {' '.join(repr(answer).split())[:60]}"


def _first(answer: np.ndarray | Tensor, bad: np.ndarray | Tensor) -> str:
    """The first of its values that are wrong."""
    index = bad.tolist().index(True)
    return f"{answer[index].item()} at index {index}"


def _wrong(extraction: PolicyExtraction, method: str, came: str, expected: str) -> UserError:
    return UserError(
        f"{type(extraction).__qualname__}.{method} returned {came}; expected: {expected} (docs/extending.md)"
    )
