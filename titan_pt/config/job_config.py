"""An earlier path of `titan_pt.config.schema.job_config`."""

from titan_pt.config.schema.job_config import *  # noqa: F403
