"""`checkpoint.mirror`: a run's steps in an object store, uploaded behind the run, for a start on an empty disk.

One run owns a mirror at a time. It writes `owner.json` again and again; a start that is not known to be the same run on
the same disk watches that object for LEASE_SECONDS, by its own clock, and takes over only if nothing changes.
"""

import json
import logging
import math
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from titan_pt.components.checkpoint.keeping import best_step, surplus
from titan_pt.components.checkpoint.manifest import find_damage
from titan_pt.components.checkpoint.mirror_store import MirrorStore, remove_if_there
from titan_pt.components.checkpoint.step_folders import REQUIRED, iter_steps
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.checkpoint import Checkpoint
from titan_pt.distributed.world import World
from titan_pt.run.exit_codes import CannotStart, Preempted
from titan_pt.run.files import write_atomic
from titan_pt.run.heartbeat import beat, phase
from titan_pt.run.own_json import read_own
from titan_pt.run.run_folder import METRICS_FILE
from titan_pt.run.signals import signalled, stop_requested

logger = logging.getLogger("titan_pt")

BEAT_SECONDS = 20.0
LEASE_SECONDS = 90.0
_FILE = "mirror.json"
"""Beside the steps: {"run": whose they are, "holder": the start that last wrote to the mirror}."""


@phase("the download from the mirror", "save")
def fetch(run_folder: Path, options: Checkpoint) -> None:
    """Download the newest step of the mirror where the disk has none as new. For rank 0, before anything is opened.

    With `load_step` all steps are fetched, for the one to go on from may be any.

    Raises:
        CannotStart: the mirror cannot be read, and there is no step here to go on from.
        ConfigError: it holds the steps of another run, or none is whole.
        Preempted: a signal came.
    """
    folder = run_folder / options.folder
    here = {number for number, path in iter_steps(folder) if find_damage(path, REQUIRED, hashes=False) is None}
    store = MirrorStore(options.mirror or "", _go_on)
    try:
        there, owner = store.steps(), store.owner()
        if owner is not None:
            _check_run(folder, owner, store)
        every = options.load_step >= 0
        wanted = [number for number in there if number not in here and (every or number > max(here, default=-1))]
        damages = []
        if wanted and not (folder / _FILE).exists():  # before its steps are here, which would be of no known run
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / _FILE, json.dumps({"run": (owner or {}).get("run"), "holder": None}))
        for number in wanted:
            damage = store.get_step(number, folder)
            if damage is None:
                logger.info(f"step-{number} was fetched from {store.url}")
                store.get_rows(run_folder / METRICS_FILE)
                if not every:
                    break
            else:
                damages.append(f"step-{number}: {damage}")
                logger.warning(f"{store.url}/step-{number} is not whole: {damage}; it is passed over")
    except (ConfigError, Preempted):
        raise
    except Exception as error:  # each library has its own
        told = f"checkpoint.mirror: {store.url} cannot be read: {type(error).__name__}: {error}"
        if not here:
            raise CannotStart(f"{told}; whether it holds steps of this run is not known") from error
        logger.error(f"{told}; the run goes on from its own step-{max(here)}")
        return
    if damages and not here and len(damages) == len(wanted):
        raise ConfigError(f"checkpoint.mirror: {store.url}: no step is whole ({'; '.join(damages)})")


def open_mirror(folder: Path, run_folder: Path, options: Checkpoint, world: World) -> "Mirror | None":
    """The mirror of a run on rank 0, None elsewhere. A collective. Raises as `Mirror` does, a ConfigError on all."""
    return world.together(lambda: Mirror(folder, run_folder, options) if world.is_main else None)


