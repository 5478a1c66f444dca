"""checkpoint.mirror: steps in an object store. fsspec's own memory stands in for one; moto's S3 server where it is."""

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from helpers import assert_same_step, losses, train_here, write_faulty, write_toml

from titan_pt.components.checkpoint import mirror, mirror_store
from titan_pt.components.checkpoint.mirror import Mirror, fetch
from titan_pt.components.checkpoint.mirror_store import MirrorStore
from titan_pt.components.checkpoint.steps import iter_steps
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.checkpoint import Checkpoint
from titan_pt.run.exit_codes import CannotStart, Preempted


class Flaky(MemoryFileSystem):
    """A store whose writes go through `fault(name)` first; what they return replaces the content."""

    protocol = "flaky"
    fault: Callable[[str], bytes | None] = staticmethod(lambda _name: None)
    written: list[str] = []  # noqa: RUF012

    def put_file(self, lpath: str, rpath: str, *args: Any, **options: Any) -> None:
        content = Flaky.fault(rpath)
        Flaky.written.append(rpath)
        if content is None:
            super().put_file(lpath, rpath, *args, **options)
        else:
            self.pipe_file(rpath, content)


fsspec.register_implementation("flaky", Flaky)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No waits; and no thread of a mirror is left."""
    monkeypatch.setattr(mirror_store, "DELAYS", (0.0, 0.0))
    monkeypatch.setattr(mirror, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(mirror, "LEASE_SECONDS", 60.0)
    monkeypatch.setattr(Flaky, "fault", staticmethod(lambda _name: None))
    monkeypatch.setattr(Flaky, "written", [])
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "mirror"]


@pytest.fixture
def url() -> str:
    return f"flaky://bucket/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the steps of a run of one step; tests link it."""
    folder = tmp_path_factory.mktemp("trained")
    assert train_here(write_toml(folder, training={"steps": 1})) == 0
    return folder / "run" / "checkpoint" / "step-1"


def put(step: Path, run_folder: Path, number: int) -> None:
    """A step of that number in a run folder."""
    target = run_folder / "checkpoint" / f"step-{number}"
    (target / "tensors").mkdir(parents=True)
    for path in step.rglob("*"):
        if path.is_file():
            (target / path.relative_to(step)).write_bytes(path.read_bytes())
    manifest = json.loads((target / "manifest.json").read_text())
    (target / "manifest.json").write_text(json.dumps({**manifest, "step": number}))


def open_one(run_folder: Path, options: Checkpoint) -> Mirror:
    return Mirror(run_folder / "checkpoint", run_folder, options)


def numbers(run_folder: Path) -> list[int]:
    return [number for number, _ in iter_steps(run_folder / "checkpoint")]


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_second_process_goes_on_from_an_empty_disk(tmp_path: Path, url: str, kind: str) -> None:
    """To the bit, as if it had been one; the mirror keeps what the disk keeps."""
    url = url if kind == "memory" else f"file://{tmp_path}/mirror"
    options = {"interval": 1, "keep_latest_k": 3, "keep_every_n": 2, "mirror": url}
    first = write_toml(tmp_path / "first", checkpoint=options)
    assert train_here(first) == 0
    store = MirrorStore(url)
    assert store.steps() == [6, 5, 4, 2] and not list((tmp_path / "first" / "run" / "checkpoint").glob("*.tmp-*"))
    assert (store.owner() or {})["released"] is True
    for number in (6, 5):
        store.remove_step(number)
    second = write_toml(tmp_path / "second", checkpoint=options)
    assert train_here(second) == 0
    assert_same_step(*(tmp_path / name / "run" / "checkpoint" / "step-6" for name in ("first", "second")))
    assert losses(tmp_path / "first" / "run") == losses(tmp_path / "second" / "run"), "the rows came too"
    assert store.steps() == [6, 5, 4, 2] and numbers(tmp_path / "second" / "run") == [6, 5, 4]


