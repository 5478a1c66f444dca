"""Documents of every kind of file and of the embedded sources; whatever is wrong with a file is told with its place."""

import gzip
import json
import logging
import operator
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import open_one
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Source
from titan_pt.data.sources.arrow import ArrowColumn
from titan_pt.data.sources.documents import Documents
from titan_pt.data.sources.registry import _SOURCES, check_sources, register_source
from titan_pt.data.sources.text_pieces import TEXT_DOCUMENT_CHARACTERS, cut_text

UNICODE = ["plain", "Größe 北京 🤷‍♀️", "line\nline\r\n\ttab", "nul \x00 inside", "\ufeff\u2028\x85", "'\"\\/"]


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def open_path(folder: Path, pattern: str, **options: Any) -> Documents:
    source = Source(name="mine", path=str(folder / pattern), **options)
    return open_one(source, seed=1, cache_dir=str(folder / "cache"))


def read(folder: Path, pattern: str, **options: Any) -> list[str]:
    documents = open_path(folder, pattern, **options)
    return [documents[i] for i in range(len(documents))]


def problem(folder: Path, pattern: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        open_path(folder, pattern, **options)
    (text,) = caught.value.problems
    assert text.startswith("data source 'mine': ") and "Traceback" not in text
    return text.replace(f"{folder}/", "").removeprefix("data source 'mine': ")


def test_every_kind_of_file(tmp_path: Path) -> None:
    rows = [{"id": i, "text": text} for i, text in enumerate(UNICODE)]
    (tmp_path / "a.jsonl").write_bytes(lines(*rows))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows), "utf-8")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines(*rows) + b"\n \n"))
    (tmp_path / "d.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "e.json").write_bytes(lines(*rows))
    pq.write_table(pa.table({"id": list(range(6)), "text": UNICODE}), tmp_path / "f.parquet", row_group_size=2)
    for kind in (pa.large_string(), pa.string_view()):
        pq.write_table(pa.table({"text": pa.array(UNICODE, kind)}), tmp_path / f"g_{kind}.parquet")
    pq.write_table(pa.table({"text": pa.array(UNICODE).dictionary_encode()}), tmp_path / "h.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert read(tmp_path, path.name) == UNICODE, path.name


def test_a_glob_reads_its_files_in_order(tmp_path: Path) -> None:
    for i in (2, 1, 3):
        folder = tmp_path / f"part{i}"
        folder.mkdir()
        # Only the one column has to be the same in all files.
        (folder / "x.jsonl").write_bytes(lines({"body": f"text {i}", f"extra{i}": i}))
        (folder / "y.jsonl.gz").write_bytes(gzip.compress(lines({"body": f"zipped {i}"})))
    expected = [text for i in (1, 2, 3) for text in (f"text {i}", f"zipped {i}")]
    assert read(tmp_path, "**/*.jsonl*", text_field="body") == expected
    assert read(tmp_path, "part[13]/x.jsonl", text_field="body") == ["text 1", "text 3"]


@pytest.mark.parametrize("name", ["a[1].jsonl", "s*r.jsonl", "w?y.jsonl", "sp ace.jsonl", "a::b.jsonl", ".hid.jsonl"])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "star.jsonl").write_bytes(b"the pattern s*r matches this, but the file of that name is meant")
    (tmp_path / name).write_bytes(lines({"text": "found"}))
    assert read(tmp_path, name) == ["found"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["word ", "line\n", "\n\n", "x" * 700, "é" * 5000, " "]), max_size=60))
def test_pieces_of_a_text_join_to_the_text(parts: list[str]) -> None:
    text = "".join(parts)
    for block in (7, 1 << 20):
        pieces = list(cut_text(text[i : i + block] for i in range(0, len(text), block)))
        assert "".join(pieces) == text
        assert all(TEXT_DOCUMENT_CHARACTERS < len(piece) <= 2 * TEXT_DOCUMENT_CHARACTERS for piece in pieces[:-1])
    assert len(pieces) == 0 or len(pieces[-1]) <= 2 * TEXT_DOCUMENT_CHARACTERS


