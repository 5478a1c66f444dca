"""torchrun that keeps its children's exit codes: `python -m titan_pt.launch [torchrun options] -m titan_pt.train ...`.

torchrun's own options and engine. Bare torchrun turns every non-zero exit code into 1; here the caller (a shell, a
Kubernetes Job, Slurm) reads the codes of `titan_pt.run.exit_codes`. Processes per node: `--nproc_per_node`, else
NGPU, else the number of accelerators, else 1. MAX_RESTARTS (default 0) is how often a run that fails, or has no data,
is started again; one that a signal stopped is not.
"""

import contextlib
import functools
import glob
import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from titan_pt.run.signals import install_handlers, signalled

if __name__ == "__main__":
    install_handlers()  # before imports of a second or two

from titan_pt.components.checkpoint.step_folders import has_steps
from titan_pt.config.errors import ConfigError
from titan_pt.config.manager import resolve
from titan_pt.config.resolve.flags import read_flags
from titan_pt.config.resolve.layers import merge, read_layers
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.cgroup import oom_kills
from titan_pt.run.exit_codes import EXIT_CODES_VARIABLE, SIGNALLED, START_VARIABLE, ExitCode
from titan_pt.run.files import parse_json
from titan_pt.run.log import open_console
from titan_pt.run.log_file import LOG_FILE, keep_log, open_log
from titan_pt.run.run_folder import run_folder
from titan_pt.run.told_codes import pick, read_exit_codes, read_reasons
from titan_pt.run.watchdog import Watchdog, phase_of

