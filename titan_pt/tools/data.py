"""`python -m titan_pt.tools.data --job.config_file F --num_documents 5`: the first documents a run will see.

Of an sft run they are its records as the model reads them, with what is learnt between ⟦ and ⟧.
With --check_overlap: how much of the evaluation sets (MedQA's test split and GSM8K's, or --eval NAME=FILE) is in each
training source. That reads --limit documents of each source, the first in its own order; 0 reads all.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from titan_pt.components.tokenizer import Tokenizer, build_tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import JobConfig, Source
from titan_pt.data.overlap import N, find_overlap
from titan_pt.data.sources.alone import open_alone
from titan_pt.data.sources.documents import Documents, SkipOptions, are_tokens
from titan_pt.data.sources.opening import data_settings
from titan_pt.data.stream.encoding import PLAIN_TEXT, Encoder
from titan_pt.data.stream.mixture import TokenizedMixture, tokenize_mixture
from titan_pt.data.stream.row import PackedRow
from titan_pt.data.stream.stream import Stream
from titan_pt.run.tool_files import flag_path
from titan_pt.tools.arguments import run_config_tool
from titan_pt.tools.command import ToolParser, whole
from titan_pt.tools.prepare import iterate
from titan_pt.trainers.sft.records import plain_text, reads_records, record_encoder, with_records

_SHOWN_CHARACTERS = 1000
EVALUATION = (Source(name="medqa", split="test"), Source(name="gsm8k", split="test"))


def show(mixture: TokenizedMixture, num_streams: int, seq_len: int, num_documents: int) -> None:
    """Print the first rows of a run until they have had so many documents, or all that there are."""
    streams = [Stream(mixture, s, num_streams, seq_len) for s in range(num_streams)]
    shown: set[str] = set()
    spent: set[int] = set()
    newest = 0  # row that had a new document
    for r in itertools.count():
        row = streams[r % num_streams].next_row(partial=True)
        if row is None:
            spent.add(r % num_streams)
            if len(spent) == num_streams:
                print(f"every source is spent: {len(shown):,} documents")
                return
            continue
        if not spent and r - newest > num_streams and _all_were_read(streams):
            print(f"these are all documents of the run: {len(shown):,}; from here on they repeat")
            return
        print(f"--- row {r}, stream {r % num_streams}: {row.num_tokens:,} tokens of {len(row.tokens):,}")
        for name, start, end in boundaries(row):
            print(f"    tokens {start:>6} to {end:<6} {name}")
        for name, start, end in boundaries(row):
            if name not in shown and len(shown) < num_documents:
                shown.add(name)
                newest = r
                print(f"\n[{name}]\n{_excerpt(mixture, row, start, end)}\n")
        if len(shown) >= num_documents:
            return


def _all_were_read(streams: Sequence[Stream]) -> bool:
    """Whether each stream has drawn its share of every source once."""
    shares = [-(-len(source.documents) // len(streams)) for source in streams[0].mixture.sources]
    return all(order.draws >= share for stream in streams for order, share in zip(stream.orders, shares, strict=True))


def boundaries(row: PackedRow) -> list[tuple[str, int, int]]:
    """(document, first token, token after its last) of each document in a row."""
    starts = [i for i in range(row.num_tokens) if row.positions[i] == 0]
    ends = [*starts[1:], row.num_tokens]
    return list(zip(row.documents, starts, ends, strict=True))


def check_overlap(config: JobConfig, evaluation: list[Source], limit: int) -> None:
    """Print a table of every training source against every evaluation set."""
    records = with_records(config) if reads_records(config) else None
    sources = open_alone((records or config).data.sources, config)
    tokenizer = build_tokenizer(config.tokenizer)
    print("| source | evaluation set | questions with a shared run of 13 words | shared runs |")
    print("|---|---|---|---|")
    for held in open_alone(evaluation, config):
        questions = list(iterate(held.documents))
        for source in sources:
            texts = _texts(source.documents, tokenizer)
            texts = map(plain_text, texts) if records else texts
            found = find_overlap(itertools.islice(texts, limit or None), questions)
            share = found.shared_documents / max(1, found.documents)
            shared = f"{found.shared_documents:,} of {found.documents:,} ({share:.2%})"
            runs = f"{found.shared_ngrams:,} of {found.ngrams:,}"
            print(f"| {source.name} | {held.name} | {shared if found.documents else 'none compared'} | {runs} |")
            if found.short:
                total = found.documents + found.short
                print(f"    {found.short:,} of {total:,} questions are shorter than {N} words: they are not compared")
            for example in found.examples:
                print(f"    ... {example} ...")


def _texts(documents: Documents, tokenizer: Tokenizer) -> Iterator[str]:
    if are_tokens(documents):
        for number in range(len(documents)):
            yield tokenizer.decode(documents.tokens(number).tolist()[:-1])
    else:
        yield from iterate(documents)


def _excerpt(mixture: TokenizedMixture, row: PackedRow, start: int, end: int) -> str:
    tokens, tokenizer = row.tokens[start:end].tolist(), mixture.tokenizer
    if mixture.encoder is PLAIN_TEXT:
        text = tokenizer.decode([t for t in tokens if t != tokenizer.eos_id])
    else:
        parts = itertools.groupby(zip(tokens, row.targets[start:end].tolist(), strict=True), key=lambda pair: pair[1])
        decoded = ((learnt, tokenizer.decode([token for token, _ in part])) for learnt, part in parts)
        text = "".join(f"⟦{part}⟧" if learnt else part for learnt, part in decoded)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} [... {len(text):,} characters]"


def _evaluation(given: list[str]) -> list[Source]:
    sources = []
    for pair in given:
        name, _, path = pair.partition("=")
        if not name or not path:
            raise ConfigError(f"--eval {pair!r}: must be NAME=FILE, such as medqa=test.jsonl")
        flag_path(f"--eval {name}", path)  # the source replaces what is to be replaced itself
        sources.append(Source(name=name, path=path))
    return sources or list(EVALUATION)


def _run(own: argparse.Namespace, config: JobConfig) -> None:
    if own.check_overlap:
        check_overlap(config, _evaluation(own.eval), own.limit)
        return
    encoder: Encoder = PLAIN_TEXT
    if reads_records(config):
        config, encoder = with_records(config), record_encoder(config)
    sources, tokenizer = open_alone(config.data.sources, config), build_tokenizer(config.tokenizer)
    settings = data_settings(config, plan_run_size(config, 1).num_streams)
    mixture = replace(tokenize_mixture(sources, settings, tokenizer, encoder=encoder), skip=SkipOptions())
    show(mixture, settings.num_streams, config.training.seq_len, own.num_documents)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = ToolParser(prog="titan_pt.tools.data", description=__doc__, allow_abbrev=False)
    parser.add_argument("--num_documents", type=whole(1), default=5, help="documents to print (default 5)")
    parser.add_argument("--check_overlap", action="store_true", help="compare with the evaluation sets instead")
    parser.add_argument("--eval", action="append", default=[], metavar="NAME=FILE", help="an evaluation set of yours")
    parser.add_argument("--limit", type=whole(0), default=100_000, help="documents of each source (default 100000)")
    return run_config_tool(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
