"""A Panda arm that picks up a cube: gym-hil's simulator with two small, cheap cameras.

Built on gym-hil's `PandaPickCubeGymEnv` (https://github.com/huggingface/gym-hil). What differs:

* actions are 4 numbers, an end-effector step and an absolute gripper command, instead of 7;
* the controller's target is moved to the gripper before every action, so an action always means "from here";
* the cube is placed by the seeded generator of `reset(seed=...)`; gym-hil uses NumPy's global one;
* `info["is_success"]`, the key which `lerobot-eval` reads, next to gym-hil's `info["succeed"]`;
* cameras close to the gripper and a light scene: 64x64 pictures must show where the cube is, and a
  software renderer must draw them quickly.
"""

import os

# MuJoCo picks its OpenGL loader on import; EGL is the one that works without a screen.
os.environ.setdefault("MUJOCO_GL", "egl")

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gym_hil.envs.panda_pick_gym_env import PandaPickCubeGymEnv
from gym_hil.mujoco_gym_env import MAX_GRIPPER_COMMAND, GymRenderingSpec

from .constants import (
    CONTROL_HZ,
    CUBE_JITTER_M,
    CUBE_XY_M,
    IMAGE_SIZE,
    MAX_EPISODE_STEPS,
    MAX_STEP_M,
    TASK,
)
from .simulation import TwoCameras, clipped_action

# Twice gym-hil's time step: same success rate of the scripted operators, half the time for physics.
_PHYSICS_DT_S = 0.004
_GRIPPER_CLOSED_RAD = 0.8  # upper end of the joint range of `right_driver_joint` in gym-hil's panda.xml
_CUBE_RGBA = (0.85, 0.12, 0.12, 1.0)


