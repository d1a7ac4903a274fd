"""The scripted operators do in the simulator what their names say."""

import numpy as np
import pytest

pytest.importorskip("gym_hil")

from lerobot_policy_pi05_rl.demo.operators import STYLES, ScriptedOperator
from lerobot_policy_pi05_rl.demo.simulator import PandaPickCubeSimulator

SEEDS = range(5)


def run_episode(env: PandaPickCubeSimulator, name: str, seed: int) -> tuple[bool, int, np.ndarray]:
    """Success, number of steps, actions (steps, 4)."""
    env.reset(seed=seed)
    operator = ScriptedOperator(name, np.random.default_rng(seed))
    actions = []
    while True:
        actions.append(operator.act(env.gripper_position, env.cube_position))
        _, reward, terminated, truncated, info = env.step(actions[-1])
        assert reward == float(info["is_success"]) and terminated == info["is_success"]
        if terminated or truncated:
            return info["is_success"], len(actions), np.stack(actions)


@pytest.fixture(scope="module")
def outcomes():
    # Small pictures: the operators do not look at them.
    env = PandaPickCubeSimulator(image_size=8)
    yield {name: [run_episode(env, name, seed) for seed in SEEDS] for name in STYLES}
    env.close()


def test_all_but_misses_succeed(outcomes):
    assert all(success for success, _, _ in outcomes["fast"] + outcomes["slow"] + outcomes["recovers"])
    assert not any(success for success, _, _ in outcomes["misses"])


def test_slow_takes_more_than_twice_the_steps_of_fast(outcomes):
    steps = {name: [n for _, n, _ in runs] for name, runs in outcomes.items()}
    assert all(slow > 2 * fast for slow, fast in zip(steps["slow"], steps["fast"], strict=True))
    assert max(steps["slow"]) < 40  # succeeds before the truncation, not at it
    assert set(steps["misses"]) == {40}
    assert all(1.5 * fast < both < 40 for both, fast in zip(steps["recovers"], steps["fast"], strict=True))


def test_slow_really_moves_more_slowly(outcomes):
    reach = {name: max(np.abs(a[:, :3]).max() for _, _, a in runs) for name, runs in outcomes.items()}
    assert reach["slow"] < 0.6 < reach["fast"] <= 1.0


def test_same_generator_gives_the_same_actions(outcomes):
    env = PandaPickCubeSimulator(image_size=8)
    try:
        again = run_episode(env, "misses", SEEDS[2])[2]
        np.testing.assert_array_equal(again, outcomes["misses"][2][2])
    finally:
        env.close()
    assert not np.allclose(outcomes["misses"][1][2][:5], outcomes["misses"][2][2][:5])


def test_misses_aims_four_to_seven_centimetres_beside_the_cube():
    cube, errors = np.array([0.5, 0.0, 0.02]), []
    for seed in range(50):
        operator = ScriptedOperator("misses", np.random.default_rng(seed))
        operator.act(np.array([0.49, 0.0, 0.078]), cube)
        errors.append(operator._target_xy - cube[:2])
    distances = np.linalg.norm(errors, axis=1)
    assert distances.min() >= 0.04 and distances.max() <= 0.07
    assert len({tuple(np.sign(error)) for error in errors}) == 4  # every direction


def test_recovers_misses_first_and_then_succeeds():
    env = PandaPickCubeSimulator(image_size=8)
    try:
        for seed in SEEDS:
            env.reset(seed=seed)
            operator, missing = (
                ScriptedOperator(name, np.random.default_rng(seed)) for name in ("recovers", "misses")
            )
            heights, actions, cube_heights, success = [], [], [], False
            while not success:
                assert len(actions) < 40
                gripper, cube = env.gripper_position, env.cube_position
                actions.append(operator.act(gripper, cube))
                if operator.recovery_start is None:  # until then nothing tells it from `misses`
                    np.testing.assert_array_equal(actions[-1], missing.act(gripper, cube))
                heights.append(gripper[2])
                cube_heights.append(cube[2])
                success = env.step(actions[-1])[4]["is_success"]
            turn, closes = operator.recovery_start, np.stack(actions)[:, 3] > 0
            assert 5 < turn < len(actions) - 5
            assert closes[turn - 1] and not closes[turn] and closes[-1]  # closed, opened, closed again
            assert np.diff(closes.astype(int)).tolist().count(1) == 2
            assert min(heights[:turn]) < 0.03 < 0.15 <= heights[turn]  # down beside the cube, up with nothing
            assert max(cube_heights[: turn + 1]) < 0.03
    finally:
        env.close()


def test_unknown_operator_is_named_in_the_error():
    with pytest.raises(ValueError, match=r"'clumsy'.*fast"):
        ScriptedOperator("clumsy", np.random.default_rng(0))
