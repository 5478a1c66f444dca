"""NCCL's flight recorder, which tells what each rank was doing when the job hung."""

import os
from pathlib import Path

from titan_pt.config.schema.job_config import Comm
from titan_pt.run.exit_codes import EXIT_CODES_VARIABLE
from titan_pt.run.files import make_writable


def enable_flight_recorder(comm: Comm, run_folder: Path) -> None:
    """Have it written to `comm.save_traces_folder` where a collective fails or the launcher's watchdog asks for it.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    folder = run_folder / comm.save_traces_folder
    make_writable(folder, f"comm.save_traces_folder: {folder}")
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(comm.trace_buf_size))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder / "rank_"))
    if launcher := os.environ.get(EXIT_CODES_VARIABLE):
        os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_PIPE_FILE", f"{launcher}/nccl-")
