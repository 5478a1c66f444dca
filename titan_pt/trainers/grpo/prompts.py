"""Training prompts: a mixture of tasks whose order is a function of counters, the same on every rank."""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from titan_pt.components.checkpoint.reader import load_documents
from titan_pt.components.checkpoint.step_folders import has_steps
from titan_pt.components.checkpoint.steps import find_resume
from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.data.permutation import permute
from titan_pt.hf.model_source import talks_at
from titan_pt.run.exit_codes import GaveUpTogether
from titan_pt.run.run_folder import run_folder
from titan_pt.tasks.prompts import Prompt, PromptRules, held_out_prompts, prompt_text
from titan_pt.tasks.task import Problem, Problems, Task, open_task

logger = logging.getLogger("titan_pt")

# Prompts that are read at start to see whether they fit; of a larger task the others are read when their turn comes.
_CHECKED = 20_000


class PromptLoader:
    """Endless training prompts, whose order is a function of (seed, draw): there is no shuffle buffer to save.

    Tasks take turns by a deficit rule on their weights. The draw-th prompt of a task is problem
    permute(draw mod size) of visit draw div size, another permutation at each visit.

    Prompts are taken for one step at a time; `give_back` puts those that were not needed before all others, and
    `commit` ends the step. `state_dict` is that of the last committed step.

    Args:
        weights: weights of the tasks, in any unit.
        speaks: whether this rank reports the progress, which is the same on all.
    """

    identity_keys: Mapping[str, Sequence[str]] = {
        "seed": ("data.seed", "debug.seed"),
        "tokenizer": ("tokenizer",),
        "longest_prompt": ("training.seq_len", "rollout.max_new_tokens", "rollout.max_episode_tokens"),
        "overlong_prompts": ("rollout.overlong_prompts",),
        "order": ("grpo.tasks",),
        "tasks": ("grpo.tasks", "data.seed", "debug.seed"),
        "solutions": ("grpo.tasks",),
    }
    """The keys that decide each part of `identity`."""
    later_identity = ("solutions",)
    """Parts of `identity` that checkpoints of earlier releases do not have."""

    def __init__(
        self, tasks: Sequence[Task], weights: Sequence[float], rules: PromptRules, seed: int, *, speaks: bool = True
    ) -> None:
        self.tasks = list(tasks)
        self._weights = [weight / sum(weights) for weight in weights]
        self._rules, self._seed, self._speaks = rules, seed, speaks
        self.too_long = 0
        """Prompts since the last start that were too long and so left out or cut."""
        self._draws = [0] * len(tasks)
        self._tokens = [0] * len(tasks)
        self._carry: list[tuple[int, int]] = []
        self._retired: list[set[int]] = [set() for _ in tasks]
        self._committed = self._snapshot()

    def take(self, count: int) -> list[Prompt]:
        """The next prompts; the same on every rank.

        Raises:
            ConfigError: a prompt is too long, or all of a task's are left out.
        """
        return list(itertools.islice(self._iterate(), count))

    def give_back(self, prompts: Sequence[Prompt]) -> None:
        """Put prompts before all others of the next step."""
        self._carry = [*((prompt.task, prompt.draw) for prompt in prompts), *self._carry]

    def retire(self, prompts: Iterable[Prompt]) -> None:
        """Do not ask the problems of these prompts again (no-positive resampling, ScaleRL, arXiv 2510.13786).

        Raises:
            GaveUpTogether: none of any task is left.
        """
        for prompt in prompts:
            self._retired[prompt.task].add(self._place(prompt.task, prompt.draw)[0])
        if self.num_retired == sum(len(task.train) for task in self.tasks):
            raise GaveUpTogether(
                f"grpo.tasks: all {self.num_retired:,} problems were solved and are retired; add harder ones, or raise "
                "grpo.retire_pass_rate"
            )

    @property
    def num_retired(self) -> int:
        """Problems that are not asked again."""
        return sum(map(len, self._retired))

    def commit(self, tokens: Sequence[int]) -> None:
        """End a step.

        Args:
            tokens: tokens of each task that the step trained on.
        """
        self._tokens = [old + new for old, new in zip(self._tokens, tokens, strict=True)]
        self._committed = self._snapshot()

    def rewind(self) -> None:
        """Forget what was taken since the last commit."""
        self._restore(self._committed)

    def state_dict(self) -> dict[str, Any]:
        """Counters of the last committed step."""
        return {"prompts": self._committed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the counters that `state_dict` gave."""
        self._committed = state["prompts"]
        self.rewind()

    def identity(self) -> dict[str, Any]:
        """JSON of everything that decides the order of the prompts; a resume compares it."""
        solutions = {task.name: getattr(task.train, "solutions", "") for task in self.tasks}
        return {
            "seed": self._seed,
            "tokenizer": self._rules.tokenizer.fingerprint,
            "longest_prompt": self._rules.longest,
            "overlong_prompts": self._rules.overlong,
            "order": [task.name for task in self.tasks],
            "tasks": {
                task.name: [task.train.fingerprint, weight, task.template]
                for task, weight in zip(self.tasks, self._weights, strict=True)
            },
            **_present("solutions", {name: found for name, found in solutions.items() if found}),
            # Left out where there are none, as in older checkpoints.
            **_present("chat", {task.name: True for task in self.tasks if task.chat}),
            **_present("system_prompt", {task.name: task.system_prompt for task in self.tasks if task.system_prompt}),
        }

    def progress(self) -> dict[str, list[float]]:
        """[trained tokens, visits] of each task, on one rank; empty on the others."""
        if not self._speaks:
            return {}
        draws, tokens = self._committed["draws"], self._committed["tokens"]
        return {task.name: [tokens[t], draws[t] / len(task.train)] for t, task in enumerate(self.tasks)}

    def digest(self, state: dict[str, Any]) -> str:
        """Hash of the counters of a state, of which the prompts are a function."""
        return hashlib.blake2b(json.dumps(state, sort_keys=True).encode(), digest_size=8).hexdigest()

    def close(self) -> None:
        """Do nothing: no prompt is prepared ahead."""

    def check(self) -> None:
        """Check that the prompts fit.

        Raises:
            ConfigError: a prompt is too long, or all of a task are left out.
        """
        for t, task in enumerate(self.tasks):
            for problems, what in ((task.train, "training"), (task.evaluation, "evaluation")):
                found = [self._rules.encode(task, problem) for problem in _some(problems, _CHECKED)]
                too_long = sum(is_long for _, is_long in found)
                if all(ids is None for ids, _ in found):
                    raise ConfigError(
                        f"grpo.tasks[{t}] ({task.name!r}): all {what} prompts are longer than {self._rules.longest} "
                        "tokens, which is training.seq_len without rollout.max_new_tokens"
                    )
                if too_long:
                    logger.warning(
                        f"Task {task.name}: {too_long} of {len(found)} {what} prompts are longer than "
                        f"{self._rules.longest} tokens; rollout.overlong_prompts = {self._rules.overlong!r}"
                    )

    def evaluation(self, t: int, limit: int) -> list[Prompt]:
        """At most `limit` held-out prompts of task `t`, the same each time."""
        return held_out_prompts(self.tasks[t], t, self._rules, limit)[0]

    def _iterate(self) -> Iterator[Prompt]:
        left_out = 0
        most = max(_CHECKED, 2 * sum(len(task.train) for task in self.tasks)) if self.num_retired else _CHECKED
        while True:
            t, draw = self._carry.pop(0) if self._carry else self._next_draw()
            if len(self._retired[t]) == len(self.tasks[t].train):
                continue  # its turn passes to the others, in the ratio of their weights
            prompt = self._read(t, draw)
            left_out = left_out + 1 if prompt is None else 0
            if prompt is not None:
                yield prompt
            elif left_out > most:
                retired = " or retired" if self.num_retired else ""
                raise ConfigError(
                    f"grpo.tasks: {left_out:,} prompts in a row are longer than {self._rules.longest} tokens{retired}"
                )

    def _next_draw(self) -> tuple[int, int]:
        """(number, draw) of the task that is furthest behind its share."""
        total = sum(self._draws) + 1
        deficits = [weight * total - draws for weight, draws in zip(self._weights, self._draws, strict=True)]
        t = deficits.index(max(deficits))
        self._draws[t] += 1
        return t, self._draws[t] - 1

    def _read(self, t: int, draw: int) -> Prompt | None:
        task = self.tasks[t]
        index, visit = self._place(t, draw)
        if index in self._retired[t]:
            return None
        problem = task.train.get(index, visit)
        ids, too_long = self._rules.encode(task, problem)
        self.too_long += too_long
        if ids is None:
            return None
        return Prompt(t, draw, problem, prompt_text(self._rules.tokenizer, task, problem), ids)

    def _place(self, t: int, draw: int) -> tuple[int, int]:
        """(number of the problem, its visit) of a task's draw."""
        task = self.tasks[t]
        visit, place = divmod(draw, len(task.train))
        return permute(place, len(task.train), f"{visit}/{self._seed}/{task.name}".encode()[:64]), visit

    def _snapshot(self) -> dict[str, Any]:
        return {
            "draws": list(self._draws),
            "tokens": list(self._tokens),
            "carry": [list(place) for place in self._carry],
            # Left out where there are none, as in older checkpoints.
            **({"retired": [sorted(numbers) for numbers in self._retired]} if self.num_retired else {}),
            **({"too_long": self.too_long} if self.too_long else {}),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._draws, self._tokens = list(state["draws"]), list(state["tokens"])
        self._carry = [(t, draw) for t, draw in state["carry"]]
        self._retired = [set(numbers) for numbers in state.get("retired", [[] for _ in self.tasks])]
        self.too_long = state.get("too_long", 0)


def build_prompts(config: GrpoConfig, tokenizer: Tokenizer, *, speaks: bool) -> PromptLoader:
    """The prompt loader of [[grpo.tasks]].

    Raises:
        ConfigError: names the mistakes of every task.
    """
    grpo, rollout = config.grpo, config.rollout
    seed = config.debug.seed if config.data.seed is None else config.data.seed
    tasks: list[Task] = []
    problems: list[str] = []
    knows_chat = _knows_chat(config, tokenizer)
    for row in grpo.tasks:
        try:
            tasks.append(open_task(row, seed, knows_chat=knows_chat(row.name)))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    rules = PromptRules(tokenizer, config.training.seq_len - rollout.completion_tokens, rollout.overlong_prompts)
    loader = PromptLoader(tasks, [row.weight for row in grpo.tasks], rules, seed, speaks=speaks)
    loader.check()
    return loader


def _knows_chat(config: GrpoConfig, tokenizer: Tokenizer) -> Callable[[str], bool]:
    """(name of a task) -> whether the model that the run starts from is asked it through its chat template.

    A run that resumes goes on as it began.
    """
    options = config.checkpoint
    if has_steps(config):
        step = find_resume(run_folder(config) / options.folder, options.load_step)
        identity = load_documents(step).data.get("identity", {}) if step else {}
        return lambda name: bool(identity.get("chat", {}).get(name))
    talks = options.initial_load_path is not None and talks_at(options.initial_load_path, tokenizer)
    return lambda _name: talks


def _present(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dict(values)} if values else {}


def _some(problems: Problems, limit: int) -> Iterator[Problem]:
    for index in range(min(len(problems), limit)):
        yield problems.get(index, 0)
