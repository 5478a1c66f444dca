"""Write any tokenizer as files that transformers' AutoTokenizer, vLLM and llama.cpp load, with the same ids."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from titan_pt.components.tiktoken_tokenizer import TiktokenTokenizer
from titan_pt.components.tokenizer import ByteTokenizer, Tokenizer
from titan_pt.hf.tokenizer import HuggingFaceTokenizer

# Turns between <|im_start|> and <|im_end|>, for a tokenizer that has these tokens (the form is named ChatML). It and
# _PLAIN are in the fingerprints of fine-tuning data: with another letter no older run could go on.
_CHAT_ML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Turns as plain text for any other; the end-of-document token ends what the assistant says.
_PLAIN = (
    "{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# Where tools are told of, each is a line, without the types of its parameters, for models that need one of these
# templates are small. Calls have the form of Hermes and Qwen. Without tools a template stays what it was.
_TOOLS = (
    "{% if tools is defined and tools %}"
    "{% macro tell(tools) %}{{ 'Tools:' }}{% for tool in tools %}{% set it = tool.function or tool %}"
    "{{ '\n' + it.name + '(' + ((it.parameters or {}).properties or {}) | join(', ') + ')' }}"
    "{{ ': ' + it.description if it.description else '' }}{% endfor %}{% endmacro %}"
    "{% macro said(message) %}{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}{% set it = call.function or call %}"
    "{{ '\n' if message.content or not loop.first else '' }}{{ '<tool_call>\n' + "
    "{'name': it.name, 'arguments': it.arguments} | tojson + '\n</tool_call>' }}{% endfor %}{% endmacro %}"
)
_CHAT_ML_TOOLS = (
    "{% set told = messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + (messages[0].content + '\n' if told else '') + tell(tools) + '<|im_end|>\n' }}"
    "{% for message in messages[1 if told else 0:] %}"
    "{{ '<|im_start|>' + message.role + '\n' + said(message) + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_PLAIN_TOOLS = (
    "{{ tell(tools) + '\n' }}"
    "{% for message in messages %}{{ message.role | capitalize + ': ' + said(message) }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def chat_template(tokenizer: Tokenizer) -> str:
    """Return the tokenizer's chat template, or a simple one if it has none."""
    if tokenizer.chat_template is not None:
        return tokenizer.chat_template
    with_tools, plain = (_CHAT_ML_TOOLS, _CHAT_ML) if _has_turns(tokenizer) else (_PLAIN_TOOLS, _PLAIN)
    return f"{_TOOLS}{with_tools}{{% else %}}{plain}{{% endif %}}"


def template_key(tokenizer: Tokenizer) -> str:
    """What identifies the tokenizer's chat template: of a simple one its part without tools, as in older runs."""
    own = tokenizer.chat_template
    return own if own is not None else _CHAT_ML if _has_turns(tokenizer) else _PLAIN


def _has_turns(tokenizer: Tokenizer) -> bool:
    return {"<|im_start|>", "<|im_end|>"} <= tokenizer.special_ids.keys()


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_seq_len: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja.

    Raises:
        TypeError: the tokenizer is of an unknown class, so its rules are not known.
    """
    rules = to_tokenizers(tokenizer)
    added = rules.get_added_tokens_decoder()  # the library has normalized names of its own for them
    eos = added[tokenizer.eos_id].content if tokenizer.eos_id in added else rules.id_to_token(tokenizer.eos_id)
    (folder / "tokenizer.json").write_text(rules.to_str(pretty=True), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": eos,
        **(tokenizer.roles if isinstance(tokenizer, HuggingFaceTokenizer) else {}),
        "eos_token": eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_seq_len,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(chat_template(tokenizer), encoding="utf-8")


def to_tokenizers(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Convert a tokenizer to one of Hugging Face's `tokenizers`.

    Raises:
        TypeError: it is of an unknown class.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.rules
    if isinstance(tokenizer, ByteTokenizer):
        return _byte_level({bytes([b]): b for b in range(256)}, None, tokenizer.special_ids)
    if isinstance(tokenizer, TiktokenTokenizer):
        return _byte_level(tokenizer.ranks, _ruby_syntax(tokenizer.pattern), tokenizer.special_ids)
    raise TypeError(f"a {type(tokenizer).__name__} has no form that Hugging Face's tools know")


def _byte_level(
    ranks: Mapping[bytes, int], pattern: str | None, special_ids: Mapping[str, int]
) -> tokenizers.Tokenizer:
    """Build a byte-level BPE whose merges have the order of their results' ranks."""
    letters = _letters()
    names = {token: "".join(letters[b] for b in token) for token in ranks}
    # tiktoken joins any two neighbours whose union is a token, so every split of a token is a merge.
    merges = [
        (names[token[:i]], names[token[i:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    # ignore_merges: a piece of text that is a token is that token, however its merges would have gone.
    model = models.BPE({names[token]: rank for token, rank in ranks.items()}, merges, ignore_merges=True)
    result = tokenizers.Tokenizer(model)
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        result.pre_tokenizer = pre_tokenizers.Sequence([split, result.pre_tokenizer])
    result.decoder = decoders.ByteLevel()
    specials = sorted(special_ids.items(), key=lambda item: item[1])
    result.add_special_tokens([AddedToken(name, special=True, normalized=False) for name, _ in specials])
    added = {token.content: i for i, token in result.get_added_tokens_decoder().items()}
    assert added == dict(specials), "special tokens follow the vocabulary without a gap"
    return result


def _ruby_syntax(pattern: str) -> str:
    """Translate tiktoken's pattern for `tokenizers`, whose "$" ends a line and whose "{1,3}+" repeats the group."""
    return re.sub(r"(\{\d+,\d*\})\+", r"\1", pattern).replace("$", r"\z")


def _letters() -> list[str]:
    """The printable character that byte-level vocabularies write for each byte (GPT-2's bytes_to_unicode)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]
