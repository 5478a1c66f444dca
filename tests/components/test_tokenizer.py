"""Tokenizers: equal to the libraries they wrap, text stays text, and a broken file is named."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_helpers import TEXTS, build, hugging_face, rank_file
from tokenizers import models

from titan_pt.components.tiktoken_tokenizer import TiktokenTokenizer
from titan_pt.components.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
)
from titan_pt.config.errors import ConfigError
from titan_pt.hf.tokenizer import COMMON_EOS, HuggingFaceTokenizer


def problem(name: object, eos_token: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        build(name, eos_token)
    (text,) = caught.value.problems
    return text


@given(st.text())
def test_bytes_come_back(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert bytes(ids) == text.encode()


def test_special_tokens_follow_the_bytes() -> None:
    tokenizer = build("byte")
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (259, 256)
    assert tokenizer.encode(END_OF_TEXT) == list(END_OF_TEXT.encode())
    assert tokenizer.decode([72, 105, 256, 258]) == f"Hi{END_OF_TEXT}<|im_end|>"
    assert tokenizer.decode([0xC3, 65]) == "\ufffdA"
    assert tokenizer.decode([-100, 65, 259, 50000]) == "A", "padded vocabularies and ignored targets are no text"


@given(st.text())
def test_rank_file_comes_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "ranks"
    folder.mkdir(exist_ok=True)
    path = folder / "x.tiktoken"
    tokenizer = build(path if path.exists() else rank_file(folder))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.eos_id for i in ids)


def test_a_rank_file_merges_and_has_a_fingerprint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = build(rank_file(tmp_path))
    assert "text is split as GPT-2 does" in caplog.text
    assert isinstance(tokenizer, TiktokenTokenizer)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (260, 259)
    assert tokenizer.encode("hello") == [258, ord("o")], "merged"
    assert tokenizer.decode([258, 259, 300, -1]) == f"hell{END_OF_TEXT}"
    assert tokenizer.fingerprint == build(rank_file(tmp_path, name="y.tiktoken")).fingerprint
    assert tokenizer.fingerprint != build(rank_file(tmp_path, merges=(b"he", b"ll", b"lo"))).fingerprint


@pytest.mark.parametrize(("size", "parts"), [(100256, 2), (128000, 2), (199998, 2), (50256, 4), (300, 4)])
def test_published_rank_files_are_known_by_their_size(tmp_path: Path, size: int, parts: int) -> None:
    """Without a download: tiktoken's own functions fetch a vocabulary to say how its text is split."""
    merges = [b"34", b"12", b"123", b"45", b"456"]  # "34" is merged first unless numbers are cut to three digits
    merges += [b"\xff\xff%d" % i for i in range(size - 256 - len(merges))]
    tokenizer = build(rank_file(tmp_path, merges=tuple(merges)))
    assert len(tokenizer.encode("123456")) == parts
    assert tokenizer.eos_id == size


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "must be 0, 1, 2"),
        (b"YQ== 0\n", "hold all 256 single bytes"),
        (b"YQ== 0 1\n", "line 1 is not"),
        (b"\n\nYQ== x\n", "line 3 is not"),
        (b"!!! 0\n", "line 1 is not"),
        (b"\xff\xfe\x00", "line 1, byte 1: the file is UTF-16"),
    ],
)
def test_bad_rank_files_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "bad.tiktoken").write_bytes(content)
    assert reason in problem(tmp_path / "bad.tiktoken")
    assert "bad.tiktoken" in problem(tmp_path / "bad.tiktoken")


def test_a_tokenizer_json_opens_by_file_or_folder(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "a", "<|endoftext|>", "<|im_start|>")
    tokenizer = build(folder)
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (reference.get_vocab_size(), 0)
    assert tokenizer.special_ids == {"<|endoftext|>": 0, "<|im_start|>": 1}
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        if "<|" not in text:
            assert ids == reference.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode([1, 5000, -100]) == "<|im_start|>"
    assert build(folder / "tokenizer.json").fingerprint == tokenizer.fingerprint


def test_special_tokens_in_text_are_text(tmp_path: Path) -> None:
    """A document that quotes a chat must not end or start turns."""
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    for tokenizer in (build("byte"), build(rank_file(tmp_path)), build(hugging_face(tmp_path / "hf", *names))):
        ids = tokenizer.encode("".join(names))
        assert not set(ids) & set(tokenizer.special_ids.values())
        assert tokenizer.decode(ids) == "".join(names)


def test_padding_and_truncation_of_the_file_are_ignored(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path, "</s>", "<s>")
    plain = build(folder).encode(TEXTS[1])
    changed = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    changed.enable_padding(length=500, pad_id=0)
    changed.enable_truncation(3)
    changed.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    changed.save(str(folder / "tokenizer.json"))
    assert build(folder).encode(TEXTS[1]) == plain


