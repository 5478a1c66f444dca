"""`python -m titan_pt.tools.train_tokenizer --job.config_file F --vocab_size 4096 --output DIR`: its own tokenizer.

A byte-level BPE, or with --characters a token for each character, from what the experiment trains on. `name = "DIR"` in
[tokenizer] then uses it.
"""

import argparse
import dataclasses
import json
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig, TokenizerSection
from titan_pt.config.schema.values import parse_size
from titan_pt.run.tool_files import flag_path
from titan_pt.tools.arguments import run_config_tool
from titan_pt.tools.command import ToolParser, whole

if TYPE_CHECKING:
    from titan_pt.components.tokenizer import Tokenizer
    from titan_pt.data.stream.mixture import TokenizedMixture

logger = logging.getLogger("titan_pt")

RECORD = "tokenizer_training.json"
"""What a tokenizer was trained on, and what it does to held-out text; beside tokenizer.json."""
_MEASURED_BYTES = 1_000_000
_MOST_VOCAB_SIZE = 1_000_000


def train_tokenizer(own: argparse.Namespace, config: JobConfig) -> None:
    """Train a tokenizer on the training side of the config's sources, and measure it on the held-out side.

    Raises:
        ConfigError: there are no texts, or the output is another tokenizer's or cannot be written.
    """
    from titan_pt.run.files import make_writable, write_json

    output = flag_path("--output", own.output)
    make_writable(output, f"--output {str(output)!r}")
    trained_on, held_out = _sides(config)
    settings = _settings(own, trained_on)
    if (output / "tokenizer.json").exists():
        _tell(_require_same(output, settings), output, "trained already")
        return
    texts = _Texts(trained_on, own.max_bytes)
    with tempfile.TemporaryDirectory(dir=output) as folder:
        tokenizer = _make(own, texts, config.training.seq_len, Path(folder))
        record = {
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "trained_on": dict(texts.bytes_of),
            **_measure(tokenizer, held_out, trained_on),
            "settings": settings,
        }
        write_json(Path(folder) / RECORD, record, indent=2)
        # What is found by its name is last: it is whole whenever it is there.
        for name in sorted(os.listdir(folder), key=lambda name: name == "tokenizer.json"):
            os.replace(Path(folder) / name, output / name)
    _tell(record, output, f"trained on {sum(texts.bytes_of.values()):,} bytes of {texts.documents:,} documents")


class _Side(NamedTuple):
    """Documents that a run trains on, or those that it validates on."""

    name: Literal["training", "held-out"]
    mixture: "TokenizedMixture"
    plain: Callable[[str], str]
    """The text of a document: of a record what is said in it."""


def _sides(config: JobConfig) -> tuple[_Side, _Side]:
    """The training side of a run, and the held-out side, each document once."""
    from titan_pt.components.tokenizer import ByteTokenizer
    from titan_pt.data.sources.alone import open_alone
    from titan_pt.data.sources.documents import SkipOptions, are_tokens
    from titan_pt.data.sources.opening import data_settings
    from titan_pt.data.stream.mixture import TokenizedMixture
    from titan_pt.trainers.sft.records import plain_text, reads_records, with_records

    plain: Callable[[str], str] = str
    if reads_records(config):
        config, plain = with_records(config), plain_text
    if not config.data.sources:
        raise ConfigError(
            f"data.sources: job.trainer = {config.job.trainer!r} has none, and a tokenizer is made of texts"
        )
    settings = data_settings(config, num_streams=1)

    def side(name: Literal["training", "held-out"], sources: list[Any], fraction: float) -> _Side:
        once = [dataclasses.replace(s, max_epochs=min(1.0, s.max_epochs or 1.0)) for s in sources]
        held_out = name == "held-out" and fraction > 0
        # The seed is no run's: runs of several seeds share a tokenizer.
        mixture = TokenizedMixture(once, ByteTokenizer(), 0, fraction, held_out, SkipOptions())
        return _Side(name, mixture, plain)

    sources = open_alone(config.data.sources, config)
    shards = [source.name for source in sources if are_tokens(source.documents)]
    if shards:
        raise ConfigError(
            f"data source {shards[0]!r}: its path is a folder of token shards, made by another tokenizer; give the "
            "files that they were made of"
        )
    fraction = settings.holdout_fraction
    if config.validation.sources:
        held_out = side("held-out", open_alone(config.validation.sources, config), 0.0)
    else:
        held_out = side("held-out", sources if fraction else [], fraction)
    return side("training", sources, fraction), held_out


