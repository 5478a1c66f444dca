"""Exported tokenizers: AutoTokenizer loads them offline, with the same ids for any text."""

import json
import logging
import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_helpers import TEXTS, build, hugging_face, rank_file
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Rules
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from titan_pt.components.named_tokens import encode_named
from titan_pt.components.tokenizer import Tokenizer
from titan_pt.hf.chat import stop_ids
from titan_pt.hf.tokenizer_files import chat_template, to_tokenizers, write_tokenizer

# Scripts, marks, digits, runs of spaces, line ends, contractions: where pre-tokenizers differ.
CHARACTERS = (
    "aabcdez  \n\r\t''sSdLlmvr019٣²éßñ北京日本語क्षि한국어עבריתمرحبا🤷‍♀️\u3000\u00a0\u0301\u200b.,!?/_-=(){}\x00\x7f"
)
CASES = Path(__file__).parent.parent / "cases" / "tokenizers"
MESSAGES = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "Sure?"},
]


@pytest.mark.parametrize("folder", sorted(CASES.iterdir()), ids=lambda folder: folder.name)
def test_files_beside_a_tokenizer_json_are_read(folder: Path) -> None:
    """tests/cases/tokenizers: the ids that transformers 5 gives, of the owner's text and of data."""
    tokenizer, expected = build(folder), json.loads((folder / "expected.json").read_text())
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (expected["eos"], expected["size"])
    assert {text: encode_named(tokenizer, text) for text in expected["ids"]} == expected["ids"]
    assert {text: tokenizer.encode(text) for text in expected["ids_of_data"]} == expected["ids_of_data"]


def rules_of_a_class(name: str) -> Rules:
    """Rules as published folders of a class have them."""
    letters = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *sorted(pre_tokenizers.ByteLevel.alphabet()), "▁"]
    vocabulary = {letter: i for i, letter in enumerate(dict.fromkeys(letters))}
    if name in ("LlamaTokenizer", "GemmaTokenizer"):
        rules = Rules(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if name == "LlamaTokenizer":
            rules.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
            steps.append(decoders.Strip(" ", 1, 0))
        else:
            rules.normalizer = normalizers.Replace(" ", "▁")
            rules.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        rules.decoder = decoders.Sequence(steps)
        return rules
    rules = Rules(models.BPE(vocabulary, []))
    rules.pre_tokenizer, rules.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if name == "Qwen2Tokenizer":
        words = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+"
        )
        rules.normalizer = normalizers.NFC()
        rules.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
            ]
        )
    return rules


def other_rules(name: str, kind: str) -> Rules:
    rules = rules_of_a_class(name)
    if kind == "prepend":
        rules.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        rules.pre_tokenizer = pre_tokenizers.Sequence([])
    elif kind == "never":
        rules.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    elif kind == "unnormalized":
        rules.normalizer = normalizers.Sequence([])
    elif kind == "digits":
        digits = pre_tokenizers.Digits(individual_digits=True)
        rules.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return rules


