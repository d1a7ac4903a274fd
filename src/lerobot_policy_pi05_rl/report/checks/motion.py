"""How state and action move: pauses, jumps, dimensions at their stop or without any motion."""

from typing import NamedTuple

import numpy as np

from ...data.action_limits import recorded_steps
from ...data.statistics import STILL
from .finding import Finding, Verdict, judge
from .recording import Recording, Signal, numbered

SLOW = 0.1  # of the speed that nine of ten frames keep below: a frame slower than that hardly moves
MANY_PAUSES = 0.3  # share of frames
FAR = 4.0  # times the largest step that episodes usually have
LEAST_JUMP = 0.1  # of the dimension's range: what is smaller is noise
MANY_JUMPS = 0.1  # share of episodes; a policy learns to jump
AT_THE_STOP = 1e-3  # of the range
MUCH_AT_THE_STOP = 0.25  # share of frames
FEW_VALUES = 3  # a command that has no more, open and closed for example, is always at one of its ends


class Jump(NamedTuple):
    """The largest single step beyond the usual of one episode's dimension."""

    key: str
    episode: int
    frame: int
    label: str
    step: float
    usual: float


def speeds(signal: Signal, starts: np.ndarray) -> np.ndarray:
    """(N,) float64: the largest step of any dimension since the frame before, in ranges of that dimension."""
    moves = moving(signal)
    if not moves.any():
        return np.zeros(len(signal.values))
    return (recorded_steps(signal.values[:, moves], starts) / signal.ranges[moves]).max(axis=1)


def moving(signal: Signal) -> np.ndarray:
    """(D,) bool: which dimensions move at all, by more than float32 rounds."""
    return signal.ranges > STILL * np.abs(signal.values).max(axis=0)


def still_frames(recording: Recording) -> np.ndarray:
    """(N,) bool: frames in which neither state nor action moves noteworthily; an episode's first never is one."""
    still = np.ones(len(recording.timestamps), dtype=bool)
    still[recording.starts] = False
    for signal in recording.signals:
        speed = speeds(signal, recording.starts)
        still &= speed <= SLOW * np.quantile(speed, 0.9)
    return still


def pauses(recording: Recording) -> Finding:
    """The share of frames in which state and action hardly move."""
    still = still_frames(recording)
    share = float(still.mean())
    own = np.add.reduceat(still, recording.starts) / recording.lengths
    worst = int(np.argmax(own))
    text = f"state and action hardly move in {share:.1%} of the frames"
    text += f", most in episode {recording.episodes[worst]} ({own[worst]:.0%})" if share else ""
    verdict = judge(share, look=MANY_PAUSES)
    advice = "a policy learns to wait, too: cut what was recorded before and after the work, and watch the film strips"
    return Finding("pauses", verdict, share, text, "" if verdict is Verdict.OK else advice)


def usual_steps(largest: np.ndarray) -> np.ndarray:
    """(D,) the largest step that four of five episodes keep within; a gripper that snaps shut in most of them is
    usual, an encoder that lost its place in one is not.

    Args:
        largest: (E, D) the largest step of each episode.
    """
    return np.quantile(largest, 0.8, axis=0, method="lower")


def largest_steps(signal: Signal, starts: np.ndarray) -> np.ndarray:
    """(E, D) float64: the largest step of each episode's dimensions."""
    return np.maximum.reduceat(recorded_steps(signal.values, starts), starts, axis=0)


def find_jumps(recording: Recording, signal: Signal) -> tuple[list[Jump], int]:
    """The largest jump of each episode and dimension, the farthest beyond its usual first, and how many steps jump."""
    every = recorded_steps(signal.values, recording.starts)
    largest = np.maximum.reduceat(every, recording.starts, axis=0)
    usual = usual_steps(largest)
    bound = np.where(usual > 0, np.maximum(FAR * usual, LEAST_JUMP * signal.ranges), np.inf)
    found = []
    for row, dimension in np.argwhere(largest > bound).tolist():
        rows = slice(recording.starts[row], recording.ends[row])
        frame = int(np.argmax(every[rows, dimension]))
        size, typical = float(largest[row, dimension]), float(usual[dimension])
        found.append(Jump(signal.key, int(recording.episodes[row]), frame, signal.labels[dimension], size, typical))
    return sorted(found, key=lambda jump: jump.usual / jump.step), int((every > bound).sum())


