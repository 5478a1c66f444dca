"""Generated conversations with a small model that adds numbers, in words: numbered, the same everywhere. No torch here.

It answers a sum of two numbers from 0 to 9 as "Three plus four is seven.", however it is asked, goes on from its last
answer ("And two more?"), says what it is, and says of everything else that it does not know.
"""

import random
from collections.abc import Iterator, Sequence

from titan_pt.data.builtin.questions import HOLDOUT_FRACTION, is_held_out

Turn = tuple[str, str]
"""What is said, and what is answered."""


def _words(text: str) -> list[str]:
    return text.split()


NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
"""Names of the numbers that are answered."""

UNKNOWN = "I do not know. I can only add."
"""The answer to what it cannot know."""

_LONGEST = 250  # bytes of a conversation in the form that the byte tokenizer gives it: one row of quickstart_chat.toml
_MARKS = len("<>user\n<>\n<>assistant\n<>\n") - 4  # bytes of a turn besides its texts; a special token is one

# A held-out question is one of these with one pair of numbers.
_SUMS = (
    "what is {a} plus {b}?",
    "what is {a} + {b}?",
    "what's {a} plus {b}?",
    "{a} plus {b}?",
    "{a} plus {b} is?",
    "{a} + {b}",
    "{a} + {b} = ?",
    "{a}+{b}",
    "{a} and {b}?",
    "how much is {a} plus {b}?",
    "how much is {a} and {b}?",
    "how much are {a} and {b}?",
    "add {a} and {b}.",
    "can you add {a} and {b}?",
    "what is the sum of {a} and {b}?",
    "what do {a} and {b} make?",
    "tell me {a} plus {b}.",
    "say what {a} plus {b} is.",
    "calculate {a} + {b}.",
)
_PROBLEMS = (
    "{name} has {a} {things} and gets {b} more. how many {things} has {name}?",
    "{name} has {a} {things} and finds {b}. how many now?",
    "I have {a} {things}. you give me {b}. how many do I have?",
    "there are {a} {things} here and {b} there. how many are there?",
    "{a} {things} lie here. I bring {b} more. how many are there?",
    "I buy {a} {things}, then {b}. how many did I buy?",
    "{name} has {a} {things}, {other} has {b}. how many have they?",
    "{a} {things} and {b} {things}?",
)
_MORE = (
    *("and {n} more?",) * 6,
    *("plus {n} more?", "add {n} more.", "now add {n} more.", "{n} more?", "and with {n} more?") * 2,
    "what if I add {n} more?",
    "plus {n}?",
    "add {n}.",
)
_BEFORE = ("",) * 14 + ("please ", "so, ", "hi, ", "ok, ", "tell me, ", "do you know: ")

_SELF = (
    (
        ("who are you?", "what are you?", "tell me about you.", "are you a robot?", "are you human?"),
        "I am a small model. I can only add.",
    ),
    (("what is your name?", "what's your name?", "do you have a name?"), "I have no name. I am a small model."),
    (
        ("what can you do?", "what do you know?", "help", "how can you help me?", "what should I ask?"),
        "I can add numbers from zero to nine.",
    ),
    (("how old are you?", "when were you made?", "when were you born?"), "I was trained in two minutes."),
    (("who made you?", "who trained you?", "where do you come from?"), "I was trained by titan_pt."),
    (("hello", "hi", "hello!", "hi there!", "good morning", "hey", "good evening!"), "Hello! Ask me for a sum."),
    (("how are you?", "are you well?", "how is it going?"), "I am well. Ask me for a sum."),
    (("thank you", "thanks!", "thank you very much!", "great!", "well done!"), "You are welcome."),
    (("bye", "goodbye!", "good night", "see you!"), "Goodbye!"),
)

_ABOUT = (
    "what is the {noun} of {place}?",
    "what is the {noun} of the {noun2}?",
    "what is a {noun}?",
    "what is {place}?",
    "what color is the {noun}?",
    "what does a {noun} cost?",
    "what does the {noun} {verb}?",
    "what did the {noun} {verb}?",
    "what will {name} {verb}?",
    "what is the weather in {place}?",
    "what time is it?",
    "what day is it?",
    "where is {place}?",
    "where is the {noun}?",
    "where can I {verb} a {noun}?",
    "who is {name}?",
    "who is the {noun} of {place}?",
    "who {verb}s the {noun}?",
    "who wrote {name}?",
    "who won the {noun} in {year}?",
    "when did the {noun} {verb}?",
    "when was {name} born?",
    "why is the {noun} {quality}?",
    "why does {name} {verb}?",
    "how {quality} is the {noun}?",
    "how far is {place}?",
    "how do I {verb} a {noun}?",
    "how many {noun}s are in {place}?",
    "how many {noun}s has a {noun2}?",
    "which {noun} is {quality}?",
    "is the {noun} {quality}?",
    "is it {quality} in {place}?",
    "will it {verb} tomorrow?",
    "can you {verb} a {noun}?",
    "do you like {place}?",
    "write a {noun} about the {noun2}.",
    "tell me a {noun}.",
    "tell me about {place}.",
    "sing a {noun}.",
    "explain the {quality} {noun}.",
    "translate {noun} into {place}.",
    "{verb} the {noun}",
    "my {noun} is {quality}.",
    "I {verb} the {quality} {noun}.",
    "{quality} {noun}",
    "{name} {verb}s",
    "{noun}",
)
_BEYOND = (
    "what is {a} times {b}?",
    "what is {a} * {b}?",
    "{a} * {b}",
    "{a} times {b}",
    "what is {a} minus {b}?",
    "{a} - {b}",
    "divide {a} by {b}.",
    "what is {big} plus {b}?",
    "what is {a} + {big}?",
    "{big} + {big}",
    "is {a} a {noun}?",
)
_NAMES = _words("Tom Anna Ben Lea Sam Mia Max Eva Paul Nina Leo Ida Jack Rosa Finn Emma Otto Lucy Hugo Alice Bob Mary")
_THINGS = _words("apples pears books coins cards pens cups balls eggs stamps shells stones keys hats cakes birds toys")
_WORDS = {
    "noun": _words(
        "dog cat moon sun car house river tree ship engine computer cake door king city star fish horse bridge "
        "garden train clock letter school flower bread mountain window phone planet bottle song game war story color "
        "doctor language market program capital president animal leg answer book road history poem joke bird"
    ),
    "verb": _words(
        "make buy see find play sing fly run sleep write read drive open cook eat paint build rain sell break "
        "win lose know think live end begin cost mean grow"
    ),
    "quality": _words(
        "blue red old big small fast slow warm cold green dark round heavy new loud strange tall high deep long "
        "good best large true dead"
    ),
    "place": _words(
        "Italy Spain Peru Chile Egypt India China Japan Kenya Norway Poland Cuba Rome Berlin London Oslo Cairo "
        "Madrid Texas Moscow Athens Boston Lima Delhi life love physics music"
    ),
}


