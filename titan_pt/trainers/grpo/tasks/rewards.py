"""An earlier path of `titan_pt.tasks.rewards`."""

from titan_pt.tasks.rewards import *  # noqa: F403
