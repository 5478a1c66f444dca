"""Tasks: problems to train and to evaluate on, their prompts and their grading; and the registry of tasks."""

import functools
import hashlib
import json
import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from titan_pt.config.errors import ConfigError, nearest, one_of, shown
from titan_pt.config.schema.grpo import EvaluationTask, GrpoTask
from titan_pt.data.builtin.questions import QUESTION_ANSWER
from titan_pt.protocols.registry import Registry
from titan_pt.tasks.self_check import accepted_nonsense, prove
from titan_pt.tasks.time_limit import TimeLimit, TimeLimitExpired

if TYPE_CHECKING:
    from titan_pt.environments.protocol import Environment

logger = logging.getLogger("titan_pt")

_RESET_SECONDS = 10.0


@dataclass(frozen=True)
class Problem:
    """One question with its right answer."""

    task: str
    """Name of the task."""
    id: str
    """Name of the problem in records and errors; the same in every run."""
    question: str
    """Text for {question} in the prompt template; options included, in the order of this visit."""
    gold: str
    """Right answer, as the task's grading reads it."""
    solution: str = ""
    """Worked answer, right by every rule; empty where there is none to show."""


class Problems(Protocol):
    """A fixed, ordered set of problems."""

    fingerprint: str
    """Text that changes when the problems do."""

    def __len__(self) -> int: ...

    def get(self, index: int, visit: int) -> Problem:
        """Problem `index` at its visit-th visit (from 0), on which the order of shuffled options depends."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """Problems with their prompts, grading and rewards."""

    name: str
    train: Problems
    evaluation: Problems
    """Held-out problems; none is in `train`."""
    grade: Callable[[str, Problem, str], bool]
    """(completion without its stop token, problem, "official" | "strict" | "lenient") -> whether it is right. A user's
    function may raise or hang: `rewards.score` guards against both."""
    prepare: Callable[[Sequence[tuple[Problem, str]], Callable[[], bool]], None] | None = None
    """(completions of a step with their problems, whether to stop) -> nothing: called before `grade` is, where many
    verdicts together are had faster than one by one."""
    template: str = QUESTION_ANSWER
    """Template of the prompt, with {question} in it. A conversation with an environment, whose turns tell who speaks,
    leaves out the default one; of another the environment's first message is made, unless it has a `reset` of its own.
    """
    stop: tuple[str, ...] = ()
    """Texts of one token each that end a completion beside the end-of-text token."""
    rewards: Mapping[str, float] = field(default_factory=lambda: {"correct": 1.0})
    """Weight of each registered reward."""
    find_answer: Callable[[str], str | None] | None = None
    """Completion -> its answer in the strict form, right or wrong, or None; the reward "format" needs it."""
    letters: tuple[str, ...] = ()
    """Multiple choice: letters that an answer can be; empty for other tasks."""
    letter_prefix: str = "Answer:"
    """Multiple choice: text between the prompt and the answers " A", " B", ... whose likelihoods are compared."""
    find_letter: Callable[[str], str | None] | None = None
    """Multiple choice: completion -> the letter that it answers, or None."""
    system_prompt: str = ""
    """Text before everything: the turn "system" of a conversation, or the beginning of a plain text."""
    examples: tuple[Problem, ...] = ()
    """Problems that stand with their worked answers before each question."""
    chat: bool = False
    """Whether the model is asked through its chat template: examples and question as turns."""
    open_ended: bool = False
    """Whether a reply such as "?" may be right, as where only a form or a length counts. Else the task is refused where
    its grading takes such a reply for right."""
    special_tokens: bool = False
    """Whether names of special tokens in its problems stand for these tokens, as they do in its template."""
    environment: "Environment | None" = None
    """What answers the model's turns, see `environments.protocol`; None: the model has one turn."""

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """JSON schemas of the functions that the model may call, for its chat template."""
        return self.environment.tools if self.environment else ()

    @property
    def has_own_opening(self) -> bool:
        """Whether an environment decides what the model is asked."""
        return self.environment is not None and getattr(self.environment, "has_own_reset", True)

    def prompt(self, problem: Problem, said: Callable[[str], str] = str) -> str:
        """The prompt of a problem as plain text, which the model continues.

        Each example is its prompt and its worked answer, then a blank line, as in lm-evaluation-harness.

        Args:
            said: changes what an environment says.
        """
        examples = "".join(f"{self.worked(example)}\n\n" for example in self.examples)
        if self.environment is not None:
            return self.system_prompt + examples + self.plain(self.opening(problem), said)
        return self.system_prompt + examples + worked_example(self.template, problem)[0]

    def messages(self, problem: Problem, end: str = "") -> list[dict[str, Any]]:
        """The prompt of a problem as a conversation, whose next turn is the model's.

        The turns are those of lm-evaluation-harness with `--apply_chat_template` (and its `--fewshot_as_multiturn`).

        Args:
            end: text behind the question.
        """
        turns = [("system", self.system_prompt)] if self.system_prompt else []
        for example in self.examples:
            turns += [("user", worked_example(self.template, example)[0]), ("assistant", example.solution)]
        if self.environment is None:
            turns.append(("user", worked_example(self.template, problem)[0] + end))
        messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in turns]
        return messages if self.environment is None else [*messages, *self.opening(problem)]

    def plain(self, messages: Iterable[Mapping[str, Any]], said: Callable[[str], str] = str) -> str:
        """Messages as plain text, which the model continues: what it is asked or told by the template of the prompt.

        Args:
            said: changes each content.
        """
        own = ("system", "assistant")
        return "\n\n".join(
            said(each["content"]) if each["role"] in own else self.template.replace("{question}", said(each["content"]))
            for each in messages
        )

    def opening(self, problem: Problem) -> list[dict[str, Any]]:
        """What the environment's `reset` gives, checked.

        Raises:
            ConfigError: it fails, takes too long, or gives no messages.
        """
        assert self.environment is not None
        if self.chat and self.template != QUESTION_ANSWER and not self.has_own_opening:
            problem = replace(problem, question=self.template.replace("{question}", problem.question))
        failed = f"grpo.tasks ({self.name!r}): reset of its environment, on {problem.id}:"
        try:
            with TimeLimit(_RESET_SECONDS) as limit:
                messages: Any = limit.run(functools.partial(self.environment.reset, problem))
        except TimeLimitExpired:
            raise ConfigError(f"{failed} took longer than {_RESET_SECONDS:g} s") from None
        except BaseException as error:  # exit() or GeneratorExit in it must not end the run without a word
            if is_users_interrupt(error):
                raise
            raise ConfigError(f"{failed} {type(error).__name__}: {error}") from error
        if not isinstance(messages, list | tuple) or not messages or not all(map(is_message, messages)):
            raise ConfigError(
                f'{failed} gave {shown(messages)}; want a list of messages such as {{"role": "user", "content": "..."}}'
            )
        if fault := unwritable(messages):
            raise ConfigError(f"{failed} gave messages that cannot be written: {fault}")
        return list(messages)

    def worked(self, problem: Problem) -> str:
        """The prompt of a problem with its worked answer, as an example or a document to train on."""
        return "".join(worked_example(self.template, problem))


