"""The CORE metric of DCLM: the mean centred accuracy of 22 tasks, answered by likelihood, from local files.

Tasks, numbers of examples, delimiters and shares of guessing are those of DCLM (Li et al. 2024, arXiv 2406.11794, and
the `heavy` configuration of its code). Which examples stand before a question, in what order problems come and how
tokens are scored is as in nanochat's evaluation (github.com/karpathy/nanochat), by which CORE is mostly quoted.
"""

import functools
import logging
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError, shown
from titan_pt.data.sources.rows import read_rows
from titan_pt.distributed.world import World
from titan_pt.evaluation.accuracy import PromptAnswer
from titan_pt.evaluation.eval_tasks import TaskRequest
from titan_pt.evaluation.intervals import wilson
from titan_pt.evaluation.scoring import Likelihood, likelihoods
from titan_pt.evaluation.task_evaluator import EvalResult, of_all_ranks
from titan_pt.hf.chat import bos_id
from titan_pt.models.transformer.model import Transformer
from titan_pt.run.paths import expand_path
from titan_pt.run.progress import Progress

logger = logging.getLogger("titan_pt")

CORE = "core"
"""The name by which --tasks and [[validation.tasks]] ask for it."""

CHOICE, SCHEMA, LANGUAGE = "multiple choice", "schema", "language modeling"
_ROOTS = ("", "eval_data", "local_data")  # DIR itself, an unpacked eval bundle of DCLM, scripts/eval of llm-foundry
_ORDER_SEED, _EXAMPLES_SEED = 1337, 1234
_PROBLEMS_AT_ONCE = 64


@dataclass(frozen=True)
class CoreTask:
    """One of the 22 tasks, as DCLM asks it."""

    name: str
    file: str
    """Below the folder of the data, without ".jsonl"."""
    kind: str
    examples: int
    """Worked problems before each question."""
    guessing: float
    """Accuracy of guessing, which becomes 0."""
    delimiter: str = " "
    """Text between a context and its continuation."""


_ANSWER = "\nAnswer: "
CORE_TASKS = (
    CoreTask("hellaswag_zeroshot", "language_understanding/hellaswag", CHOICE, 0, 0.25),
    CoreTask("jeopardy", "world_knowledge/jeopardy_all", LANGUAGE, 10, 0.0, _ANSWER),
    CoreTask("bigbench_qa_wikidata", "world_knowledge/bigbench_qa_wikidata", LANGUAGE, 10, 0.0),
    CoreTask("arc_easy", "world_knowledge/arc_easy", CHOICE, 10, 0.25, _ANSWER),
    CoreTask("arc_challenge", "world_knowledge/arc_challenge", CHOICE, 10, 0.25, _ANSWER),
    CoreTask("copa", "commonsense_reasoning/copa", CHOICE, 0, 0.5),
    CoreTask("commonsense_qa", "commonsense_reasoning/commonsense_qa", CHOICE, 10, 0.2),
    CoreTask("piqa", "commonsense_reasoning/piqa", CHOICE, 10, 0.5, _ANSWER),
    CoreTask("openbook_qa", "commonsense_reasoning/openbook_qa", CHOICE, 0, 0.25),
    CoreTask("lambada_openai", "language_understanding/lambada_openai", LANGUAGE, 0, 0.0),
    CoreTask("hellaswag", "language_understanding/hellaswag", CHOICE, 10, 0.25),
    CoreTask("winograd", "language_understanding/winograd_wsc", SCHEMA, 0, 0.5),
    CoreTask("winogrande", "language_understanding/winogrande", SCHEMA, 0, 0.5),
    CoreTask("bigbench_dyck_languages", "symbolic_problem_solving/bigbench_dyck_languages", LANGUAGE, 10, 0.0),
    CoreTask("agi_eval_lsat_ar", "symbolic_problem_solving/agi_eval_lsat_ar", CHOICE, 3, 0.2),
    CoreTask("bigbench_cs_algorithms", "symbolic_problem_solving/bigbench_cs_algorithms", LANGUAGE, 10, 0.0),
    CoreTask("bigbench_operators", "symbolic_problem_solving/bigbench_operators", LANGUAGE, 10, 0.0),
    CoreTask("bigbench_repeat_copy_logic", "symbolic_problem_solving/bigbench_repeat_copy_logic", LANGUAGE, 10, 0.0),
    CoreTask("squad", "reading_comprehension/squad", LANGUAGE, 10, 0.0),
    CoreTask("coqa", "reading_comprehension/coqa", LANGUAGE, 0, 0.0),
    CoreTask("boolq", "reading_comprehension/boolq", CHOICE, 10, 0.62, _ANSWER),
    CoreTask(
        "bigbench_language_identification",
        "language_understanding/bigbench_language_identification",
        CHOICE,
        10,
        0.091,
    ),
)


