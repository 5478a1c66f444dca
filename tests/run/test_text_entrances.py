"""A text file of any encoding through every entrance: UTF-8 is read the same everywhere, all else is refused alike."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_helpers import open_one
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_helpers import build, hugging_face

from titan_pt.components.tiktoken_tokenizer import read_rank_file
from titan_pt.config import ConfigError, load_config
from titan_pt.config.schema.job_config import Source
from titan_pt.evaluation.text import read_documents
from titan_pt.hf.transformer import read_object
from titan_pt.tools.generate import read_prompts

# No line ends here, though str.splitlines takes them for some.
ODD = "größe 日本 a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\ufeffh"
OTHERS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "latin-1", "gb18030")


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def from_source(path: Path) -> Any:
    documents = open_one(Source(name="mine", path=str(path)), cache_dir=str(path.parent / "cache"))
    return [documents[i] for i in range(len(documents))]


def template(path: Path) -> Any:
    hugging_face(path.parent, "<|endoftext|>")
    return build(path.parent).chat_template


def as_json(key: str) -> Callable[[str], str]:
    return lambda text: f"{json_text({key: text})}\n"


def line(text: str) -> str:
    return f"{text}\n"


# (name of the file, what it holds of a text, how it is read, what that gives)
ENTRANCES: dict[str, tuple[str, Callable[[str], str], Callable[[Path], Any], Callable[[str], Any]]] = {
    "TOML": (
        "x.toml",
        lambda text: f'[job]\ndescription = """{text}"""\n[[data.sources]]\nname = "python_stdlib"\n',
        lambda path: load_config(["--job.config_file", str(path)]).job.description,
        lambda text: text,
    ),
    "prompts .txt": (
        "x.txt",
        lambda text: f"{text}\n\nnext\n",
        lambda path: read_prompts(str(path)),
        lambda text: [text, "next"],
    ),
    "prompts .jsonl": ("x.jsonl", as_json("prompt"), lambda path: read_prompts(str(path)), lambda text: [text]),
    "evaluate .txt": ("x.txt", line, lambda path: list(read_documents(str(path))), lambda text: [f"{text}\n"]),
    "evaluate .json": ("x.json", as_json("text"), lambda path: list(read_documents(str(path))), lambda text: [text]),
    "source .txt": ("x.txt", line, from_source, lambda text: [f"{text}\n"]),
    "source .jsonl": ("x.jsonl", as_json("text"), from_source, lambda text: [text]),
    "config.json": ("config.json", as_json("a"), read_object, lambda text: {"a": text}),
    "tokenizer_config.json": ("tokenizer_config.json", as_json("chat_template"), template, lambda text: text),
    "chat template": ("chat_template.jinja", line, template, line),
}
FAST = [name for name in ENTRANCES if not name.startswith("source") and "template" not in name]
# What a TOML or JSON text cannot hold as it is.
FORBIDDEN = {"TOML": "\x0b\x0c\x1c", "JSON": "\x0b\x0c\x1c"}


def spoken(entrance: str) -> str:
    """The odd text, without what the kind of file forbids."""
    kind = "TOML" if entrance == "TOML" else "JSON" if "json" in entrance else ""
    return "".join(character for character in ODD if character not in FORBIDDEN.get(kind, ""))


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_utf8_is_read_the_same_everywhere(tmp_path: Path, entrance: str) -> None:
    name, write, read, expected = ENTRANCES[entrance]
    for number, (mark, end) in enumerate(
        ((b"", "\n"), (b"\xef\xbb\xbf", "\n"), (b"", "\r\n"), (b"\xef\xbb\xbf", "\r\n"))
    ):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        path.write_bytes(mark + write(spoken(entrance)).replace("\n", end).encode())
        assert read(path) == expected(spoken(entrance)), (mark, end)


@pytest.mark.parametrize("encoding", OTHERS)
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_all_else_is_refused_by_file_line_and_byte(tmp_path: Path, entrance: str, encoding: str) -> None:
    name, write, read, _ = ENTRANCES[entrance]
    path = tmp_path / name
    path.write_bytes(write("größe").encode(encoding))
    with pytest.raises(ConfigError, match=rf"{name}.*, line \d+, byte \d+: .*(UTF-8|UTF-16|UTF-32)") as caught:
        read(path)
    assert len(caught.value.problems) == 1 and str(path) in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=60),
    entrance=st.sampled_from(FAST),
)
def test_whatever_the_bytes_it_is_read_or_refused(tmp_path: Path, content: bytes, entrance: str) -> None:
    name, _, read, _ = ENTRANCES[entrance]
    (tmp_path / name).write_bytes(content)
    try:
        read(tmp_path / name)
    except ConfigError as error:
        assert str(tmp_path) in str(error) or "data.sources: empty" in str(error)


def test_ranks_with_a_mark_and_windows_line_ends(tmp_path: Path) -> None:
    lines = [f"{base64.b64encode(bytes([i])).decode()} {i}\r\n" for i in range(256)]
    (tmp_path / "a.tiktoken").write_bytes(b"\xef\xbb\xbf" + "".join(lines).encode())
    assert read_rank_file(tmp_path / "a.tiktoken").n_vocab == 257
