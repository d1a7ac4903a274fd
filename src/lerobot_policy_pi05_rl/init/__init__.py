"""``pi05-rl init``: from a dataset and this machine to the shortest configuration that works."""