@pytest.mark.parametrize(
    ("name", "kind", "config", "model", "differs"),
    [
        ("GPT2Tokenizer", "same", {}, {}, None),
        ("GPT2TokenizerFast", "same", {"unk_token": None, "bos_token": "<s>"}, {}, None),
        ("GPT2Tokenizer", "digits", {}, {}, "pre_tokenizer differs"),
        ("Qwen2TokenizerFast", "same", {}, {}, None),
        (None, "same", {}, {"model_type": "qwen3"}, None),
        ("Qwen2Tokenizer", "unnormalized", {}, {}, "normalizer differs"),
        (None, "unnormalized", {}, {"model_type": "qwen3"}, "normalizer differs"),
        ("GemmaTokenizer", "same", {}, {}, None),
        ("GemmaTokenizer", "prepend", {}, {}, "normalizer and pre_tokenizer differ"),
        ("LlamaTokenizer", "same", {}, {}, None),
        ("LlamaTokenizerFast", "same", {"legacy": True}, {}, "pre_tokenizer differs"),
        ("LlamaTokenizer", "prepend", {"legacy": False}, {}, "normalizer and pre_tokenizer differ"),
        ("LlamaTokenizer", "never", {}, {}, "pre_tokenizer differs"),
        ("LlamaTokenizer", "same", {"add_prefix_space": False}, {}, "pre_tokenizer and decoder differ"),
        ("PreTrainedTokenizerFast", "digits", {"eos_token": "</s>"}, {}, None),
        ("T5Tokenizer", "same", {"eos_token": "</s>"}, {}, "rules and tokens are not compared"),
    ],
)
def test_the_class_of_a_tokenizer_is_read(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str | None,
    kind: str,
    config: dict,
    model: dict,
    differs: str | None,
) -> None:
    """Its default tokens are those of transformers, and rules that transformers 5 replaces are told."""
    other_rules((name or "Qwen2Tokenizer").removesuffix("Fast"), kind).save(str(tmp_path / "tokenizer.json"))
    config = {**config, **({"tokenizer_class": name} if name else {})}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if model:
        (tmp_path / "config.json").write_text(json.dumps(model))
    with caplog.at_level(logging.WARNING, "titan_pt"):
        ours = build(tmp_path)
    told = [record.message for record in caplog.records if "tokenizer_class" in record.message]
    if differs is not None:
        assert len(told) == 1 and differs in told[0]
        return
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert not told and ours.vocab_size == len(theirs)
    assert theirs.convert_ids_to_tokens(ours.eos_id) == theirs.eos_token
    roles = ("bos_token", "unk_token", "pad_token", "mask_token")
    assert {role: ours.roles.get(role) for role in roles} == {role: getattr(theirs, role) for role in roles}
    for text in [*random_texts(20), "e\u0301 123", " a", "a</s> <s>b", "x<|endoftext|>  y<mask>"]:
        assert encode_named(ours, text) == theirs.encode(text, add_special_tokens=False), repr(text)
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text))