_LONGEST_PAUSE = 60.0
"""Seconds before a restart; the first ones come sooner, and those of a start that lasted longer than this."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
"""What torchrun handles, and what Slurm sends before the time limit."""
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd", "/dev/dri/renderD*", "/dev/accel*", "/dev/davinci*")
"""Devices of accelerators; without one of them torch need not be asked how many there are."""

Outcome = tuple[int | None, list[str], bool]
"""Code, None where a signal came before a worker could tell one; reasons; whether a signal came to a process."""

Start = Callable[[Watchdog], int | None]
"""Runs the workers; returns the code of a job that ended elsewhere."""


def main(argv: list[str] | None = None) -> int:
    """Run the workers and wait for them. Returns the exit code of the job on this node."""
    open_console()
    argv = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ[START_VARIABLE] = str(time.monotonic())
    _handle_once((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP), lambda _: KeyboardInterrupt())
    config = None
    arguments = train_arguments(argv)
    try:
        if signalled():
            raise KeyboardInterrupt
        # One report or help text instead of one a rank, without waiting for torch or for ranks that cannot start.
        config = None if arguments is None else resolve(arguments).config
        restarts = count_restarts(os.environ.get("MAX_RESTARTS", ""))
        if config is not None and arguments is not None and starts_one(argv) and config.comm.mode != "fake_backend":
            _share_cores(1)
            once = functools.partial(_run_alone, arguments, config.comm.grace_seconds, _SIGNALS)
            return _run_again(once, restarts, config, lambda: stopped_code(config, arguments))
        from torch.distributed import run

        os.environ.setdefault("PET_NPROC_PER_NODE", os.environ.get("NGPU") or str(count_accelerators()))
        args = run.parse_args(argv)
        if args.standalone and not args.local_addr:
            args.local_addr = "127.0.0.1"  # the machine's own name may mean nothing, as on many a laptop
        tell_who_hosts(args, argv)
        if config is not None:
            if config.comm.mode == "fake_backend":
                return _dry_run(args)
            os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(int(config.comm.grace_seconds)))
        _share_cores(count_workers(args.nproc_per_node))
        # Its report of exit codes and tracebacks would stand behind the reason that the workers gave. Each of its
        # modules has a level of its own, so what they say is dropped on its way up.
        notices = logging.getLogger("torch.distributed.elastic")
        notices.handlers, notices.propagate = [logging.NullHandler()], False
        # Its own handlers raise on each signal: a third one would leave workers behind that are still saving.
        handled = [getattr(signal, name.strip()) for name in args.signals_to_handle.split(",")]
        numbers = list(dict.fromkeys([*handled, signal.SIGUSR1]))  # what Slurm sends before the time limit
        args.signals_to_handle = ""
        once = functools.partial(_run, _start_of(run, args, config), args, numbers)
        return _run_again(once, restarts, config, lambda: stopped_code(config, arguments))
    except ConfigError as error:
        print(error.report(), file=sys.stderr)
        return ExitCode.USAGE
    except KeyboardInterrupt:  # a signal before there were workers
        return _tell_end(config, stopped_code(config, arguments), [])


def stopped_code(config: JobConfig | None, arguments: Sequence[str] | None) -> int:
    """The code of a run that a signal stopped before its workers could tell theirs: what is on disk decides.

    Args:
        config: None where it was not known yet; the arguments then tell where the checkpoints are.
    """
    with contextlib.suppress(ConfigError, ValueError, OSError):
        if config is None and arguments is not None:
            flags = dict(read_flags(list(arguments)))
            layers = read_layers(file) if (file := flags.get("job.config_file")) else []
            keys = {"job": ("dump_folder",), "checkpoint": ("enable", "folder")}
            tables = merge(layers, {}, []).tables
            known = {
                name: {key: tables[name][key] for key in keys[name] if key in tables.get(name, {})} for name in keys
            }
            for name in keys:
                known[name] |= {key: text for key in keys[name] if (text := flags.get(f"{name}.{key}")) is not None}
            config = JobConfig.model_validate(known)
        if config is not None and has_steps(config):
            print("Stopped by a signal; the same command goes on from the checkpoint", file=sys.stderr)
            return ExitCode.PREEMPTED
    return ExitCode.TERMINATED


def count_restarts(text: str) -> int:
    """The restarts that MAX_RESTARTS means.

    Raises:
        ConfigError: it is not a number of restarts.
    """
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigError(f"MAX_RESTARTS = {text!r}: must be a number of restarts, 0 or more")
    return int(text or 0)


def train_arguments(argv: Sequence[str]) -> list[str] | None:
    """The arguments of titan_pt.train, where that is what torchrun's arguments start; else None."""
    for i, pair in enumerate(itertools.pairwise(argv), 2):
        if pair in (("-m", "titan_pt.train"), ("--module", "titan_pt.train")):
            return list(argv[i:])
    return None


def _dry_run(args: Any) -> int:
    """Do a dry run: this one process plays the workers of all nodes."""
    from titan_pt.train import main

    os.environ["NGPU"] = str(count_nodes(args.nnodes) * count_workers(args.nproc_per_node))
    return main(args.training_script_args)


def _handle_once(signals: Iterable[int], make_error: Callable[[int], BaseException]) -> list[int]:
    """Raise on the first of these signals and ignore the next ones: the workers may take their time to save.

    Returns:
        Those that are handled: under nohup SIGHUP is not.
    """
    handled = _without_nohup(signals)

    def handle(number: int, _frame: FrameType | None) -> None:
        _set_handlers(handled, signal.SIG_IGN)
        raise make_error(number)

    _set_handlers(handled, handle)
    return handled


def _without_nohup(signals: Iterable[int]) -> list[int]:
    """These signals, without SIGHUP where the run outlives its terminal."""
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in signals if not (nohup and number == signal.SIGHUP)]


def _set_handlers(signals: Iterable[int], handler: Any) -> None:
    for number in signals:
        signal.signal(number, handler)


def _start_of(run: Any, args: Any, config: JobConfig | None) -> Start:
    """What runs the workers, by the number of nodes.

    Raises:
        ConfigError: there are not always as many, and the run cannot do with that.
    """
    if config is None or count_nodes(args.nnodes.partition(":")[0]) == count_nodes(args.nnodes):
        return lambda _: run.run(args)
    from titan_pt.elastic_nodes import check_elastic, run_elastic

    check_elastic(config, args)
    return functools.partial(run_elastic, args, config)


