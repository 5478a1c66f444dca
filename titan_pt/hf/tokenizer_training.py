"""Tokenizers made from texts: byte-level BPE, or a token for each character."""

from collections.abc import Iterable

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from titan_pt.components.tokenizer import END_OF_TEXT

CHAT_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
"""Tokens that follow those of a byte-level vocabulary, as in the tokenizer of bytes."""
LEAST_VOCAB_SIZE = 256 + len(CHAT_TOKENS)
UNKNOWN = "<|unknown|>"
"""What a character becomes that a vocabulary of characters lacks."""

# How text is split before merging: as GPT-4 and Qwen do (tiktoken's cl100k_base), numbers into so many digits.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_bpe(texts: Iterable[str], vocab_size: int, digits_per_token: int) -> tokenizers.Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; over bytes: GPT-2).

    Texts are read once, as they come; what stays in memory is each different word with its count. Equal texts give
    equal rules, on any number of threads.

    Args:
        vocab_size: tokens in all, at least LEAST_VOCAB_SIZE; fewer where the texts have no more pairs to merge.
        digits_per_token: most digits that one token holds.
    """
    rules = tokenizers.Tokenizer(models.BPE())
    words = Regex(_WORDS % (f"{{1,{digits_per_token}}}" if digits_per_token > 1 else ""))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rules.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, behavior="isolated"), to_bytes])
    rules.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = vocab_size - len(CHAT_TOKENS)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    rules.train_from_iterator(texts, trainer)
    rules.add_special_tokens([_special(name) for name in CHAT_TOKENS])
    return rules


def train_characters(texts: Iterable[str]) -> tokenizers.Tokenizer:
    """A token for each character that occurs, by code point; then UNKNOWN and the end of a document."""
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    vocabulary = {token: i for i, token in enumerate([*sorted(characters), UNKNOWN])}
    rules = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token=UNKNOWN))
    rules.decoder = decoders.Fuse()
    rules.add_special_tokens([_special(name) for name in (UNKNOWN, END_OF_TEXT)])
    return rules


def _special(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)
