"""LeRobot datasets → batches of observation, action chunk, return, task and intervention."""