class PandaPickCubeSimulator(TwoCameras, PandaPickCubeGymEnv):
    """One simulated pick episode at a time, 10 control steps per second.

    Action, float32 (4,), each clipped to [-1, 1]:
        0-2: step of the gripper along x (away from the base), y (left), z (up); 1.0 asks for 5 cm.
        3:   gripper command, absolute: -1 fully open, +1 fully closed.
    Observation:
        `pixels`: `front` and `wrist`, uint8 (image_size, image_size, 3);
        `agent_pos`: float32 (4,): gripper position x, y, z in metres, gripper opening (1 open, 0 closed).
    Reward: 1.0 on the step that lifts the cube by 10 cm (gym-hil's criterion), else 0.0.
    Ends: terminated on success, truncated after `max_episode_steps`.

    The name `_max_episode_steps` and the attributes `task` and `task_description` are what LeRobot's
    `rollout` asks its environments for.
    """

    task = TASK
    task_description = TASK

    def __init__(
        self,
        image_size: int = IMAGE_SIZE,
        max_episode_steps: int = MAX_EPISODE_STEPS,
        cube_jitter: float = CUBE_JITTER_M,
        render_mode: str = "rgb_array",
    ) -> None:
        """
        Args:
            image_size: height and width of both pictures, pixels.
            max_episode_steps: control steps until truncation.
            cube_jitter: half width of the uniform jitter of the cube's x and y, metres.

        Raises:
            ValueError: for another render mode or a size, length or jitter out of range.
        """
        if render_mode != "rgb_array":
            raise ValueError(f"Only render_mode='rgb_array' is supported, got {render_mode!r}.")
        if image_size < 8 or max_episode_steps < 1 or not 0.0 <= cube_jitter <= 0.05:
            raise ValueError(
                "Need image_size >= 8, max_episode_steps >= 1 and 0 <= cube_jitter <= 0.05 m, got "
                f"{image_size=}, {max_episode_steps=}, {cube_jitter=}."
            )
        self._image_size = image_size
        self._max_episode_steps = max_episode_steps
        self._cube_jitter = cube_jitter
        super().__init__(
            control_dt=1.0 / CONTROL_HZ,
            physics_dt=_PHYSICS_DT_S,
            render_spec=GymRenderingSpec(height=image_size, width=image_size),
        )
        # Whole time steps per action; gym-hil's floor division may lose one to rounding.
        self._n_substeps = round(self._control_dt / _PHYSICS_DT_S)
        self._set_spaces(image_size)

    def _setup_observation_space(self) -> None:
        """Called by gym-hil between loading the model and creating the renderer: prepare the scene here."""
        super()._setup_observation_space()
        model = self._model
        # The renderer allocates its shadow map and its multisample buffer when it is created. With a
        # software renderer they cost 25 times the rest.
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        # gym-hil's light burns the cube's top to white in the wrist picture.
        model.light_diffuse[:] *= 0.5
        model.light_specular[:] = 0.0
        model.geom("block").rgba = _CUBE_RGBA
        # MuJoCo tessellates the drawn part of the floor, which then is most of the drawing time. Collisions
        # know no edge of it either way.
        floor = model.geom("floor")
        floor.size[:2] = 0.55
        floor.pos[:] = (0.45, 0.0, 0.0)
        model.geom_sameframe[floor.id] = mujoco.mjtSameFrame.mjSAMEFRAME_NONE  # or its position is ignored
        # gym-hil's wrist camera looks past the finger tips: move it out, tilt it to them, widen its angle.
        self._wrist_camera = model.camera("handcam_rgb").id
        model.cam_fovy[self._wrist_camera] = 60.0
        model.cam_pos[self._wrist_camera] += (-0.035, 0.0, 0.0)
        tilt = np.zeros(4)
        mujoco.mju_axisAngle2Quat(tilt, np.array([1.0, 0.0, 0.0]), np.deg2rad(-22.0))
        looking_down = model.cam_quat[self._wrist_camera].copy()
        mujoco.mju_mulQuat(model.cam_quat[self._wrist_camera], looking_down, tilt)

        self._front_camera = mujoco.MjvCamera()
        self._front_camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        self._front_camera.lookat[:] = (0.5, 0.0, 0.08)
        self._front_camera.distance = 0.38
        self._front_camera.azimuth = 215.0
        self._front_camera.elevation = -25.0

        # Convex hulls of the collision meshes instead of the detailed meshes: a fifth of the drawing time.
        self._scene_option = mujoco.MjvOption()
        self._scene_option.geomgroup[:] = (1, 1, 0, 1, 0, 0)
        self._scene_option.flags[mujoco.mjtVisFlag.mjVIS_CONVEXHULL] = True

    @property
    def gripper_position(self) -> np.ndarray:
        """Position of the point between the finger tips, float64 (3,), metres."""
        return self._data.site_xpos[self._pinch_site_id].copy()

    @property
    def gripper_opening(self) -> float:
        """Measured opening: 1 fully open, 0 fully closed."""
        return 1.0 - float(self._data.joint("right_driver_joint").qpos[0]) / _GRIPPER_CLOSED_RAD

    @property
    def cube_position(self) -> np.ndarray:
        """Centre of the cube, float64 (3,), metres."""
        return self._data.sensor("block_pos").data.copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; the same seed gives the same start state, bit for bit."""
        gym.Env.reset(self, seed=seed)
        mujoco.mj_resetData(self._model, self._data)
        self.reset_robot()
        jitter = self.np_random.uniform(-self._cube_jitter, self._cube_jitter, size=2)
        self._data.joint("block").qpos[:3] = (*(np.asarray(CUBE_XY_M) + jitter), self._block_z)
        mujoco.mj_forward(self._model, self._data)
        self._z_init = self.cube_position[2]
        self._steps = 0
        return self._compute_observation(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply one action.

        Raises:
            ValueError: for an action of another shape, or one that is not finite.
        """
        action = clipped_action(action, self.action_space)
        # Otherwise the target runs ahead of the arm, and what an action does depends on earlier actions.
        self._data.mocap_pos[0] = self.gripper_position
        closing = self._data.ctrl[self._gripper_ctrl_id] / MAX_GRIPPER_COMMAND
        gripper_change = (action[3] + 1.0) / 2.0 - closing  # gym-hil's command is relative
        self.apply_action((*(action[:3] * MAX_STEP_M), 0.0, 0.0, 0.0, gripper_change))
        self._steps += 1
        reward = self._compute_reward()
        success = reward == 1.0
        truncated = not success and self._steps >= self._max_episode_steps
        info = {"is_success": success, "succeed": success}
        return self._compute_observation(), reward, success, truncated, info

    def _draw(self, camera: mujoco.MjvCamera | int) -> np.ndarray:
        """One picture, uint8 (image_size, image_size, 3)."""
        self._viewer.update_scene(self._data, camera=camera, scene_option=self._scene_option)
        return self._viewer.render()
