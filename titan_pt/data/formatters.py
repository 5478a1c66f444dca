"""An earlier path of `titan_pt.data.sources.formatters`."""

from titan_pt.data.sources.formatters import *  # noqa: F403
from titan_pt.data.sources.records import register_records  # noqa: F401
