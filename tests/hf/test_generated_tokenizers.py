"""Tokenizers of any kind, with added tokens of any flags from any file, give the ids that transformers gives."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_helpers import build
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer

from titan_pt.config.errors import ConfigError
from titan_pt.hf.chat import chat_text, chat_tokens, control_ids, encode_behind, prompt_tokens
from titan_pt.hf.tokenizer import HuggingFaceTokenizer
from titan_pt.hf.tokenizer_files import write_tokenizer

NAMES = ("<|a|>", "<|b|>", "<|bc|>", "</s>", "[SEP]", "stop", "Ünd")
PIECES = (*NAMES, " ", "  ", "\n", "the cat", "stopped", "X", "é", "世", "12", ".", "<|", "|>", "\t", "the")
CORPUS = ["the cat stopped at 12 . the end . " * 3, "stop <|a|> the </s> [SEP] Ünd é 世 X"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|a|>{{ m.role }}\n{{ m.content }}<|b|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|a|>assistant\n{% endif %}"
)
NORMALIZERS = {
    "none": None,
    "lower": normalizers.Lowercase(),
    "nfkd": normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()]),
    "prepend": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "strip": normalizers.Strip(),
    "clean": normalizers.BertNormalizer(lowercase=False),
    "squeeze": normalizers.Replace(Regex(" +"), " "),
}


def rules_of(kind: str, normalizer: str) -> Tokenizer:
    """A small tokenizer; "</s>" is a word of every vocabulary."""
    special: dict[str, Any] = {"special_tokens": ["<unk>", "</s>", "[SEP]"], "show_progress": False}
    if kind == "words":
        rules, trainer = Tokenizer(models.WordLevel(unk_token="<unk>")), trainers.WordLevelTrainer(**special)
        rules.pre_tokenizer = pre_tokenizers.Whitespace()
    elif kind == "pieces":
        words = [("<unk>", 0.0), ("</s>", 0.0), ("[SEP]", -9.0), *((c, -9.0) for c in "▁thecasopdnd.12X<|>/[]ab\n")]
        return with_normalizer(Tokenizer(models.Unigram([*dict(words).items(), ("▁the", -2.0)], unk_id=0)), normalizer)
    elif kind == "metaspace":
        rules = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        rules.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        special["special_tokens"] += [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=340, **special)
    else:
        rules = Tokenizer(models.BPE())
        rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "prefixed bytes")
        rules.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, **special)
    rules.train_from_iterator(CORPUS, trainer)
    return with_normalizer(rules, normalizer)


def with_normalizer(rules: Tokenizer, name: str) -> Tokenizer:
    if NORMALIZERS[name] is not None:
        rules.normalizer = NORMALIZERS[name]
    return rules


FLAGS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), st.booleans())
)


@st.composite
def folders(draw: st.DrawFn) -> dict[str, Any]:
    """The files of a tokenizer by their names."""
    rules = rules_of(
        draw(st.sampled_from(["bytes", "bytes", "prefixed bytes", "metaspace", "words", "pieces"])),
        draw(st.sampled_from(["none", "none", *NORMALIZERS])),
    )
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5))
    tokens = {name: {**draw(FLAGS), "special": draw(st.booleans())} for name in names}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    files: dict[str, Any] = {"tokenizer_config.json": config}
    if draw(st.booleans()):
        for name in names[: draw(st.integers(0, len(names)))]:
            rules.add_tokens([AddedToken(name, **tokens[name])])
    left = [name for name in names if rules.token_to_id(name) is None]
    first = rules.get_vocab_size()
    kind = draw(st.sampled_from(["decoder", "added_tokens.json", "roles alone"]))
    if kind == "decoder":
        config["added_tokens_decoder"] = {str(first + i): {"content": n, **tokens[n]} for i, n in enumerate(left)}
        config["added_tokens_decoder"] |= {  # perhaps with other flags than in tokenizer.json
            str(rules.token_to_id(n)): {"content": n, **draw(FLAGS), "special": draw(st.booleans())}
            for n in names
            if n not in left
        }
    elif kind == "added_tokens.json" and left:
        files["added_tokens.json"] = {name: first + i for i, name in enumerate(left)}
    roles = {"eos_token": "</s>"} | {
        role: draw(st.sampled_from(names))
        for role in ("bos_token", "pad_token", "image_token")
        if names and draw(st.booleans())
    }
    if draw(st.booleans()) and kind != "decoder":
        role = draw(st.sampled_from(sorted(roles)))
        named: dict[str, Any] = dict(roles)
        if role != "image_token":
            named[role] = {"content": roles[role], **draw(FLAGS)}
        files["special_tokens_map.json"] = named
    else:
        config |= roles
    if names and draw(st.booleans()):
        config["additional_special_tokens"] = names[-1:]
    end = [("</s>", rules.token_to_id("</s>"))]
    rules.post_processor = draw(
        st.sampled_from(
            [
                None,
                processors.ByteLevel(trim_offsets=True),
                processors.TemplateProcessing(single="</s> $A", special_tokens=end),
                processors.TemplateProcessing(single="</s> $A </s>", special_tokens=end),
            ]
        )
    ) or processors.TemplateProcessing(single="$A", special_tokens=[])
    if draw(st.integers(0, 5)) == 0:
        rules.enable_truncation(3)
        rules.enable_padding(length=9, pad_id=1, pad_token="</s>")
    if draw(st.integers(0, 5)) == 0:
        config["add_bos_token"] = draw(st.booleans())
    return {**files, "tokenizer.json": rules.to_str()}


def check_equal(ours: HuggingFaceTokenizer, theirs: Any, text: str) -> None:
    """Equal ids of data's text, of the owner's, behind a beginning, and in a chat."""
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False, split_special_tokens=True), "data"
    assert ours.encode_named(text) == theirs.encode(text, add_special_tokens=False), "owner"
    whole = theirs.encode(text)
    bare = ours.encode_named(text)
    assert whole[: len(ours.prefix_ids) + len(bare)] == [*ours.prefix_ids, *bare], "a prompt"
    assert prompt_tokens(ours, text) == [*ours.prefix_ids, *ours.encode(text)]
    talk = [{"role": "user", "content": text}]
    if not any(name in text for name in NAMES):
        prompt = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        assert chat_tokens(ours, talk) == prompt, "a chat"


def one_token_more(config: dict[str, Any], file: str, content: dict[str, Any]) -> dict[str, Any]:
    """Files of a tokenizer, one of them beside tokenizer.json and its config."""
    known = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, "eos_token": "</s>", **config}
    return {"tokenizer_config.json": known, file: content, "tokenizer.json": RULES.to_str()}


RULES = rules_of("bytes", "prepend")
# An ordinary token of the list, and so normalized: that of no text's beginning is no token.
IMAGE = one_token_more({"image_token": "<|a|>"}, "added_tokens.json", {"<|a|>": RULES.get_vocab_size()})

PADDED = rules_of("bytes", "none")
PADDED.enable_padding(pad_id=PADDED.get_vocab_size(), pad_token="<|b|>")  # which gives the token its role


def write_files(folder: Path, files: dict[str, Any]) -> None:
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))


@settings(deadline=None, max_examples=60)
@example(IMAGE, ["<|a|><|a|>", " <|a|>", "X"])
@example({**IMAGE, "tokenizer.json": PADDED.to_str(), "added_tokens.json": {}}, ["<|b|>X", " <|a|>", "X"])
@given(
    files=folders(), texts=st.lists(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), min_size=3, max_size=5)
)
def test_ids_equal_those_of_transformers(files: dict[str, Any], texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name, "in"), Path(name, "out")
        write_files(folder, files)
        out.mkdir()
        try:
            ours = build(folder)
        except ConfigError:
            return
        assert isinstance(ours, HuggingFaceTokenizer)
        theirs = AutoTokenizer.from_pretrained(folder)
        assert ours.vocab_size == len(theirs)
        write_tokenizer(ours, out, 512)
        again, exported = build(out), AutoTokenizer.from_pretrained(out)
        assert again.fingerprint == ours.fingerprint
        for text in texts:
            check_equal(ours, theirs, text)
            assert exported.encode(text) == theirs.encode(text), "a round trip"
            assert chat_tokens(ours, [{"role": "user", "content": text}]) == chat_tokens(
                again, [{"role": "user", "content": text}]
            )
            assert encode_behind(ours, "") == []
            check_unforged(ours, text)


def check_unforged(ours: HuggingFaceTokenizer, text: str) -> None:
    """A message that names special tokens adds none of them.

    Which of the template's are found depends on what is beside them where one is of a single word or is normalized:
    no more than the template has written are found then.
    """
    alone, found = (chat_tokens(ours, [{"role": "user", "content": content}]) for content in ("X", text))
    written = chat_text(ours, [{"role": "user", "content": "X"}])
    added = ours.rules.get_added_tokens_decoder()
    single = any(token.single_word for token in added.values())
    words = {*ours.encode_behind(text), *ours.encode(f"\n{text}")}
    for name, token_id in control_ids(ours).items():
        if name in NAMES and token_id not in words.union(ours.encode(name)):  # a word of the vocabulary, or not special
            assert found.count(token_id) <= written.count(name), name
            by_neighbours = single or (added[token_id].normalized and ours.rules.normalizer is not None)
            assert by_neighbours or found.count(token_id) == alone.count(token_id), name


@pytest.mark.parametrize(
    ("role", "refused"),
    [({"content": "<|a|>", "single_word": True}, True), ({"content": "<|a|>"}, False), ("<|a|>", False)],
)
def test_the_flags_of_a_token_are_the_same_in_all_its_roles(tmp_path: Path, role: Any, refused: bool) -> None:
    """transformers 4 takes those of the first role, 5 those of the last."""
    config = {"additional_special_tokens": ["<|a|>"]}
    write_files(tmp_path / "in", one_token_more(config, "special_tokens_map.json", {"bos_token": role}))
    if not refused:
        assert build(tmp_path / "in").special_ids["<|a|>"] == RULES.get_vocab_size()
        return
    with pytest.raises(ConfigError, match="other flags as additional_special_tokens than as bos_token"):
        build(tmp_path / "in")
