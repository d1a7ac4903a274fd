"""``pi05-rl label CONFIG --browser``: a page on this machine on which a person says how each episode ended."""
