"""Runs a scenario, starts the run again until it is done, and says what was lost, beside the undisturbed run."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from helpers import read_json, read_rows, read_tensors
from hub_server import HubServer, no_fault, serving

from chaos.experiments import EXPERIMENTS, Experiment, write_texts
from chaos.library import read_counters
from chaos.scenarios import Scenario, Start
from chaos.server import ForkServer, Job

SECONDS = 180.0
"""After which a start counts as hung."""
GRACE = 3.0
"""What the other ranks have to end when one has failed."""
CLOCK_KEYS = ("time", "seconds", "per_second", "memory", "mfu", "goodput")
OF_TIME = ("attempts.json", "clock.json", "goodput.jsonl", ".lock", "heartbeats", "blackbox")
"""Files of a run folder that an undisturbed run need not have."""


@dataclass
class Verdict:
    """What became of a scenario: a row of the table for each of its starts with a fault."""

    name: str
    problems: list[str] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Ended:
    """One start, when it is over."""

    codes: list[int]
    log: str
    fired: int
    seconds: float

    @property
    def code(self) -> int:
        """What a launcher would pass on, or minus the signal that killed a rank."""
        for code in self.codes:
            if code in (2, 70, 75):
                return code
        return next((code for code in self.codes if code < 0), None) or max(self.codes)

    @property
    def steps(self) -> list[int]:
        """The steps that it logged."""
        return [int(step) for step in re.findall(r"(?m)^step *(\d+)/", self.log)]

    @property
    def resumed(self) -> int:
        """The step that it went on from."""
        found = re.search(r"Resumed from \S+: step (\d+)", self.log)
        return int(found[1]) if found else 0

    @property
    def last_line(self) -> str:
        """The reason."""
        lines = [line for line in self.log.splitlines() if line.strip() and not line.startswith("chaos: ")]
        return lines[-1] if lines else ""


class Laboratory:
    """A fork server, a server of documents, and the undisturbed runs; for one process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._texts = folder / "texts"
        write_texts(self._texts)
        self._serving = serving(self._texts)
        self._hub: HubServer = self._serving.__enter__()
        self._hub.sleep_seconds = 3.0
        self._server = ForkServer()
        self._number = 0

    def close(self) -> None:
        """End both servers."""
        self._server.close()
        self._serving.__exit__(None, None, None)

    @functools.cache  # noqa: B019  # of one object a process
    def undisturbed(self, name: str) -> Path:
        """The folder of the experiment's run without a fault."""
        folder = self._folder / "undisturbed" / name.replace(" ", "_")
        config = EXPERIMENTS[name].write(folder, self._texts, self._hub.url)
        ended = self._start(EXPERIMENTS[name], config, Start())
        assert ended.code == 0, ended.log
        return folder

    def judge(self, scenario: Scenario) -> Verdict:
        """Do everything that the scenario says, then start the run until it is done."""
        verdict, experiment = Verdict(scenario.name), EXPERIMENTS[scenario.experiment]
        whole = self.undisturbed(scenario.experiment)
        self._number += 1
        folder = Path(tempfile.mkdtemp(prefix=f"{self._number}-", dir=self._folder))
        config = experiment.write(folder, self._texts, self._hub.url)
        done, ends = 0, []
        for start in (*scenario.starts, Start()):
            spared = hurt(folder / "run", start) if start.damage[0] else 0
            ended = self._start(experiment, config, start)
            (folder / f"log-{len(ends)}").write_text(ended.log)
            lost = max(0, done - ended.resumed) if ended.steps or ended.code == 0 else 0
            problems = [*_of_code(start, ended, folder / "run"), *_of_steps(start, ends, lost, experiment, spared)]
            ends.append((start, ended))
            if ends[1:] and ended.steps:
                verdict.starts[-1]["steps lost"] = lost
            if start.fault != "none":
                verdict.starts.append({"fault": start.fault, "code": ended.code, "fired": ended.fired, "steps lost": 0})
            verdict.problems += [f"start {len(ends)} ({start.fault}): {problem}" for problem in problems]
            done = max([ended.resumed, *ended.steps]) if ended.steps else done
            if ended.code == 0 and start.fault == "none":
                break
        hurt_steps = any(start.damage[0] == "step" for start in scenario.starts)
        verdict.problems += _differences(whole, folder, hurt_steps=hurt_steps)
        if not verdict.problems:
            shutil.rmtree(folder)
        else:
            verdict.problems.append(f"see {folder}")
        return verdict

    # -- one start ----------------------------------------------------------------------------------------------------

    def _start(self, experiment: Experiment, config: Path, start: Start) -> Ended:
        folder, began = config.parent, time.monotonic()
        for path in [*folder.glob("rank-*"), *folder.glob("counters-*")]:
            path.unlink()
        self._hub.fault = functools.partial(_http_fault, start, self._hub.requests["file"]) if start.http else no_fault
        before = sum(self._hub.faults.values())
        port = _free_port()
        pids = [
            self._server.start(self._job(experiment, config, start, rank, port)) for rank in range(experiment.ranks)
        ]
        fired = self._disturb(start, pids, folder, experiment)
        codes = self._ends(pids)
        counters = [read_counters(folder / f"counters-{rank}") for rank in range(experiment.ranks)]
        fired += sum(counter["fired"] for counter in counters) + sum(self._hub.faults.values()) - before
        log = "".join((folder / f"rank-{rank}").read_text("utf-8", "replace") for rank in range(experiment.ranks))
        fired += log.count("chaos: an infinite weight") + bool(start.damage[0] or start.clock.offset)
        return Ended(codes, log, fired, time.monotonic() - began)

    def _job(self, experiment: Experiment, config: Path, start: Start, rank: int, port: int) -> Job:
        folder = config.parent
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        variables |= {"WORLD_SIZE": str(experiment.ranks), "LOCAL_WORLD_SIZE": str(experiment.ranks)}
        return Job(
            config=str(config),
            run_folder=str(folder / "run"),
            log=str(folder / f"rank-{rank}"),
            counters=str(folder / f"counters-{rank}"),
            record=str(folder / "record"),
            rules=start.rules if rank == start.rank else (),
            clock=start.clock,
            bad_weight=start.bad_weight if rank == 0 else 0,
            stops=start.stops if rank == 0 else 0,
            variables=variables if experiment.ranks > 1 else {},
        )

    def _disturb(self, start: Start, pids: list[int], folder: Path, experiment: Experiment) -> int:
        """Signals, and the second process; returns how many faults that were."""
        if not (start.signal or start.pause or start.second):
            return 0
        log, end = folder / "rank-0", time.monotonic() + SECONDS
        while "Training starts" not in (log.read_text("utf-8", "replace") if log.exists() else ""):
            if self._server.wait(pids[0], 0.01) is not None or time.monotonic() > end:
                return 0
        if start.second:
            port, second = _free_port(), []
            for rank in range(experiment.ranks):
                job = vars(self._job(experiment, folder / "run.toml", Start(), rank, port))
                own = {"log": str(folder / f"second-{rank}"), "counters": str(folder / f"second-counters-{rank}")}
                second.append(self._server.start(Job(**{**job, **own})))
            code = max(self._ends(second))
            said = (folder / "second-0").read_text("utf-8", "replace")
            assert code in (0, 1), said  # 0: the first had just ended
            assert code == 0 or "is in use by another run" in said, said
            return 1
        self._server.wait(pids[0], start.after)
        targets = pids if start.to_all else pids[-1:]
        targets = [pid for pid in targets if self._server.wait(pid, 0) is None]
        reached = [_signal(pid, signal.SIGSTOP if start.pause else start.signal) for pid in targets]
        if start.pause:
            time.sleep(start.pause)
            for pid in targets:
                _signal(pid, signal.SIGCONT)
        return int(any(reached))

    def _ends(self, pids: list[int]) -> list[int]:
        """Wait for all ranks; when one has failed the others are told and have a few seconds, as by a launcher."""
        end, codes, told = time.monotonic() + SECONDS, [self._server.wait(pid, 0) for pid in pids], False
        while None in codes and time.monotonic() < end:
            self._server.wait(pids[codes.index(None)], 0.2)
            codes = [self._server.wait(pid, 0) for pid in pids]
            if any(codes) and not told:
                end, told = time.monotonic() + GRACE, True
                for pid in (pid for pid, code in zip(pids, codes, strict=True) if code is None):
                    with contextlib.suppress(ProcessLookupError):  # ended by itself meanwhile
                        os.kill(pid, signal.SIGTERM)
        hung = [pid for pid, code in zip(pids, codes, strict=True) if code is None]
        for pid in hung:
            os.kill(pid, signal.SIGKILL)
            self._server.wait(pid, 10)
        others = [code for code in codes if code is not None]
        if hung and any(others):
            return others  # the launcher would have killed them
        return [-1000 if code is None else code for code in codes]