def _run_again(
    once: Callable[[Watchdog, list[int]], Outcome],
    restarts: int,
    config: JobConfig | None,
    stopped: Callable[[], int],
) -> int:
    """Run the workers, again where they fail by themselves and MAX_RESTARTS allows it; returns the last code.

    Args:
        once: runs them, given who watches them and a list for the signals that come when they have ended.
        config: of the run, where it is one.
        stopped: gives the code of a run that a signal stopped while there were no workers.
    """
    pause, late = 1.0, list[int]()
    stacks = run_folder(config) / config.comm.save_traces_folder if config else None
    for restart in itertools.count(1):
        began = time.monotonic()
        if restart > 1:
            os.environ[START_VARIABLE] = str(began)
        with tempfile.TemporaryDirectory(prefix="titan_pt-") as folder:
            os.environ[EXIT_CODES_VARIABLE] = folder
            with Watchdog(Path(folder), stacks).watching() as watchdog:
                code, reasons, signals_came = once(watchdog, late)
            leads = leads_job(Path(folder))
        if watchdog.reason:
            code, reasons = ExitCode.FAILED, [f"failed: {watchdog.reason}"]
        # A person's Ctrl-C and a pod's SIGTERM are obeyed, whichever process they reached.
        ends = signals_came or restart > restarts or code not in (ExitCode.FAILED, ExitCode.PREEMPTED)
        if code is None or ends:
            return _tell_end(config if leads else None, stopped() if code is None else code, reasons)
        _print(config, reasons)
        if time.monotonic() - began > _LONGEST_PAUSE:
            pause = 1.0  # it was well for a while
        _print(config, [f"The run ended with {int(code)}: restart {restart} of {restarts} in {pause:.0f} s"])
        end = time.monotonic() + pause
        while not late and time.monotonic() < end:
            time.sleep(0.05)
        if late:
            return _tell_end(config if leads else None, stopped(), [])
        pause = min(2 * pause, _LONGEST_PAUSE)
    raise AssertionError


def leads_job(folder: Path) -> bool:
    """Whether this node had rank 0; where no rank came so far, whether it is the first node."""
    if any(folder.glob("beats-*")):
        return (folder / "beats-0").exists()
    return os.environ.get("PET_NODE_RANK", "0") == "0"


def _tell_end(config: JobConfig | None, code: int, reasons: Sequence[str]) -> int:
    """Tell why the run ended: whom `job.notify` names, then on stderr; returns the code."""
    if config is not None and config.job.notify:
        from titan_pt.run.notify import notify

        _open_log(config)
        notify(config, code, reasons)
    _print(config, reasons)
    return code


def _print(config: JobConfig | None, lines: Sequence[str]) -> None:
    """Print on stderr, behind what the ranks wrote, and in the run's log."""
    _open_log(config)
    for line in lines:
        print(line, file=sys.stderr)


def _open_log(config: JobConfig | None) -> None:
    if config is not None and (run_folder(config) / LOG_FILE).exists():
        keep_log()
        open_log(run_folder(config))