class _Texts:
    """Texts of one side of a mixture in a keyed order, by the sources' weights, up to so many bytes.

    A document of a run that reads records is what is said in it. Names of special tokens are no text where the source
    reads them as tokens.
    """

    def __init__(self, side: _Side, max_bytes: int) -> None:
        self._mixture, self._plain, self._left = side.mixture, side.plain, max_bytes
        self.documents = 0
        self.bytes_of: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        return (part for _, parts in self.by_source() for part in parts)

    def by_source(self) -> Iterator[tuple[str, list[str]]]:
        """(source, parts of a document)."""
        live = {source.name: source for source in self._mixture.sources}
        drawn = {name: self._draw(name) for name in live}
        while live and self._left > 0:
            # The source that lacks most of its share.
            name = min(live, key=lambda name: (self.bytes_of[name] / live[name].weight, name))
            parts = next(drawn[name], None)
            if parts is None:
                del live[name]
                continue
            self.documents += 1
            yield name, parts

    def _draw(self, name: str) -> Iterator[list[str]]:
        """The documents of a source, each once, the last one cut to the bytes that are left."""
        from titan_pt.components.tokenizer import named_parts

        mixture = self._mixture
        (source,) = (source for source in mixture.sources if source.name == name)
        order, names = mixture.order(source, 0, 1), tuple(mixture.tokenizer.special_ids)
        while (place := order.next()) is not None:
            _, text = order.read(place)
            if not text or not (source.by_row_group or mixture.has_text(text)):
                continue
            said = self._plain(text).encode("utf-8", "ignore")[: self._left]  # without halves of surrogate pairs
            text = said.decode("utf-8", "ignore")
            parts = named_parts(names).split(text)[::2] if source.special_tokens else [text]
            self._left -= len(said)
            self.bytes_of[name] += sum(len(part.encode()) for part in parts)
            yield parts


def _make(own: argparse.Namespace, texts: _Texts, seq_len: int, folder: Path) -> "Tokenizer":
    """Train, write the files of a tokenizer to a folder, and open it as a run does."""
    from titan_pt.components.tokenizer import END_OF_TEXT, build_tokenizer
    from titan_pt.hf.tokenizer import HuggingFaceTokenizer
    from titan_pt.hf.tokenizer_files import write_tokenizer
    from titan_pt.hf.tokenizer_training import train_bpe, train_characters
    from titan_pt.run.log import tracked

    read = tracked(texts, "Train tokenizer", "documents")
    rules = train_characters(read) if own.characters else train_bpe(read, own.vocab_size, own.digits_per_token)
    if not texts.documents:
        raise ConfigError("data.sources: every document is empty or held out; a tokenizer is made of texts")
    eos_id = rules.get_vocab()[END_OF_TEXT]
    write_tokenizer(HuggingFaceTokenizer(rules, eos_id), folder, seq_len)
    tokenizer = build_tokenizer(TokenizerSection(name=str(folder)))
    if not own.characters and tokenizer.vocab_size < own.vocab_size:
        logger.warning(
            f"--vocab_size = {own.vocab_size}: the texts give {tokenizer.vocab_size:,} tokens and no more pairs to "
            "merge; more text gives more"
        )
    return tokenizer


