"""One episode between actor and learner: columns, encoded pictures, what it is called.

On the wire and on disk it is one safetensors file, which holds tensors and short texts and nothing that runs.
"""

import io
import json
import math
import re
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import torch
from lerobot.utils.constants import ACTION, OBS_STATE, REWARD
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError

from ..data.sources import INTERVENTION
from ..errors import UserError
from ..returns import Outcome

POLICY_VERSION = "policy_version"
# column → (dtype, width); None: of the policy's features
COLUMNS: dict[str, tuple[torch.dtype, int | None]] = {
    OBS_STATE: (torch.float32, None),
    ACTION: (torch.float32, None),
    REWARD: (torch.float32, 1),
    INTERVENTION: (torch.bool, 1),
    POLICY_VERSION: (torch.int64, 1),
}
PICTURES, LENGTHS = ".jpeg", ".jpeg_bytes"  # behind a camera's name: all pictures end to end, and their sizes

_UID = re.compile(r"[0-9a-f]{32}")


class BadEpisodeError(UserError):
    """An episode that is not what the learner's policy reads; nothing of it is stored."""


@dataclass(frozen=True)
class EpisodeSpec:
    """What every episode of a run looks like: the policy's features, and bounds."""

    state_dim: int
    action_dim: int
    cameras: dict[str, tuple[int, int]]  # the policy's key → (height, width)
    tasks: tuple[str, ...]
    fps: float
    max_frames: int = 20_000
    max_bytes: int = 1 << 30


@dataclass(frozen=True)
class Episode:
    """A whole episode of T control steps.

    Row t: what was seen before step t, the action that was executed, and what followed.
    """

    uid: str  # 32 hexadecimal digits, drawn by the actor
    actor: str
    task: str
    outcome: Outcome  # truncated: it was cut off, nobody knows how it would have ended
    state: np.ndarray  # (T, S) float32
    action: np.ndarray  # (T, A) float32, as executed
    reward: np.ndarray  # (T,) float32, the environment's
    intervention: np.ndarray  # (T,) bool: a person acted
    policy_version: np.ndarray  # (T,) int64: the weights that acted
    pictures: dict[str, list[bytes]]  # camera → T JPEG files
    started: float = 0.0  # seconds since 1970
    report: dict[str, float] = field(default_factory=dict)  # the actor's numbers of this episode, for the log

    def __len__(self) -> int:
        return len(self.action)

    @property
    def success(self) -> bool:
        return self.outcome is Outcome.SUCCESS


def new_uid() -> str:
    """A name that no other episode has."""
    return uuid.uuid4().hex


def is_uid(text: str) -> bool:
    """Whether an episode may be called so: 32 hexadecimal digits."""
    return _UID.fullmatch(text) is not None


def encode_picture(picture: np.ndarray, quality: int) -> bytes:
    """(H, W, 3) uint8 → JPEG with full colour resolution."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def decode_picture(data: bytes) -> np.ndarray:
    """JPEG → (H, W, 3) uint8.

    Raises:
        BadEpisodeError: it is no JPEG, or damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadEpisodeError(f"a picture cannot be decoded ({type(error).__name__})") from error


def pack(episode: Episode) -> bytes:
    """The episode as one safetensors file."""
    tensors = {
        OBS_STATE: torch.from_numpy(np.ascontiguousarray(episode.state, dtype=np.float32)),
        ACTION: torch.from_numpy(np.ascontiguousarray(episode.action, dtype=np.float32)),
        REWARD: torch.from_numpy(np.ascontiguousarray(episode.reward, dtype=np.float32)),
        INTERVENTION: torch.from_numpy(np.ascontiguousarray(episode.intervention, dtype=bool)),
        POLICY_VERSION: torch.from_numpy(np.ascontiguousarray(episode.policy_version, dtype=np.int64)),
    }
    for camera, pictures in episode.pictures.items():
        tensors[camera + PICTURES] = torch.frombuffer(bytearray(b"".join(pictures)), dtype=torch.uint8)
        tensors[camera + LENGTHS] = torch.tensor([len(picture) for picture in pictures], dtype=torch.int64)
    texts = {
        "uid": episode.uid,
        "actor": episode.actor,
        "task": episode.task,
        "outcome": episode.outcome.value,
        "started": repr(float(episode.started)),
        "report": json.dumps(episode.report),
    }
    return safetensors.torch.save(tensors, metadata=texts)