def _run(start: Start, args: Any, numbers: Sequence[int], watchdog: Watchdog, late: list[int]) -> Outcome:
    """Run the workers once, by torchrun's agent."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    code: int | None = None
    reasons: list[str] = []
    error: BaseException | None = None
    by_memory, signals_came, folder = oom_kills(), False, watchdog.folder
    handled = _handle_once(numbers, lambda number: SignalException(f"signal {number}", _forwarded(number)))
    try:
        if late:  # it came since somebody last looked
            raise SignalException(f"signal {late[0]}", _forwarded(late[0]))
        code = start(watchdog) or ExitCode.DONE
    except (ChildFailedError, RendezvousError, DistError, SignalException) as caught:
        error = caught
    finally:  # a signal that comes while the codes are read is none of the run's
        _set_handlers(handled, lambda number, _frame: late.append(number))
    if isinstance(error, ChildFailedError):
        rank, first = min(error.failures.items(), key=lambda item: _time_of(item[1]))
        codes = [failure.exitcode for failure in error.failures.values()]
        why = f"{_where(folder, rank)}: {_reason(first.message, first.exitcode, by_memory)}"
        code, reasons = _failed(codes, folder, why)
    elif isinstance(error, RendezvousError):
        code = ExitCode.FAILED
        reasons = [
            f"failed: {args.nnodes} nodes did not meet at {args.rdzv_endpoint} "
            f"({' '.join(f'{type(error).__name__} {error}'.split())}); see that all run and can reach that address"
        ]
    elif isinstance(error, DistError):
        code = ExitCode.FAILED
        used = "another process uses that port; take another --master_port" if "EADDRINUSE" in str(error) else "failed"
        where = args.rdzv_endpoint or f"{args.master_addr}:{args.master_port}"
        reasons = [f"failed: the rendezvous at {where}: {used} ({str(error).strip().splitlines()[0]})"]
    elif isinstance(error, SignalException):
        signals_came = True
        code, reasons = _told(folder)
    return _outcome(code, reasons, signals_came)


def starts_one(argv: Sequence[str]) -> bool:
    """Whether these arguments and the environment mean one worker on this machine and nothing else of torchrun.

    torchrun's own import, two seconds on a laptop, is then spared.
    """
    count = os.environ.get("NGPU") or ("1" if not any(map(glob.glob, _ACCELERATORS)) else "")
    own = list(argv[: next((i for i, argument in enumerate(argv) if argument in ("-m", "--module")), 0)])
    return own == ["--standalone"] and count == "1" and not any(name.startswith("PET_") for name in os.environ)


def _run_alone(
    arguments: Sequence[str], grace_seconds: float, numbers: Sequence[int], watchdog: Watchdog, late: list[int]
) -> Outcome:
    """Run the only worker once, with what torchrun's agent would tell it and nothing that another job left over."""
    by_memory, came, folder = oom_kills(), list[int](), watchdog.folder
    error_file = folder / "alone" / "0" / "error.json"
    error_file.parent.mkdir(parents=True)
    left_over = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)")
    environment = {name: value for name, value in os.environ.items() if not left_over.fullmatch(name)}
    environment |= {"TORCHELASTIC_RUN_ID": "alone", "TORCHELASTIC_ERROR_FILE": str(error_file)}
    started: list[subprocess.Popen[bytes]] = []
    handled = _without_nohup(numbers)

    def forward(number: int, _frame: FrameType | None = None) -> None:
        came.append(number)
        if len(came) == 1 and started:
            _stop(started[0], number, grace_seconds)

    _set_handlers(handled, forward)
    if late:  # it came since somebody last looked
        return None, [], True
    command = [sys.executable, "-u", "-m", "titan_pt.train", *arguments]
    started.append(subprocess.Popen(command, env=environment, start_new_session=True))
    if came:
        _stop(started[0], came[0], grace_seconds)
    status = started[0].wait()
    _set_handlers(handled, lambda number, _frame: late.append(number))
    code: int | None = ExitCode.DONE
    reasons: list[str] = []
    if came:
        code, reasons = _told(folder)
    elif status:
        message: Any = ""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            message = parse_json(error_file.read_text("utf-8"))["message"]
        code, reasons = _failed([status], folder, f"{_where(folder, 0)}: {_reason(message, status, by_memory)}")
    return _outcome(code, reasons, bool(came))


def _stop(worker: "subprocess.Popen[bytes]", number: int, grace_seconds: float) -> None:
    """Ask a worker to end, and end it when its time is over."""
    worker.send_signal(_forwarded(number))
    timer = threading.Timer(grace_seconds, worker.kill)
    timer.daemon = True
    timer.start()


