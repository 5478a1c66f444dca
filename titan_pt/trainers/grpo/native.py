"""An earlier path of `titan_pt.generation.native`."""

from titan_pt.generation.native import *  # noqa: F403
