"""Episodes that are in the dataset more than once."""

import hashlib

import numpy as np

from .finding import Finding, Verdict
from .recording import Recording, numbered


def groups(recording: Recording) -> list[list[int]]:
    """episode_index of the episodes that have the same states and actions, a list for each two or more."""
    found: dict[bytes, list[int]] = {}
    for number, (start, end) in enumerate(zip(recording.starts, recording.ends, strict=True)):
        digest = hashlib.blake2b(digest_size=16)
        for signal in recording.signals:
            digest.update(np.ascontiguousarray(signal.values[start:end]).tobytes())
        found.setdefault(digest.digest(), []).append(int(recording.episodes[number]))
    return [episodes for episodes in found.values() if len(episodes) > 1]


def duplicates(recording: Recording) -> Finding:
    """How many episodes repeat an earlier one."""
    repeated = sorted(episode for group in groups(recording) for episode in group[1:])
    share = len(repeated) / len(recording.episodes)
    if not repeated:
        return Finding("duplicates", Verdict.OK, 0.0, f"all {len(recording.episodes)} episodes differ")
    text = f"{len(repeated)} episode(s) repeat the states and actions of earlier ones: {numbered(repeated)}"
    advice = "a critic is then judged on, and labels, what it has learnt by heart: leave them out (dataset.episodes)"
    return Finding("duplicates", Verdict.HARMS, share, text, advice)