@pytest.mark.parametrize("eos", COMMON_EOS)
def test_end_of_document_is_found_by_name(tmp_path: Path, eos: str) -> None:
    assert build(hugging_face(tmp_path, "<unrelated>", eos)).eos_id == 1


def test_configs_name_the_end_of_document(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path, "</s>", "<|im_end|>", "<mine>")
    config = folder / "tokenizer_config.json"
    first = build(folder)
    assert first.eos_id == 0
    for value in ("<|im_end|>", {"content": "<|im_end|>", "lstrip": False}):
        config.write_text(json.dumps({"eos_token": value}))
        assert build(folder).eos_id == 1
    assert build(folder).fingerprint != first.fingerprint, "documents end otherwise"
    assert build(folder, "<mine>").eos_id == 2, "the run's config wins"
    for nothing in ("{}", '{"eos_token": null}'):
        config.write_text(nothing)
        assert build(folder).eos_id == 0
    for wrong in ('{"eos_token": 5}', '{"eos_token": {"content": []}}'):
        config.write_text(wrong)
        assert "tokenizer_config.json: eos_token is" in problem(folder)
    config.write_text("[]")
    assert "tokenizer_config.json: is []; want a JSON object" in problem(folder)
    config.unlink()
    assert "no end-of-document token <none>" in problem(folder, "<none>")
    for broken, reason in ((b"{", "cannot be read"), (b'{"eos_token": "\xff"}', "byte 0xff is not UTF-8")):
        config.write_bytes(broken)
        text = problem(folder)
        assert "tokenizer_config.json" in text and reason in text


def test_unusable_tokenizer_files_are_refused(tmp_path: Path) -> None:
    bare = hugging_face(tmp_path / "bare")
    assert "name one of its tokens in tokenizer.eos_token" in problem(bare)
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="[UNK]"))
    words.save(str(tmp_path / "words.json"))
    assert "Missing [UNK] token" in problem(tmp_path / "words.json")
    for content in (b"", b"{}", b"[1", b"\xff\xfe"):
        (tmp_path / "bad.json").write_bytes(content)
        assert "not a usable tokenizer.json" in problem(tmp_path / "bad.json")


def test_characters_without_tokens_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "</s>": 2}, [])).save(str(tmp_path / "tokenizer.json"))
    with caplog.at_level(logging.WARNING):
        build(tmp_path)
    assert "leaves 0123456789cdef" in caplog.text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gtp2", "no such file; did you mean gpt2?"),
        ("BYTE ", "did you mean byte?"),
        ("missing.tiktoken", "no such file"),
        ("folder", "a folder without tokenizer.json"),
        ("text.txt", "an unknown kind of file"),
        ("x" * 5000, "no such file"),
    ],
)
def test_unknown_tokenizer_names_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("text.txt").write_text("x")
    text = problem(name)
    assert reason in text and 'allowed are "byte", "gpt2", or the path' in text
    assert len(text) < 400


def test_an_eos_token_without_effect_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build("byte", "</s>")
    assert "tokenizer.eos_token = '</s>' has no effect" in caplog.text


def test_gpt2_without_download_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    def fail(_name: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    assert "set TIKTOKEN_CACHE_DIR" in problem("gpt2")


@pytest.mark.realdata
def test_gpt2_equals_tiktoken(realdata: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    shutil.copytree(realdata / "gpt2_bpe" / "tiktoken_cache", tmp_path / "cache")  # tiktoken deletes what looks wrong
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    tokenizer, from_file = build("gpt2"), build(realdata / "gpt2_bpe" / "gpt2.tiktoken")
    reference = tiktoken.get_encoding("gpt2")
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50257, 50256)
    assert tokenizer.encode("hello world") == [31373, 995]
    assert tokenizer.fingerprint == from_file.fingerprint
    book = (realdata / "text" / "tinyshakespeare" / "input.txt").read_text()[:100_000]
    for text in [*TEXTS, book]:
        ids = reference.encode_ordinary(text)
        assert tokenizer.encode(text) == ids == from_file.encode(text)
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([50256, 50300]) == END_OF_TEXT


@pytest.mark.realdata
def test_smollm2_equals_transformers(realdata: Path) -> None:
    from transformers import AutoTokenizer

    folder = realdata / "smollm2_tokenizer"
    tokenizer, reference = build(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (49152, 2)
    book = (realdata / "text" / "tinyshakespeare" / "input.txt").read_text()[:100_000]
    for text in [*TEXTS, book]:
        ids = reference.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.special_ids["<|im_end|>"] == reference.convert_tokens_to_ids("<|im_end|>")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = rank_file(tmp_path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "cannot be read: Permission denied" in problem(path)
