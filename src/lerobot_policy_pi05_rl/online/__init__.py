"""Online RL: a learner that trains while actors collect. Nothing outside this package imports it, but the command line."""
