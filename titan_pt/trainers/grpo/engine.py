"""An earlier path of `titan_pt.generation.engine`."""

from titan_pt.generation.engine import *  # noqa: F403