class Mirror:
    """Uploads the steps of one run in a thread, the newest first. For rank 0, while it holds the run folder.

    Raises:
        CannotStart: another start of the run writes there now.
        ConfigError: it belongs to another run, or there is no such bucket.
    """

    def __init__(self, folder: Path, run_folder: Path, options: Checkpoint) -> None:
        self._folder, self._run_folder, self._options = folder, run_folder, options
        self._store = MirrorStore(options.mirror or "", self._gets_on)
        self._stops = threading.Event()
        self._news, self._owning = threading.Condition(), threading.Lock()
        self._pending: tuple[int, Path] | None = None
        self._ways_back: list[int] = []
        self._behind = math.inf  # steps above it are still to be removed
        self._lost = False
        self._owner: dict[str, Any] = {}
        try:
            self._claim()
        except (ConfigError, CannotStart):
            raise
        except FileNotFoundError as error:  # what is missing is not the object that is written, but what it goes to
            raise ConfigError(f"checkpoint.mirror: {self._store.url} cannot be written to: {error}") from None
        except Exception as error:
            logger.error(f"{self._store.url}: {type(error).__name__}: {error}; it is tried again with each step")
        self._threads = [
            threading.Thread(target=target, name="mirror", daemon=True) for target in (self._upload_all, self._beat)
        ]
        for thread in self._threads:
            thread.start()
        newest = next(iter(iter_steps(self._folder)), None)
        if newest and find_damage(newest[1], REQUIRED, hashes=False) is None:
            self.add(newest[0])  # whether or not an earlier start has uploaded it

    def add(self, step: int) -> None:
        """Upload this step; one that waits is passed over for it."""
        with self._news:
            if self._pending:
                _drop(self._pending[1])
            self._pending = step, _hold(self._folder / f"step-{step}")
            self._news.notify_all()

    def leave_behind(self, best: int) -> None:
        """Remove the steps above the one that the run goes back to, so that no start goes on from them.

        One that is being uploaded follows when it is there. What cannot be removed now is tried before each upload.
        """
        with self._news:
            if self._pending and self._pending[0] > best:
                _drop(self._pending[1])
                self._pending = None
            self._ways_back.append(best)
            self._behind = best
        try:
            self._remove_behind()
        except Exception as error:
            logger.error(
                f"{self._store.url}: steps behind step-{best} could not be removed: {type(error).__name__}: {error}; a "
                "start on an empty disk would go on from them; it is tried again with each step"
            )

    def _remove_behind(self) -> None:
        for number in self._store.steps():
            if number > self._behind:
                self._store.remove_step(number)
        self._behind = math.inf

    def close(self, grace: float = math.inf) -> None:
        """Wait for the last step to be uploaded or given up, and let go of the mirror.

        Args:
            grace: seconds that a run has after a signal; half of them may be waited then, and a quarter to let go.
        """
        if self._stops.is_set():
            return
        with self._news:
            self._stops.set()
            self._news.notify_all()
        end = math.inf
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() < end:
            self._threads[0].join(0.1)
            if signalled():
                end = min(end, time.monotonic() + grace / 2)
        if self._threads[0].is_alive():
            logger.warning(
                f"{self._store.url}: half of comm.grace_seconds is over; the next start uploads the last step"
            )
            for held in self._folder.glob("step-*.tmp-*"):
                _drop(held)
        release = threading.Thread(target=self._release, name="mirror", daemon=True)
        release.start()
        release.join(grace / 4 if end < math.inf else None)

    def _release(self) -> None:
        if self._owner and not self._lost:
            try:
                self._store.set_owner({**self._owner, "released": True})
            except Exception as error:
                logger.error(f"{self._store.url}: {type(error).__name__}: {error}; it was not let go of")

    def _gets_on(self) -> None:
        """While the run waits for the last upload, that is what gets on; before, it says nothing of the run."""
        if self._stops.is_set():
            beat()

    # -- the owner ----------------------------------------------------------------------------------------------------

    def _claim(self) -> None:
        known, there = read_own(self._folder / _FILE), self._store.owner()
        run = known.get("run") or (there or {}).get("run") or uuid.uuid4().hex
        if there is not None:
            _check_run(self._folder, there, self._store)
            if not there.get("released") and there.get("holder") != known.get("holder"):
                self._watch(there)
        self._owner = {
            "run": run,
            "holder": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "released": False,
            "beat": 0,
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._folder / _FILE, json.dumps({"run": run, "holder": self._owner["holder"]}))
        self._store.set_owner(self._owner)

    def _watch(self, there: dict[str, Any]) -> None:
        """Return when the owner has shown no sign of life for long enough, or has let go."""
        logger.info(f"{self._store.url}: waiting up to {LEASE_SECONDS:g} s for {_name(there)}, which may be at work")
        end = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < end:
            time.sleep(min(BEAT_SECONDS / 4, LEASE_SECONDS / 4))
            now = self._store.owner() or {}
            if now.get("released"):
                return
            if now != there:
                raise CannotStart(
                    f"checkpoint.mirror: {self._store.url} is in use by another run, {_name(now)}; stop it or wait"
                )

    def _beat(self) -> None:
        while not self._stops.wait(BEAT_SECONDS):
            self._is_owner()

    def _is_owner(self) -> bool:
        """Show a sign of life, unless another start has taken over."""
        with self._owning:
            if self._lost:
                return False
            try:
                if not self._owner:
                    self._claim()
                there = self._store.owner()
                if there is not None and there.get("holder") != self._owner["holder"]:
                    raise CannotStart(f"{_name(there)} has taken it over")
                self._owner["beat"] += 1
                self._store.set_owner(self._owner)
            except (CannotStart, ConfigError) as error:
                self._lost = True
                logger.error(f"{self._store.url}: {error}; this run uploads nothing any more, and goes on")
                return False
            except Exception as error:
                logger.warning(f"{self._store.url}: {type(error).__name__}: {error}")
                return bool(self._owner)
        return True

    # -- uploads ------------------------------------------------------------------------------------------------------

    def _upload_all(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._pending or self._stops.is_set())
                if self._pending is None:
                    return
                (step, held), self._pending = self._pending, None
            try:
                if self._is_owner():
                    self._upload(step, held)
            except Exception as error:
                logger.error(
                    f"step-{step} could not be uploaded to {self._store.url}: {type(error).__name__}: {error}; "
                    "training goes on, and the next step is tried"
                )
            finally:
                _drop(held)

    def _upload(self, step: int, held: Path) -> None:
        start, ways_back = time.monotonic(), len(self._ways_back)
        if self._behind < math.inf:
            self._remove_behind()
        self._store.put_rows(self._run_folder / METRICS_FILE)
        self._store.put_step(step, held)
        if step > min(self._ways_back[ways_back:], default=step):  # meanwhile the run went back to one below
            self._store.remove_step(step)
            return
        logger.info(f"uploaded step-{step} to {self._store.url} in {time.monotonic() - start:.1f} s")
        steps = [number for number in self._store.steps() if number <= step and number != self._options.load_step]
        key = self._options.keep_best
        for number in surplus(steps, self._options, best_step(self._run_folder, key, steps) if key else None):
            self._store.remove_step(number)


def _go_on() -> None:
    if stop_requested():
        raise Preempted


def _check_run(folder: Path, owner: dict[str, Any], store: MirrorStore) -> None:
    """Raise a ConfigError where a mirror is of another run than the steps here."""
    run = read_own(folder / _FILE).get("run")
    strange = run is None and any(iter_steps(folder))
    if strange or (run is not None and owner.get("run") not in (run, None)):
        raise ConfigError(
            f"checkpoint.mirror = {store.url!r}: holds the steps of another run, of {_name(owner)}; name another mirror"
        )


def _hold(step: Path) -> Path:
    """The files of a step by links of their own, which outlive its pruning; the step itself where links cannot be."""
    held = step.with_name(f"{step.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        for path in step.rglob("*"):
            if path.is_file():
                (held / path.relative_to(step)).parent.mkdir(parents=True, exist_ok=True)
                os.link(path, held / path.relative_to(step))
    except OSError:
        remove_if_there(held)
        return step
    return held


def _drop(held: Path) -> None:
    """Remove the links of a step, never the step itself."""
    if ".tmp-" in held.name:
        remove_if_there(held)


def _name(owner: dict[str, Any]) -> str:
    return f"process {owner.get('process', '?')} on {owner.get('host', '?')}"
