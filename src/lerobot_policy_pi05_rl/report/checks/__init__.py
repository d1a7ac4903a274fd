"""What a recording is worth for RL: one pure function a check, numbers in, a :class:`~.finding.Finding` out."""
