"""Cameras: a frozen or dark one is found, a robot at rest freezes nothing, and few frames are decoded."""

import numpy as np
import pytest
from drawn import drawn, with_values

from lerobot_policy_pi05_rl.report.checks.finding import Verdict
from lerobot_policy_pi05_rl.report.checks.pictures import FRAMES, MOST_EPISODES, Read, dark, frozen, look

TEXTURE = np.random.default_rng(0).integers(60, 200, (24, 32), dtype=np.uint8)
CAMERAS = ["front", "wrist"]


def reader(change=lambda picture, episode, camera: picture) -> Read:
    """A camera that sees a texture move, with noise; ``change`` plants what is wrong."""
    rng = np.random.default_rng(1)

    def read(episode, steps, camera):
        moving = [np.roll(TEXTURE, 3 * step, axis=1) for step in steps]
        shown = [change(picture, episode, camera) for picture in moving]
        return [np.clip(picture + rng.normal(0, 0.3, picture.shape), 0, 255).astype(np.uint8) for picture in shown]

    return read


def stuck(*episodes: int):
    return reader(lambda picture, episode, camera: TEXTURE if camera == "wrist" and episode in episodes else picture)


def dimmed(*episodes: int):
    return reader(lambda picture, episode, camera: picture / 50 if episode in episodes else picture)


def test_cameras_that_work_are_ok():
    recording = drawn(30)
    seen = look(recording, CAMERAS, reader())
    for check in (frozen, dark):
        found = check(recording, seen)
        assert found.verdict is Verdict.OK and "frames of 2 camera(s) in 24 of 30 episodes" in found.text


@pytest.mark.parametrize(
    ("check", "make", "said"),
    [(frozen, stuck, "wrist in"), (dark, dimmed, "front in")],
)
def test_a_camera_that_shows_nothing_is_named(check, make, said):
    recording = drawn(10)
    other = dark if check is frozen else frozen
    once, always = (look(recording, CAMERAS, make(*episodes)) for episodes in ([4], range(10)))
    found = check(recording, once)
    assert found.verdict is Verdict.LOOK and found.value == 0.1 and f"{said} episode 4" in found.text
    found = check(recording, always)
    assert found.verdict is Verdict.HARMS and found.value == 1.0 and f"{said} episodes 0-9" in found.text
    assert other(recording, always).verdict is Verdict.OK  # what is dark is not called frozen, too


def test_one_colour_is_as_good_as_dark():
    recording = drawn(10)
    seen = look(recording, CAMERAS, reader(lambda picture, episode, camera: np.full((24, 32), 200)))
    assert dark(recording, seen).verdict is Verdict.HARMS


def test_a_robot_at_rest_does_not_freeze_its_cameras():
    recording = drawn(10)
    recording = with_values(recording, "state", np.zeros_like(recording.state.values))
    found = frozen(recording, look(recording, CAMERAS, stuck(*range(10))))
    assert found.verdict is Verdict.OK and "not judged" in found.text


@pytest.mark.parametrize("count", [1, 24, 400])
def test_what_is_decoded_does_not_grow_with_the_dataset(count):
    asked = []

    def read(episode, steps, camera):
        asked.append((episode, camera, len(steps)))
        return reader()(episode, steps, camera)

    recording = drawn(count)
    seen = look(recording, CAMERAS, read)
    assert len(seen) == len(asked) == 2 * min(count, MOST_EPISODES)
    assert all(frames == FRAMES for _, _, frames in asked)
    assert {asked[0][0], asked[-1][0]} == {0, count - 1}
