"""An earlier path of `titan_pt.protocols.context`."""

from titan_pt.protocols.context import *  # noqa: F403
from titan_pt.protocols.context import TrainContext as StepParts  # noqa: F401
