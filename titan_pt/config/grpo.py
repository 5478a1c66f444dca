"""An earlier path of `titan_pt.config.schema.grpo`."""

from titan_pt.config.schema.grpo import *  # noqa: F403
