"""An earlier path of `titan_pt.tasks.task`."""

from titan_pt.tasks.task import *  # noqa: F403