def test_a_long_text_is_cut_between_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i}.\n" + "Some words here. " * (i % 40) for i in range(500)]
    text = "\ufeff" + "\n\n".join(paragraphs)
    (tmp_path / "book.txt").write_text(text, "utf-8")
    pieces = read(tmp_path, "book.txt")
    assert "".join(pieces) == text.removeprefix("\ufeff")
    assert len(pieces) > 20 and all(piece.endswith("\n\n") for piece in pieces[:-1])
    (tmp_path / "words.txt").write_text("word " * 10_000)
    assert all(piece.endswith(" ") for piece in read(tmp_path, "words.txt"))
    (tmp_path / "dos.txt").write_bytes(b"one\r\n\r\ntwo\r\n")
    assert read(tmp_path, "dos.txt") == ["one\n\ntwo\n"]


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("null.jsonl", lines({"text": "a"}, {"text": None}), r"null.jsonl, line 2: 'text' is null"),
    ("missing.jsonl", lines({"text": "a"}, {"b": 1, "a": 2}), r"missing.jsonl, line 2: no 'text'; it has a, b"),
    ("number.jsonl", lines({"text": "a"}, {"text": 5}), r"line 2: 'text' is int, not text"),
    ("list.jsonl", lines({"text": ["a"]}), r"line 1: 'text' is list, not text"),
    ("scalar.jsonl", lines("a"), r"line 1: is str, not an object"),
    ("broken.jsonl", lines({"text": "a"}) + b'\n{"text": "tru\n', r"broken.jsonl, line 3: not JSON"),
    ("latin.jsonl", '{"text": "café"}'.encode("latin-1"), r"line 1, byte 14: byte 0xe9 is not UTF-8"),
    ("surrogate.jsonl", b'{"text": "ab\\ud800"}', r"line 1: 'text' is not UTF-8: .* at character 2"),
    ("deep.jsonl", b'{"text": ' + b"[" * 100_000, r"line 1: not JSON"),
    ("digits.jsonl", b'{"text": ' + b"1" * 10_000 + b"}", r"line 1: not JSON"),
    ("empty.jsonl", b"", r"empty.jsonl: holds no documents"),
    ("blank.jsonl", b"\n\n", r"blank.jsonl: holds no documents"),
    ("hollow.jsonl", lines({"text": ""}, {"text": ""}), r"'text' holds no text in any of 2 rows"),
    ("array.json", b'[{"text": "a"}, {"text": 1}]', r"array.json, item 1: 'text' is int"),
    ("pretty.json", b'{\n "text": "a"\n}', r"pretty.json, line 1: not JSON"),
    ("plain.jsonl.gz", lines({"text": "a"}), r"plain.jsonl.gz: cannot be read: BadGzipFile"),
    ("cut.jsonl.gz", gzip.compress(lines({"text": "a"}))[:-12], r"cut.jsonl.gz: cannot be read: EOFError"),
    ("bad.parquet", b"PAR1 nothing of the kind", r"bad.parquet: cannot be read: ArrowInvalid"),
    ("empty.parquet", b"", r"empty.parquet: cannot be read"),
    ("latin.txt", "caf\xe9 noir".encode("latin-1"), r"latin.txt, line 1, byte 4: byte 0xe9 is not UTF-8"),
    ("empty.txt", b"", r"empty.txt: holds no documents"),
    ("table.csv", b"text\na\n", r"table.csv: unknown kind of file; known are .json, .jsonl, .jsonl.gz, .parquet, .txt"),
]


def test_what_is_unpacked_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("titan_pt.data.sources.json_rows._LONGEST_LINE", 1000)
    monkeypatch.setattr("titan_pt.data.sources.json_rows._LONGEST_ARRAY", 1000)
    for name, content, reason in (
        (
            "line.jsonl.gz",
            lines({"text": "a"}, {"text": "b" * 2000}),
            "line.jsonl.gz, line 2: is longer than 1,000 bytes",
        ),
        ("array.jsonl.gz", b"[" + b'{"text": "a"},' * 200, "array.jsonl.gz: an array of more than 1,000 bytes"),
    ):
        (tmp_path / name).write_bytes(gzip.compress(content))
        assert reason in problem(tmp_path, name)


