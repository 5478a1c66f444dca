"""An earlier path of `titan_pt.data.sources.formatters`."""

from titan_pt.data.sources.formatters import *  # noqa: F403
