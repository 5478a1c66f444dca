"""How a run begins, is told to stop, and ends."""
