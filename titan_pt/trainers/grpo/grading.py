"""An earlier path of `titan_pt.tasks.grading`."""

from titan_pt.tasks.grading import *  # noqa: F403
