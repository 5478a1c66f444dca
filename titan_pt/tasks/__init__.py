"""Tasks: problems, prompts, grading and rewards."""