def is_message(message: Any) -> bool:
    """Whether a value is a message of a conversation, with a role and a text."""
    has_role = isinstance(message, dict) and isinstance(message.get("role"), str)
    return has_role and isinstance(message.get("content"), str)


def unwritable(value: Any) -> str:
    """Why a value cannot be written as JSON in UTF-8, as half of a surrogate pair cannot; empty where it can."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    return ""


def is_users_interrupt(error: BaseException) -> bool:
    """Whether the user ended the run. Where signals only set a flag, a KeyboardInterrupt is of the code that ran."""
    return isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def how_asked(chat: bool) -> str:
    """How a task is asked, for logs and reports."""
    return "asked through the chat template" if chat else "asked in plain text"


def worked_example(template: str, problem: Problem) -> tuple[str, str]:
    """(prompt, worked answer) of a problem; the answer begins with a space where the prompt does not end with one."""
    prompt = template.replace("{question}", problem.question)
    return prompt, ("" if prompt[-1:].isspace() else " ") + problem.solution


TaskFactory = Callable[[GrpoTask, int], Task]
"""(row of [[grpo.tasks]], seed) -> the task; raises a ConfigError where its problems cannot be had."""

_OF_ONE_TURN = ("gsm8k", "medqa", "arithmetic", "sorting", "reasoning_gym", "python")
_OF_TURNS = ("calculator", "guess_number", "wordle", "verifiers")
_TASKS: Registry[TaskFactory] = Registry(
    "task {}",
    {
        **{name: f"titan_pt.tasks.{name}:build" for name in _OF_ONE_TURN},
        **{name: f"titan_pt.environments.{name}:build" for name in _OF_TURNS},
    },
)

REWARDS: Registry[Callable[[Any, Task], float]] = Registry(
    "reward {}", {name: f"titan_pt.tasks.rewards:{name}_reward" for name in ("correct", "format", "length")}
)
"""Reward functions of (sample, task), by name; `rewards.register_reward` adds to them."""

_DEFAULTS = GrpoTask(name="defaults")
_OPTIONAL = ("path", "eval_path", "holdout_fraction", "level", "shuffle_options", "options")


def register_task(name: str, factory: TaskFactory) -> None:
    """Make `[[grpo.tasks]] name` known; "name" also stands for every "name:something". Twice is an error.

    The factory reads what it needs of the row, such as `row.options`. The row's template, stops and rewards are not
    its business: where they are set, they replace those of its task.
    """
    _TASKS.register(name, factory)


def check_task(row: GrpoTask) -> None:
    """Check the name, template and reward weights of a row; a ConfigError names every mistake."""
    _factory(row.name)
    problems = list(_mistakes(row))
    if problems:
        raise ConfigError(*(f"grpo.tasks ({row.name!r}): {problem}" for problem in problems))


def plays_in_turns(row: GrpoTask) -> bool:
    """Whether a row's task is known to have an environment before it is opened: one of the user's own is not."""
    return _family(row.name) in _OF_TURNS


def open_task(row: GrpoTask, seed: int, *, knows_chat: bool = False) -> Task:
    """The task of one row of [[grpo.tasks]], with the row's template, stops and rewards.

    Args:
        knows_chat: whether the model is asked through its chat template where row.chat is "auto".

    Raises:
        ConfigError: an unknown name or reward; a template without {question}; a setting that has no effect on this
            task; missing, unreadable or too few problems; a worked answer that is graded wrong, unless
            row.on_bad_row is "skip"; a grading that takes nonsense for right, or gives no verdict.
    """
    factory = _factory(row.name)
    problems = list(_mistakes(row))
    try:
        task = _with_overrides(factory(row, seed), row, knows_chat)
        task = _proved(task, skips=row.on_bad_row == "skip")
        problems += _shortcomings(task, trains=not isinstance(row, EvaluationTask))
        if row.prompt_template and task.chat and task.has_own_opening:
            problems.append(
                "prompt_template has no effect: `reset` of its environment makes the conversation; leave it out, or "
                "set system_prompt"
            )
    except ConfigError as error:
        problems += error.problems
    except Exception as error:
        if _family(row.name) in _TASKS.builtin:
            raise
        problems.append(f"its factory failed: {type(error).__name__}: {error}")
    if problems:
        raise ConfigError(*(f"grpo.tasks ({row.name!r}): {problem}" for problem in problems))
    return task


def refuse_unused(row: GrpoTask, *used: str) -> None:
    """Raise a ConfigError for every setting of a row that differs from its default and is not among the `used`."""
    unused = [name for name in _OPTIONAL if name not in used and getattr(row, name) != getattr(_DEFAULTS, name)]
    if unused:
        raise ConfigError(
            *(f"{name} = {shown(getattr(row, name))} has no effect on {row.name}; leave it out" for name in unused)
        )


def _factory(name: str) -> TaskFactory:
    family = _family(name)
    if family not in _TASKS:
        raise ConfigError(
            f"grpo.tasks: name = {shown(name)}: unknown{nearest(family, _TASKS)}; known are {one_of(_TASKS)}; "
            "a task of your own comes by register_task in the module of experimental.custom_import"
        )
    return _TASKS[family]


def _family(name: str) -> str:
    """The registered part of "name:something"."""
    return name.partition(":")[0]


def _mistakes(row: GrpoTask) -> Iterator[str]:
    if row.prompt_template is not None and "{question}" not in row.prompt_template:
        yield f"prompt_template = {shown(row.prompt_template)}: no {{question}} in it, the place of the question"
    if not any(row.rewards.values()):
        yield 'rewards: all weights are 0, so nothing is learnt; the default is rewards = {"correct" = 1.0}'


def _shortcomings(task: Task, *, trains: bool) -> Iterator[str]:
    known = {*REWARDS, *(task.environment.rewards if task.environment else ())}
    for name in sorted(set(task.rewards) - known):
        yield (
            f"rewards: {shown(name)} is unknown{nearest(name, known)}; known are {one_of(known)}; "
            "one of your own comes by register_reward in the module of experimental.custom_import"
        )
    if "format" in task.rewards and task.find_answer is None:
        yield 'rewards: "format" is of no use, for the task has no strict form (Task.find_answer); leave it out'
    for problems, purpose in ((task.train, "train"), (task.evaluation, "evaluate")):
        if len(problems) == 0 and (trains or purpose == "evaluate"):
            yield f"there are no problems to {purpose} on"
    if task.tools and not task.chat:
        yield (
            "its tools are told by the chat template, and the model is asked in plain text; set chat = true, or start "
            'from a model of conversations, such as one that job.trainer = "sft" trained on messages'
        )


class _Chosen:
    """Some of the problems of a set, in their order; a `Problems`."""

    def __init__(self, problems: Problems, left: Sequence[int]) -> None:
        self._problems, self._left = problems, left
        self.fingerprint = hashlib.sha256(f"{problems.fingerprint}/{list(left)}".encode()).hexdigest()[:16]
        self.solutions = getattr(problems, "solutions", "")

    def __len__(self) -> int:
        return len(self._left)

    def get(self, index: int, visit: int) -> Problem:
        return self._problems.get(self._left[index], visit)


def _proved(task: Task, *, skips: bool) -> Task:
    """The task without problems whose worked answers are graded wrong.

    Raises:
        ConfigError: there are such problems and they are not to be skipped, nonsense is right, or no verdict is given.
    """
    sets: list[Problems] = [task.train, task.evaluation]
    for part, problems in enumerate(sets):
        proof, size = prove(problems, task.grade), len(problems)
        if proof.checked and proof.read < size:
            logger.warning(f"Task {task.name}: the worked answers of {proof.read:,} of {size:,} problems were graded")
        if not proof.wrong:
            continue
        first, count = next(iter(proof.wrong.values())), len(proof.wrong)
        if not skips:
            raise ConfigError(f'{first} ({count:,} such problems); on_bad_row = "skip" leaves them out')
        logger.warning(f"Task {task.name}: {count:,} of {size:,} problems are left out: {first}")
        sets[part] = _Chosen(problems, [index for index in range(size) if index not in proof.wrong])
    task = replace(task, train=sets[0], evaluation=sets[1])
    for problems in () if task.open_ended else sets:
        nonsense = accepted_nonsense(problems, task.grade, task.find_answer)
        if nonsense:
            raise ConfigError(nonsense)
    return task


def _with_overrides(task: Task, row: GrpoTask, knows_chat: bool) -> Task:
    return replace(
        task,
        template=row.prompt_template or task.template,
        stop=tuple(row.stop) or task.stop,
        special_tokens=row.special_tokens,
        system_prompt=row.system_prompt or task.system_prompt,
        chat=knows_chat if row.chat == "auto" else row.chat,
        rewards=row.rewards if row.rewards != _DEFAULTS.rewards else task.rewards,
    )
