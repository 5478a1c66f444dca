"""What of nodes that come and go needs no nodes; tests/integration/test_two_hosts.py has some."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from config_helpers import config_of
from torch.distributed.elastic.agent.server.api import RunResult, WorkerState
from torch.distributed.elastic.multiprocessing.api import SignalException

from titan_pt import elastic_nodes
from titan_pt.config.errors import ConfigError
from titan_pt.elastic_nodes import ElasticNode, check_elastic, usable_ranks
from titan_pt.run.watchdog import Watchdog

BATCH = "[training]\nglobal_batch_size = 8\nlocal_batch_size = 1\n"


@pytest.mark.parametrize(
    ("text", "saved", "most", "usable"),
    [
        ("", 0, 4, 4),
        ("", 0, 7, 4),
        ("", 0, 3, 2),
        ("[parallelism]\ndata_parallel_replicate_degree = 2", 0, 7, 4),
        ("[data]\nnum_streams = 1", 0, 3, 1),
        ("", 2, 4, 2),  # the checkpoint's streams
        ("[parallelism]\ndata_parallel_shard_degree = 16", 0, 3, 3),  # none fits, which the workers tell
    ],
)
def test_the_ranks_that_the_batch_and_the_streams_divide_into(
    tmp_path: Path, text: str, saved: int, most: int, usable: int
) -> None:
    config = config_of(tmp_path, f"{BATCH}{text}", "--job.dump_folder", str(tmp_path))
    if saved:
        step = tmp_path / "checkpoint" / "step-3"
        step.mkdir(parents=True)
        (step / "data.json").write_text(json.dumps({"identity": {"num_streams": saved}}))
    assert usable_ranks(config, most) == usable


def test_a_run_that_cannot_do_with_another_number_of_nodes_is_told_at_once(tmp_path: Path) -> None:
    args = SimpleNamespace(nnodes="1:2", rdzv_backend="static")
    with pytest.raises(ConfigError) as caught:
        check_elastic(config_of(tmp_path, "[checkpoint]\nenable = false"), args)
    told = [problem.partition("need ")[2] for problem in caught.value.problems]
    assert told[:2] == ["--rdzv_backend c10d", "checkpoint.enable = true"] and "global_batch_size" in told[2]
    args.rdzv_backend = "c10d"
    check_elastic(config_of(tmp_path, BATCH), args)


@pytest.fixture
def node(tmp_path: Path) -> ElasticNode:
    """Node 0 of two, whose worker ended as the test says, in a round that no other process is in."""
    node = ElasticNode.__new__(ElasticNode)
    node._config = config_of(tmp_path, BATCH, "--job.dump_folder", str(tmp_path))
    node._watchdog, node._store = Watchdog(tmp_path, None), dist.HashStore()
    node._worker_group = SimpleNamespace(group_rank=0, group_world_size=2)
    node._interval, node._patience, node._looked, node._lost, node._beats = 5.0, 15.0, 0.0, False, {}
    return node


def goes_on(node: ElasticNode, code: int) -> bool:
    failure = SimpleNamespace(exitcode=code)
    return node._goes_on(RunResult(state=WorkerState.FAILED, failures={0: failure}))


@pytest.mark.parametrize("code", [1, 75, 143])
def test_a_job_whose_nodes_all_tell_that_they_end_does_so(node: ElasticNode, code: int) -> None:
    node._store.set("titan_pt/ended/1", "1")
    assert not goes_on(node, code)
    node._store.set("titan_pt/regroups", "1")  # a node has joined: that is why they ended
    assert goes_on(node, code)


@pytest.mark.parametrize("code", [2, 70])
def test_a_mistake_or_a_decision_ends_the_job(node: ElasticNode, code: int) -> None:
    node._store.set("titan_pt/regroups", "1")
    assert not goes_on(node, code)


def test_a_node_that_neither_tells_nor_beats_is_lost(
    node: ElasticNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, end = [100.0], [110.0]

    def sleep(_seconds: float) -> None:
        now[0] += 1.0
        node._store.add("titan_pt/beats/1", int(now[0] <= 150.0))
        if now[0] > end[0]:
            node._store.set("titan_pt/ended/1", "1")

    monkeypatch.setattr(elastic_nodes, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    assert not goes_on(node, 1) and now[0] == 111.0, "it took its time, but it told"
    node._store.delete_key("titan_pt/ended/1")
    end[0] = 1000.0
    assert goes_on(node, 1) and 165.0 < now[0] < 175.0, "15 s after its last beat"
    assert node._store.check(["titan_pt/regroups"]) and "A node is lost" in capsys.readouterr().err
    node._lost, node._looked = False, now[0] - 100.0
    node._look()
    assert not node._lost, "this node slept itself"


def test_a_node_without_workers_ends_as_the_others_do(node: ElasticNode) -> None:
    node._tell("idle")
    assert node._follow().state == WorkerState.HEALTHY
    node._store.set("titan_pt/ended/1", "70")
    assert (node._follow().state, node.code) == (WorkerState.FAILED, 70)
    node._store.set("titan_pt/ended/1", "0")
    assert (node._follow().state, node.code) == (WorkerState.SUCCEEDED, 0)
    node._store.set("titan_pt/signalled", "1")
    with pytest.raises(SignalException) as caught:
        node._obey()
    assert caught.value.sigval == signal.SIGTERM
