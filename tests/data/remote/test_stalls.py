"""A network that stalls, lies and breaks: the documents stay those of the clean run."""

import json
import logging
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from data_helpers import ThreadWorld, data_config, loader, mixture_of, on_ranks, texts
from hub_server import HubServer
from row_group_helpers import QUICK, config_of, hub, quick

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import JobConfig, Source
from titan_pt.data.remote import reader_pool
from titan_pt.data.remote.retry import Patience
from titan_pt.data.remote.row_groups import byte_ranges
from titan_pt.data.remote.skip_log import SkipLog
from titan_pt.data.stream import loader as loader_module
from titan_pt.data.stream.loader import DataLoader, build_dataloader
from titan_pt.data.stream.stream import Stream
from titan_pt.distributed.world import World
from titan_pt.run.exit_codes import Preempted, Stalled

__all__ = ["hub", "quick"]  # fixtures


@pytest.fixture(autouse=True)
def impatient(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second for an answer: these tests wait for what never comes."""
    monkeypatch.setattr("titan_pt.data.remote.sources.Patience", lambda **_: replace(QUICK, attempt_seconds=0.5))


def build(config: JobConfig, world: World | None = None) -> DataLoader:
    world = world or ThreadWorld()
    return build_dataloader(config, ByteTokenizer(), world, plan_run_size(config, world.size))


def steps_of(config: JobConfig, count: int = 10_000) -> list[tuple[str, ...]]:
    """The documents of each step until the end."""
    data = build(config)
    found = []
    while len(found) < count and (batch := data.next_batch()) is not None:
        found.append(batch.documents)
        data.commit(batch)
    data.close()
    return found


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, ...]]:
    """The steps without faults."""
    folder = tmp_path_factory.mktemp("clean")
    with pytest.MonkeyPatch.context() as patch:
        generator = hub.__wrapped__(folder, patch)  # the fixture's own function
        next(generator)
        quick.__wrapped__(patch)
        found = steps_of(config_of(folder, Source(name="fineweb_edu", max_epochs=1.0)))
        for _ in generator:
            pass
    assert Counter(name for step in found for name in set(step)).keys() == {f"fineweb_edu:{i}" for i in range(1000)}
    return found


@pytest.mark.parametrize("kind", ["sleep", "trickle", "reset", "429", "500", "page", "cut", "short", "garbage"])
def test_the_documents_are_those_of_the_clean_run(
    tmp_path: Path, hub: HubServer, kind: str, clean: list[tuple[str, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    data = build(config_of(tmp_path, Source(name="fineweb_edu", max_epochs=1.0)))
    every = 20 if kind in ("sleep", "trickle") else 3
    hub.fault = lambda _path, count: kind if count % every == 0 else ""
    hub.sleep_seconds = 1.0
    found = []
    with caplog.at_level(logging.WARNING):
        while (batch := data.next_batch()) is not None:
            found.append(batch.documents)
    data.close()
    assert hub.faults[kind] >= 3
    assert found == clean, "nothing lost, nothing repeated, the same order"
    assert caplog.text.count("read after a stall of") >= 3
    assert "given up" not in caplog.text


def test_closing_in_a_stall_takes_no_time(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests under way are cut: a run that was told to stop need not wait for a server that does not answer."""
    monkeypatch.setattr("titan_pt.data.remote.sources.Patience", lambda **_: Patience(attempt_seconds=60.0))
    data = build(config_of(tmp_path, Source(name="fineweb_edu")).model_copy())
    data.next_batch()
    hub.fault = lambda _path, _count: "sleep"
    ahead = [data.mixture.sources[0].documents.request(unit) for unit in range(90, 94)]  # type: ignore[attr-defined]
    time.sleep(0.5)
    started = time.monotonic()
    data.close()
    while not all(future.done() for future in ahead) and time.monotonic() < started + 30:
        time.sleep(0.01)
    assert time.monotonic() - started < 3
    assert "again in" not in caplog.text, "a stop is no failure"


def test_a_dead_server_comes_back(tmp_path: Path, hub: HubServer, clean: list[tuple[str, ...]]) -> None:
    data = build(config_of(tmp_path, Source(name="fineweb_edu", max_epochs=1.0)))
    found = [data.next_batch().documents for _ in range(5)]  # type: ignore[union-attr]
    hub.down = True
    threading.Timer(1.0, lambda: setattr(hub, "down", False)).start()
    while (batch := data.next_batch()) is not None:
        found.append(batch.documents)
    data.close()
    assert found == clean and hub.faults["reset"] > 5


def test_a_listing_is_retried(tmp_path: Path, hub: HubServer) -> None:
    failures = iter(["500", "reset", "429", "page", "sleep", "trickle"])
    hub.fault = lambda path, _count: next(failures, "") if path.startswith("/api") else ""
    hub.sleep_seconds = 1.0
    build(config_of(tmp_path, Source(name="fineweb_edu"))).close()
    assert sum(hub.faults.values()) == 6


@pytest.mark.parametrize("where", ["listing", "footers", "row groups", "held-out rows"])
def test_a_start_that_waits_can_be_stopped(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """SIGTERM while a start waits for the hub: it does not wait for data.max_stall_seconds."""
    patience = Patience(attempt_seconds=0.5, first_pause_seconds=30.0, longest_pause_seconds=30.0, start_seconds=100.0)
    monkeypatch.setattr("titan_pt.data.remote.sources.Patience", lambda **_: patience)
    source = Source(name="fineweb_edu")
    if where == "row groups":  # few of them, which are read whole at the start
        source = Source(name="web", path=f"{hub.url}/sample/10BT/000_00000.parquet")
    first = {"listing": 0, "footers": 1, "row groups": 2, "held-out rows": 5}[where]
    hub.fault = lambda _path, _count: "500" if sum(hub.requests.values()) > first else ""
    started = time.monotonic()
    for module in ("retry", "reader_pool"):
        monkeypatch.setattr(f"titan_pt.data.remote.{module}.stop_requested", lambda: time.monotonic() > started + 1.0)
    with pytest.raises(Preempted):
        data = build(config_of(tmp_path, source, streams=8))
        Stream(replace(data.mixture, holdout_fraction=0.1, held_out=True), 0, 1, 64).next_row()
    assert time.monotonic() - started < 5


def test_an_unreadable_row_group_is_given_up(tmp_path: Path, hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    """One row group is damaged for good: its ten documents are lost, told, and lost in the same way on every resume."""
    config = config_of(tmp_path, Source(name="fineweb_edu", max_epochs=1.0))
    data = build(config)
    documents = data.mixture.sources[0].documents
    bad = documents.listing[5]  # type: ignore[attr-defined]
    broken = hub.folder / bad.file.name
    whole = broken.read_bytes()
    content = bytearray(whole)
    metadata = documents.reader_pool.store._footers(bad.file)  # type: ignore[attr-defined]
    ((start, length),) = byte_ranges(metadata, bad.group, ["text"])
    content[start : start + length] = bytes(length)
    broken.write_bytes(content)
    found = []
    with caplog.at_level(logging.ERROR):
        while (batch := data.next_batch()) is not None:
            found.append(batch.documents)
            data.commit(batch)
            num_lost = batch.num_lost
        data.close()
    assert num_lost == 10 and "10 documents were lost to row groups that were given up" in caplog.text
    seen = {name for step in found for name in step}
    assert seen == {f"fineweb_edu:{i}" for i in range(1000)} - {f"fineweb_edu:{i}" for i in range(50, 60)}
    assert "row group 5 is given up in epoch 0, 10 documents are lost to it" in caplog.text
    (line,) = (tmp_path / "run" / "data" / "ledger-rank0.jsonl").read_text().splitlines()
    assert json.loads(line)["documents"] == 10
    broken.write_bytes(whole)
    assert steps_of(config) == found, "it is repaired, but this run has decided"


def test_many_bad_row_groups_end_the_run(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_pool, "_MOST_BAD_GROUPS", 4)
    data = build(config_of(tmp_path, Source(name="fineweb_edu")))
    hub.fault = lambda _path, _count: "404"
    with pytest.raises(RuntimeError, match=r"4 units in a row cannot be read; the last: .*HTTP 404"):
        for _ in range(100):
            data.next_batch()
    data.close()


def substituting(folder: Path, cache: str, seconds: float = 60.0) -> JobConfig:
    """With patience for a busy machine: a replay must not substitute more than is on record."""
    config = config_of(
        folder, Source(name="fineweb_edu", max_epochs=1.0), stall_policy="substitute", substitute_after_seconds=seconds
    )
    return config.model_copy(update={"data": config.data.model_copy(update={"cache_dir": str(folder / cache)})})


def test_a_substitution_is_repeated_by_every_resume(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file does not come for a while: others go first, it is read later, and a new start does it all again."""
    monkeypatch.setattr("titan_pt.data.remote.block_order.BLOCK_ROWS", 10)
    data = build(substituting(tmp_path, "one", 0.2))
    hub.fault = lambda path, _count: "reset" if "000_" in path else ""
    found, states = [], []
    while (batch := data.next_batch()) is not None:
        found.append(batch.documents)
        data.commit(batch)
        states.append(data.state_dict())
        if len(found) == 10:
            hub.fault = lambda _path, _count: ""
    data.close()
    assert {name for step in found for name in step} == {f"fineweb_edu:{i}" for i in range(1000)}
    assert (tmp_path / "run" / "data" / "ledger-rank0.jsonl").read_text().count("substituted") >= 2
    assert steps_of(substituting(tmp_path, "two")) == found, "from the start, with a network that works"
    (tmp_path / "run" / "data" / "ledger-rank0.jsonl").rename(tmp_path / "ledger.jsonl")
    assert steps_of(substituting(tmp_path, "two")) != found, "without the record they would be others"
    (tmp_path / "ledger.jsonl").rename(tmp_path / "run" / "data" / "ledger-rank0.jsonl")
    resumed = build(substituting(tmp_path, "three"))
    resumed.load_state_dict(states[4])
    rest = []
    while (batch := resumed.next_batch()) is not None:
        rest.append(batch.documents)
    resumed.close()
    assert rest == found[5:]


def test_the_skip_log_survives_a_cut_line(tmp_path: Path) -> None:
    skip_log = SkipLog(tmp_path, "rank0")
    skip_log.take("web", 4, 1, 2, 9)
    skip_log.lose("web", 0, 7, "file", 10, "torn")
    path = tmp_path / "ledger-rank0.jsonl"
    path.write_text(path.read_text() + '{"kind": "substi')
    again = SkipLog(tmp_path, "rank1")
    assert again.taken("web", 4, 1, 2) == 9 and again.taken("web", 8, 1, 2) is None
    assert again.lost("web", 0, 7) == "torn" and again.lost("web", 1, 7) is None


class Slow:
    """Documents of which one takes its time."""

    fingerprint = "slow"

    def __init__(self, seconds: float) -> None:
        self._documents, self._seconds = texts(*[60] * 40), seconds
        self._reads = 0

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> str:
        self._reads += 1
        if self._reads == 12:
            time.sleep(self._seconds)
        return self._documents[index]


def slow_config(**data: Any) -> JobConfig:
    config = data_config(prefetch=1)
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def test_ranks_wait_for_one_another(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(loader_module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(loader_module, "_FIRST_STALL_SECONDS", 0.2)

    def run(world: World) -> list[Any]:
        data = loader(mixture_of(Slow(1.0 if world.rank == 1 else 0.0)), slow_config(), world)
        found = [data.next_batch().documents for _ in range(30)]  # type: ignore[union-attr]
        data.close()
        return found

    with caplog.at_level(logging.WARNING):
        found = on_ranks(2, run)
    assert "1 of 2 ranks have been waiting for data" in caplog.text and "went on after a stall" in caplog.text
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    assert on_ranks(2, run) == found


@pytest.mark.parametrize("end", ["late", "signal"])
def test_a_wait_ends_on_all_ranks_together(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(loader_module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr("titan_pt.data.stream.prefetch._ABANDON_SECONDS", 0.1)
    config = slow_config(max_stall_seconds=0.3 if end == "late" else 60.0)
    if end == "signal":
        monkeypatch.setattr(loader_module, "stop_requested", lambda: time.monotonic() > started + 0.5)
    started = time.monotonic()

    def run(world: World) -> str:
        data = loader(mixture_of(Slow(3.0 if world.rank == 1 else 0.0)), config, world)
        try:
            for _ in range(30):
                data.next_batch()
        except Preempted as error:
            return type(error).__name__
        finally:
            data.close()
        return "none"

    assert on_ranks(2, run) == [Stalled.__name__ if end == "late" else Preempted.__name__] * 2
    assert time.monotonic() - started < 10
