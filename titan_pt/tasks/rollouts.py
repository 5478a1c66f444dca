"""Sampling and grading of completions on all ranks: each rank takes a share of the prompts, and gets all groups."""

import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.distributed.world import World
from titan_pt.generation.engine import (
    Completion,
    ConversationEngine,
    GenerationStopped,
    NonFiniteLogits,
    RolloutEngine,
)
from titan_pt.generation.sampling import Sampling
from titan_pt.run.exit_codes import GaveUpTogether
from titan_pt.tasks import rewards
from titan_pt.tasks.prompts import Prompt
from titan_pt.tasks.task import Task

if TYPE_CHECKING:
    from titan_pt.environments.episodes import Episode, Episodes, PlayedTurn

logger = logging.getLogger("titan_pt")

# What took too long so often, a reward or an environment, is not asked again in the step: 256 samples at 10 s each
# would be 43 minutes.
MOST_TIMEOUTS = 5


@dataclass(frozen=True)
class GradingOptions:
    """Options of grading and of its failures; the fields and defaults are those of [grpo]."""

    reward_timeout_seconds: float = 10.0
    """Limit of one reward function on one completion."""
    on_reward_error: Literal["zero", "stop"] = "zero"
    """A failed reward: counts as 0, or ends the run."""
    overlong: Literal["zero", "mask", "penalty"] = "zero"
    """A completion or episode that was cut off: reward 0 at most; out of the loss; or a penalty beside its reward."""
    overlong_buffer: int = 64
    """Tokens before the most there may be over which the penalty grows to overlong_penalty."""
    overlong_penalty: float = 1.0
    """Largest penalty of overlong = "penalty"."""


@dataclass(frozen=True)
class GradedCompletion:
    """One completion with its rewards and verdicts."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each token, as the engine drew it."""
    truncated: bool
    """Whether the completion was cut off at max_new_tokens."""
    text: str
    """Text without the token that ended the completion."""
    parts: dict[str, float]
    """Each reward by name, unweighted."""
    reward: float
    """Weighted sum of the rewards, after grpo.overlong."""
    strict: bool
    """Whether the answer is right by the strict rule."""
    official: bool
    lenient: bool
    letter: str | None
    """Multiple choice: the letter that the completion answers, or None."""
    trains: bool
    """Whether the tokens count in the loss; with grpo.overlong = "mask" those of a truncated completion do not."""
    sampled: tuple[bool, ...] = ()
    """Whether the model drew each token, in an episode; empty: all of them."""
    turns: "tuple[PlayedTurn, ...]" = ()
    """The turns of an episode; empty for a task of one turn."""

    @property
    def num_sampled(self) -> int:
        """Tokens that the model drew."""
        return sum(self.sampled) if self.sampled else len(self.token_ids)


@dataclass(frozen=True)
class Group:
    """One prompt and its completions."""

    prompt: Prompt
    completions: tuple[GradedCompletion, ...]

    @property
    def rewards(self) -> list[float]:
        """Rewards of the completions, in order."""
        return [completion.reward for completion in self.completions]

    @property
    def pass_rate(self) -> float:
        """Share of the completions that are right."""
        return sum(completion.strict for completion in self.completions) / len(self.completions)

    @property
    def has_signal(self) -> bool:
        """Whether there is anything to learn: different rewards, and a completion whose tokens count in the loss."""
        return len(set(self.rewards)) > 1 and any(completion.trains for completion in self.completions)


@dataclass
class Timing:
    """Seconds, tokens and failures of a sampler since they were last set to zero."""

    rollout_seconds: float = 0.0
    """Sampling, on the slowest rank."""
    reward_seconds: float = 0.0
    """Grading, on the slowest rank."""
    tokens: int = 0
    """Tokens sampled, over all ranks."""
    faults: Counter[str] = field(default_factory=Counter)
    """Failed reward functions by kind, over all ranks."""
    failures: Counter[str] = field(default_factory=Counter)
    """The same by name."""
    first_failures: dict[str, str] = field(default_factory=dict)
    """The first failure of each, in words."""
    completions: int = 0
    """Completions graded, over all ranks."""

    def broken_grading(self) -> str:
        """The grading in words where it failed on all completions; else empty."""
        name = "grade (strict)"
        if not self.completions or self.failures[name] < self.completions:
            return ""
        return f"the grading failed on all {self.completions} completions, the first time {self.first_failures[name]}"

    def broken_rewards(self) -> str:
        """Functions that failed on half of the completions or more, in words; empty where there are none."""
        return "; ".join(
            f"reward {name!r} failed on {count} of {self.completions} completions, the first time {why}: repair it"
            for name, why in self.first_failures.items()
            if 2 * (count := self.failures[name]) >= self.completions
        )


