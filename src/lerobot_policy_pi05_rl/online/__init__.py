"""Online RL: a learner that trains while actors collect. The offline learner imports nothing of it."""
