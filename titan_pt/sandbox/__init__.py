"""Programs that a model wrote, run where they can do no harm. A run without such a task imports nothing of it."""
