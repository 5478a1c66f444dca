"""`python -m titan_pt.tools.await_start [--minutes 10] --job.config_file F ...`: wait for the run's starting weights.

Beside a run's own flags. It ends with 0 when `checkpoint.initial_load_path` holds a whole checkpoint, or when the run
has steps of its own and needs none; with 2, and what to do, when neither is so after that time. For the init container
of a pod, whose training would end with a 2 at once.
"""

import logging
import signal
import sys
import time

from titan_pt.components.checkpoint.step_folders import has_steps
from titan_pt.components.checkpoint.steps import find_initial
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.exit_codes import ExitCode
from titan_pt.run.run_folder import run_folder
from titan_pt.tools.arguments import run_config_tool
from titan_pt.tools.command import ToolParser, number

logger = logging.getLogger("titan_pt")

POLL_SECONDS = 15.0


def await_start(config: JobConfig, minutes: float) -> None:
    """Return when the run can start.

    Raises:
        ConfigError: there are no starting weights after that many minutes.
    """
    path = config.checkpoint.initial_load_path
    if not path:
        logger.info("The run starts from initial weights")
        return
    if has_steps(config):
        logger.info(f"{run_folder(config) / config.checkpoint.folder} has steps: the run goes on from them")
        return
    deadline = time.monotonic() + 60 * minutes
    while True:
        try:
            found = find_initial(path)
        except ConfigError as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ConfigError(
                    f"no starting weights after {minutes:g} minutes: {error.problems[0]}; when the run that makes them "
                    "is done, start this one again"
                ) from None
            logger.warning(f"Waiting for starting weights, {left / 60:.1f} minutes more: {error.problems[0]}")
            time.sleep(min(POLL_SECONDS, left))
        else:
            logger.info(f"Starting weights are there: {found}")
            return


def main(argv: list[str] | None = None) -> int:
    """Wait as the flags say; returns the exit code."""
    # As process 1 of a container it would not be ended by a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.TERMINATED))
    parser = ToolParser(prog="titan_pt.tools.await_start", description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=number(0.0, 1e6), default=10.0, help="how long to wait")
    return run_config_tool(parser, lambda own, config: await_start(config, own.minutes), argv)


if __name__ == "__main__":
    sys.exit(main())
