"""Other people's environments, robots, teleoperators and cameras, which LeRobot finds by the distribution's name."""

import json
import sys
import textwrap

import numpy as np
import pytest
from actors import environment_of
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_STATE
from recordings import make_dataset
from tiny import write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.config.train import ConfigError
from lerobot_policy_pi05_rl.data.dataset import open_offline_data
from lerobot_policy_pi05_rl.online.config import OnlineTrainConfig
from lerobot_policy_pi05_rl.plan.setup import make_setup

ENVIRONMENT = '''
    from dataclasses import dataclass, field

    import gymnasium as gym
    import numpy as np
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.envs import EnvConfig


    @EnvConfig.register_subclass("reach_of_a_plugin")
    @dataclass
    class ReachConfig(EnvConfig):
        task: str | None = "Reach-v0"
        fps: int = 10
        length: int = 3

        @property
        def package_name(self):
            return "lerobot_env_reach"

        @property
        def gym_kwargs(self):
            return {"length": self.length}


    class Reach(gym.Env):
        """Succeeds at its last step, and says so in gym-hil's word; its joints have a name of their own."""

        metadata = {"render_modes": []}
        action_space = gym.spaces.Box(-1, 1, (3,), np.float32)
        observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Dict({"top": gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)}),
                "joints": gym.spaces.Box(-9, 9, (4,), np.float32),
            }
        )

        def __init__(self, length):
            self._length, self._steps = length, 0

        def _observe(self):
            return {
                "pixels": {"top": np.full((32, 32, 3), 10 * self._steps, np.uint8)},
                "joints": np.full(4, self._steps, np.float32),
            }

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self._steps = 0
            return self._observe(), {}

        def step(self, action):
            self._steps += 1
            done = self._steps == self._length
            return self._observe(), 0.0, done, False, {"succeed": np.bool_(done)}


    gym.register("lerobot_env_reach/Reach-v0", entry_point=Reach)
'''
DEVICE = """
    from dataclasses import dataclass

    from lerobot.{module} import {base}


    @{base}.register_subclass("{kind}_of_a_plugin")
    @dataclass
    class PluginConfig({base}):
        address: str = "10.0.0.1"
"""
DEVICES = {
    "robot": ("robots", "RobotConfig"),
    "teleoperator": ("teleoperators", "TeleoperatorConfig"),
    "camera": ("cameras", "CameraConfig"),
}
RENAMED = {"observation.images.top": "observation.images.front", "observation.joints": OBS_STATE}


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    """Four small distributions on the path."""
    site = tmp_path_factory.mktemp("site")
    codes = {"lerobot_env_reach": ENVIRONMENT}
    codes |= {
        f"lerobot_{kind}_plugged": DEVICE.format(module=module, base=base, kind=kind)
        for kind, (module, base) in DEVICES.items()
    }
    for name, code in codes.items():
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(textwrap.dedent(code))
        info = site / f"{name}-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    sys.path.insert(0, str(site))
    yield site
    sys.path.remove(str(site))


def configuration(tmp_path, *overrides, kind=OnlineTrainConfig, **changes):
    """A small configuration with these top-level keys."""
    path = write_config(tmp_path / "run.json", tmp_path / "data", tmp_path / "offline")
    raw = json.loads(path.read_text()) | {"output_dir": str(tmp_path / "online")} | changes
    path.write_text(json.dumps(raw))
    return load_config(path, list(overrides), kind)


FEATURES = {
    "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
    OBS_STATE: PolicyFeature(FeatureType.STATE, (4,)),
    ACTION: PolicyFeature(FeatureType.ACTION, (3,)),
}


def test_a_plugins_environment_is_acted_in_under_the_policys_names(tmp_path, plugins):
    cfg = configuration(tmp_path, "--env.length=4", env={"type": "reach_of_a_plugin"}, rename_map=RENAMED)
    env = environment_of(cfg, FEATURES, ["x", "y", "grip"])
    assert env.action_names == ["x", "y", "grip"] and env.fps == 10
    first = env.reset(0)
    assert first[OBS_STATE].tolist() == [0] * 4 and first["observation.images.front"].shape == (32, 32, 3)
    steps = [env.step(np.zeros(3, np.float32)) for _ in range(4)]
    env.close()
    assert [step.success for step in steps] == [False, False, False, True] and steps[-1].terminated
    assert [step.observation[OBS_STATE][0] for step in steps[:3]] == [1, 2, 3]


