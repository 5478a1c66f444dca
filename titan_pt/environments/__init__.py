"""Environments: tasks of several turns, in which what the model writes is answered."""