@pytest.mark.parametrize(("name", "content", "reason"), BAD_FILES, ids=[name for name, _, _ in BAD_FILES])
def test_bad_files(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert re.search(reason, problem(tmp_path, name))


def test_bad_parquet_columns(tmp_path: Path) -> None:
    def write(name: str, **columns: Any) -> str:
        pq.write_table(pa.table(columns), tmp_path / name)
        return problem(tmp_path, name)

    assert "no column 'text'; it has body, id; set text_field" in write("a.parquet", id=[1], body=["x"])
    twice = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], ["text", "text"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    assert "has several columns 'text'; rename all but one" in problem(tmp_path, "twice.parquet")
    assert "row 1: 'text' is null" in write("b.parquet", text=["x", None])
    assert "row 0: 'text' is int" in write("c.parquet", text=[1])
    assert "row 0: 'text' is bytes" in write("d.parquet", text=[b"x"])
    assert "row 0: 'text' is list" in write("e.parquet", text=[["x"]])
    assert "row 0: 'text' is null" in write("f.parquet", text=pa.nulls(3))
    assert "g.parquet: holds no documents" in write("g.parquet", text=pa.array([], pa.string()))
    whole = tmp_path / "whole.parquet"
    table = pa.table({"text": [f"document {i} " * 50 for i in range(200)]})
    pq.write_table(table, whole, use_dictionary=False, compression="none", write_page_checksum=True)
    damaged = bytearray(whole.read_bytes())
    damaged[5000] ^= 1  # one bit of one text
    whole.write_bytes(damaged)
    assert "whole.parquet: cannot be read" in problem(tmp_path, "whole.parquet")


def test_the_bad_file_of_many_is_named(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.jsonl").write_bytes(lines({"text": "a"}, {"text": "b" if i != 3 else 7}))
    assert problem(tmp_path, "*.jsonl").startswith("3.jsonl, line 2: 'text' is int")
    (tmp_path / "9.txt").write_text("a")
    assert problem(tmp_path, "[0-9].*") == ".jsonl, .txt files are mixed; make path match one kind"


def test_paths_that_match_nothing(tmp_path: Path) -> None:
    assert "matches no file" in problem(tmp_path, "none-*.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone")
    assert "matches no file" in problem(tmp_path, "link.jsonl")
    assert "is a folder; name its files, such as" in problem(tmp_path.parent, tmp_path.name)
    for path in ("x" * 5000, "https://example.com/x.jsonl"):
        with pytest.raises(ConfigError, match="matches no file"):
            open_one(Source(name="mine", path=path), seed=1, cache_dir=None)
    (tmp_path / "a.txt").write_text("a")
    assert "leave text_field out" in problem(tmp_path, "a.txt", text_field="body")


def test_an_unusable_cache_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "a"}))
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigError, match=r"^data\.cache_dir = .*/cache': cannot be written to: .*; name another"):
        open_path(tmp_path, "a.jsonl")


def test_an_unusable_home_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "a"}))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/no-home/datasets")
    source = Source(name="mine", path=str(tmp_path / "a.jsonl"))
    with pytest.raises(ConfigError, match=r"^data\.cache_dir, unset, so /proc/no-home/datasets of HF_HOME: cannot be"):
        open_one(source, seed=1, cache_dir=None)


def test_a_cache_that_fills_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any, **_options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.Dataset, "from_generator", full)
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "a"}))
    assert "No space left on device; set data.cache_dir and HF_HOME to folders with space" in problem(
        tmp_path, "a.jsonl"
    )


def test_names_and_paths_are_checked_without_opening_files(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("not JSON")
    (tmp_path / "a.csv").touch()
    paths = {"none": "none-*.txt", "kind": "a.csv", "fine": "bad.jsonl"}
    sources = [Source(name=name, path=str(tmp_path / path)) for name, path in paths.items()]
    with pytest.raises(ConfigError) as caught:
        check_sources(
            [*sources, Source(name="arithmetic"), Source(name="python_stdlb"), Source(name="h", dataset="x/y")]
        )
    words = ("data source 'none'", "a.csv: unknown kind", "did you mean python_stdlib?")
    assert len(caught.value.problems) == 3
    assert all(word in problem for word, problem in zip(words, caught.value.problems, strict=True))


def test_what_is_passed_over_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "a"}, {"text": ""}, {"text": "b"}))
    (tmp_path / "b.jsonl").write_bytes(b"")
    with caplog.at_level(logging.INFO):
        assert read(tmp_path, "*.jsonl") == ["a", "", "b"]
    assert "1 of 3 documents are empty and are passed over" in caplog.text
    assert "b.jsonl: holds no documents" in caplog.text


def test_files_are_converted_again_when_they_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"text": "one", "other": "1"}))
    with caplog.at_level(logging.INFO):
        prints = [open_path(tmp_path, "a.jsonl").fingerprint for _ in range(2)]
    assert caplog.text.count("Converting") == 1 and prints[0] == prints[1]
    path.write_bytes(lines({"text": "two", "other": "1"}))
    assert read(tmp_path, "a.jsonl") == ["two"]
    prints.append(open_path(tmp_path, "a.jsonl").fingerprint)
    assert read(tmp_path, "a.jsonl", text_field="other") == ["1"]
    prints.append(open_path(tmp_path, "a.jsonl", text_field="other").fingerprint)
    (tmp_path / "moved").mkdir()
    path.rename(tmp_path / "moved" / "a.jsonl")
    assert open_path(tmp_path / "moved", "a.jsonl").fingerprint == prints[2], "the folder does not matter"
    assert len(set(prints)) == 3


