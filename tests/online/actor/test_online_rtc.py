"""Real-time chunking of the actor: a tiny policy, its real processors, LeRobot's RTC; the robot's motion is drawn."""

import numpy as np
import pytest
import torch
from lerobot.configs.types import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.utils.constants import ACTION, OBS_STATE
from tiny import CAMERAS, randomised, tiny_config

from lerobot_policy_pi05_rl.modeling_pi05_rl import PI05RLPolicy
from lerobot_policy_pi05_rl.online.actor.chunk_model import ChunkModel, Weights
from lerobot_policy_pi05_rl.online.actor.inference import ChunkSource
from lerobot_policy_pi05_rl.online.actor.setup import read_processors
from lerobot_policy_pi05_rl.processor_pi05_rl import build_tasks_tokenizer, make_pi05_rl_pre_post_processors

TASK = "pick the cube"
NAMES = ["shoulder.pos", "elbow.pos", "gripper.pos"]
CHUNK = 6


def make_model(folder, **overrides) -> ChunkModel:
    """A tiny policy, and its processors as they come from the learner: written and read."""
    torch.manual_seed(0)
    rtc = RTCConfig(prefix_attention_schedule=RTCAttentionSchedule.ONES)
    config = tiny_config(rtc_config=rtc, action_feature_names=NAMES, **overrides)
    policy = randomised(PI05RLPolicy(config, load_critic=False))
    stats = {
        OBS_STATE: {"q01": torch.full((4,), -20.0), "q99": torch.full((4,), 20.0)},
        ACTION: {"q01": torch.tensor([-8.0, -3.0, 0.0]), "q99": torch.tensor([4.0, 9.0, 50.0])},
    }
    folder.mkdir()
    for pipeline in make_pi05_rl_pre_post_processors(config, stats, tokenizer=build_tasks_tokenizer([TASK])):
        pipeline.save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return ChunkModel(policy, read_processors(files, config), TASK)


def observe(number: int, state=(0.0, 0.0, 0.0, 0.0)) -> dict[str, np.ndarray]:
    """What the robot sees at a step: drawn pictures."""
    rng = np.random.default_rng(number)
    pictures = {camera: rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for camera in CAMERAS}
    return {**pictures, OBS_STATE: np.array(state, dtype=np.float32)}


class Watched:
    """A model that notes what it is asked, and lets ``meanwhile`` happen while it computes."""

    def __init__(self, model: ChunkModel):
        self.model, self.asked, self.meanwhile = model, [], lambda: None

    def load(self, weights: Weights) -> None:
        """The same weights again."""

    def compute(self, observation, delay, left_over, left_over_actions):
        self.meanwhile()
        chunk = self.model.compute(observation, delay, left_over, left_over_actions)
        self.asked.append((delay, left_over_actions, chunk[1]))
        return chunk


@pytest.mark.parametrize("seed", [0, 1])
def test_a_chunk_continues_what_follows_its_observation(tmp_path, seed):
    """However observing, acting and computing interleave: if action number n follows the observation of a chunk, then
    action number n + k of the episode is row k of it. The plan that the chunk continues is what is really executed
    while it is computed, and the delay counts at least what has been."""
    rng = np.random.default_rng(seed)
    model = Watched(make_model(tmp_path / "processors", num_inference_steps=1))
    source = ChunkSource(model, RTCConfig(), fps=10.0, threshold=3, horizon=CHUNK)
    source.stage(Weights(7, {}))
    executed, state = [], {"first": 0}

    def act() -> None:
        found = source.next_action()
        if found is not None:
            assert found[1] == 7
            executed.append(found[0])

    def observe_now() -> None:
        source.publish(observe(len(executed)), intervened=False)
        state["first"] = len(executed)

    source.begin_episode()
    observe_now()
    chunks = 0
    while chunks < 12:
        if rng.random() < 0.5:  # the chunk is begun while the environment steps
            act()
        first, begun = state["first"], len(executed)
        late = int(rng.integers(0, 3))
        model.meanwhile = lambda late=late: [(act(), observe_now()) for _ in range(late)]
        if source.work():
            delay, plan, actions = model.asked[-1]
            chunks += 1
            assert delay >= begun - first
            if plan is not None:
                for row, action in zip(plan, executed[first:], strict=False):
                    np.testing.assert_array_equal(row.numpy(), action)
            model.meanwhile = lambda: None
            act()
            if len(executed) - first <= CHUNK:
                np.testing.assert_array_equal(executed[-1], actions[len(executed) - 1 - first].numpy())
        act()
        observe_now()


