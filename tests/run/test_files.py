"""Files that a run writes are whole at any time; text that it reads is UTF-8, or an error with line and byte."""

import codecs
import errno
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from titan_pt.config.errors import ConfigError
from titan_pt.run import files
from titan_pt.run.exit_codes import CannotStart
from titan_pt.run.files import decode_text, make_writable, read_blocks, read_text, write_atomic
from titan_pt.run.tool_files import read_lines

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Each ends a line for str.splitlines; only the first two end one in a file.
LINE_ENDS = ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
PIECES = st.sampled_from([*LINE_ENDS, "a", "é", "世", "😀", "word ", "\ufeff"])
TEXTS = st.lists(PIECES, max_size=40).map("".join)
BAD = [b"\xe9", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00"]
OTHERS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "latin-1", "cp1252", "shift-jis")


def test_write_atomic_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for text in ("old", "ça va"):
        write_atomic(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        *((number, CannotStart) for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ESTALE)),
        *((number, ConfigError) for number in (errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR)),
    ],
)
def test_a_disk_that_may_recover_is_no_mistake_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    """Exit code 1, after which clusters try again, and 2, after which they do not."""

    def fail(*, dir: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("titan_pt.run.files.tempfile.TemporaryFile", fail)
    with pytest.raises(kind, match=rf"^job\.dump_folder: cannot be written to: {os.strerror(number)}; "):
        make_writable(tmp_path, "job.dump_folder")


@pytest.mark.parametrize(
    ("folder", "where"),
    [
        ("/proc/x/y", "nothing can be made in /proc, a file system of the kernel"),
        ("file/x/y", "file is a file"),
        ("file", "file is a file"),
    ],
)
def test_a_folder_that_cannot_be_names_what_is_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"; {where}; name another folder, such as one below your home"):
        make_writable(Path(folder), f"job.dump_folder = {folder!r}")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.toml"
    write_atomic(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_files_of_every_encoding() -> None:
    """tests/cases/text: the lines of each file, or the error."""
    folder = Path(__file__).parent.parent / "cases" / "text"
    expected = json.loads((folder / "expected.json").read_text())
    assert expected.keys() == {path.name for path in folder.glob("*.txt")}
    for name, wanted in expected.items():
        for read in (read_lines, lambda path: "".join(read_blocks(path)).removesuffix("\n").split("\n")):
            if "error" in wanted:
                with pytest.raises(ConfigError, match=re.escape(f"{folder / name}, {wanted['error']}")):
                    read(folder / name)
            else:
                assert read(folder / name) == wanted["lines"], name


@quick
@given(text=TEXTS, block=st.integers(1, 30), mark=st.booleans())
def test_a_text_is_read_as_it_was_written_whatever_the_blocks(
    tmp_path: Path, text: str, block: int, mark: bool
) -> None:
    path = tmp_path / "a.txt"
    text = text.lstrip("\ufeff")
    path.write_bytes(codecs.BOM_UTF8 * mark + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_BLOCK_BYTES", block)
        assert "".join(read_blocks(path)) == text.replace("\r\n", "\n")
    assert "\n".join(read_lines(path)) == text.replace("\r\n", "\n").removesuffix("\n")


@quick
@given(
    before=TEXTS, bad=st.sampled_from([b"\xe9", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00"]), block=st.integers(1, 30)
)
def test_a_byte_that_is_not_utf8_is_found_by_line_and_byte(tmp_path: Path, before: str, bad: bytes, block: int) -> None:
    path, start = tmp_path / "a.txt", before.encode()
    path.write_bytes(start + bad + b" and so on\n" * 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_BLOCK_BYTES", block)
        with pytest.raises(ConfigError) as caught:
            read_text(path)
    line, column = start.count(b"\n") + 1, len(start) - start.rfind(b"\n")
    assert str(caught.value).startswith(f"{path}, line {line}, byte {column}: byte 0x{bad[0]:02x} is ")


@pytest.mark.parametrize("encoding", OTHERS)
def test_other_encodings_are_refused(encoding: str) -> None:
    text = "日本 in a file\n" if encoding in ("shift-jis",) or encoding.startswith("utf") else "größe in a file\n"
    with pytest.raises(ConfigError, match=r"^f, line 1, byte \d+: .*; convert it to UTF-8$") as caught:
        decode_text(text.encode(encoding), "f")
    named = re.match(r"utf-(16|32)$", encoding)
    assert not named or f"the file is UTF-{named[1]}, not UTF-8" in str(caught.value)
