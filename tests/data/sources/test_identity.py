"""A file is what it holds: corrections of the same length and time are read, told on a resume, and nothing else is."""

import functools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import ThreadWorld, open_one
from hub_server import serving
from row_group_helpers import config_of, quick

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import Source
from titan_pt.data.builtin import formatters
from titan_pt.data.remote import later_hashes
from titan_pt.data.sources import formatter_sources, identity
from titan_pt.data.sources.alone import open_alone
from titan_pt.data.sources.documents import contents_of
from titan_pt.data.sources.formatter_sources import sources_hash
from titan_pt.data.sources.formatters import FORMATTERS, register_formatter
from titan_pt.data.sources.identity import KnownFiles
from titan_pt.data.stream.loader import DataLoader, build_dataloader
from titan_pt.tools.prepare import prepare
from titan_pt.validate import validation_rows

__all__ = ["quick"]  # a fixture

ROWS = 300
Write = Callable[[Path, str], None]


def rows(word: str) -> list[str]:
    """Texts of which only some in the middle hold the word: sizes, and both ends of a file, stay as they are."""
    return [f"row {i:03d} of {word if 40 <= i < 80 else 'other'}" + " and so on" * 30 for i in range(ROWS)]


def jsonl(path: Path, word: str) -> None:
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows(word)))


def parquet(path: Path, word: str, group: int = 10) -> None:
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"text": rows(word)}), path, row_group_size=group, **options)


def folder(path: Path, word: str) -> None:
    path.mkdir(exist_ok=True)
    jsonl(path / "train.jsonl", word)


def saved(path: Path, word: str) -> None:
    shutil.rmtree(path, ignore_errors=True)
    datasets.Dataset.from_dict({"text": rows(word)}).save_to_disk(path)


KINDS: dict[str, tuple[dict[str, str], Write]] = {
    "jsonl": ({"path": "a.jsonl"}, jsonl),
    "json": ({"path": "a.json"}, lambda path, word: path.write_text(json.dumps([{"text": row} for row in rows(word)]))),
    "txt": ({"path": "a.txt"}, lambda path, word: path.write_text("\n\n".join(rows(word)))),
    "few row groups": ({"path": "few.parquet"}, lambda path, word: parquet(path, word, 100)),
    "many row groups": ({"path": "many.parquet"}, parquet),
    "dataset folder": ({"dataset": "set"}, folder),
    "save_to_disk": ({"dataset": "saved"}, saved),
}


def source_of(tmp_path: Path, kind: str, **options: Any) -> tuple[Source, Path]:
    ((key, name),) = KINDS[kind][0].items()
    return Source(name="mine", **{key: str(tmp_path / name)}, **options), tmp_path / name


def loader_of(tmp_path: Path, source: Source) -> DataLoader:
    config = config_of(tmp_path, source, streams=2)
    return build_dataloader(config, ByteTokenizer(), ThreadWorld(), plan_run_size(config, 1))


def checkpoint(loader: DataLoader) -> dict[str, Any]:
    """The part of data.json that is about the sources."""
    return json.loads(json.dumps({"identity": loader.identity(), "contents": loader.contents()}))


def words(loader: DataLoader) -> tuple[int, int]:
    """How many documents hold the first word, and the second."""
    documents = loader.mixture.sources[0].documents
    found = [documents[i] for i in range(len(documents))]
    return tuple(sum(text.count(word) for text in found) for word in ("apple", "peach"))  # type: ignore[return-value]


