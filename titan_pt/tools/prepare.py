"""`python -m titan_pt.tools.prepare --job.config_file F --source NAME --output DIR`: a source as token shards.

A `[[data.sources]]` table whose `path` is DIR then trains on the same documents, tokenised already.
"""

import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from titan_pt.components.named_tokens import encode_named
from titan_pt.components.tokenizer import Tokenizer, build_tokenizer, name_in
from titan_pt.config.errors import ConfigError, nearest, one_of
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.data.permutation import digest
from titan_pt.data.remote.row_group_documents import RowGroupDocuments
from titan_pt.data.sources.alone import open_alone
from titan_pt.data.sources.documents import Documents, contents_of
from titan_pt.data.sources.identity import KnownFiles
from titan_pt.data.sources.local import is_prepared
from titan_pt.data.sources.opening import MixtureSource
from titan_pt.data.sources.prepared import PreparedDocuments, write_prepared
from titan_pt.data.stream.mixture import holdout_hash
from titan_pt.run.files import make_writable
from titan_pt.run.log import tracked
from titan_pt.run.tool_files import flag_path
from titan_pt.tools.arguments import run_config_tool
from titan_pt.tools.command import ToolParser
from titan_pt.trainers.sft.records import reads_records

logger = logging.getLogger("titan_pt")


def prepare(config: JobConfig, name: str, output: Path) -> None:
    """Tokenise one source of `[[data.sources]]` in its own order.

    Raises:
        ConfigError: there is no such source, it is token shards already, or the output cannot be used.
    """
    if reads_records(config):
        raise ConfigError(
            f"job.trainer = {config.job.trainer!r}: token shards hold plain text, and it reads records, of which only "
            "the answers are learnt; give it the files themselves"
        )
    sources = {source.name: source for source in config.data.sources}
    if name not in sources:
        raise ConfigError(f"--source {name!r}: the config has {one_of(sources)}{nearest(name, sources)}")
    (source,) = open_alone([sources[name]], config)
    if isinstance(source.documents, PreparedDocuments):
        raise ConfigError(f"--source {name!r}: its path is a folder of token shards already")
    tokenizer = build_tokenizer(config.tokenizer)
    special = ["special_tokens"] if source.special_tokens else []
    if special:
        logger.info(f"Data {name}: special_tokens = true: names of special tokens in its texts are tokens")
    about = {"source": name, "fingerprint": digest([source.documents.fingerprint, tokenizer.fingerprint, *special])}
    known = KnownFiles(config.data.cache_dir)
    about["of"] = _content_of(source.documents, known)
    make_writable(output, f"--output {str(output)!r}")
    if is_prepared(str(output)):
        _require_same(PreparedDocuments(output, known), source.documents, about, output)
        logger.info(f"{output}: prepared already")
        return
    started = time.perf_counter()
    count = len(source.documents)
    texts = ((text, holdout_hash(text)) for text in tracked(iterate(source.documents), "Prepare", "documents", count))
    written = write_prepared(output, texts, tokenizer, about, encode=_encoder(source, tokenizer))
    seconds = time.perf_counter() - started
    logger.info(
        f"{output}: {written['documents']:,} documents, {written['tokens']:,} tokens in {seconds:.1f} s, "
        f"{written['tokens'] / seconds:,.0f} tokens/s"
    )


def _content_of(documents: Documents, known: KnownFiles) -> str:
    """Hash of the contents of all files, large ones too, for all of them are read; empty where they are not known."""
    found = [
        content or (known.hashes([path])[0] if os.path.isfile(path) else "") for path, content in contents_of(documents)
    ]
    return digest(found) if all(found) else ""


def _require_same(prepared: PreparedDocuments, documents: Documents, about: dict[str, str], output: Path) -> None:
    """Raise a ConfigError unless token shards are of these documents: by the files' contents, else by each text."""
    same = prepared.fingerprint == about["fingerprint"]
    if same and not (about["of"] and about["of"] == prepared.about.get("of")):
        texts = tracked(iterate(documents), "Compare", "documents", len(documents))
        same = all(holdout_hash(text) == prepared.holdout_hash(number) for number, text in enumerate(texts))
    if not same:
        raise ConfigError(
            f"--output {str(output)!r}: holds the token shards of other documents or another tokenizer; "
            "name another folder, or remove it"
        )


def _encoder(source: MixtureSource, tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Encode texts of a source, and log the first name of a special token that is text there."""
    if source.special_tokens:
        return functools.partial(encode_named, tokenizer)
    told = False

    def encode(text: str) -> list[int]:
        nonlocal told
        name = None if told else name_in(tokenizer, text)
        if name is not None:
            told = True
            logger.warning(
                f"data source {source.name!r}: holds {name!r}, which is read as text, as in all documents; "
                "special_tokens = true in its table reads names of special tokens as these tokens"
            )
        return tokenizer.encode(text)

    return encode


def iterate(documents: Documents) -> Iterator[str]:
    """All documents in their own order."""
    if isinstance(documents, RowGroupDocuments):
        yield from documents.iterate()
        return
    for number in range(len(documents)):
        yield documents[number]


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = ToolParser(prog="titan_pt.tools.prepare", description=__doc__, allow_abbrev=False)
    parser.add_argument("--source", required=True, help="name of one of the config's data sources")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the token shards")
    return run_config_tool(
        parser, lambda own, config: prepare(config, own.source, flag_path("--output", own.output)), argv
    )


if __name__ == "__main__":
    sys.exit(main())