def test_a_missing_observation_says_how_to_rename(tmp_path, plugins):
    env = environment_of(configuration(tmp_path, env={"type": "reach_of_a_plugin"}), FEATURES, [])
    with pytest.raises(ConfigError, match=r"it gives observation\.images\.top, .*rename_map="):
        env.reset(0)
    env.close()


def test_robots_teleoperators_and_cameras_of_plugins_are_read(tmp_path, plugins):
    camera = {"type": "camera_of_a_plugin", "fps": 30, "width": 64, "height": 48}
    robot = {"type": "so101_follower", "port": "/dev/none", "cameras": {"front": camera}}
    env = {"type": "gym_manipulator", "teleop": {"type": "teleoperator_of_a_plugin", "address": "leader"}}
    cfg = configuration(tmp_path, env={**env, "robot": robot})
    assert cfg.env.robot.cameras["front"].address == "10.0.0.1" and cfg.env.teleop.address == "leader"
    cfg = configuration(tmp_path, env={**env, "robot": {"type": "robot_of_a_plugin", "address": "arm"}})
    assert cfg.env.robot.address == "arm"


def test_an_environment_that_nobody_has_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"env"):
        configuration(tmp_path, env={"type": "nobodys"})


@pytest.mark.parametrize(
    ("recorded", "name"),
    [
        ("action", "command"),
        ("observation.state", "observation.joints"),
        ("next.success", "task_done"),
        ("next.reward", "score"),
        ("intervention", "corrected"),
        ("observation.images.front", "observation.images.cam_high"),
    ],
)
def test_any_column_may_have_another_name_in_the_dataset(tmp_path, recorded, name):
    """The same frames, labels and sizes as under the usual names, for training and for a plan."""
    episodes = [{"length": 4, "success": n % 2 == 0, "reward": -0.5, "intervention": 2} for n in range(4)]
    columns = ("next.reward", "next.success", "intervention")
    make_dataset(tmp_path / "plain", episodes, columns=columns)
    make_dataset(tmp_path / "data", episodes, columns=columns)
    rename(tmp_path / "data", recorded, name)
    changes = {"reward": {"source": "dataset"} if recorded == "next.reward" else {}, "rename_map": {name: recorded}}
    plain = configuration(tmp_path, kind=OnlineTrainConfig, reward=changes["reward"])
    plain.dataset.root = str(tmp_path / "plain")
    want, found = open_offline_data(plain), open_offline_data(configuration(tmp_path, **changes))
    assert want.train.cameras == found.train.cameras
    assert [e.outcome for e in want.labels.episodes] == [e.outcome for e in found.labels.episodes]
    np.testing.assert_array_equal(want.labels.returns[0], found.labels.returns[0])
    np.testing.assert_array_equal(want.labels.interventions[0], found.labels.interventions[0])
    own, other = want.train[(5, 5)], found.train[(5, 5)]
    for key in (ACTION, OBS_STATE, "observation.images.front"):
        np.testing.assert_array_equal(own[key], other[key])
    for key in (ACTION, OBS_STATE):
        assert want.stats[key]["q99"].tolist() == found.stats[key]["q99"].tolist()
    setup = make_setup(configuration(tmp_path, **changes))
    assert setup.config.policy.input_features.keys() == want.policy.input_features.keys()
    assert tuple(setup.config.policy.output_features[ACTION].shape) == (3,)


def rename(root, old, new):
    """Give a column of a recorded dataset another name, in every file that has it."""
    import pyarrow.parquet as pq

    for path in root.rglob("*.parquet"):
        table = pq.read_table(path)
        names = [column.replace(f"/{old}/", f"/{new}/") if "/" in column else column for column in table.column_names]
        names = [new if column == old else column for column in names]
        before, after = (f'"{name}"'.encode() for name in (old, new))
        metadata = {key: text.replace(before, after) for key, text in (table.schema.metadata or {}).items()}
        pq.write_table(table.rename_columns(names).replace_schema_metadata(metadata or None), path)
    for name in ("info.json", "stats.json"):
        path = root / "meta" / name
        path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"'))