def _measure(tokenizer: "Tokenizer", held_out: _Side, trained_on: _Side) -> dict[str, Any]:
    """Bytes a token on the held-out side; where that is empty, on the training side."""
    from titan_pt.hf.tokenizer_training import UNKNOWN

    for side in (held_out, trained_on):
        texts, tokens, unknown = _Texts(side, _MEASURED_BYTES), Counter[str](), 0
        unknown_id = tokenizer.special_ids.get(UNKNOWN)
        for source, parts in texts.by_source():
            for part in parts:
                ids = tokenizer.encode(part)
                tokens[source] += len(ids)
                unknown += ids.count(unknown_id) if unknown_id is not None else 0
        if tokens.total():
            break
    if not tokens.total():
        raise ConfigError("data.sources: every text is empty or a special token; a tokenizer is made of texts")
    if unknown:
        logger.warning(f"{unknown:,} of {tokens.total():,} {side.name} characters are none of the vocabulary's")
    return {
        "measured_on": side.name,
        "measured_bytes": texts.bytes_of.total(),
        "bytes_per_token": texts.bytes_of.total() / tokens.total(),
        "bytes_per_token_of": {source: texts.bytes_of[source] / tokens[source] for source in sorted(+tokens)},
    }


def _settings(own: argparse.Namespace, side: _Side) -> dict[str, Any]:
    """What decides about the tokenizer."""
    from titan_pt.data.permutation import digest
    from titan_pt.data.sources.documents import contents_of

    mixture = side.mixture
    documents = [
        [s.name, s.weight, s.max_epochs, s.documents.fingerprint, *(["special_tokens"] if s.special_tokens else [])]
        for s in mixture.sources
    ]
    contents = [content for s in mixture.sources for _, content in contents_of(s.documents)]
    of_bpe = {"--vocab_size": own.vocab_size, "--digits_per_token": own.digits_per_token}
    return {
        **({"--characters": True} if own.characters else of_bpe),
        "--max_bytes": own.max_bytes,
        "documents": digest([documents, contents, mixture.holdout_fraction]),
    }


def _require_same(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The record of a tokenizer that these settings made; a ConfigError where others did."""
    from titan_pt.run.files import parse_json, read_text

    try:
        record = parse_json(read_text(output / RECORD))
        differing = {key: value for key, value in record["settings"].items() if settings.get(key) != value}
        why = ", ".join(f"of {key} {value}" if key[0] == "-" else f"of other {key}" for key, value in differing.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        record, why = {}, f"without {RECORD}"
    if why:
        raise ConfigError(
            f"--output {str(output)!r}: holds another tokenizer, {why}, which runs may use; name another folder, or "
            "remove it"
        )
    return record


def _tell(record: dict[str, Any], output: Path, how: str) -> None:
    by_source = record["bytes_per_token_of"]
    parts = ", ".join(f"{name} {value:.3f}" for name, value in by_source.items()) if len(by_source) > 1 else ""
    logger.info(f"{output}: {record['vocab_size']:,} tokens, {how}; fingerprint {record['fingerprint']}")
    logger.info(
        f"{record['bytes_per_token']:.3f} bytes a token on {record['measured_bytes']:,} {record['measured_on']} bytes"
        f"{f' ({parts})' if parts else ''}"
    )
    print(f"[tokenizer]\nname = {json.dumps(str(output), ensure_ascii=False)}")


def _size(text: str) -> int:
    """The `type` of a flag that takes a count such as "100M"."""
    try:
        value = int(parse_size(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"= {text!r}: {error}") from None
    return whole(1)(str(value))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    from titan_pt.hf.tokenizer_training import LEAST_VOCAB_SIZE

    parser = ToolParser(prog="titan_pt.tools.train_tokenizer", description=__doc__, allow_abbrev=False)
    kind = parser.add_mutually_exclusive_group(required=True)
    size = whole(LEAST_VOCAB_SIZE, _MOST_VOCAB_SIZE)
    kind.add_argument("--vocab_size", type=size, help="tokens of a byte-level BPE, special ones included, such as 4096")
    kind.add_argument("--characters", action="store_true", help="a token for each character that occurs instead")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the tokenizer's files")
    parser.add_argument("--max_bytes", type=_size, default="100M", help="bytes of text that are read (default 100M)")
    digits = "most digits of one token; 1: each digit is a token (default 1)"
    parser.add_argument("--digits_per_token", type=whole(1, 100), default=1, metavar="N", help=digits)
    return run_config_tool(parser, train_tokenizer, argv)


if __name__ == "__main__":
    sys.exit(main())
