"""Earlier path of `titan_pt.data.sources.formatters` and `records`."""

from titan_pt.data.sources.formatters import *  # noqa: F403
from titan_pt.data.sources.records import register_records as register_records
