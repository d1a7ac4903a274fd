"""What the demo's simulator, its LeRobot configuration and the recorder have to agree on."""

TASK = "Pick up the cube and lift it."
CONTROL_HZ = 10  # control steps, and recorded frames, per second
MAX_EPISODE_STEPS = 40
IMAGE_SIZE = 64  # pixels, both sides of both pictures
CAMERA_NAMES = ("front", "wrist")
STATE_NAMES = ("gripper_x", "gripper_y", "gripper_z", "gripper_opening")
ACTION_NAMES = ("delta_x", "delta_y", "delta_z", "gripper_command")
MAX_STEP_M = 0.05  # gripper displacement that an action of 1.0 asks for, metres
CUBE_XY_M = (0.5, 0.0)  # the cube's place before the jitter, metres in the robot's frame
CUBE_JITTER_M = 0.01  # half width of the uniform jitter in x and in y, metres