def test_datasets_of_the_hub_library(tmp_path: Path) -> None:
    """A local dataset folder stands in for the hub."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(lines({"text": "a", "n": 1}, {"text": None, "n": 2}))
    (folder / "test.jsonl").write_bytes(lines({"text": "c", "n": 1}))

    def open_dataset(**options: Any) -> Documents:
        return open_one(Source(name="hub", dataset=str(folder), **options), seed=1, cache_dir=str(tmp_path / "cache"))

    assert open_dataset(split="test")[0] == "c"
    for options, reason in [
        ({}, "row 1: 'text' is null"),
        ({"split": "dev"}, 'Unknown split "dev"'),
        ({"split": "test", "text_field": "body"}, "no column 'body'; it has n, text"),
        ({"split": "test", "text_field": "n"}, "column 'n' holds int64, not text"),
        ({"subset": "none"}, "BuilderConfig 'none' not found"),
    ]:
        with pytest.raises(ConfigError, match="data source 'hub': ") as caught:
            open_dataset(**options)
        assert reason in str(caught.value)


def test_a_column_of_many_chunks_finds_its_null() -> None:
    import datasets

    parts = [datasets.Dataset.from_dict({"text": ["a", "b"]}), datasets.Dataset.from_dict({"text": ["c", None, "d"]})]
    with pytest.raises(ConfigError, match="row 3: 'text' is null"):
        ArrowColumn(datasets.concatenate_datasets(parts), "text", "here", "print")


def test_python_stdlib() -> None:
    source = open_one(Source(name="python_stdlib"), seed=1, cache_dir=None)
    texts = [source[i] for i in range(len(source))]
    assert 5e6 < sum(map(len, texts)) < 50e6
    assert not any("test" in path.parts or "site-packages" in path.parts for path in source._items._files)
    assert sum("import unittest" in text[:3000] for text in texts) < 20, "the tests are left out"
    assert len(set(texts)) > 0.9 * len(texts)
    assert source.fingerprint == open_one(Source(name="python_stdlib"), seed=2, cache_dir=None).fingerprint


def test_arithmetic() -> None:
    source, other = (open_one(Source(name="arithmetic"), seed=seed, cache_dir=None) for seed in (1, 2))
    assert len(source) == 1_000_000 and source.fingerprint != other.fingerprint
    assert [source[i] for i in range(50)] != [other[i] for i in range(50)]
    for i in [*range(300), 999_999]:
        assert source[i] == source[i]
        match = re.fullmatch(r"Question: What is (.*)\?\nAnswer: (.*) = (-?\d+)\n#### (-?\d+)\n", source[i])
        assert match and match[1] == match[2] and match[3] == match[4]
        a, sign, b = match[1].split()
        assert {"+": operator.add, "-": operator.sub, "*": operator.mul}[sign](int(a), int(b)) == int(match[4])
    with pytest.raises(IndexError):
        source[1_000_000]


def test_registered_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(list[Any]):
        fingerprint = "odd"

    monkeypatch.setattr(_SOURCES, "_registered", {})
    register_source("odd", lambda _source, _seed: Odd(["fine", None, 5, "\ud800"]))
    register_source("none", lambda _source, _seed: Odd())
    with pytest.raises(ValueError, match="registered already"):
        register_source("odd", lambda _source, _seed: Odd())
    source = open_one(Source(name="odd"), seed=1, cache_dir=None)
    assert source[0] == "fine" and source.fingerprint == "odd"
    for index, reason in ((1, "is null"), (2, "is int, not text"), (3, "is not UTF-8")):
        with pytest.raises(ConfigError, match=f"data source 'odd': document {index} {reason}"):
            source[index]
    for name, reason in (("none", "holds no documents"), ("arithmetics", "did you mean arithmetic")):
        with pytest.raises(ConfigError, match=reason):
            open_one(Source(name=name), seed=1, cache_dir=None)


@pytest.mark.realdata
def test_real_files(realdata: Path, tmp_path: Path) -> None:
    def count(pattern: str) -> int:
        source = Source(name="real", path=str(realdata / "text" / pattern))
        return len(open_one(source, seed=1, cache_dir=str(tmp_path)))

    assert count("fineweb/train-*.parquet") == 2445
    assert count("books/train.jsonl.gz") == 1333
    assert count("tinyshakespeare/input.txt") > 200
