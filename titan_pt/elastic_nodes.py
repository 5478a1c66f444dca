"""Nodes that come and go, `--nnodes MIN:MAX`: torchrun's agent and rendezvous, and who starts again with whom.

What one set of nodes does together is a round. In its store each node beats, and tells how its workers ended before it
leaves. Where all have told, the job ends as it does without this module. A node that does neither is lost: the others
meet again, and their workers go on from the last saved step. So they do for a node that joins, but save first.
"""

import contextlib
import os
import signal
import sys
import time
from typing import Any

import torch.distributed as dist
from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from titan_pt.components.checkpoint.steps import saved_streams
from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import global_rows
from titan_pt.config.saved_streams import with_saved_streams
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.protocols.trainer_spec import get_trainer_spec
from titan_pt.run.exit_codes import START_VARIABLE, ExitCode
from titan_pt.run.told_codes import pick, read_exit_codes
from titan_pt.run.watchdog import Watchdog

_BEATS, _ENDED, _LEFT, _RANKS, _REGROUPS, _SIGNALLED = (
    f"titan_pt/{name}" for name in ("beats", "ended", "left", "ranks", "regroups", "signalled")
)
_IDLE = b"idle"
_POLL_SECONDS, _LEAVE_SECONDS, _KILL_SECONDS = 0.1, 5.0, 30


def check_elastic(config: JobConfig, args: Any) -> None:
    """See that a run can go on with another number of nodes.

    Raises:
        ConfigError: it cannot.
    """
    nodes = f"--nnodes = {args.nnodes!r}: nodes that come and go need"
    problems = []
    if args.rdzv_backend != "c10d":
        problems.append(f"{nodes} --rdzv_backend c10d")
    if not config.checkpoint.enable:
        problems.append(f"{nodes} checkpoint.enable = true")
    if config.job.trainer != "grpo" and global_rows(config) is None:
        problems.append(f"{nodes} a batch that does not depend on their number: set training.global_batch_size")
    if problems:
        raise ConfigError(*problems)


def run_elastic(args: Any, config: JobConfig, watchdog: Watchdog) -> int:
    """As `torch.distributed.run.run`, with our agent. Returns the code of the job, where this node had no workers.

    Raises:
        ChildFailedError: workers of this node failed.
    """
    # The store of an earlier round would give the workers the addresses of its ranks (pytorch/pytorch#135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    launch, command, arguments = torchrun.config_from_args(args)
    parameters = RendezvousParameters(
        launch.rdzv_backend,
        launch.rdzv_endpoint,
        launch.run_id,
        launch.min_nodes,
        launch.max_nodes,
        launch.local_addr,
        **launch.rdzv_configs,
    )
    spec = WorkerSpec(
        role=launch.role,
        local_world_size=launch.nproc_per_node,
        rdzv_handler=get_rendezvous_handler(parameters),
        entrypoint=command,
        args=tuple(arguments),
        max_restarts=1,
        monitor_interval=launch.monitor_interval,
        local_addr=launch.local_addr,
        numa_options=launch.numa_options,
    )
    agent = ElasticNode(spec, launch, config, watchdog)
    try:
        result = agent.run()
    finally:
        agent.leave()
        spec.rdzv_handler.shutdown()
    if result is not None and result.failures:  # None: a spare node of a job that is over
        raise ChildFailedError(name="titan_pt.train", failures=result.failures)
    return agent.code


