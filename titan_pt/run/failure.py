"""What is told of an exception that ends a run. Imported where there is one."""

import contextlib
import hashlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.protocols.plugins import users_line
from titan_pt.run.exit_codes import EXIT_CODES_VARIABLE, CannotStart, ExitCode, GaveUp, OtherRankFailed
from titan_pt.run.log_file import open_log
from titan_pt.run.run_folder import run_folder

_OF_ANOTHER_RANK = ("another rank has left", "closed by peer", "reset by peer", "Socket closed")


def tell(error: BaseException) -> tuple[ExitCode, str]:
    """Print an exception; returns the exit code, and a reason that is still to be told.

    One that follows from the failure of another rank is one line: that rank's own traceback says what happened.
    """
    told, place = f"{type(error).__name__}: {' '.join(str(error).split())}", users_line(error)  # one line
    if place and isinstance(error, NameError | ImportError | SyntaxError):  # a retry cannot help
        return ExitCode.USAGE, f"config error: experimental.custom_import: {told} ({place})"
    with contextlib.suppress(OSError):  # a full disk behind stderr does not change the code
        if not is_of_another_rank(error):
            print(traceback.format_exc(), end="", file=sys.stderr)  # at once: one object of a log in JSON
        if EXIT_CODES_VARIABLE not in os.environ:  # else the launcher tells it, once for all ranks
            print(f"failed: {told}{f' ({place})' if place else ''}", file=sys.stderr)
    return ExitCode.FAILED, ""


def note_failure(error: BaseException, config: JobConfig, trainer: Any) -> None:
    """Record what ends a run, before this rank leaves, which makes the others fail too."""
    from titan_pt.run.out_of_memory import explain, is_out_of_memory

    if is_out_of_memory(error):
        error.args = (explain(error, trainer),)
    elif EXIT_CODES_VARIABLE in os.environ and not isinstance(error, ConfigError | GaveUp | NameError | ImportError):
        place = "" if is_of_another_rank(error) else users_line(error)  # for the launcher's line
        error.args = (f"{error} ({place})",) if place else error.args
    if not isinstance(error, ConfigError | GaveUp | OtherRankFailed):
        record_failure(error)
    if not isinstance(error, ConfigError | CannotStart):  # a refused start leaves a run's folder as it is
        open_log(run_folder(config))


def is_of_another_rank(error: BaseException) -> bool:
    """Whether an exception says that another rank is gone."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ == "DistBackendError" or any(words in str(error) for words in _OF_ANOTHER_RANK)


def print_once(text: str) -> None:
    """Print what one rank or several have to say alike, such as the reason of an end: on stderr, once a node."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # torchrun's: one folder a node, in it one a rank
    if error_file:
        said = Path(error_file).parent.parent / f"said-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        try:
            said.touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:  # better twice than never
            pass
    print(text, file=sys.stderr)


def record_failure(error: BaseException) -> None:
    """Tell the launcher the reason: other ranks may print after this one, and fail because it did."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
