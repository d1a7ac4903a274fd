"""A clean recording in memory, drawn, for what reads columns alone: a test plants its fault in it."""

from dataclasses import replace

import numpy as np

from lerobot_policy_pi05_rl.report.checks.recording import Recording, Signal

JOINTS = ["pan", "lift", "gripper"]
FPS = 10.0
LAG = 2  # frames in which the state follows its action


def drawn(count: int = 20, *, lag: int = LAG, task: str = "pick") -> Recording:
    """Joints that swing and a gripper that closes in the middle; every third episode a failure; 30 to 49 frames."""
    rng = np.random.default_rng(0)
    lengths = 30 + np.arange(count) % 20
    ends = np.cumsum(lengths)
    actions, states = [], []
    for length in lengths.tolist():
        times = np.arange(length + abs(lag))
        phase, speed = rng.uniform(0, 6, 2), rng.uniform(0.2, 0.4, 2)
        joints = np.sin(times[:, None] * speed + phase) + rng.normal(0, 0.002, (len(times), 2))
        command = np.column_stack([joints, times > length / 2])
        actions.append(command[lag:] if lag > 0 else command[:length])
        states.append(command[:length] if lag > 0 else command[-lag:])
    state, action = (
        Signal(key, np.concatenate(values).astype(np.float32), JOINTS, True)
        for key, values in (("observation.state", states), ("action", actions))
    )
    return Recording(
        "tiny",
        FPS,
        np.arange(count),
        ends - lengths,
        ends,
        [task] * count,
        ["failure" if number % 3 == 0 else "success" for number in range(count)],
        state,
        action,
        np.concatenate([np.arange(length) / FPS for length in lengths]).astype(np.float32),
    )


def with_values(recording: Recording, key: str, values: np.ndarray) -> Recording:
    """The recording with other values of its ``state`` or ``action``."""
    return replace(recording, **{key: replace(getattr(recording, key), values=values)})


def rows_of(recording: Recording, episode: int) -> slice:
    """Where an episode's frames lie."""
    return slice(int(recording.starts[episode]), int(recording.ends[episode]))
