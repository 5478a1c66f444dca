"""compile.cache_dir: compiled code that lasts, and damage that costs a compilation and no run."""

import fcntl
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import ROOT

from titan_pt.distributed import compile_cache
from titan_pt.distributed.compile_cache import CacheListing, throw_away_damage

Damage = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two files that are listed, and one that came later."""
    inductor = tmp_path / "inductor"
    (inductor / "ab" / "locks").mkdir(parents=True)
    for name in ("ab/one.so", "ab/two.py"):
        (inductor / name).write_bytes(name.encode() * 99)
    (inductor / "ab" / "locks" / "x.lock").write_text("")
    CacheListing(tmp_path).write(settled_seconds=0.0)
    (inductor / "ab" / "late.so").write_bytes(b"cut")
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.suffix in (".so", ".py")}


def test_what_is_as_it_was_listed_stays(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    throw_away_damage(folder)
    assert names(folder) == {"one.so", "two.py"} and not caplog.records, "a kill may have cut what was not listed"


def test_runs_that_share_the_folder_list_it_at_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sweep's runs: one renamed the file that the other was about to rename."""
    (folder / "files.json").unlink()

    def write(_: int) -> None:
        CacheListing(folder).write(settled_seconds=0.0)
        (folder / "files.json").unlink(missing_ok=True)  # so that the next one has something to list again

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(80)))
    assert not caplog.records and [path.name for path in folder.glob("files.json*")] in ([], ["files.json"])
    (folder / "files.json-5eed").write_text("{")
    throw_away_damage(folder)
    assert not (folder / "files.json-5eed").exists(), "what a kill left"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "inductor/ab/one.so").write_bytes(os.urandom(99)),
        lambda folder: os.truncate(folder / "inductor/ab/one.so", 5),
        lambda folder: (folder / "inductor/ab/two.py").unlink(),
    ],
    ids=["garbage", "cut", "gone"],
)
def test_damage_throws_all_away(folder: Path, caplog: pytest.LogCaptureFixture, damage: Damage) -> None:
    damage(folder)
    with caplog.at_level(logging.WARNING, "titan_pt"):
        throw_away_damage(folder)
    assert not names(folder) and "is damaged; it is thrown away" in caplog.text
    throw_away_damage(folder)
    assert caplog.text.count("thrown away") == 1


@pytest.mark.parametrize("content", [b"\xff\x00", b"[1]", b"{", b"[" * 99_999])
def test_a_damaged_list_is_none(folder: Path, content: bytes) -> None:
    (folder / "files.json").write_bytes(content)
    throw_away_damage(folder)
    assert not names(folder)


def test_files_are_listed_when_they_have_settled(folder: Path) -> None:
    listing = CacheListing(folder)
    listing.write(settled_seconds=60)
    assert "ab/late.so" not in json.loads((folder / "files.json").read_text())
    os.utime(folder / "inductor/ab/late.so", (time.time() - 99, time.time() - 99))
    listing.write(settled_seconds=60)
    throw_away_damage(folder)
    assert names(folder) == {"one.so", "two.py", "late.so"}


def test_nothing_is_removed_under_another_process(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_cache, "_machine", lambda _type: "")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("RANK", "1")  # which lists nothing
    (folder / "inductor/ab/one.so").write_bytes(b"x")
    other = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_SH)
    compile_cache.use_cache.__wrapped__(str(tmp_path), "cpu")
    assert names(folder) == {"one.so", "two.py", "late.so"}
    os.close(other)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "inductor")


COMPILE = """
import os, sys
from pathlib import Path
import torch, torch._inductor.compile_fx, torch._inductor.codegen.cpp
from torch._dynamo.utils import counters
from titan_pt.distributed import compile_cache

def hits():
    # In a process of its own, which finds what earlier ones left on the disk.
    read, write = os.pipe()
    if not (child := os.fork()):
        compile_cache._SETTLED_SECONDS = 0.0
        compile_cache.CacheListing.write.__defaults__ = (0.0,)
        compile_cache.use_cache(sys.argv[1], "cpu")
        x = torch.arange(8.0)
        assert torch.compile(lambda x: x.sin() * 2)(x).allclose(x.sin() * 2)
        os.write(write, b"%d" % counters["inductor"]["fxgraph_cache_hit"])
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
    return int(os.read(read, 9))

found = [hits(), hits()]
for path in Path(sys.argv[1]).rglob("*"):
    if path.is_file():
        path.write_bytes(os.urandom(64))
print(*found, hits(), hits())
"""


@pytest.mark.slow
def test_garbage_in_the_cache_is_compiled_anew(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMPILE, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TORCHINDUCTOR_VEC_ISA_OK": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "1", "0", "1"], done.stderr
