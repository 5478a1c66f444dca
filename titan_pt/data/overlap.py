"""How much of an evaluation set is in a training source: shared runs of 13 words (Brown et al. 2020, appendix C)."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from titan_pt.data.permutation import keyed_hash

N = 13
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Overlap:
    """Result of a comparison of an evaluation set with a training source."""

    documents: int
    """Documents of the evaluation set that have at least 13 words."""
    short: int
    """The other documents of it, which are not compared."""
    shared_documents: int
    """Documents of the evaluation set with at least one run of 13 words that is in the source too."""
    ngrams: int
    """Different runs of 13 words in the evaluation set."""
    shared_ngrams: int
    examples: tuple[str, ...]
    """A few of the shared runs, as text."""


def ngrams(text: str) -> Iterator[tuple[int, str]]:
    """(hash, words) of every run of 13 words, whatever case and punctuation."""
    words = _WORD.findall(text.lower())
    for i in range(len(words) - N + 1):
        run = " ".join(words[i : i + N])
        yield keyed_hash(b"overlap", run.encode("utf-8", "surrogatepass")), run


def find_overlap(training: Iterable[str], evaluation: Iterable[str], num_examples: int = 3) -> Overlap:
    """Look for runs of 13 words of the evaluation set in the training texts; only the former are held in memory."""
    owners: dict[int, set[int]] = {}
    documents = short = 0
    for number, text in enumerate(evaluation):
        hashes = {hashed for hashed, _ in ngrams(text)}
        documents += bool(hashes)
        short += not hashes
        for hashed in hashes:
            owners.setdefault(hashed, set()).add(number)
    shared: dict[int, str] = {}
    for text in training:
        for hashed, run in ngrams(text):
            if hashed in owners:
                shared.setdefault(hashed, run)
    found = {number for hashed in shared for number in owners[hashed]}
    examples = tuple(list(shared.values())[:num_examples])
    return Overlap(documents, short, len(found), len(owners), len(shared), examples)
