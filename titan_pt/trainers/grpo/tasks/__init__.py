"""Earlier paths of `titan_pt.tasks`."""