def jumps(recording: Recording) -> Finding:
    """Single steps far beyond what the joint usually does."""
    searched = [find_jumps(recording, signal) for signal in recording.signals]
    found = [jump for jumps_of_signal, _ in searched for jump in jumps_of_signal]
    count, episodes = sum(count for _, count in searched), sorted({jump.episode for jump in found})
    share = len(episodes) / len(recording.episodes)
    if not found:
        return Finding("jumps", Verdict.OK, 0.0, "no step is far beyond the joint's usual")
    worst = min(found, key=lambda jump: jump.usual / jump.step)
    text = (
        f"{count} step(s) far beyond the joint's usual, in {numbered(episodes)}; "
        f"{worst.key} {worst.label} goes {worst.step:.4g} in one frame ({worst.frame} of episode {worst.episode}), "
        f"usually at most {worst.usual:.4g}"
    )
    advice = "look at them; leave such episodes out (dataset.episodes), or a policy may learn the jump"
    return Finding("jumps", judge(share, look=0.0, harms=MANY_JUMPS), share, text, advice)


def at_the_stop(signal: Signal) -> np.ndarray:
    """(D,) the share of frames at the least or at the greatest value of each dimension, whichever has more; 0 for one
    that never moves."""
    low, high = signal.values.min(axis=0), signal.values.max(axis=0)
    near = AT_THE_STOP * signal.ranges
    shares = np.maximum((signal.values <= low + near).mean(axis=0), (signal.values >= high - near).mean(axis=0))
    return np.where(moving(signal), shares, 0.0)


def saturation(recording: Recording) -> Finding:
    """Joints that are at the end of their range in many frames. A gripper is there whenever it is open or closed."""
    found = []
    for signal in recording.signals:
        for number, share in enumerate(at_the_stop(signal).tolist()):
            label = signal.labels[number]
            few = len(np.unique(signal.values[:, number])) <= FEW_VALUES
            if not few and "grip" not in label.lower():
                found.append((share, f"{signal.key} {label}"))
    share, worst = max(found, default=(0.0, "none"))
    verdict = judge(share, look=MUCH_AT_THE_STOP)
    most = [f"{name} {value:.0%}" for value, name in sorted(found, reverse=True) if value > MUCH_AT_THE_STOP]
    text = f"at most {share:.1%} of the frames are at a joint's least or greatest value ({worst})"
    if verdict is Verdict.OK:
        return Finding("saturation", verdict, share, text)
    text = f"share of frames at the least or greatest value: {', '.join(most[:4])}{', …' if len(most) > 4 else ''}"
    advice = "a joint at its stop or a clipped command does not show what was wanted: check calibration and limits"
    return Finding("saturation", verdict, share, text, advice)


def still_dimensions(recording: Recording) -> Finding:
    """Dimensions that never move; an action of which none moves teaches nothing."""
    still = {
        signal.key: [label for label, moves in zip(signal.labels, moving(signal), strict=True) if not moves]
        for signal in recording.signals
    }
    count = sum(map(len, still.values()))
    check = "still dimensions"
    if not count:
        return Finding(check, Verdict.OK, 0.0, "every dimension of state and action moves")
    parts = "; ".join(f"{key} {', '.join(labels)}" for key, labels in still.items() if labels)
    dead = any(len(still[signal.key]) == len(signal.labels) for signal in recording.signals)
    verdict = Verdict.HARMS if dead else Verdict.LOOK
    return Finding(check, verdict, count, f"{count} never move: {parts}", "if they should, the recording lacks them")