def test_while_a_person_acts_chunks_are_computed_afresh(tmp_path):
    model = Watched(make_model(tmp_path / "processors", num_inference_steps=1))
    source = ChunkSource(model, RTCConfig(), fps=10.0, threshold=1, horizon=CHUNK)
    source.stage(Weights(7, {}))
    source.begin_episode()
    source.publish(observe(0), intervened=False)
    assert source.work() and not source.work()  # enough is left
    for number in (1, 2):
        source.next_action()
        source.publish(observe(number), intervened=True)
        assert source.work()
        assert model.asked[-1][1] is None
    np.testing.assert_array_equal(source.next_action()[0], model.asked[-1][2][0].numpy())
    source.publish(observe(3), intervened=False)
    assert not source.work()


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_what_is_executed_meanwhile_is_the_chunks_start(tmp_path, guidance_scale):
    """Also under classifier-free guidance, which shapes the rest."""
    model = make_model(tmp_path / "processors", guidance_scale=guidance_scale)
    plan, actions = model.compute(observe(0), 0, None, None)

    def chunk(scale: float, *options) -> torch.Tensor:
        model.policy.config.guidance_scale = scale
        torch.manual_seed(5)
        return model.compute(observe(1), *options)[0]

    free = chunk(guidance_scale, 0, None, None)
    bound = chunk(guidance_scale, 3, plan[2:5], actions[2:5])
    assert (bound[:3] - plan[2:5]).abs().max() < 0.15 * (free[:3] - plan[2:5]).abs().max()
    assert torch.isfinite(bound).all()
    other = chunk(3.0 - guidance_scale, 3, plan[2:5], actions[2:5])
    assert (bound[3:] - other[3:]).abs().max() > 10 * (bound[:3] - other[:3]).abs().max()


@pytest.mark.parametrize("excluded", [[], ["gripper"]])
def test_a_relative_plan_stays_the_same_motion_when_the_robot_has_moved(tmp_path, monkeypatch, excluded):
    """What the policy is asked to continue is, read at the new state, what is being executed."""
    model = make_model(tmp_path / "processors", use_relative_actions=True, relative_exclude_joints=excluded)
    plan, actions = model.compute(observe(0, (10, -5, 30, 0)), 0, None, None)
    given, predict = [], model.policy.predict_action_chunk

    def noting(batch, **options):
        given.append(options)
        return predict(batch, **options)

    monkeypatch.setattr(model.policy, "predict_action_chunk", noting)
    for state in ((10, -5, 30, 0), (12, -9, 22, 3)):
        _, chunk = model.compute(observe(1, state), 3, plan[2:], actions[2:])
        left_over = given[-1]["prev_chunk_left_over"]
        assert given[-1]["inference_delay"] == 3 and left_over.shape == (4, 3)
        read = model._after(left_over[None]).squeeze(0)  # relative to the state that was seen last
        # float32 to the robot and back: a few roundings of 2^-24 of some ten degrees
        torch.testing.assert_close(read, actions[2:], rtol=0, atol=1e-4)
        moved = [joint for joint in range(3) if not (excluded and joint == 2) and state[0] != 10]
        for joint in range(3):
            assert torch.allclose(left_over[:, joint], plan[2:, joint], atol=1e-4) != (joint in moved)
        # and the new chunk is close to it in the environment's own units
        assert ((chunk[:3] - actions[2:5]).abs() < torch.tensor([1.2, 1.2, 5.0])).all()