@dataclass(frozen=True)
class CoreItem:
    """One row of a file: contexts with their continuations, of which one is right."""

    options: tuple[tuple[str, str], ...]
    """(context, continuation); a single one where the continuation has to be the likeliest of all."""
    gold: int = 0


@dataclass(frozen=True)
class CoreProblem:
    """An item to answer, and the items that stand before it as examples."""

    item: CoreItem
    examples: tuple[CoreItem, ...]


CoreData = Mapping[CoreTask, Sequence[CoreProblem]]
"""Problems of the tasks whose files are at hand."""


# -- files ------------------------------------------------------------------------------------------------------------


def open_core(request: TaskRequest, limit: int | None, where: str) -> CoreData:
    """The problems of the tasks whose files lie in the requested folder, at most `limit` of each: always the same ones.

    Args:
        where: setting that names the task, for error messages.

    Raises:
        ConfigError: a setting without effect, no such folder, none of the files, a row that cannot be read, or too few
            rows for the examples.
    """
    title = f"{where} ({CORE!r})"
    plain = TaskRequest(CORE, path=request.path, on_bad_row=request.on_bad_row)
    unused = [one.name for one in fields(request) if getattr(request, one.name) != getattr(plain, one.name)]
    if unused:
        raise ConfigError(
            f"{title}: {', '.join(unused)}: no effect on {CORE}, whose prompts are published; leave out, or evaluate "
            f"{CORE} by itself"
        )
    key = f"--data {CORE}" if where == "--tasks" else f"{title}: path"
    if request.path is None:
        raise ConfigError(f"{key}: missing; want the folder of DCLM's eval_data, such as eval_bundle/eval_data")
    folder = expand_path(request.path)
    if not os.path.isdir(folder):
        raise ConfigError(f"{key} = {shown(folder)}: no such folder; want that of DCLM's eval_data")
    found = {task: _file(folder, task) for task in CORE_TASKS}
    files = {task: path for task, path in found.items() if path}
    if not files:
        raise ConfigError(
            f"{key} = {shown(folder)}: holds none of the {len(CORE_TASKS)} tasks; want files such as "
            f"{os.path.join(folder, CORE_TASKS[0].file)}.jsonl, as in DCLM's eval_data"
        )
    skips = request.on_bad_row == "skip"
    data = {task: _problems(task, path, limit, skips) for task, path in files.items()}
    logger.info(f"CORE: {at_hand(data)}")
    return data


def at_hand(data: CoreData) -> str:
    """How many of the tasks there are, and which are missing."""
    missing = missing_tasks(data)
    without = f", without {', '.join(missing)}: not comparable with the whole metric" if missing else ""
    return f"{len(data)} of {len(CORE_TASKS)} tasks{without}"


def missing_tasks(data: CoreData) -> list[str]:
    """Names of the tasks whose files are not at hand."""
    return [task.name for task in CORE_TASKS if task not in data]


def _file(folder: str, task: CoreTask) -> str | None:
    paths = (os.path.join(folder, root, f"{task.file}.jsonl") for root in _ROOTS)
    return next(filter(os.path.isfile, paths), None)


