"""Texts in which names of special tokens stand for these tokens. Imported where a source or a command says so."""

from titan_pt.components.tokenizer import APART, Tokenizer, named_parts


def encode_named(tokenizer: Tokenizer, text: str, *, behind: bool = False) -> list[int]:
    """Encode a text in which names of special tokens stand for these tokens, unless APART splits them.

    Args:
        behind: the text follows other tokens; some tokenizers mark the beginning of a text.
    """
    own = getattr(tokenizer, "encode_named", None)
    if own is not None:
        ids: list[int] = own(text, behind=behind)
        return ids
    names = tokenizer.special_ids
    ids = []
    for part in named_parts(tuple(names)).split(text) if names else [text]:
        if part in names:
            ids.append(names[part])
        elif part:
            ids += tokenizer.encode(part.replace(APART, ""))
    return ids