class MadeConversations:
    """Conversations of some turns each, none of which asks a held-out question."""

    size = 6_000

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.fingerprint = f"conversations-1-{seed}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, list[dict[str, str]]]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        rng = random.Random(f"{self._seed}/{index}")
        turns: list[Turn] = []
        length, total, wanted = 0, None, rng.choice((1, 2, 2, 3))
        while len(turns) < wanted:
            turn, total = _draw(rng, total)
            length += _MARKS + len("".join(turn))
            if turns and length > _LONGEST:
                break
            turns.append(turn)
        return messages(turns)


class HeldOutSums:
    """Conversations of one turn, which ask each held-out question for a sum, in a random order."""

    fingerprint = "conversations-1-held-out"

    def __init__(self) -> None:
        self._turns = list(held_out_sums())

    def __len__(self) -> int:
        return len(self._turns)

    def __getitem__(self, index: int) -> dict[str, list[dict[str, str]]]:
        return messages([self._turns[index]])


def messages(turns: Sequence[Turn]) -> dict[str, list[dict[str, str]]]:
    """A record of fine-tuning."""
    roles = ("user", "assistant")
    return {"messages": [{"role": r, "content": text} for turn in turns for r, text in zip(roles, turn, strict=True)]}


def held_out_sums() -> Iterator[Turn]:
    """Every question for a sum that no conversation asks, with its answer, in an order that is always the same."""
    rng = random.Random(0)
    every = [(w, a, b, as_words) for w in _SUMS for a in range(10) for b in range(10) for as_words in (True, False)]
    rng.shuffle(every)
    for wording, a, b, as_words in every:
        if _is_held_out(wording, a, b):
            yield _sentence(_filled(rng, wording, as_words, a=a, b=b)), answer(a, b)


def answer(a: int, b: int) -> str:
    """The sum of two numbers in words."""
    return f"{NUMBERS[a].capitalize()} plus {NUMBERS[b]} is {NUMBERS[a + b]}."


def _draw(rng: random.Random, total: int | None) -> tuple[Turn, int | None]:
    """A turn, and the number that it ends in; `total` is that of the turn before."""
    kind = rng.random()
    if total is not None and kind < 0.46:
        n = rng.randint(0, 9)
        if total + n < len(NUMBERS):
            return (_varied(rng, _filled(rng, rng.choice(_MORE), rng.random() < 0.6, n=n)), answer(total, n)), total + n
    if kind < 0.82:
        return _draw_sum(rng)
    if kind < 0.88:
        asked, said = rng.choice(_SELF)
        return (_varied(rng, rng.choice(asked)), said), None
    if kind < 0.91:
        beyond = _filled(rng, rng.choice(_BEYOND), rng.random() < 0.5, a=rng.randint(0, 9), b=rng.randint(0, 9))
        return (_varied(rng, beyond), UNKNOWN), None
    return (_varied(rng, _filled(rng, rng.choice(_ABOUT), False)), UNKNOWN), None


def _draw_sum(rng: random.Random) -> tuple[Turn, int]:
    while True:
        wording = rng.choice(_SUMS if rng.random() < 0.88 else _PROBLEMS)
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        if not _is_held_out(wording, a, b):
            asked = rng.choice(_BEFORE) + _filled(rng, wording, rng.random() < 0.5, a=a, b=b)
            return (_varied(rng, asked), answer(a, b)), a + b


def _is_held_out(wording: str, a: int, b: int) -> bool:
    return wording in _SUMS and is_held_out(f"{wording} {a} {b}", HOLDOUT_FRACTION)


def _filled(rng: random.Random, wording: str, as_words: bool, **numbers: int) -> str:
    """A wording with its numbers, as words or digits, and any names and words."""
    name, other = rng.sample(_NAMES, 2)
    values = {key: NUMBERS[n] if as_words else str(n) for key, n in numbers.items()}
    values |= {key: rng.choice(words) for key, words in _WORDS.items()}
    return wording.format(
        name=name,
        other=other,
        things=rng.choice(_THINGS),
        noun2=rng.choice(_WORDS["noun"]),
        big=rng.randint(20, 999),
        year=rng.randint(1000, 2030),
        **values,
    )


def _varied(rng: random.Random, text: str) -> str:
    """A question as someone types it: with or without a capital and its last mark."""
    if rng.random() < 0.2:
        text = text.rstrip("?.!") or text
    return text if rng.random() < 0.25 else _sentence(text)


def _sentence(text: str) -> str:
    """A text whose sentences begin with capitals."""
    return ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))
