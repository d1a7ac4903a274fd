"""Cameras that show nothing: frozen while the robot moves, dark, or of one colour."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..statistics import evenly_spaced
from .finding import Finding, Verdict
from .recording import Recording, numbered

MOST_EPISODES = 24  # that are looked at, evenly chosen
FRAMES = 5  # of each, evenly spaced, of each camera
UNCHANGED = 3.0  # of 255: a picture that comes again differs less, a live camera's noise alone by more
EDGE = 0.999  # the quantile over pixels that is compared: a small arm moves few of them
MOVED = 0.05  # of a dimension's range
DARK = 12.0  # of 255, mean
FLAT = 3.0  # of 255, standard deviation over the pixels
OFTEN = 0.2  # of the episodes that were looked at

Read = Callable[[int, list[int], str], Sequence[np.ndarray]]  # episode_index, steps, camera → (H, W) grey uint8


class Seen(NamedTuple):
    """A few frames of one camera in one episode."""

    camera: str
    episode: int
    frames: int
    brightness: float  # mean of the brightest frame, of 255
    contrast: float  # the largest standard deviation of a frame
    change: float  # the largest change between neighbours while the robot moved; NaN: it did not

    @property
    def frozen(self) -> bool:
        """The robot moved, and no picture shows it, dark ones apart."""
        return self.change < UNCHANGED and not self.dark

    @property
    def dark(self) -> bool:
        """Nothing can be seen in any of the frames."""
        return self.brightness < DARK or self.contrast < FLAT


def chosen_episodes(recording: Recording) -> list[int]:
    """Rows of at most :data:`MOST_EPISODES` episodes, evenly chosen."""
    return evenly_spaced(len(recording.episodes), MOST_EPISODES).tolist()


def look(recording: Recording, cameras: Sequence[str], read: Read) -> list[Seen]:
    """Decode :data:`FRAMES` frames of each camera in each chosen episode; one camera's few are held at a time.

    Raises:
        UserError: a frame cannot be decoded.
    """
    found = []
    ranges = np.where(recording.state.ranges > 0, recording.state.ranges, 1.0)
    for row in chosen_episodes(recording):
        length = int(recording.lengths[row])
        steps = evenly_spaced(length, FRAMES).tolist()
        states = recording.state.values[recording.starts[row] + np.array(steps)].astype(np.float64)
        moved = (np.abs(np.diff(states, axis=0)) / ranges).max(axis=1, initial=0.0) > MOVED
        for camera in cameras:
            pictures = read(int(recording.episodes[row]), steps, camera)
            found.append(_seen(camera, int(recording.episodes[row]), pictures, moved))
    return found


def _seen(camera: str, episode: int, pictures: Sequence[np.ndarray], moved: np.ndarray) -> Seen:
    changes = [
        float(np.quantile(np.abs(later.astype(np.int16) - earlier), EDGE))
        for earlier, later, moves in zip(pictures, pictures[1:], moved, strict=False)
        if moves
    ]
    return Seen(
        camera,
        episode,
        len(pictures),
        max(float(picture.mean()) for picture in pictures),
        max(float(picture.std()) for picture in pictures),
        max(changes, default=float("nan")),
    )


def frozen(recording: Recording, seen: Sequence[Seen]) -> Finding:
    """Cameras whose picture stands still while the state moves."""
    words = "every camera's picture changes while the robot moves", "stand still while the robot moves"
    if all(np.isnan(each.change) for each in seen):
        words = "the robot does not move between the frames that were looked at: not judged", words[1]
    return _finding("frozen cameras", recording, seen, [each for each in seen if each.frozen], words)


def dark(recording: Recording, seen: Sequence[Seen]) -> Finding:
    """Cameras whose pictures are dark or of one colour."""
    words = "no camera is dark or of one colour", "are dark or of one colour"
    return _finding("dark cameras", recording, seen, [each for each in seen if each.dark], words)


def _finding(
    check: str, recording: Recording, seen: Sequence[Seen], bad: Sequence[Seen], words: tuple[str, str]
) -> Finding:
    """
    Args:
        bad: those of ``seen`` in which something is wrong.
        words: what is said where nothing is, and where something is.
    """
    looked_at = len({each.episode for each in seen})
    counted = (
        f"looked at {sum(each.frames for each in seen)} frames of {len({each.camera for each in seen})} camera(s) in "
        f"{looked_at} of {len(recording.episodes)} episodes"
    )
    if not bad:
        return Finding(check, Verdict.OK, 0.0, f"{words[0]} ({counted})")
    by_camera = {each.camera: [other.episode for other in bad if other.camera == each.camera] for each in bad}
    share = max(len(episodes) for episodes in by_camera.values()) / looked_at
    parts = "; ".join(f"{camera} in {numbered(episodes)}" for camera, episodes in by_camera.items())
    advice = "leave these episodes out (dataset.episodes) or the camera (policy.input_features); watch the others, too"
    verdict = Verdict.HARMS if share > OFTEN else Verdict.LOOK
    return Finding(check, verdict, share, f"pictures {words[1]}: {parts} ({counted})", advice)
