"""Token shards as a source of a mixture. Imported where there is such a source."""

from typing import TYPE_CHECKING, Any

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.data.sources.opening import MixtureSource
from titan_pt.data.sources.other_documents import TokenDocuments
from titan_pt.data.stream.encoding import Encoder, PlainText
from titan_pt.data.stream.row import Piece

if TYPE_CHECKING:
    from titan_pt.data.stream.mixture import TokenizedMixture


def check_shards(source: MixtureSource, documents: TokenDocuments, tokenizer: Tokenizer, encoder: Encoder) -> None:
    """Raise a ConfigError unless the tokens are what this tokenizer and encoder make of the texts."""
    name = f"data source {source.name!r}"
    if documents.tokenizer != tokenizer.fingerprint:
        raise ConfigError(
            f"{name}: its token shards were made by another tokenizer ({documents.tokenizer}) than [tokenizer] has "
            f"({tokenizer.fingerprint}); prepare them anew"
        )
    documents.require_ids_below(tokenizer.vocab_size)
    if not isinstance(encoder, PlainText):
        raise ConfigError(f"{name}: token shards are plain text without records; give the files themselves")
    if source.special_tokens:
        raise ConfigError(
            f"{name}: special_tokens has no effect on token shards; leave it out, and set it for the source that they "
            "are prepared from"
        )


def read_tokens(mixture: "TokenizedMixture", d: int, place: int, number: int) -> Piece | None:
    """A document of the mixture's source `d`; None where it is empty, or not on this side of the split."""
    source = mixture.sources[d]
    documents: Any = source.documents
    tokens = documents.tokens(number)
    if not len(tokens) or not mixture.has_hash(documents.holdout_hash(number)):
        return None
    ratio = documents.num_bytes(number) / max(1, len(tokens) - 1)
    return Piece(d, place, f"{source.name}:{number}", tokens, ratio)