@pytest.mark.parametrize("put_back", [True, False], ids=["same mtime", "new mtime"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_corrected_file_is_read_and_a_resume_on_it_refused(tmp_path: Path, kind: str, put_back: bool) -> None:
    source, path = source_of(tmp_path, kind)
    write = KINDS[kind][1]
    write(path, "apple")
    loader = loader_of(tmp_path, source)
    assert words(loader) == (40, 0)
    before = checkpoint(loader)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    times = {file: file.stat() for file in files}
    write(path, "peach")
    for file in files if put_back else []:
        assert file.stat().st_size == times[file].st_size, "the case is about files of the same length"
        os.utime(file, ns=(times[file].st_atime_ns, times[file].st_mtime_ns))
    again = loader_of(tmp_path, source)
    assert words(again) == (0, 40), "no old text"
    (told,), _ = again.source_differences(before)
    assert told.startswith("data source 'mine': ") and path.name in told and "not what the checkpoint" in told
    old = {"identity": before["identity"]}  # of an earlier release: names, sizes and ends alone
    assert again.source_differences(old) == ([], [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_another_time_or_place_is_the_same(tmp_path: Path, kind: str) -> None:
    source, path = source_of(tmp_path / "one", kind)
    path.parent.mkdir()
    KINDS[kind][1](path, "apple")
    before = checkpoint(loader_of(tmp_path, source))
    for file in [path] if path.is_file() else path.rglob("*"):
        os.utime(file)
    touched = loader_of(tmp_path, source)
    assert touched.source_differences(before) == ([], []) and checkpoint(touched)["contents"] == before["contents"]
    if source.path is None:
        return  # of a dataset folder the path is part of the identity
    (tmp_path / "one").rename(tmp_path / "two")
    moved = source.model_copy(update={"path": source.path.replace("/one/", "/two/")})
    assert loader_of(tmp_path, moved).source_differences(before) == ([], [])


@pytest.mark.parametrize("group", [10, 100], ids=["row groups", "converted"])
def test_files_of_one_name_do_not_share_texts(tmp_path: Path, group: int) -> None:
    """`v2/0.parquet` after `v1/0.parquet`, and both in one glob; as long, with the same end."""
    for version, word in (("v1", "apple"), ("v2", "peach")):
        (tmp_path / version).mkdir()
        parquet(tmp_path / version / "0.parquet", word, group)
    for pattern, found in (("v1", (40, 0)), ("v2", (0, 40)), ("v*", (40, 40))):
        loader = loader_of(tmp_path, Source(name="mine", path=str(tmp_path / pattern / "0.parquet")))
        assert words(loader) == found


def test_texts_are_read_from_the_cache_where_nothing_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start of known files asks for their state alone: no hash, no footer."""
    for i in range(3):
        parquet(tmp_path / f"{i}.parquet", "apple")
    source = Source(name="mine", path=str(tmp_path / "*.parquet"))
    first = checkpoint(loader_of(tmp_path, source))

    def opened(path: str, *_: Any) -> Any:
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr(identity, "content_hash", opened)
    monkeypatch.setattr("titan_pt.data.remote.listing.describe_local", opened)
    assert checkpoint(loader_of(tmp_path, source)) == first
    (record,) = (tmp_path / "cache" / "known_files").glob("*.json")
    record.write_text(record.read_text().replace("apple", "x").replace('"rows"', '"cows"'))
    with pytest.raises(AssertionError, match="is read again"):
        loader_of(tmp_path, source)  # a damaged record is none


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    known, path = KnownFiles(str(tmp_path / "file")), str(tmp_path / "a.jsonl")
    jsonl(Path(path), "apple")
    assert known.hashes([path]) == known.hashes([path]) == KnownFiles(str(tmp_path / "cache")).hashes([path])
    assert known.facts([path], "other", lambda _: 1) == [1]
    assert caplog.text.count("hashes of files are not kept") == 1


def test_a_long_hashing_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = [str(tmp_path / name) for name in "abc"]
    for path in files:
        Path(path).write_bytes(bytes(2_000_000))
    monkeypatch.setattr("os.path.getsize", lambda _: 300_000_000)
    monkeypatch.setattr("titan_pt.run.progress.FIRST_SECONDS", 0.0)
    monkeypatch.setattr("titan_pt.run.progress.LONGEST_PAUSE", 0.0)
    with caplog.at_level("INFO", "titan_pt"):
        assert len(set(KnownFiles(str(tmp_path / "cache")).hashes(files))) == 1
    assert caplog.messages[-1].startswith("Hashing files once, to know them again: 6 of 900 MB (1%), ")
    assert "MB/s, eta " in caplog.messages[-1]


def test_a_file_that_is_written_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    jsonl(path, "apple")

    def find(_: str) -> int:
        with path.open("a") as file:
            file.write("{}\n")
        return 1

    with pytest.raises(ConfigError, match=r"a\.jsonl: it was written to while it was read"):
        KnownFiles(str(tmp_path / "cache")).facts([str(path)], "x", find)


def test_a_file_changed_during_a_run_ends_it(tmp_path: Path) -> None:
    source, path = source_of(tmp_path, "many row groups")
    parquet(path, "apple")
    loader = loader_of(tmp_path, source)
    documents = loader.mixture.sources[0].documents
    assert "other" in documents[0]
    os.utime(path)
    assert "other" in documents[20], "a new time alone is no change"
    parquet(path, "peach")
    with pytest.raises(ConfigError, match=r"'mine': .*many\.parquet is another file now than at the start"):
        _ = documents[200]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any file stands for one that is too large to be hashed at the start."""
    for module in ("data.remote.sources", "data.remote.download", "data.sources.prepared", "data.remote.later_hashes"):
        monkeypatch.setattr(f"titan_pt.{module}.HASHED_AT_START_BYTES", 0)


def test_large_files_are_hashed_beside_the_training(
    tmp_path: Path, large: None, caplog: pytest.LogCaptureFixture
) -> None:
    source, path = source_of(tmp_path, "many row groups")
    parquet(path, "apple")
    loader = loader_of(tmp_path, source)
    ((_, state),) = loader.contents()["mine"]
    assert re.fullmatch(r"state \d+ \d+ \d+", state), "the start does not read it whole"
    assert loader.next_batch()
    wait_for(lambda: loader.contents()["mine"][0][1] != state)
    before = checkpoint(loader)
    loader.close()
    assert checkpoint(loader_of(tmp_path, source)) == before, "known from now on"
    shutil.move(tmp_path / "cache", tmp_path / "of another machine")
    elsewhere = loader_of(tmp_path, source)
    with caplog.at_level("INFO"):
        assert elsewhere.source_differences(before) == ([], []) and "Hashing" not in caplog.text, "the same state"
        os.utime(path)
        assert loader_of(tmp_path, source).source_differences(before) == ([], [])
    assert re.search(r"Hashing 0\.0 GB, for the file has another time or place.*many\.parquet", caplog.text)
    parquet(path, "peach")
    again = loader_of(tmp_path, source)
    for _ in range(2):
        (told,), _ = again.source_differences(before)
        assert re.search(r"'mine': .*many\.parquet is not what the checkpoint was trained on", told)
    assert loader_of(tmp_path, source).source_differences({"identity": before["identity"]}) == ([], [])


def old_shards(path: Path, word: str) -> None:
    """Token shards of a release that kept no checksums."""
    shutil.rmtree(path, ignore_errors=True)
    jsonl(path.parent / "a.jsonl", word)
    text = Source(name="mine", path=str(path.parent / "a.jsonl"))
    prepare(config_of(path.parent, text), "mine", path)
    about = json.loads((path / "prepared.json").read_text())
    kept = {key: value for key, value in about.items() if key not in ("contents", "sum", "blocks")}
    (path / "prepared.json").write_text(json.dumps({**kept, "fingerprint": "as it is"}))


LARGE: dict[str, tuple[dict[str, str], Write]] = {
    "many row groups": KINDS["many row groups"],
    "save_to_disk": KINDS["save_to_disk"],
    "old shards": ({"path": "shards"}, old_shards),
}


@pytest.mark.parametrize("hashed", ["never", "after the checkpoint"])
@pytest.mark.parametrize("kind", LARGE)
def test_a_large_file_corrected_before_its_hash_was_saved_is_refused(
    tmp_path: Path, kind: str, hashed: str, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((key, name),), write = LARGE[kind][0].items(), LARGE[kind][1]
    source, path = Source(name="mine", **{key: str(tmp_path / name)}), tmp_path / name
    write(path, "apple")
    loader = loader_of(tmp_path, source)
    before = checkpoint(loader)
    assert all(told.startswith("state ") for _, told in before["contents"]["mine"])
    assert loader_of(tmp_path, source).source_differences(before) == ([], []), "nothing was touched"
    if hashed != "never":
        assert loader.next_batch()
        wait_for(lambda: all(not told.startswith("state ") for _, told in loader.contents()["mine"]))
    loader.close()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        os.utime(file)
    moved, _ = loader_of(tmp_path, source).source_differences(before)
    assert [("cannot be told" in told) for told in moved] == ([True] if hashed == "never" else [])
    write(path, "peach")
    (told,), _ = loader_of(tmp_path, source).source_differences(before)
    why = "cannot be told" if hashed == "never" else "not what the checkpoint was trained on"
    assert told.startswith("data source 'mine': ") and any(str(file) in told for file in files) and why in told
    write(path, "apple")  # restored: the hash of the other one has not taken the place of the right one
    if hashed != "never" and kind == "many row groups":
        assert loader_of(tmp_path, source).source_differences(before) == ([], [])


def test_a_file_touched_before_it_was_hashed_is_not_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(tmp_path / "a.jsonl")
    jsonl(Path(path), "apple")
    later = later_hashes.LaterHashes([(path, "")], str(tmp_path / "cache"))
    os.utime(path)
    before = list(later)
    later.start()
    wait_for(lambda: "a.jsonl cannot be hashed: it was touched or changed since the start" in caplog.text)
    assert list(later) == before and before[0][1].startswith("state ")


def test_corrected_validation_files_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, path = source_of(tmp_path, "jsonl")
    jsonl(path, "apple")
    jsonl(tmp_path / "val.jsonl", "apple")
    config = config_of(tmp_path, source, streams=2)
    own = [Source(name="mine", path=str(tmp_path / "val.jsonl"))]
    config = config.model_copy(update={"validation": config.validation.model_copy(update={"sources": own})})

    def started() -> DataLoader:
        size = plan_run_size(config, 1)
        loader = build_dataloader(config, ByteTokenizer(), ThreadWorld(), size)
        context: Any = SimpleNamespace(config=config, world=ThreadWorld(), dataloader=loader, run_size=size)
        assert validation_rows(context)
        return loader

    before = checkpoint(started())
    assert started().source_differences(before) == ([], []) and not caplog.text
    jsonl(tmp_path / "val.jsonl", "peach")
    again = started()
    assert again.source_differences(before) == ([], []), "the training goes on"
    assert re.search(r"validation\.sources mine: .*val\.jsonl is not what the run was validated on", caplog.text)
    caplog.clear()
    old = {**before, "contents": {"mine": before["contents"]["mine"]}}
    assert again.source_differences(old) == ([], []) and not caplog.text


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("tells", ["ETag", "Last-Modified", None])
def test_remote_files_are_known_by_what_the_server_says(tmp_path: Path, tells: str | None) -> None:
    (tmp_path / "files").mkdir()
    parquet(tmp_path / "files" / "0.parquet", "apple")
    with serving(tmp_path / "files") as server:
        server.version = {tells: "one"} if tells else {}
        source = Source(name="mine", path=f"{server.url}/0.parquet")
        loader = loader_of(tmp_path / "first", source)
        assert words(loader) == (40, 0)
        before = checkpoint(loader)
        parquet(tmp_path / "files" / "0.parquet", "peach")
        server.version = {tells: "two"} if tells else {}
        shutil.copytree(tmp_path / "first" / "cache", tmp_path / "second" / "cache")
        other = loader_of(tmp_path / "second", source)  # another run, with the same cache
        assert words(other) == (0, 40)
        assert any(other.source_differences(before)) == bool(tells)
        if tells:
            with pytest.raises(ConfigError, match=r"0\.parquet at .* changed since the run began"):
                loader_of(tmp_path / "first", source)


# -- formatters --------------------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module whose formatter calls a helper of another one, which is imported late."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "clean_helper.py").write_text('def clean(text):\n    return "OLD " + text\n')
    (tmp_path / "clean_plugin.py").write_text(
        "import json\n\ndef clean(row):\n    import clean_helper\n    return clean_helper.clean(row['text'])\n"
    )
    return tmp_path / "clean_helper.py"


@pytest.mark.parametrize("kind", ["jsonl", "many row groups", "dataset folder"])
def test_an_edited_helper_makes_the_texts_anew(tmp_path: Path, module: Path, kind: str) -> None:
    source, path = source_of(tmp_path, kind, formatter="cleaned")
    KINDS[kind][1](path, "apple")
    found = []
    for text in ('"OLD " + text', '"NEW " + text', '"NEW " + text  # a comment'):
        module.write_text(f"def clean(text):\n    return {text}\n")
        for name in ("clean_helper", "clean_plugin"):
            sys.modules.pop(name, None)
        import clean_plugin

        FORMATTERS._registered.pop("cleaned", None)
        register_formatter("cleaned", ("text",), clean_plugin.clean)
        formatter_sources._module_sources.cache_clear()  # as in a new process
        loader = loader_of(tmp_path, source)
        found.append((loader, loader.mixture.sources[0].documents[50][:3]))
    FORMATTERS._registered.pop("cleaned")
    (old, one), (new, two), (comment, three) = found
    assert (one, two, three) == ("OLD", "NEW", "NEW")
    assert old.identity() == new.identity(), "as earlier releases have it"
    if kind != "many row groups":
        (told,), _ = new.source_differences(checkpoint(old))
        assert "formatter 'cleaned' is not what the checkpoint" in told
    assert comment.source_differences(checkpoint(new)) == ([], []), "the same texts"


def test_what_a_function_holds_is_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(word: str, names: frozenset[str] = frozenset("ab")) -> Any:
        return lambda row: word + row["text"] if word in names else ""

    def take(word: str, row: Any) -> str:
        return word + row["text"]

    assert sources_hash(made("a")) == sources_hash(made("a")) != sources_hash(made("b"))
    assert sources_hash(functools.partial(take, "a")) != sources_hash(functools.partial(take, "b"))
    before = sources_hash(formatters.format_gsm8k)
    assert before == sources_hash(formatters.format_gsm8k)
    with monkeypatch.context() as patch:
        patch.setattr(formatters, "QUESTION_ANSWER", "Q: {question}")  # of another module of ours
        assert sources_hash(formatters.format_gsm8k) != before
    monkeypatch.setattr(formatters, "_CALCULATOR", re.compile("<<"))  # of a function that it calls
    assert sources_hash(formatters.format_gsm8k) != before


# -- token shards ------------------------------------------------------------------------------------------------------


def shards(tmp_path: Path) -> tuple[Path, Source]:
    jsonl(tmp_path / "a.jsonl", "apple")
    prepare(config_of(tmp_path, Source(name="mine", path=str(tmp_path / "a.jsonl"))), "mine", tmp_path / "tokens")
    return tmp_path / "tokens", Source(name="mine", path=str(tmp_path / "tokens"))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("large", [False, True], ids=["at the start", "as it is read"])
@pytest.mark.parametrize("name", ["tokens.bin", "ends.npy", "bytes.npy", "hashes.npy", "prepared.json"])
def test_damaged_shards_are_told_by_file(
    tmp_path: Path, name: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, source = shards(tmp_path)
    if large:
        monkeypatch.setattr("titan_pt.data.sources.prepared.HASHED_AT_START_BYTES", 0)
    config = config_of(tmp_path, source)

    def read() -> None:
        (opened,) = open_alone([source], config)
        documents: Any = opened.documents
        for i in range(len(documents)):
            documents.tokens(i), documents.num_bytes(i), documents.holdout_hash(i)

    (tmp_path / "cache" / "known_files").rename(tmp_path / "known")
    read()
    flip(tokens / name, -5 if name == "prepared.json" else 1000)
    with pytest.raises(ConfigError, match=rf"tokens/{name}: damaged|tokens: not a whole"):
        read()


@pytest.mark.parametrize("damage", ["ends", "ids"])
def test_shards_of_an_earlier_release_are_looked_at(tmp_path: Path, damage: str) -> None:
    tokens, source = shards(tmp_path)
    about = json.loads((tokens / "prepared.json").read_text())
    (tokens / "prepared.json").write_text(
        json.dumps({k: about[k] for k in about.keys() - {"contents", "sum", "blocks"}})
    )
    (tokens / "sums.npy").unlink()
    loader_of(tmp_path, source)
    flip(tokens / {"ends": "ends.npy", "ids": "tokens.bin"}[damage], 1001 if damage == "ids" else 1000 + 3)
    with pytest.raises(ConfigError, match=r"tokens/(ends\.npy|tokens\.bin): damaged: "):
        loader_of(tmp_path, source)


@pytest.mark.parametrize("kind", ["jsonl", "many row groups"])
def test_shards_are_of_the_present_documents(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    source, path = source_of(tmp_path, kind)
    KINDS[kind][1](path, "apple")
    config = config_of(tmp_path, source, streams=2)
    for _ in range(2):
        with caplog.at_level("INFO"):
            prepare(config, "mine", tmp_path / "tokens")
    assert caplog.text.count("prepared already") == 1
    KINDS[kind][1](path, "peach")
    with pytest.raises(ConfigError, match=r"--output .*tokens': holds the token shards of other documents"):
        prepare(config, "mine", tmp_path / "tokens")


# -- parquet files that are not what they should be --------------------------------------------------------------------


def test_every_local_file_has_the_columns(tmp_path: Path) -> None:
    parquet(tmp_path / "0.parquet", "apple")
    pq.write_table(pa.table({"content": rows("apple")}), tmp_path / "1.parquet", row_group_size=10)
    with pytest.raises(ConfigError, match=r"1\.parquet: no column 'text'; it has content"):
        loader_of(tmp_path, Source(name="mine", path=str(tmp_path / "*.parquet")))


def test_a_remote_file_without_the_column_is_named_where_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    parquet(tmp_path / "files" / "0.parquet", "apple")
    pq.write_table(pa.table({"content": rows("apple")}), tmp_path / "files" / "1.parquet", row_group_size=10)
    with serving(tmp_path / "files") as server:
        loader = loader_of(tmp_path, Source(name="mine", path=f"{server.url}/{{0..1}}.parquet"))
        with pytest.raises(ConfigError, match=r"'mine': 1\.parquet: no column 'text'; it has content"):
            for _ in range(1000):
                loader.next_batch()


@pytest.mark.parametrize(("group", "place"), [(10, "row group 7: row 3: "), (100, "row 73: ")])
def test_a_row_that_is_not_utf8_is_named(
    tmp_path: Path, group: int, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [row.encode() for row in rows("apple")]
    texts[73] = b"caf\xe9 and more"
    binary = pa.array(texts, pa.binary())
    column = pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())  # by a writer that does not look
    pq.write_table(pa.table({"text": column}), tmp_path / "latin.parquet", row_group_size=group)
    source = Source(name="mine", path=str(tmp_path / "latin.parquet"), max_epochs=1.0)
    wanted = f"latin.parquet, {place}'text' is not UTF-8: byte 0xe9 at 3"
    if group == 100:
        with pytest.raises(ConfigError) as refused:
            loader_of(tmp_path, source)
        assert wanted in str(refused.value)
        return
    loader = loader_of(tmp_path, source)
    while loader.next_batch() is not None:
        pass
    assert wanted in caplog.text and "is given up in epoch 0" in caplog.text


def test_splits_of_save_to_disk(tmp_path: Path) -> None:
    one = datasets.Dataset.from_dict({"text": ["a", "b"]})
    datasets.DatasetDict(train=one, test=one.select([1])).save_to_disk(tmp_path / "set")

    def texts(**options: Any) -> list[str]:
        documents = open_one(Source(name="mine", dataset=str(tmp_path / "set"), **options), 1, str(tmp_path / "cache"))
        assert all(content for _, content in contents_of(documents))
        return [documents[i] for i in range(len(documents))]

    assert texts() == ["a", "b"] and texts(split="test") == ["b"]
    with pytest.raises(ConfigError, match=r"split = 'dev': .* has test, train"):
        texts(split="dev")
    with pytest.raises(ConfigError, match=r"subset = 'x': .* was written by save_to_disk"):
        texts(subset="x")
