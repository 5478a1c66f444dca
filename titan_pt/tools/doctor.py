"""`titan-pt doctor`: what this machine has and lacks for titan_pt, in one screen.

It ends with 1 where something is missing that every run needs.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from titan_pt.run.outgoing import redact
from titan_pt.tools.command import ToolParser, number, run_tool
from titan_pt.version import made_by

_COLUMNS = 100
_FOR_DEVELOPERS = ("test", "dev", "docs")


class Finding(NamedTuple):
    """A line: what was looked at and what was found."""

    what: str
    found: str
    state: str = "ok"
    """ "ok"; "-", what some runs need is missing; "!", what every run needs."""


def main(argv: list[str] | None = None) -> int:
    """Print what was found; returns the exit code."""
    lacking: list[Finding] = []
    return run_tool(lambda: lacking.extend(_examine(_parser().parse_args(argv)))) or int(bool(lacking))


def _parser() -> ToolParser:
    parser = ToolParser(prog="python -m titan_pt.tools.doctor", description=__doc__)
    parser.add_argument(
        "--hub_seconds", type=number(0, 60), default=3.0, help="longest wait for the hub; 0: do not ask (default: 3)"
    )
    return parser


def _examine(arguments: argparse.Namespace) -> list[Finding]:
    """Print all findings; returns those that every run needs otherwise."""
    lacking = []
    for finding in findings(arguments.hub_seconds):
        text = f"{finding.state:2}  {finding.what:11} {finding.found}"
        print(textwrap.fill(text, _COLUMNS, subsequent_indent=" " * 16, break_on_hyphens=False), flush=True)
        lacking += [finding] if finding.state == "!" else []
    if lacking:
        print(f"\n!  is what every run needs: {', '.join(finding.what for finding in lacking)}")
    return lacking


def findings(hub_seconds: float) -> Iterator[Finding]:
    """Everything that is looked at, in the order of the screen."""
    yield Finding("version", made_by())
    yield Finding(
        "python", f"{platform.python_version()} at {sys.executable}; {platform.system()} {platform.machine()}"
    )
    yield from _packages()
    yield from _devices()
    yield from _folders()
    yield _hub(hub_seconds)


def _packages() -> Iterator[Finding]:
    """The required packages, and each extra."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("titan-pt") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "titan-pt is not installed: pip install -e . in its checkout", "!")
        return
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [problem for one in needed if (problem := _unmet(one.name, str(one.specifier)))]
    fix = f"{'; '.join(wrong)}: pip install -e ." if wrong else f"all {len(needed)} that every run needs"
    yield Finding("packages", fix, "!" if wrong else "ok")
    extras = importlib.metadata.metadata("titan-pt").get_all("Provides-Extra") or []
    for extra in sorted(set(extras) - {*_FOR_DEVELOPERS}):
        own = [one for one in wanted if one.marker and not one.marker.evaluate({"extra": ""})]
        own = [one for one in own if one.marker and one.marker.evaluate({"extra": extra})]
        wrong = [problem for one in own if (problem := _unmet(one.name, str(one.specifier)))]
        there = ", ".join(f"{one.name} {importlib.metadata.version(one.name)}" for one in own if not wrong)
        lacks = f"{'; '.join(wrong)}: pip install 'titan-pt[{extra}]'"
        yield Finding(f"[{extra}]", lacks if wrong else there, "-" if wrong else "ok")


def _unmet(name: str, bounds: str) -> str:
    """What is wrong with a package, or nothing."""
    from packaging.specifiers import SpecifierSet

    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    return "" if SpecifierSet(bounds).contains(version, prereleases=True) else f"{name} {version} is not {bounds}"


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # a library that it needs may be missing
        yield Finding("torch", f"cannot be imported: {error}", "!")
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cpu", f"{cores} cores, {memory:,.1f} GiB of memory, {torch.backends.cpu.get_cpu_capability()}")
    built = (
        f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else ""
    )
    yield Finding("torch", f"{torch.__version__}, {f'built for {built}' if built else 'built for CPUs'}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            yield Finding(
                f"gpu {index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, sm_{card.major}{card.minor}"
            )
        nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none"
        yield Finding(
            "libraries", f"cuDNN {torch.backends.cudnn.version()}, NCCL {nccl}; driver {_driver() or 'not known'}"
        )
    else:
        cards = [path.name for path in Path("/dev").glob("nvidia[0-9]*")]
        why = (
            f"/dev has {', '.join(cards)}, but torch cannot use them: its build or the driver {_driver()}"
            if cards
            else ""
        )
        other = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        yield Finding("gpu", why or (f"none of CUDA; {other}" if other else "none"), "-")
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    yield Finding("compiler", compiler or "no g++: compile.enable = true needs one", "ok" if compiler else "-")


def _driver() -> str:
    """The version of NVIDIA's driver, or nothing."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"\d+\.\d+(\.\d+)?", text)
    return found[0] if found else ""


def _folders() -> Iterator[Finding]:
    from titan_pt.config.shipped import experiments

    here = Path("outputs") if Path("outputs").is_dir() else Path()
    cache = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    for what, folder, state in (
        ("runs", here.resolve(), "!"),
        ("cache", cache.expanduser(), "-"),
        ("temporary", Path(tempfile.gettempdir()), "!"),
        ("shared", Path("/dev/shm"), "-"),
    ):
        there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
        problem = _unwritable(there)
        free = f"{shutil.disk_usage(there).free / 2**30:,.1f} GiB free"
        yield Finding(what, f"{folder}: {problem or free}", state if problem else "ok")
    found = len(experiments())
    yield Finding("experiments", f"{found} shipped (titan-pt ls)", "ok" if found else "-")


def _unwritable(folder: Path) -> str:
    """Why nothing can be written to a folder, or nothing."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"cannot be written to: {error.strerror}"
    return ""


def _hub(seconds: float) -> Finding:
    """Whether the Hugging Face hub answers. A run on local files needs none."""
    address = redact(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    token = (
        "a token"
        if os.environ.get("HF_TOKEN") or Path("~/.cache/huggingface/token").expanduser().exists()
        else "no token"
    )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding("hub", f"not asked: HF_HUB_OFFLINE is set; {token}", "-")
    if not seconds:
        return Finding("hub", f"not asked; {token}", "-")
    import requests

    started = time.monotonic()
    try:
        answer = requests.head(f"{address}/api/models", timeout=seconds, allow_redirects=False)
    except requests.RequestException as error:
        return Finding(
            "hub", f"{address} does not answer ({type(error).__name__}); local files need none; {token}", "-"
        )
    took = 1000 * (time.monotonic() - started)
    state = "ok" if answer.status_code < 500 else "-"
    return Finding("hub", f"{address} answers {answer.status_code} in {took:.0f} ms; {token}", state)


if __name__ == "__main__":
    sys.exit(main())