def unpack(data: bytes, spec: EpisodeSpec) -> Episode:
    """:func:`pack` backwards, everything checked against ``spec`` before it is used.

    Raises:
        BadEpisodeError: with the first thing that is wrong.
    """
    if len(data) > spec.max_bytes:
        raise BadEpisodeError(f"{len(data)} bytes; at most {spec.max_bytes} are taken")
    try:
        tensors = safetensors.torch.load(data)
        texts = _texts(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise BadEpisodeError(f"not a safetensors file ({type(error).__name__})") from error
    missing = {"uid", "actor", "task", "outcome", "started", "report"} - texts.keys()
    if missing:
        raise BadEpisodeError(f"its texts lack {', '.join(sorted(missing))}")
    expected = {*COLUMNS, *(camera + end for camera in spec.cameras for end in (PICTURES, LENGTHS))}
    if tensors.keys() != expected:
        odd = sorted(tensors.keys() ^ expected)
        raise BadEpisodeError(f"its tensors are not the policy's features: {', '.join(odd[:3])} missing or unknown")
    length = len(tensors[REWARD]) if tensors[REWARD].ndim else 0
    if not 1 <= length <= spec.max_frames:
        raise BadEpisodeError(f"{length} frames; 1 to {spec.max_frames} are taken")
    widths = {OBS_STATE: spec.state_dim, ACTION: spec.action_dim}
    for name, (dtype, _) in COLUMNS.items():
        shape = (length, widths[name]) if name in widths else (length,)
        check_tensor(name, tensors[name], dtype, shape)
    for camera in spec.cameras:
        check_tensor(camera + LENGTHS, tensors[camera + LENGTHS], torch.int64, (length,))
        check_tensor(camera + PICTURES, tensors[camera + PICTURES], torch.uint8, (tensors[camera + PICTURES].numel(),))
    uid, task = texts["uid"], texts["task"]
    if not is_uid(uid):
        raise BadEpisodeError("its uid is not 32 hexadecimal digits")
    if task not in spec.tasks:
        raise BadEpisodeError(f"the task {task[:80]!r} is none of the learner's: {', '.join(spec.tasks)}")
    try:
        outcome, started = Outcome(texts["outcome"]), float(texts["started"])
        report = {str(key): float(value) for key, value in json.loads(texts["report"]).items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadEpisodeError(f"its outcome, start or report is unreadable ({type(error).__name__})") from error
    if not math.isfinite(started) or not (texts["actor"] + "".join(report)).isprintable():  # they reach the log
        raise BadEpisodeError("its start is no time, or its actor or report is no plain text")
    columns = {name: tensors[name].numpy() for name in COLUMNS}
    return Episode(
        uid=uid,
        actor=texts["actor"][:80],
        task=task,
        outcome=outcome,
        state=columns[OBS_STATE],
        action=columns[ACTION],
        reward=columns[REWARD],
        intervention=columns[INTERVENTION],
        policy_version=columns[POLICY_VERSION],
        pictures={camera: _pictures(camera, tensors, size) for camera, size in spec.cameras.items()},
        started=started,
        report=report,
    )


def check_tensor(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another type or shape, or with NaN or infinity.

    Raises:
        BadEpisodeError: it is.
    """
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        found = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        raise BadEpisodeError(f"{name} is {found}, not {str(dtype).removeprefix('torch.')} {shape}")
    if dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
        raise BadEpisodeError(f"{name} holds NaN or infinity")


def _texts(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file in memory."""
    size = int.from_bytes(data[:8], "little")
    texts: Any = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    return {str(key): str(value) for key, value in texts.items()}


def _pictures(camera: str, tensors: dict[str, torch.Tensor], size: tuple[int, int]) -> list[bytes]:
    """The camera's files, each seen to be a JPEG of ``size``; their contents are decoded when they are stored."""
    lengths = tensors[camera + LENGTHS].tolist()
    data = tensors[camera + PICTURES].numpy()
    if any(length < 1 for length in lengths) or sum(lengths) != data.size:
        raise BadEpisodeError(f"{camera}: the pictures' sizes do not add up")
    pictures, start = [], 0
    for length in lengths:
        picture = data[start : start + length].tobytes()
        start += length
        pictures.append(picture)
        try:
            with Image.open(io.BytesIO(picture), formats=("JPEG",)) as image:
                found = (image.height, image.width)
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadEpisodeError(f"{camera}: a picture is not JPEG ({type(error).__name__})") from error
        if found != size:
            raise BadEpisodeError(f"{camera}: a picture is {found[0]}x{found[1]}, not {size[0]}x{size[1]}")
    return pictures