def _problems(task: CoreTask, path: str, limit: int | None, skips: bool) -> list[CoreProblem]:
    items = list(_items(task, path, skips))
    count = len(items)
    if count <= task.examples:
        raise ConfigError(
            f"{path}: {count} rows; {task.name} shows {task.examples} others before each question, and needs "
            f"{task.examples + 1} or more"
        )
    random.Random(_ORDER_SEED).shuffle(items)
    problems = []
    for index in range(count if limit is None else min(limit, count)):
        others = random.Random(_EXAMPLES_SEED + index).sample(range(count - 1), task.examples)
        problems.append(CoreProblem(items[index], tuple(items[i + (i >= index)] for i in others)))
    return problems


def _items(task: CoreTask, path: str, skips: bool) -> Iterator[CoreItem]:
    bad = []
    for place, row in read_rows(path):
        try:
            yield _item(task.kind, row)
        except ValueError as error:
            bad.append(f"{path}, {place}: {error}")
            if not skips:
                raise ConfigError(f'{bad[0]}; repair or remove the row, or set on_bad_row = "skip"') from None
    if bad:
        logger.warning(f"Task {task.name}: {len(bad):,} rows are left out, the first: {bad[0]}")


def _item(kind: str, row: Mapping[str, Any]) -> CoreItem:
    if kind == LANGUAGE:
        return CoreItem(((_text(row, "context").strip(), _text(row, "continuation", empty=False)),))
    if kind == CHOICE:
        options = tuple((_text(row, "query"), choice) for choice in _texts(row, "choices"))
    else:
        continuation = _text(row, "continuation", empty=False)
        options = tuple((context, continuation) for context in _texts(row, "context_options"))
    gold = row.get("gold")
    if type(gold) is not int or not 0 <= gold < len(options):
        raise ValueError(f"'gold' is {shown(gold)}; want the number of the right one, 0 to {len(options) - 1}")
    return CoreItem(options, gold)


def _text(row: Mapping[str, Any], key: str, *, empty: bool = True) -> str:
    text = _written(row.get(key))
    if text is None or not (empty or text.strip()):
        raise ValueError(f"{key!r} is {shown(row.get(key))}; want text")
    return text


def _texts(row: Mapping[str, Any], key: str) -> list[str]:
    value = row.get(key)
    texts = [text for text in map(_written, value) if text and text.strip()] if isinstance(value, list) else []
    if len(texts) < 2 or len(texts) < len(value or ()):
        raise ValueError(f"{key!r}: want two texts or more, none of them empty")
    return texts


def _written(value: Any) -> str | None:
    """A text, or a number as one, as an answer may be."""
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None


# -- prompts ----------------------------------------------------------------------------------------------------------


def prompts_of(task: CoreTask, problem: CoreProblem) -> list[str]:
    """The whole text of each option: examples with their right answers, a blank line behind each, and itself."""
    examples = "".join(f"{task.delimiter.join(example.options[example.gold])}\n\n" for example in problem.examples)
    return [examples + task.delimiter.join(option) for option in problem.item.options]


def scored_tokens(
    task: CoreTask, problem: CoreProblem, encode: Callable[[str], list[int]], longest: int
) -> list[PromptAnswer]:
    """(tokens before, tokens to score) of each option; a row that is too long loses its beginning.

    Scored is what tells the options apart: with one context behind the tokens that they share, with one continuation
    the tokens at the end that they share, and of a single option what its continuation adds to the context.

    Args:
        encode: text -> tokens, that which begins every text included.
        longest: most tokens of an option that the model reads.
    """
    texts = prompts_of(task, problem)
    rows = [encode(text) for text in texts]
    if task.kind == LANGUAGE:
        continuation = problem.item.options[0][1]
        asked = encode(texts[0][: len(texts[0]) - len(continuation)].strip())
        starts = [_shared([asked, rows[0]])]
    elif task.kind == CHOICE:
        starts = [_shared(rows)] * len(rows)
    else:
        shared = _shared([row[::-1] for row in rows])
        starts = [len(row) - shared for row in rows]
    return [_cut(row, start, longest) for row, start in zip(rows, starts, strict=True)]


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """Number of tokens with which all rows begin."""
    for place, tokens in enumerate(zip(*rows, strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, rows))