def _told(folder: Path) -> tuple[int | None, list[str]]:
    """The code and the reasons that workers told before a signal ended them; None where none did."""
    if not (codes := read_exit_codes(folder)):
        return None, []
    return (code := pick(codes)), read_reasons(folder, code)


def _failed(codes: Sequence[int], folder: Path, why: str) -> tuple[int | None, list[str]]:
    """The code and the reasons of workers that left with these codes; None where a signal ended them untold."""
    told = read_exit_codes(folder)
    code = pick([*codes, *told])
    if code == ExitCode.TERMINATED and not told:
        return None, []
    return code, [f"failed: {why}"] if code == ExitCode.FAILED else read_reasons(folder, code)


def _outcome(code: int | None, reasons: list[str], signals_came: bool) -> Outcome:
    return code, [reason for reason in reasons if reason != SIGNALLED], signals_came or SIGNALLED in reasons


def _forwarded(number: int) -> signal.Signals:
    """The signal that the workers get: one that any program of theirs takes as the wish that it ends."""
    return signal.SIGTERM if number == signal.SIGUSR1 else signal.Signals(number)


def tell_who_hosts(args: Any, argv: list[str]) -> None:
    """Make the node of rank 0 the host of the c10d rendezvous, where the nodes have ranks.

    torchrun guesses it from the machine's name, which fails in a pod whose name is not in the DNS yet.
    """
    has_rank = "PET_NODE_RANK" in os.environ or any(re.match(r"--node[-_]rank\b", argument) for argument in argv)
    if has_rank and args.rdzv_backend == "c10d" and "is_host=" not in args.rdzv_conf:
        args.rdzv_conf = f"is_host={int(args.node_rank == 0)},{args.rdzv_conf}".rstrip(",")


def count_accelerators() -> int:
    """Accelerators of this node, or 1."""
    import torch

    return max(1, torch.accelerator.device_count())


def count_workers(nproc_per_node: str) -> int:
    """The number of workers that torchrun's option (or NGPU) means.

    Raises:
        ConfigError: it is not a number of workers.
    """
    from torch.distributed.run import determine_local_world_size

    try:
        count = determine_local_world_size(nproc_per_node)
    except ValueError:
        count = 0
    if count < 1:
        raise ConfigError(
            f"NGPU or --nproc_per_node = {nproc_per_node!r}: must be a positive integer, or one of torchrun's names "
            "such as gpu, for which there must be a device"
        )
    return count


def count_nodes(nnodes: str) -> int:
    """The number of nodes that torchrun's option means, the most of "least:most".

    Raises:
        ConfigError: it is not a number of nodes.
    """
    text = nnodes.rpartition(":")[2]
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise ConfigError(f"--nnodes = {nnodes!r}: must be a positive integer, or two as least:most")
    return int(text)


def _share_cores(num_workers: int) -> None:
    """Share the cores among the CPU workers; torchrun would give one thread to each whatever their number."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_workers)))


def _time_of(failure: Any) -> float:
    """When a worker failed: workers that only lost the others fail later, often in the same second."""
    file = Path(failure.error_file)
    return file.stat().st_mtime if file.is_file() else float(failure.timestamp)


def _where(folder: Path, rank: int) -> str:
    phase = phase_of(folder, rank)
    return f"rank {rank} failed in {phase}" if phase else f"rank {rank}"


def _reason(message: Any, exitcode: int, kills_before: int) -> str:
    """Why a worker failed.

    Args:
        message: of torchrun's error file; a text where there is none.
        kills_before: kills of this cgroup, for want of memory, before it ran.
    """
    if isinstance(message, dict):
        return " ".join(str(message.get("message", "")).split())
    if exitcode < 0:
        out_of_memory = exitcode == -signal.SIGKILL and oom_kills() > kills_before
        return f"killed by signal {-exitcode}{'; the memory of its cgroup was spent' if out_of_memory else ''}"
    return f"exit code {exitcode}; its own lines are above"  # what torchrun says instead names no reason


if __name__ == "__main__":
    from titan_pt.run.leaving import leave

    leave(main())
