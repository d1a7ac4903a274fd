"""Slow weights, slow chunks, slow cameras in front of the control loop, at the default limits: episodes are kept."""

import threading
import time

import numpy as np
import pytest
from actors import CAMERA, FakeEnv, FakeModel, make_control

from lerobot_policy_pi05_rl.config.actor import ActorConfig
from lerobot_policy_pi05_rl.online.actor.chunk_model import Weights
from lerobot_policy_pi05_rl.returns import Outcome

SLOW_S = 0.7  # above the default stale_observation_s


class Robot(FakeEnv):
    """A real robot whose pictures always differ; an observation takes ``camera_s`` seconds."""

    def __init__(self, camera_s=0.0, **kwargs):
        super().__init__(real_robot=True, **kwargs)
        self.camera_s, self.looks = camera_s, 0

    def _observe(self):
        time.sleep(self.camera_s)
        self.looks += 1
        return {**super()._observe(), CAMERA: np.full((16, 16, 3), self.looks % 250, np.uint8)}

    def observe(self):
        return self._observe()


def slow(load_s=0.0, chunk_s=0.0, first_chunk_s=0.0):
    """A model with these delays in its weights' loading, each chunk, and each episode's first one."""
    model = FakeModel(wait=lambda: time.sleep(chunk_s + (first_chunk_s if model.count == 0 else 0)))
    load = model.load

    def slow_load(weights):
        time.sleep(load_s)
        load(weights)

    model.load = slow_load
    return model


@pytest.mark.parametrize(
    ("delays", "camera_s"),
    [({"load_s": SLOW_S}, 0.0), ({"first_chunk_s": 3.0}, 0.0), ({"load_s": SLOW_S, "chunk_s": 0.2}, SLOW_S)],
    ids=["weights", "first chunk", "weights and camera"],
)
def test_every_episode_is_kept_while_new_weights_arrive_at_each_reset(delays, camera_s):
    env, model = Robot(camera_s, length=3), slow(**delays)
    made = make_control(env, model, ActorConfig())
    played = []
    for version in (140, 150, 160):
        made.source.stage(Weights(version, {}))  # a push finds the actor between two episodes
        ending = made.control.play(0)
        played.append((ending.outcome, len(made.recorder), made.recorder.last_version))
    made.chunks.stop()
    assert played == [(Outcome.SUCCESS, 3, version) for version in (140, 150, 160)]
    assert env.resets == 3


def test_weights_that_arrive_while_the_robot_resets_wait_for_the_next_episode():
    """They would otherwise be loaded between what was seen at the reset and the first chunk."""
    env, model = Robot(length=3), slow(load_s=SLOW_S)
    made = make_control(env, model, ActorConfig())
    reset = env.reset

    def pushed_meanwhile(seed):
        made.source.stage(Weights(made.source.version + 10, {}))
        return reset(seed)

    env.reset = pushed_meanwhile
    versions = []
    for _ in range(3):
        assert made.control.play(0).outcome is Outcome.SUCCESS
        versions += made.recorder.finish(Outcome.SUCCESS, {}).policy_version.tolist()
    made.chunks.stop()
    assert versions == [140] * 3 + [150] * 3 + [160] * 3 and made.stats.held == 0


def test_an_old_observation_before_the_first_step_is_replaced():
    """The first weights come after the reset, as for an actor that waited: nothing has moved, so look again."""
    env, model = Robot(length=3), slow(load_s=SLOW_S)
    made = make_control(env, model, ActorConfig(), weights=None)
    endings = []
    played = threading.Thread(target=lambda: endings.append(made.control.play(0)))
    played.start()
    time.sleep(SLOW_S)
    assert env.resets == 1 and not env.executed
    made.source.stage(Weights(3, {}))
    played.join(30)
    made.chunks.stop()
    assert [ending.outcome for ending in endings] == [Outcome.SUCCESS] and env.resets == 1
    pictures = made.recorder.finish(Outcome.SUCCESS, {}).pictures[CAMERA]
    assert len(pictures) == 3 and env.looks > 4  # the reset's and three steps' alone would be four


def test_a_camera_that_is_dead_before_the_first_step_ends_the_episode_as_broken():
    env = Robot(length=3)
    env._observe = lambda: FakeEnv._observe(env)  # the same picture again and again
    made = make_control(env, slow(first_chunk_s=3.0), ActorConfig(stale_observation_s=0.1, fault_timeout_s=0.1))
    ending = made.control.play(0)
    made.chunks.stop()
    assert ending.broken and "have not changed" in ending.why and not env.executed


@pytest.mark.parametrize(("load_s", "versions"), [(0.0, [140, 999]), (0.2, [140])])
def test_weights_are_loaded_within_an_episode_if_the_queue_outlasts_them(load_s, versions):
    """At 50 steps a second six actions last 0.12 s."""
    env, model = Robot(length=12), slow(load_s=load_s)
    made = make_control(env, model, ActorConfig())
    env.on_step = lambda number: made.source.stage(Weights(999, {})) if number == 1 else None
    made.control.play(0)
    made.chunks.stop()
    assert sorted(set(made.recorder.finish(Outcome.SUCCESS, {}).policy_version.tolist())) == versions