def _cut(row: Sequence[int], start: int, longest: int) -> PromptAnswer:
    kept = row[-longest:]
    # A token to score, and one before it, where an option is the beginning of another or too long itself.
    start = min(max(1, start - (len(row) - len(kept))), len(kept) - 1)
    return tuple(kept[:start]), tuple(kept[start:])


# -- measuring --------------------------------------------------------------------------------------------------------


def is_right(problem: CoreProblem, pairs: Sequence[PromptAnswer], found: Sequence[Likelihood]) -> bool:
    """Whether the right option has the least loss a token, or a single one is the likeliest of all."""
    if len(pairs) == 1:
        return found[0].is_greedy
    losses = [-one.logprob / len(answer) for one, (_, answer) in zip(found, pairs, strict=True)]
    return losses.index(min(losses)) == problem.item.gold


@dataclass(frozen=True)
class CoreEvaluator:
    """Measures CORE on the problems at hand. A collective: call it on all ranks."""

    data: CoreData
    model: Transformer
    tokenizer: Tokenizer
    world: World
    raise_if_preempted: Callable[[], None] = lambda: None
    """A collective that raises Preempted on all ranks where one was asked to stop."""

    def __call__(self) -> EvalResult:
        """core_metric, num_tasks, and <task>/accuracy of each task at hand.

        Raises:
            NonFiniteLogits: the model gives no distribution; on all ranks.
        """
        shares = {task: self._accuracy(task, problems) for task, problems in self.data.items()}
        return _result({task: len(problems) for task, problems in self.data.items()}, shares)

    def _accuracy(self, task: CoreTask, problems: Sequence[CoreProblem]) -> float:
        right, step, size = 0, _PROBLEMS_AT_ONCE * self.world.size, self.world.size
        options = sum(len(problem.item.options) for problem in problems[self.world.rank :: size])
        with Progress(f"CORE, {task.name}", "options", options):
            for first in range(0, len(problems), step):
                self.raise_if_preempted()
                own = problems[first + self.world.rank : first + step : size]
                right += sum(of_all_ranks(self.world, functools.partial(self._count_right, task, own)))
        return right / len(problems)

    def _count_right(self, task: CoreTask, problems: Sequence[CoreProblem]) -> int:
        longest = self.model.args.max_seq_len
        pairs = [scored_tokens(task, problem, self._encode, longest) for problem in problems]
        found = iter(likelihoods(self.model, [pair for options in pairs for pair in options]))
        return sum(
            is_right(problem, options, [next(found) for _ in options])
            for problem, options in zip(problems, pairs, strict=True)
        )

    def _encode(self, text: str) -> list[int]:
        begin = bos_id(self.tokenizer)
        return [self.tokenizer.eos_id if begin is None else begin, *self.tokenizer.encode(text)]


def centred(task: CoreTask, accuracy: float) -> float:
    """An accuracy on the scale on which guessing is 0 and everything right is 1."""
    return (accuracy - task.guessing) / (1.0 - task.guessing)


def _result(counts: Mapping[CoreTask, int], shares: Mapping[CoreTask, float]) -> EvalResult:
    metric = math.fsum(centred(task, share) for task, share in shares.items()) / len(shares)
    variances = (_variance(share, counts[task]) / (1 - task.guessing) ** 2 for task, share in shares.items())
    spread = 1.96 * math.sqrt(math.fsum(variances)) / len(shares)  # the tasks' errors are independent
    values = {"core_metric": metric, "num_tasks": float(len(shares))}
    intervals = {"core_metric": (metric - spread, min(1.0, metric + spread))}
    for task, share in shares.items():
        values[f"{task.name}/accuracy"] = share
        intervals[f"{task.name}/accuracy"] = wilson(share, counts[task])
    return EvalResult(sum(counts.values()), values, intervals)


def _variance(share: float, count: int) -> float:
    """Of a share of right answers, with one right and one wrong more: none or all right are not certain either."""
    likely = (share * count + 1) / (count + 2)
    return likely * (1 - likely) / count
