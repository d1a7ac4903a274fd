"""The names of a feature's dimensions, whatever form a dataset has them in."""

import pytest

from lerobot_policy_pi05_rl.data.names import dimension_names


@pytest.mark.parametrize(
    ("size", "names", "expected"),
    [
        (3, ["x", "y", "gripper"], ["x", "y", "gripper"]),
        (3, ("x", "y", "gripper"), ["x", "y", "gripper"]),
        (3, [["x", "y", "gripper"]], ["x", "y", "gripper"]),
        (3, [["x", "y"], ["gripper"]], ["x", "y", "gripper"]),
        (3, {"motors": ["x", "y", "gripper"]}, ["x", "y", "gripper"]),
        (3, {"arm": ["x", "y"], "gripper": ["g"]}, ["x", "y", "g"]),
        (4, {"left": ["x", "g"], "right": ["x", "g"]}, ["left.x", "left.g", "right.x", "right.g"]),
        (3, {"gripper": 2, "x": 0, "y": 1}, ["x", "y", "gripper"]),
        (3, {"pose": 2, "gripper": 1}, ["pose_0", "pose_1", "gripper"]),
        (2, {"x": None, "gripper": None}, ["x", "gripper"]),
        (3, ["joints"], ["joints_0", "joints_1", "joints_2"]),
        (3, "joints", ["joints_0", "joints_1", "joints_2"]),
        (2, {"motors": ["joints"]}, ["joints_0", "joints_1"]),
        (1, ["gripper"], ["gripper"]),
        (3, None, None),
        (3, [], None),
        (3, ["x", "y"], None),
        (3, ["arm", "arm", "gripper"], ["arm_0", "arm_1", "gripper"]),
        (3, {"x": 0, "y": 5}, None),
    ],
)
def test_every_form_gives_one_name_for_each_dimension_or_none(size, names, expected):
    assert dimension_names({"shape": (size,), "names": names}) == expected


def test_qualified_names_carry_their_group():
    feature = {"shape": (3,), "names": {"arm": ["x", "y"], "gripper": ["g"]}}
    assert dimension_names(feature, qualified=True) == ["arm.x", "arm.y", "gripper.g"]
    assert dimension_names({"shape": (2,), "names": {"motors": ["x", "y"]}}, qualified=True) == ["x", "y"]
    counted = {"shape": (3,), "names": {"pose": 2, "gripper": 1}}
    assert dimension_names(counted, qualified=True) == ["pose.pose_0", "pose.pose_1", "gripper"]
