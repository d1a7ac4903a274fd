"""Four Meta-World tasks with the observations and actions of the demo's pick task.

Built on Meta-World's environments (https://github.com/Farama-Foundation/Metaworld). What differs:

* 10 control steps a second instead of 80, so that episodes take tens of steps instead of hundreds;
* a policy sees two small pictures and the gripper, not the object's position;
* an episode ends with its success;
* the start state is drawn by the seeded generator of `reset(seed=...)`, from the middle of Meta-World's range;
* cameras close to the scene and few triangles: a software renderer must draw 64x64 pictures quickly.
"""

import os

# MuJoCo picks its OpenGL loader on import; EGL is the one that works without a screen.
os.environ.setdefault("MUJOCO_GL", "egl")

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from lerobot_policy_pi05_rl.demo.constants import CONTROL_HZ, IMAGE_SIZE, MAX_STEP_M
from lerobot_policy_pi05_rl.demo.simulation import TwoCameras, clipped_action

from .tasks import START_SPREAD, TASKS

_SIMULATOR_STEP_M = 0.01  # what Meta-World moves its target by for an action of 1.0
_MAX_FACES = 3000  # of a drawn mesh; those above are links of the arm
_HIDDEN_GROUP = 5


class MetaWorldSimulator(TwoCameras, gym.Env[dict[str, Any], np.ndarray]):
    """One simulated episode of a Meta-World task at a time, 10 control steps per second.

    Action, float32 (4,), each clipped to [-1, 1]:
        0-2: displacement of the gripper's target along x (right), y (away from the base), z (up); 1.0 is 5 cm.
        3:   gripper effort: -1 opens, +1 closes.
    Observation:
        `pixels`: `front` and `wrist`, uint8 (image_size, image_size, 3);
        `agent_pos`: float32 (4,): gripper position x, y, z in metres, gripper opening (1 open, 0 closed).
    Reward: 1.0 on the step that fulfils Meta-World's criterion, else 0.0.
    Ends: terminated on success, truncated after `max_episode_steps`.

    The name `_max_episode_steps` and the attributes `task` and `task_description` are what LeRobot's
    `rollout` asks its environments for.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 - Gymnasium's interface
    render_mode = "rgb_array"

    def __init__(
        self,
        task: str,
        image_size: int = IMAGE_SIZE,
        max_episode_steps: int | None = None,
        start_spread: float = START_SPREAD,
    ) -> None:
        """Build the simulator.

        Args:
            task: a key of `TASKS`.
            image_size: height and width of both pictures, pixels.
            max_episode_steps: control steps until truncation; the task's own number if None.
            start_spread: part of Meta-World's range of start states that is drawn from.

        Raises:
            ValueError: for an unknown task, or a size or length out of range.
        """
        if task not in TASKS:
            raise ValueError(f"Unknown task {task!r}; known: {sorted(TASKS)}.")
        steps = TASKS[task].max_episode_steps if max_episode_steps is None else max_episode_steps
        if image_size < 8 or steps < 1:
            raise ValueError(f"Need image_size >= 8 and max_episode_steps >= 1, got {image_size=}, {steps=}.")
        self.name = task
        self.task = self.task_description = TASKS[task].instruction
        self._max_episode_steps = steps
        self._image_size = image_size
        self._start_spread = start_spread
        self._env = ALL_V3_ENVIRONMENTS[TASKS[task].environment]()
        # What `set_task` does with a pickled task of Meta-World's benchmarks: fix the start state.
        self._env._set_task_called = True
        self._env._freeze_rand_vec = True
        self._env.max_path_length = 2**31
        self._model, self._data = self._env.model, self._env.data
        self._repeats = round(1.0 / CONTROL_HZ / (self._model.opt.timestep * self._env.frame_skip))
        self._prepare_scene()
        self._set_spaces(image_size)

    def _prepare_scene(self) -> None:
        """Make drawing cheap, place the cameras, create the renderer."""
        model = self._model
        # The renderer allocates its shadow map and its multisample buffer when it is created; with a software
        # renderer they cost more than the rest.
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        for i in range(model.ngeom):
            mesh = model.geom_dataid[i] if model.geom_type[i] == mujoco.mjtGeom.mjGEOM_MESH else -1
            # MuJoCo tessellates the floor, which then costs more than the rest; the table hides it anyway.
            is_floor = model.geom_type[i] == mujoco.mjtGeom.mjGEOM_PLANE
            if is_floor or (mesh >= 0 and model.mesh_facenum[mesh] > _MAX_FACES):
                model.geom_group[i] = _HIDDEN_GROUP
        self._front_camera = mujoco.MjvCamera()
        self._front_camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        self._front_camera.lookat[:] = (0.0, 0.68, 0.14)
        self._front_camera.distance = 0.95
        self._front_camera.azimuth = 125.0
        self._front_camera.elevation = -35.0
        self._wrist_camera = model.camera("gripperPOV").id
        self._scene_option = mujoco.MjvOption()
        self._scene_option.geomgroup[:] = (1, 1, 0, 0, 0, 0)
        self._scene_option.sitegroup[:] = 0  # some tasks mark the goal with a coloured ball
        self._renderer = mujoco.Renderer(model, self._image_size, self._image_size)

    @property
    def gripper_position(self) -> np.ndarray:
        """Position of the hand, float64 (3,), metres."""
        return self._env.get_endeff_pos().copy()

    @property
    def gripper_opening(self) -> float:
        """Measured opening: 1 fully open, 0 fully closed."""
        return self._env._get_curr_obs_combined_no_goal()[3]

    @property
    def full_state(self) -> np.ndarray:
        """What Meta-World's scripted policies read: hand, object (twice) and goal, float64 (39,)."""
        now = self._env._get_curr_obs_combined_no_goal()
        return np.hstack((now, now, self._env._get_pos_goal()))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; the same seed gives the same start state, bit for bit."""
        super().reset(seed=seed)
        space = self._env._random_reset_space
        middle, half = (space.high + space.low) / 2.0, (space.high - space.low) / 2.0
        draw = self.np_random.uniform(-1.0, 1.0, size=middle.shape)
        self._env._last_rand_vec = middle + self._start_spread * half * draw
        self._env.reset()
        self._steps = 0
        return self._compute_observation(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply one action.

        Raises:
            ValueError: for an action of another shape, or one that is not finite.
        """
        action = clipped_action(action, self.action_space)
        action[:3] *= MAX_STEP_M / (self._repeats * _SIMULATOR_STEP_M)
        success = False
        for _ in range(self._repeats):
            *_, info = self._env.step(action)
            success = bool(info["success"])
            if success:
                break
        self._steps += 1
        truncated = not success and self._steps >= self._max_episode_steps
        return self._compute_observation(), float(success), success, truncated, {"is_success": success}

    def _draw(self, camera: mujoco.MjvCamera | int) -> np.ndarray:
        """One picture, uint8 (image_size, image_size, 3)."""
        self._renderer.update_scene(self._data, camera=camera, scene_option=self._scene_option)
        return self._renderer.render()

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()
        self._env.close()
