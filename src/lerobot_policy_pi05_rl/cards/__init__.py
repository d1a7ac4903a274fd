"""What people read beside a checkpoint and a replay: facts in, a Hub card's text out; nothing is computed here."""
