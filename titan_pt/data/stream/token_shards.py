"""Token shards as a source of a mixture. Imported where there is such a source."""

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.data.sources.opening import MixtureSource
from titan_pt.data.sources.other_documents import TokenDocuments
from titan_pt.data.stream.encoding import Encoder, PlainText


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