def _http_fault(start: Start, before: int, path: str, count: int) -> str:
    first, last = start.http_requests
    return start.http if first <= count - before <= last else ""


def _signal(pid: int, number: int) -> bool:
    """Send a signal; returns whether the process was still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- damage -----------------------------------------------------------------------------------------------------------


def hurt(run_folder: Path, start: Start) -> int:
    """Damage a file of one of several saved steps, or a record; returns the steps that this costs."""
    what, how, where = start.damage
    steps = sorted(run_folder.glob("checkpoint/step-*"), key=lambda path: path.name)
    steps = [path for path in steps if re.fullmatch(r"step-\d+", path.name)]
    numbers = sorted(int(path.name[5:]) for path in steps)
    if what == "record":
        records = [run_folder / name for name in ("attempts.json", "clock.json", "config.toml")]
        records = [path for path in records if path.exists()]
        if records:
            _hurt_file(records[int(where * len(records))], how, where)
        return 0
    if len(steps) < 2:
        return 0
    newest = run_folder / "checkpoint" / f"step-{numbers[-1]}"
    if how == "rename":
        newest.rename(newest.with_name(f"step-{numbers[-1] + 3}"))
    else:
        files = sorted(path for path in newest.rglob("*") if path.is_file() and path.name != "config.toml")
        _hurt_file(files[int(where * len(files))], how, where * len(files) % 1)
    return numbers[-1] - numbers[-2]


def _hurt_file(path: Path, how: str, where: float) -> None:
    content = bytearray(path.read_bytes())
    if how == "flip" and content:
        content[int(where * len(content))] ^= 1 << int(where * 64) % 8
    if how == "cut":
        content = content[: int(where * len(content))]
    path.unlink()
    if how != "remove":
        path.write_bytes(content)


# -- judgement --------------------------------------------------------------------------------------------------------


def _of_code(start: Start, ended: Ended, run_folder: Path) -> Iterator[str]:
    """Whether the exit code is by contract, with the reason last."""
    steps = any(re.fullmatch(r"step-\d+", path.name) for path in run_folder.glob("checkpoint/step-*"))
    allowed = {0}
    actions = {rule.action for rule in start.rules} if ended.fired else set()
    signals = (start.signal or "signal" in actions) and ended.fired
    if start.stops or (signals and start.signal != signal.SIGKILL):
        allowed |= {75} if steps else {143}
    if actions & {"kill before", "kill after"} or start.signal == signal.SIGKILL:
        allowed |= {-signal.SIGKILL}
    if "fail" in actions:
        allowed |= {1, 70} if "checkpoint.max_failed_saves" in ended.last_line else {1}
        if "cannot be written to: Read-only" in ended.last_line:
            allowed |= {2}  # a disk that is read-only at a start stays so until a person mends it
    if start.bad_weight:
        allowed |= {1, 70}
    if ended.code not in allowed:
        yield f"exit code {ended.codes}, not of {sorted(allowed)}: {ended.last_line}"
    named = {1: ("failed: ",), 2: ("config error: ",), 70: ("gave up: ",)}.get(ended.code)
    if named and len(ended.codes) == 1 and not ended.last_line.startswith(named):
        yield f"the reason is not the last line: {ended.last_line}"


def _of_steps(
    start: Start, ends: list[tuple[Start, Ended]], lost: int, experiment: Experiment, spared: int
) -> Iterator[str]:
    """Whether more finished steps were lost than lie between two saves."""
    if not ends:
        return
    before, ended = ends[-1]
    # A save behind the run may be under way when the next one is due.
    behind = experiment.tables.get("checkpoint", {}).get("async_mode") == "async"
    limit = experiment.interval * (2 if behind else 1) + spared
    if ended.code == 75 and not spared:
        limit = 0
    # Starts that ended before their first step lost nothing, and what the one before them did not save is still lost.
    trained = next((i for i in reversed(range(len(ends))) if ends[i][1].steps), 0)
    failed = [re.findall(r"could not be saved", ended.log) for _, ended in ends[trained:]]
    limit += experiment.interval * sum(map(len, failed))
    if lost > limit:
        yield f"{lost} steps were lost, at most {limit} may be ({before.fault} before, code {ended.code})"


def _differences(whole: Path, folder: Path, *, hurt_steps: bool) -> Iterator[str]:
    """What the end has that the undisturbed run has not, and the reverse.

    Args:
        hurt_steps: a saved step was damaged; such a one is passed over, and left where it is.
    """
    yield from _of_records(whole, folder)
    rows, other = ({row["step"]: _of_no_clock(row) for row in _rows(path / "run")} for path in (whole, folder))
    if len(_rows(folder / "run")) != len(other):
        yield f"rows twice: {[row['step'] for row in _rows(folder / 'run')]}"
    for step in sorted(rows.keys() | other.keys()):
        if rows.get(step) != other.get(step):
            yield f"row of step {step}: {_first_difference(rows.get(step), other.get(step))}"
    last = max(rows)
    steps = [path / "run" / "checkpoint" / f"step-{last}" for path in (whole, folder)]
    if not steps[1].is_dir():
        yield f"there is no {steps[1].name}"
    else:
        yield from _of_steps_end(*steps)
    names = [set(_names(path / "run")) for path in (whole, folder)]
    for log in folder.glob("log-*"):  # told, and training went on
        missed = re.findall(r"/(hf/step-\d+) could not be exported", log.read_text())
        if missed:  # a later start may have made it
            names = [{name for name in some if not name.startswith(tuple(missed))} for some in names]
    # Of the steps only the last is the same: a signal, or a save that failed, decides which are kept before it.
    kept = [{name.split("/")[1] for name in some if name.startswith("checkpoint/step-")} for some in names]
    if len(kept[1]) != len(kept[0]) and not hurt_steps:
        yield f"steps kept: {sorted(kept[1])}, not {sorted(kept[0])}"
    names = [{name for name in some if not name.startswith("checkpoint/step-")} | _step_files(some) for some in names]
    missing, more = sorted(names[0] - names[1]), sorted(names[1] - names[0])
    if missing or more:
        yield f"files: missing {missing[:5]}, stray {more[:5]}"
    for path in sorted((whole / "run" / "rollouts").glob("*")):
        if _rollouts(path) != _rollouts(folder / "run" / "rollouts" / path.name):
            yield f"{path.name} of rollouts differs"


def _step_files(names: set[str]) -> set[str]:
    """The files that saved steps have, without their numbers."""
    return {re.sub(r"^checkpoint/step-\d+", "checkpoint/step-N", name) for name in names if "/step-" in name}


def _of_records(whole: Path, folder: Path) -> Iterator[str]:
    """Each time that a step was done, it was with the documents of the undisturbed run."""
    truth = {(step, rank): (digest, documents) for step, rank, digest, documents in _records(whole)}
    done = set()
    for step, rank, digest, documents in _records(folder):
        done.add((step, rank))
        if truth.get((step, rank), ("", []))[0] != digest:
            yield f"data of step {step} on rank {rank}: {documents}, not {truth.get((step, rank), ('', []))[1]}"
            return
    if done != truth.keys():
        yield f"data of {sorted(truth.keys() - done)} was never trained on"


def _records(folder: Path) -> list[Any]:
    path = folder / "record"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _of_steps_end(one: Path, other: Path) -> Iterator[str]:
    a, b = read_tensors(one), read_tensors(other)
    if a.keys() != b.keys():
        yield f"tensors {sorted(a.keys() ^ b.keys())[:3]}"
        return
    different = [name for name in a if not torch.equal(a[name].nan_to_num(), b[name].nan_to_num())]
    if different:
        yield f"tensors differ: {different[:3]} of {len(different)}"
    trains = [{k: v for k, v in read_json(step, "train").items() if k != "deadline"} for step in (one, other)]
    if trains[0] != trains[1]:
        yield f"train.json: {_first_difference(*trains)}"
    if read_json(one, "data")["streams"] != read_json(other, "data")["streams"]:
        yield "data.json: other streams"


def _rows(run_folder: Path) -> list[dict[str, Any]]:
    return read_rows(run_folder) if (run_folder / "metrics.jsonl").exists() else []


def _of_no_clock(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not any(word in key for word in CLOCK_KEYS)}


def _first_difference(one: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    if not one or not other:
        return "it is missing" if one else "there should be none"
    keys = [key for key in (one | other) if one.get(key) != other.get(key)]
    return ", ".join(f"{key} {str(other.get(key))[:60]}, not {str(one.get(key))[:60]}" for key in keys[:3])


def _names(run_folder: Path) -> Iterator[str]:
    """Files of a run folder; the records of TensorBoard have other names at each start."""
    for path in run_folder.rglob("*"):
        name = str(path.relative_to(run_folder))
        if path.is_file() and path.parts[len(run_folder.parts)] not in OF_TIME:
            yield "tb/events" if name.startswith("tb/events") else name


def _rollouts(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [_of_no_clock(json.loads(line)) for line in lines]


def main() -> None:
    """`python -m chaos.judge FIRST LAST [FOLDER]`: the scenarios of some seeds, one line each, then the table."""
    from chaos.scenarios import draw
    from chaos.table import table

    first, last = int(sys.argv[1]), int(sys.argv[2])
    folder = Path(sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp(prefix="chaos-"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    laboratory, verdicts = Laboratory(folder), []
    for seed in range(first, last + 1):
        began = time.monotonic()
        verdict = laboratory.judge(draw(seed))
        verdicts.append(verdict)
        print(f"{seed}: {verdict.name}: {[start['code'] for start in verdict.starts]} {time.monotonic() - began:.1f} s")
        for problem in verdict.problems:
            print(f"    {problem}", flush=True)
    print(table([vars(verdict) for verdict in verdicts]))
    laboratory.close()


if __name__ == "__main__":
    main()