def export(tokenizer: Tokenizer, folder: Path) -> PreTrainedTokenizerBase:
    """As transformers loads it."""
    folder.mkdir(exist_ok=True)
    write_tokenizer(tokenizer, folder, max_seq_len=512)
    return AutoTokenizer.from_pretrained(folder)


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    texts = ["".join(rng.choices(CHARACTERS, k=rng.randint(1, 60))) for _ in range(count)]
    return [*TEXTS, *texts, *("".join(rng.choices("  \nab", k=rng.randint(1, 60))) for _ in range(count // 4))]


def check_ids(tokenizer: Tokenizer, theirs: PreTrainedTokenizerBase, count: int = 2000) -> None:
    """Equal ids both ways, and specials only where the text is trusted."""
    for text in random_texts(count):
        ids = tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == ids, repr(text)
        assert theirs.decode(ids) == tokenizer.decode(ids)
    for name, i in tokenizer.special_ids.items():
        assert theirs.encode(f"a{name}b", add_special_tokens=False)[1:-1] == [i]
    assert theirs.eos_token_id == tokenizer.eos_id
    assert len(theirs) == tokenizer.vocab_size and theirs.model_max_length == 512


def test_byte_tokenizer_exports_equal_ids(tmp_path: Path) -> None:
    check_ids(build("byte"), export(build("byte"), tmp_path))


def test_rank_files_export_equal_ids(tmp_path: Path) -> None:
    tokenizer = build(rank_file(tmp_path, merges=(b"he", b"ll", b"hell", b"  ", b" h", b"   ", b"aa", b"aaa")))
    check_ids(tokenizer, export(tokenizer, tmp_path / "out"))


@settings(deadline=None)
@given(text=st.text(st.sampled_from("ab ")))
def test_competing_merges_export_equal_ids(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Many splits of one token are tokens themselves, and a whole word may be one that its merges would not reach."""
    folder = tmp_path_factory.getbasetemp() / "merges"
    folder.mkdir(exist_ok=True)
    merges = (b"ab", b"ba", b"aa", b"bb", b"aba", b"bab", b"aab", b"abab", b"baa", b"abba", b"abbab", b" a", b" ab")
    path = folder / "x.tiktoken"
    tokenizer = build(path if path.exists() else rank_file(folder, merges=merges))
    assert to_tokenizers(tokenizer).encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


@pytest.mark.parametrize("size", [100256, 128000, 199998])
def test_published_splits_export_equal_ids(tmp_path: Path, size: int) -> None:
    """The splits of cl100k, Llama 3 and o200k, known by the number of ranks."""
    merges = (b"34", b"12", b"123", b"45", b"456", b"  ", b" \n", b"\n\n", b"'s", b"ab", b" a", b"le", b"\r\n")
    filler = tuple(b"\xff\xff%d" % i for i in range(size - 256 - len(merges)))
    tokenizer = build(rank_file(tmp_path, merges=(*merges, *filler)))
    rules = to_tokenizers(tokenizer)
    rules.encode_special_tokens = True
    for text in [*random_texts(1000), "123456 1234567", "x  \n\n  y\r\n", "end  "]:
        assert rules.encode(text, add_special_tokens=False).ids == tokenizer.encode(text), repr(text)


def test_a_tokenizer_json_and_its_configs_are_exported(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "in", "<s>", "</s>", "<|im_end|>")
    config = {"eos_token": "</s>", "bos_token": {"content": "<s>"}, "chat_template": "{{ messages[0]['content'] }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 1]}')
    tokenizer = build(folder)
    theirs = export(tokenizer, tmp_path / "out")
    check_ids(tokenizer, theirs)
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<s>", "</s>", "</s>")
    assert theirs.apply_chat_template(MESSAGES, tokenize=False) == "1 + 1?"
    assert stop_ids(tokenizer) == [1, 2]
    again = build(tmp_path / "out")
    assert (again.fingerprint, again.chat_template) == (tokenizer.fingerprint, tokenizer.chat_template)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"chat_template": 3}, None),
        ({"chat_template": "a"}, "a"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}, "d"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}, 3]}, None),
    ],
)
def test_chat_templates_are_found_in_both_places(tmp_path: Path, config: dict, expected: str | None) -> None:
    folder = hugging_face(tmp_path, "</s>")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert build(folder).chat_template == expected
    (folder / "chat_template.jinja").write_text("file")
    assert build(folder).chat_template == "file"


def test_tokenizers_without_template_get_a_simple_one(tmp_path: Path) -> None:
    theirs = export(build("byte"), tmp_path / "byte")
    text = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert theirs.encode(text, add_special_tokens=False).count(258) == 3, "the end of a turn is one token"
    plain = build(rank_file(tmp_path))
    text = export(plain, tmp_path / "ranks").apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == "User: 1 + 1?\nAssistant: 2<|endoftext|>\nUser: Sure?\nAssistant:"
    assert chat_template(plain) != chat_template(build("byte"))
    assert (stop_ids(plain), stop_ids(build("byte"))) == ([259], [256, 258])


def test_unknown_tokenizer_classes_are_refused(tmp_path: Path) -> None:
    class Mine:
        vocab_size, eos_id, special_ids, fingerprint, chat_template = 2, 1, {}, "mine", None

        def encode(self, text: str) -> list[int]:
            return [0] * len(text)

        def decode(self, ids: list[int]) -> str:
            return "x" * len(ids)

    with pytest.raises(TypeError, match="a Mine has no form that Hugging Face's tools know"):
        write_tokenizer(Mine(), tmp_path, 512)  # type: ignore[arg-type]


@pytest.mark.realdata
def test_gpt2_exports_equal_ids(realdata: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(realdata / "gpt2_bpe" / "tiktoken_cache", tmp_path / "cache")  # tiktoken deletes what looks wrong
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    tokenizer = build("gpt2")
    theirs = export(tokenizer, tmp_path / "out")
    check_ids(tokenizer, theirs, 4000)
    book = (realdata / "text" / "tinyshakespeare" / "input.txt").read_text()[:200_000]
    assert theirs.encode(book, add_special_tokens=False) == tokenizer.encode(book)
    assert theirs.apply_chat_template(MESSAGES, tokenize=False).endswith("Assistant: 2<|endoftext|>\nUser: Sure?\n")


@pytest.mark.realdata
def test_smollm2_exports_equal_ids(realdata: Path, tmp_path: Path) -> None:
    folder = realdata / "smollm2_tokenizer"
    tokenizer, reference = build(folder), AutoTokenizer.from_pretrained(folder)
    theirs = export(tokenizer, tmp_path / "out")
    check_ids(tokenizer, theirs, 1000)
    for text in random_texts(300):
        assert theirs.encode(text) == reference.encode(text)
    expected = reference.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True) == expected
    assert os.environ["HF_HUB_OFFLINE"] == "1"