def test_the_manifest_comes_last_and_files_are_verified(
    tmp_path: Path, url: str, step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(step, tmp_path, 1)
    store, broken = MirrorStore(url), [b"wrong"]
    monkeypatch.setattr(Flaky, "fault", staticmethod(lambda n: broken.pop() if "distcp" in n and broken else None))
    store.put_step(1, tmp_path / "checkpoint" / "step-1")
    names = [name.rpartition("/")[2] for name in Flaky.written]
    assert names.count("__0_0.distcp") == 2 and names[-1] == "manifest.json" and names.count("manifest.json") == 1
    assert store.get_step(1, tmp_path / "other") is None

    def full(name: str) -> None:
        if "train.json" in name:
            raise OSError(28, "No space left")

    monkeypatch.setattr(Flaky, "fault", staticmethod(full))
    with pytest.raises(OSError, match="No space left"):
        store.put_step(2, tmp_path / "checkpoint" / "step-1")
    assert store.steps() == [1], "what has no manifest does not count"


def test_a_bad_step_does_not_end_the_uploads(tmp_path: Path, url: str) -> None:
    fault = {"kind": "nan_loss", "steps": [2]}
    assert train_here(write_faulty(tmp_path, fault, checkpoint={"interval": 1, "mirror": url})) == 0
    assert MirrorStore(url).steps()[0] == 6 and (MirrorStore(url).owner() or {})["released"] is True
    assert not list((tmp_path / "run" / "checkpoint").glob("*.tmp-*"))


def test_a_mirror_of_another_run_gives_and_takes_nothing(tmp_path: Path, url: str, step: Path) -> None:
    store = MirrorStore(url)
    put(step, tmp_path / "other", 5)
    store.put_step(5, tmp_path / "other" / "checkpoint" / "step-5")
    store.set_owner({"run": "other", "released": True})
    put(step, tmp_path / "this", 1)
    for known in ({}, {"run": "this"}):
        (tmp_path / "this" / "checkpoint" / "mirror.json").write_text(json.dumps(known))
        with pytest.raises(ConfigError, match="holds the steps of another run"):
            fetch(tmp_path / "this", Checkpoint(mirror=url))
    assert numbers(tmp_path / "this") == [1]
    (tmp_path / "this" / "checkpoint" / "mirror.json").write_text(json.dumps({"run": "other"}))
    fetch(tmp_path / "this", Checkpoint(mirror=url))
    assert numbers(tmp_path / "this") == [5, 1]


def test_slow_transfers_are_no_hang(tmp_path: Path, url: str, step: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block counts as progress: of a download, and of the upload that the end of a run waits for, not before."""
    monkeypatch.setattr(mirror_store, "_BLOCK_BYTES", 100_000)
    beats: list[str] = []
    monkeypatch.setattr(mirror, "beat", lambda: beats.append(threading.current_thread().name))
    put(step, tmp_path / "one", 1)
    size = sum(path.stat().st_size for path in (tmp_path / "one").rglob("*") if path.is_file())
    mirrored = open_one(tmp_path / "one", Checkpoint(mirror=url))
    while not MirrorStore(url).steps():
        time.sleep(0.01)
    assert not beats
    put(step, tmp_path / "one", 2)
    monkeypatch.setattr(Flaky, "fault", staticmethod(lambda _name: mirrored._stops.wait(60) and None))
    mirrored.add(2)
    mirrored.close()
    assert beats.count("mirror") > size // 100_000
    got_on: list[int] = []
    assert MirrorStore(url, lambda: got_on.append(1)).get_step(2, tmp_path / "two") is None
    assert len(got_on) > size // 100_000
    monkeypatch.setattr(mirror, "stop_requested", lambda: True)
    with pytest.raises(Preempted):
        fetch(tmp_path / "three", Checkpoint(mirror=url))


@pytest.mark.parametrize("error", [OSError(5, "the network is gone"), RuntimeError("SlowDown"), PermissionError("403")])
def test_a_mirror_that_fails_costs_no_run(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(name: str) -> None:
        if "step-2" in name:
            raise error

    monkeypatch.setattr(Flaky, "fault", staticmethod(fail))
    config = write_toml(tmp_path, checkpoint={"interval": 1, "mirror": url}, training={"steps": 2})
    assert train_here(config) == 0
    told = capsys.readouterr().err
    assert "step-2 could not be uploaded" in told and str(error) in told and "tried again in" in told
    assert numbers(tmp_path / "run") == [2, 1] and 2 not in MirrorStore(url).steps()
    monkeypatch.setattr(Flaky, "fault", staticmethod(lambda _name: None))
    assert train_here(config) == 0
    assert MirrorStore(url).steps()[0] == 2, "a start uploads what the last one could not"


def test_a_mirror_that_cannot_be_read_stops_a_start_without_steps(
    tmp_path: Path, url: str, step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_arguments: Any, **_options: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(Flaky, "ls", gone)
    with pytest.raises(CannotStart, match="whether it holds steps of this run is not known"):
        fetch(tmp_path, Checkpoint(mirror=url))
    put(step, tmp_path, 1)
    fetch(tmp_path, Checkpoint(mirror=url))
    assert numbers(tmp_path) == [1]


def test_the_newest_whole_step_is_fetched(tmp_path: Path, url: str, step: Path) -> None:
    source, store = tmp_path / "source", MirrorStore(url)
    for number in (1, 2, 3):
        put(step, source, number)
        store.put_step(number, source / "checkpoint" / f"step-{number}")
    store._fs.pipe_file(f"{store._root}/step-3/train.json", b"{}")
    here = tmp_path / "here"
    put(step, here, 1)
    fetch(here, Checkpoint(mirror=url))
    assert numbers(here) == [2, 1]
    empty = tmp_path / "empty"
    fetch(empty, Checkpoint(mirror=url, load_step=1))
    assert numbers(empty) == [2, 1], "the one to go on from may be any"
    for number in (1, 2):
        store.remove_step(number)
    with pytest.raises(ConfigError, match="no step is whole"):
        fetch(tmp_path / "other", Checkpoint(mirror=url))
    manifest = {"files": {"../../evil": {"size": 1, "sha256": ""}}}
    store._fs.pipe_file(f"{store._root}/step-3/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(ConfigError, match=r"names '\.\./\.\./evil'"):
        fetch(tmp_path / "other", Checkpoint(mirror=url))


@pytest.mark.parametrize(("best", "left"), [(1, [1]), (3, [3, 2, 1]), (4, [4, 3, 2, 1])])
def test_no_start_goes_on_from_what_a_way_back_left_behind(
    tmp_path: Path, url: str, step: Path, monkeypatch: pytest.MonkeyPatch, best: int, left: list[int]
) -> None:
    """Whether it is in the mirror, waits, is being uploaded, or cannot be removed at first.

    What the run goes back to stays, being uploaded (3) or waiting (4).
    """
    run_folder, options = tmp_path / "run", Checkpoint(mirror=url, keep_latest_k=0)
    for number in (1, 2, 3, 4):
        put(step, run_folder, number)
    put_step, reached, goes_on = MirrorStore.put_step, threading.Event(), threading.Event()

    def slowly(self: MirrorStore, number: int, folder: Path) -> None:
        if number == 3:
            reached.set()
            assert goes_on.wait(30)
        put_step(self, number, folder)

    monkeypatch.setattr(MirrorStore, "put_step", slowly)
    store = MirrorStore(url)
    for number in (1, 2):
        put_step(store, number, run_folder / "checkpoint" / f"step-{number}")
    (run_folder / "checkpoint" / "step-4").rename(tmp_path / "step-4")
    mirror = open_one(run_folder, options)  # uploads step 3
    assert reached.wait(30)
    (tmp_path / "step-4").rename(run_folder / "checkpoint" / "step-4")
    mirror.add(4)
    with monkeypatch.context() as broken:
        broken.setattr(MirrorStore, "remove_step", lambda *_: (_ for _ in ()).throw(OSError("away")))
        mirror.leave_behind(best)
    assert store.steps() == [2, 1]
    goes_on.set()
    if best == 1:
        mirror.add(1)
    mirror.close()
    assert store.steps() == left, "step 4 waited, step 3 came too late, step 2 could not be removed at once"
    fetch(tmp_path / "empty", options)
    assert numbers(tmp_path / "empty") == left[:1]


def test_a_mirror_has_one_run_at_a_time(tmp_path: Path, url: str, step: Path) -> None:
    options = Checkpoint(mirror=url)
    put(step, tmp_path / "one", 1)
    one = open_one(tmp_path / "one", options)
    with pytest.raises(CannotStart, match=f"is in use by another run, process {os.getpid()} on"):
        open_one(tmp_path / "two", options)
    with pytest.raises(ConfigError, match="holds the steps of another run"):
        put(step, tmp_path / "three", 1)
        open_one(tmp_path / "three", options)
    one.close()
    again = open_one(tmp_path / "one", options)
    again._store.set_owner({**again._owner, "holder": "a newer start", "host": "elsewhere"})
    deadline = time.monotonic() + 60
    while not again._lost and time.monotonic() < deadline:
        time.sleep(0.01)
    again.add(1)
    Flaky.written.clear()
    again.close()
    assert again._lost and not Flaky.written, "it uploads nothing any more"
    assert (MirrorStore(url).owner() or {})["holder"] == "a newer start"


def test_a_start_takes_over_from_one_that_was_killed(
    tmp_path: Path, url: str, step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once on the same disk; on another one when the owner has shown no sign of life for long enough."""
    options, watched = Checkpoint(mirror=url), []
    watch = Mirror._watch
    monkeypatch.setattr(Mirror, "_watch", lambda self, there: watched.append(there) or watch(self, there))
    monkeypatch.setattr(mirror, "LEASE_SECONDS", 0.2)
    put(step, tmp_path / "run", 1)
    for _ in range(2):  # the second has the lock of the folder, so the first is gone
        killed = open_one(tmp_path / "run", options)
        killed._lost = True  # as a killed one, it does not let go
        killed.close()
    assert not watched
    open_one(tmp_path / "new", options).close()
    assert len(watched) == 1


def test_a_pruned_step_is_uploaded_all_the_same(
    tmp_path: Path, url: str, step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is held by links until then; of those that wait the newest alone is uploaded."""
    began, goes_on = threading.Event(), threading.Event()

    def slow(_name: str) -> None:
        began.set()
        goes_on.wait(60)

    monkeypatch.setattr(Flaky, "fault", staticmethod(slow))
    for number in (1, 2, 3):
        put(step, tmp_path, number)
    mirrored = open_one(tmp_path, Checkpoint(mirror=url))
    assert began.wait(60)  # step 3, which was there, is under way
    mirrored.add(1)
    mirrored.add(2)
    for path in (tmp_path / "checkpoint").glob("step-?"):
        path.rename(path.with_name("gone-" + path.name))
    goes_on.set()
    mirrored.close()
    assert MirrorStore(url).steps() == [3, 2] and not list((tmp_path / "checkpoint").glob("*.tmp-*"))


def test_a_step_without_links_is_not_removed(
    tmp_path: Path, url: str, step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor waited for beyond a signal's grace; the mirror is let go of."""

    def no_links(*_: Any) -> None:
        raise PermissionError("no links")

    monkeypatch.setattr(mirror.os, "link", no_links)
    goes_on = threading.Event()
    monkeypatch.setattr(Flaky, "fault", staticmethod(lambda _name: goes_on.wait(60) and None))
    for number in (1, 2, 3):
        put(step, tmp_path, number)
    mirrored = open_one(tmp_path, Checkpoint(mirror=url))
    for number in (1, 2, 3):
        mirrored.add(number)
    assert numbers(tmp_path) == [3, 2, 1]
    monkeypatch.setattr(mirror, "signalled", lambda: True)
    mirrored.close(grace=0.4)
    assert (MirrorStore(url).owner() or {})["released"] is True and not MirrorStore(url).steps()
    goes_on.set()
    for thread in mirrored._threads:
        thread.join()
    assert numbers(tmp_path) == [3, 2, 1]


@pytest.mark.parametrize("address", ["nothing://bucket/run", "s3x"])
def test_an_address_that_cannot_be_opened_is_a_mistake(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(write_toml(tmp_path, checkpoint={"mirror": address})) == 2
    assert f"checkpoint.mirror = '{address}'" in capsys.readouterr().err


def test_a_run_goes_on_from_a_local_s3_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'titan-pt[mirror]'")
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    server = server_module.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        options = {"interval": 2, "mirror": "s3://bucket/run"}
        assert train_here(write_toml(tmp_path / "first", checkpoint=options)) == 0
        store = MirrorStore("s3://bucket/run")
        assert store.steps() == [6, 4, 2]
        store.remove_step(6)
        assert train_here(write_toml(tmp_path / "second", checkpoint=options)) == 0
        assert_same_step(*(tmp_path / name / "run" / "checkpoint" / "step-6" for name in ("first", "second")))
    finally:
        server.stop()