@dataclass(frozen=True)
class _Share:
    """Groups of one rank's share of the prompts."""

    stopped: bool
    groups: list[Group]
    faults: list[rewards.RewardProblem]
    broken: NonFiniteLogits | None = None
    rollout_seconds: float = 0.0
    reward_seconds: float = 0.0


class RolloutSampler:
    """Samples completions of prompts with an engine and grades them.

    Args:
        tasks: the tasks that a prompt's `task` numbers.
        stop_requested: whether this process was asked to stop; read between the prompts that are graded.
        raise_if_preempted: a collective that raises Preempted on all ranks where one was asked to stop.
        episodes: player of the tasks that have environments.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        tokenizer: Tokenizer,
        tasks: Sequence[Task],
        world: World,
        options: GradingOptions,
        *,
        stop_requested: Callable[[], bool],
        raise_if_preempted: Callable[[], None],
        episodes: "Episodes | None" = None,
    ) -> None:
        self._episodes = episodes
        self._engine, self._tokenizer, self._tasks, self._world = engine, tokenizer, tasks, world
        self._options = options
        self._stop_requested, self._raise_if_preempted = stop_requested, raise_if_preempted
        self.timing = Timing()

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, n: int, first: int = 0) -> list[Group]:
        """The groups of `n` completions of each prompt, in order, on every rank. A collective.

        Args:
            first: number of the first prompt in the step: prompt i draws from the noise of (seed, step, first + i).

        Raises:
            Preempted: on all ranks.
            NonFiniteLogits: the policy gives no distribution to draw from; on all ranks.
            GaveUpTogether: a reward function failed and grpo.on_reward_error is "stop"; on all ranks.
        """
        mine = range(self._world.rank, len(prompts), self._world.size)
        # Ranks take different times for their shares, and wait for each other only here.
        own, numbers = [prompts[i] for i in mine], [first + i for i in mine]
        shares = self._world.gather(self._world.together(lambda: self._share(own, numbers, sampling, n)))
        if any(share.stopped for share in shares):
            self._raise_if_preempted()
        for share in shares:
            if share.broken:
                raise share.broken
        # The slowest rank is what all waited for.
        self.timing.rollout_seconds += max(share.rollout_seconds for share in shares)
        self.timing.reward_seconds += max(share.reward_seconds for share in shares)
        self._note_faults([fault for share in shares for fault in share.faults])
        rounds = itertools.zip_longest(*(share.groups for share in shares))
        groups = [group for by_rank in rounds for group in by_rank if group is not None]
        self.timing.completions += n * len(groups)
        self.timing.tokens += sum(each.num_sampled for group in groups for each in group.completions)
        return groups

    def close(self) -> None:
        """End the processes of environments."""
        if self._episodes:
            self._episodes.pool.close()

    def _share(self, prompts: Sequence[Prompt], numbers: Sequence[int], sampling: Sampling, n: int) -> _Share:
        start = time.perf_counter()
        groups: list[Group] = []
        faults: list[rewards.RewardProblem] = []
        played: dict[int, Episode] = {}
        try:
            completions, played = self._completions(prompts, numbers, sampling, n)
            _check_engine(completions, len(prompts), n)
        except GenerationStopped:
            return _Share(True, [], [])
        except NonFiniteLogits as error:
            return _Share(False, [], [], error)
        sampled = time.perf_counter()
        self._prepare_grading(prompts, completions)
        for i, prompt in enumerate(prompts):
            if self._stop_requested():
                return _Share(True, [], [])
            graded = (
                self._grade(prompt, completions[k], sampling, faults, played.get(k)) for k in range(i * n, (i + 1) * n)
            )
            groups.append(Group(prompt, tuple(graded)))
        return _Share(False, groups, faults, None, sampled - start, time.perf_counter() - sampled)

    def _prepare_grading(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> None:
        for number, task in enumerate(self._tasks):
            if task.prepare:
                mine = [(p.problem, each) for each in completions if (p := prompts[each.prompt]).task == number]
                task.prepare([(problem, self._text(each)) for problem, each in mine], self._stop_requested)

    def _text(self, completion: Completion) -> str:
        ids = completion.token_ids
        return self._tokenizer.decode(ids if completion.finish_reason == "length" else ids[:-1])

    def _completions(
        self, prompts: Sequence[Prompt], numbers: Sequence[int], sampling: Sampling, n: int
    ) -> "tuple[list[Completion], dict[int, Episode]]":
        """`n` completions of each prompt, and the episodes of those that were played, by number."""
        asked = [prompt.token_ids for prompt in prompts]
        talk = self._episodes.begin(prompts, n) if self._episodes else None
        if talk:
            assert isinstance(self._engine, ConversationEngine)
            return self._engine.converse(asked, sampling, n, numbers, talk), talk.episodes
        return (self._engine.generate(asked, sampling, n, numbers) if prompts else []), {}

    def _grade(
        self,
        prompt: Prompt,
        completion: Completion,
        sampling: Sampling,
        faults: list[rewards.RewardProblem],
        episode: "Episode | None",
    ) -> GradedCompletion:
        """A completion with its rewards and verdicts; failures are appended to the faults."""
        options, task, cut = self._options, self._tasks[prompt.task], completion.finish_reason == "length"
        ids, most = completion.token_ids, sampling.max_new_tokens
        whole = text = self._text(completion)
        truncated, given = cut, None
        if episode and self._episodes:
            most, truncated, given = self._episodes.max_tokens, episode.truncated, episode.given(task)
            text = episode.turns[-1].text
            if episode.failure:
                kind, message = episode.failure.kind, episode.failure.message
                faults.append(rewards.RewardProblem("environment", prompt.problem.id, kind, message))
        sample = rewards.Sample(prompt.problem, text, len(ids), most, truncated)
        hung = Counter(fault.reward for fault in faults if fault.kind == "timeout")
        given_up = {name for name, count in hung.items() if count >= MOST_TIMEOUTS}
        score = rewards.score(sample, task, options.reward_timeout_seconds, given_up, given)
        faults += score.problems
        return GradedCompletion(
            token_ids=tuple(ids),
            logprobs=tuple(completion.logprobs),
            truncated=truncated,
            text=whole,
            parts=score.parts,
            reward=overlong_reward(score.total, len(ids), truncated, most, options),
            strict=score.strict,
            official=score.official,
            lenient=score.lenient,
            letter=score.letter,
            trains=not (truncated and options.overlong == "mask"),
            sampled=completion.sampled if episode else (),
            turns=tuple(episode.turns) if episode else (),
        )

    def _note_faults(self, faults: Sequence[rewards.RewardProblem]) -> None:
        for fault in faults:
            self.timing.faults[fault.kind] += 1
            self.timing.failures[fault.reward] += 1
            why = f"on {fault.problem_id}: {fault.kind}: {fault.message}"
            self.timing.first_failures.setdefault(fault.reward, why)
        if not faults:
            return
        first = faults[0]
        what = (
            f"{len(faults)} rewards failed; the first is {first.reward!r} on {first.problem_id}: "
            f"{first.kind}: {first.message}"
        )
        if self._options.on_reward_error == "stop":
            raise GaveUpTogether(f'{what}; repair it, or count such rewards as 0 with grpo.on_reward_error = "zero"')
        if self._world.is_main:
            logger.warning(f"{what}; they count as 0")


def overlong_reward(reward: float, length: int, truncated: bool, max_new_tokens: int, options: GradingOptions) -> float:
    """The reward after grpo.overlong.

    `penalty` is DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): nothing up to max_new_tokens -
    overlong_buffer tokens, then linearly more, up to overlong_penalty at max_new_tokens. An episode may be cut off in a
    turn, far before it has so many, and pays all of it.
    """
    if options.overlong == "zero":
        return min(0.0, reward) if truncated else reward
    if options.overlong == "mask":
        return reward
    over = options.overlong_buffer if truncated else length - (max_new_tokens - options.overlong_buffer)
    return reward - options.overlong_penalty * min(1.0, max(0.0, over / options.overlong_buffer))


def _check_engine(completions: Sequence[Completion], prompts: int, n: int) -> None:
    """Raise a RuntimeError for wrong output of an engine, which may be a user's."""
    if [completion.prompt for completion in completions] != [i for i in range(prompts) for _ in range(n)]:
        raise RuntimeError(
            f"rollout.engine gave {len(completions)} completions, or in another order: want {n} of each of {prompts} "
            "prompts, by prompt"
        )
    for completion in completions:
        if not completion.token_ids or len(completion.token_ids) != len(completion.logprobs):
            raise RuntimeError("rollout.engine gave a completion without tokens, or without a logprob for each token")
        if any(map(math.isnan, completion.logprobs)):
            raise NonFiniteLogits(f"rollout.engine, prompt {completion.prompt + 1}")