class ElasticNode(LocalElasticAgent):
    """The agent of one node. Its ranks beyond those that divide the batch and the streams have no workers."""

    code = int(ExitCode.DONE)
    """How the job ended, on a node without workers."""
    _store: Any
    """Of this round."""

    def __init__(self, spec: WorkerSpec, launch: Any, config: JobConfig, watchdog: Watchdog) -> None:
        super().__init__(
            spec,
            launch.logs_specs,
            launch.start_method,
            log_line_prefix_template=launch.log_line_prefix_template,
            shutdown_timeout=launch.shutdown_timeout,
        )
        self._config, self._watchdog = config, watchdog
        self._nodes = f"{launch.min_nodes}:{launch.max_nodes}"
        options = launch.rdzv_configs  # torch's, with its defaults
        self._interval = float(options.get("keep_alive_interval", 5))
        self._patience = self._interval * float(options.get("keep_alive_max_attempt", 3))
        self._looked, self._lost = 0.0, False
        self._beats: dict[int, tuple[int, float]] = {}

    def leave(self) -> None:
        """Wait a little for the other nodes that end too: the store is gone with the node that holds it."""
        with contextlib.suppress(dist.DistError):
            if self._store is not None:
                deadline, nodes = time.monotonic() + _LEAVE_SECONDS, self._worker_group.group_world_size or 0
                self._store.add(_LEFT, 1)
                while self._store.add(_LEFT, 0) < nodes and time.monotonic() < deadline:
                    time.sleep(_POLL_SECONDS)

    def _invoke_run(self, role: str = "default_role") -> RunResult:
        try:
            return super()._invoke_run(role)
        except SignalException:  # all of the job stop with this node, those that are about to meet again too
            with contextlib.suppress(dist.DistError, RendezvousError):
                if self._store is not None:
                    self._store.set(_SIGNALLED, "1")
                    self._tell(str(int(ExitCode.PREEMPTED)))
                self._worker_group.spec.rdzv_handler.set_closed()
            raise
        except RendezvousClosedError:
            if self._store is not None:
                self._obey()
            raise

    def _obey(self) -> None:
        """Act as if a signal had come here, where one came to another node, which may have no workers to tell it."""
        if self._store.check([_SIGNALLED]):
            raise SignalException("a signal to another node", signal.SIGTERM)

    def _assign_worker_ranks(self, store: Any, group_rank: int, group_world_size: int, spec: Any) -> list[Worker]:
        workers: list[Worker] = super()._assign_worker_ranks(store, group_rank, group_world_size, spec)
        everyone = workers[0].world_size
        if group_rank == 0:
            store.set(_RANKS, str(usable_ranks(self._config, everyone)))
        count = int(store.get(_RANKS))
        used = [worker for worker in workers if worker.global_rank < count]
        for worker in used:
            worker.world_size = worker.role_world_size = count
        told = f"{group_world_size} of {self._nodes} nodes: "
        if count == everyone:
            told += f"{count} ranks"
        else:
            told += f"{count} of {everyone} ranks train, for the batch and the streams do not divide into more"
        print(told if used else f"{told}; this node waits", file=sys.stderr)
        return used

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        super()._rendezvous(worker_group)
        self._lost = False
        self._beats.clear()
        for path in self._watchdog.folder.glob("rank-*"):  # of the round before
            path.unlink()
        if not worker_group.workers:
            self._tell(_IDLE.decode())

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if not worker_group.workers:
            self._pcontext = None
            return {}
        return super()._start_workers(worker_group)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        if worker_group.state == WorkerState.HEALTHY:
            print("The nodes change: all save and start again", file=sys.stderr)
            self._store.set(_REGROUPS, "1")  # before any worker stops, so that no node takes it for the end
        if self._watchdog.reason:
            print(self._watchdog.reason, file=sys.stderr)
            self._watchdog.reason = ""
        os.environ[START_VARIABLE] = str(time.monotonic())
        super()._restart_workers(worker_group)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        if self._lost:  # they may wait for it for ever, and cannot save without it
            self._shutdown(signal.SIGKILL, timeout=_KILL_SECONDS)
        else:
            self._shutdown(timeout=self._shutdown_timeout)  # the base class gives them no more than 30 s

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._look()
        if not worker_group.workers:
            return self._follow()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.SUCCEEDED:
            self._tell(str(int(ExitCode.DONE)))
        elif result.state == WorkerState.HEALTHY and self._lost:
            self._remaining_restarts = 1
            return RunResult(state=WorkerState.FAILED)
        elif result.state == WorkerState.FAILED:
            try:
                self._remaining_restarts = int(self._goes_on(result))
            except dist.DistError:  # the store has left: no round comes after this one
                self._remaining_restarts = 0
        return result

    def _follow(self) -> RunResult:
        """The state of a node without workers: that of the others."""
        told = self._told()
        if None in told or self._store.check([_REGROUPS]):
            return RunResult(state=WorkerState.HEALTHY)
        self.code, self._remaining_restarts = pick(int(code) for code in told if code not in (None, _IDLE)), 0
        return RunResult(state=WorkerState.SUCCEEDED if self.code == ExitCode.DONE else WorkerState.FAILED)

    def _goes_on(self, result: RunResult) -> bool:
        """Whether the workers, which failed, start again because the nodes are others now."""
        codes = [failure.exitcode for failure in result.failures.values()]
        code = pick([*codes, *read_exit_codes(self._watchdog.folder)])
        self._tell(str(int(code)))
        if code not in (ExitCode.FAILED, ExitCode.PREEMPTED, ExitCode.TERMINATED):
            return False  # a mistake, or a decision
        while not self._lost:
            if self._store.check([_REGROUPS]):
                return True
            if None not in self._told():
                return False
            time.sleep(_POLL_SECONDS)
            self._look()
        return True

    def _look(self) -> None:
        """Beat, and see whether another node has stopped to, by this node's clock."""
        now = time.monotonic()
        if self._lost or now < self._looked + self._interval:
            return
        if now > self._looked + self._patience:
            self._beats.clear()  # this process slept itself
        self._looked = now
        self._obey()
        self._store.add(f"{_BEATS}/{self._worker_group.group_rank}", 1)
        for i, told in enumerate(self._told()):
            count = self._store.add(f"{_BEATS}/{i}", 0)
            if told is not None or count != self._beats.get(i, (-1, 0.0))[0]:
                self._beats[i] = count, now
        self._lost = any(now - since > self._patience for _, since in self._beats.values())
        if self._lost:
            print("A node is lost: the others go on from the last saved step", file=sys.stderr)
            self._store.set(_REGROUPS, "1")

    def _tell(self, how: str) -> None:
        """Tell the nodes of this round how this one ends."""
        with contextlib.suppress(dist.DistError):  # the store has left
            self._store.set(f"{_ENDED}/{self._worker_group.group_rank}", how)

    def _told(self) -> list[bytes | None]:
        """What each node of this round told; None where it still works, or is lost."""
        keys = [f"{_ENDED}/{i}" for i in range(self._worker_group.group_world_size or 0)]
        return [self._store.get(key) if self._store.check([key]) else None for key in keys]


def usable_ranks(config: JobConfig, most: int) -> int:
    """The most ranks, up to this number, that the batch and the streams divide into; this number where none do."""
    plan, saved = get_trainer_spec(config.job.trainer).plan_run_size, saved_streams(config)
    for count in range(most, 0, -1):
        with contextlib.suppress(ConfigError):
            size = with_saved_streams(config, plan(config, count), count, saved)
            if saved in (None, size.num_streams):
                return count
    return most  # the workers tell why
