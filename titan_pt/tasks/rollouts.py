"""From prompts to graded groups of completions, on all ranks: each samples its share, and all get everything."""

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.schema.grpo import Grpo
from titan_pt.distributed.world import World
from titan_pt.generation.engine import Completion, GenerationStopped, RolloutEngine
from titan_pt.generation.sampling import Sampling
from titan_pt.run.exit_codes import GaveUpTogether
from titan_pt.tasks import rewards
from titan_pt.tasks.prompts import Prompt
from titan_pt.tasks.task import Task

logger = logging.getLogger("titan_pt")

# A reward that took too long so often is not asked again in the step: 256 samples at 10 s each would be 43 minutes.
MOST_TIMEOUTS = 5


@dataclass(frozen=True)
class Rollout:
    """One completion and what it is worth."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    truncated: bool
    """Cut off at max_new_tokens."""
    text: str
    """Without the token that ended it."""
    parts: dict[str, float]
    """Each reward by name, unweighted."""
    reward: float
    """Their weighted sum, after grpo.overlong."""
    strict: bool
    official: bool
    lenient: bool
    letter: str | None
    """The answer of multiple choice."""
    trains: bool
    """Whether its tokens count in the loss: grpo.overlong = "mask" leaves out what was cut off."""


@dataclass(frozen=True)
class Group:
    """One prompt and its completions."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> list[float]:
        return [rollout.reward for rollout in self.rollouts]

    @property
    def has_signal(self) -> bool:
        """Whether there is anything to learn: different rewards, and one that is not the mean and may be trained on."""
        return len(set(self.rewards)) > 1 and any(rollout.trains for rollout in self.rollouts)


@dataclass
class Timing:
    """Seconds and tokens since the last reading."""

    rollout_seconds: float = 0.0
    reward_seconds: float = 0.0
    tokens: int = 0
    """Sampled on all ranks."""
    faults: Counter[str] = field(default_factory=Counter)
    """Reward functions that failed, by kind, on all ranks."""


@dataclass(frozen=True)
class _Share:
    """What one rank made of its prompts."""

    stopped: bool
    groups: list[Group]
    faults: list[rewards.RewardProblem]
    rollout_seconds: float = 0.0
    reward_seconds: float = 0.0


class RolloutSampler:
    """Samples and grades.

    Args:
        stop_requested: whether this process was asked to stop; looked at while sampling and grading.
        raise_if_preempted: see TrainContext.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        tokenizer: Tokenizer,
        tasks: Sequence[Task],
        world: World,
        options: Grpo,
        *,
        stop_requested: Callable[[], bool],
        raise_if_preempted: Callable[[], None],
    ) -> None:
        self._engine, self._tokenizer, self._tasks, self._world = engine, tokenizer, tasks, world
        self._options = options
        self._stop_requested, self._raise_if_preempted = stop_requested, raise_if_preempted
        self.timing = Timing()

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, n: int, first: int = 0) -> list[Group]:
        """The group of each prompt, in order, on every rank. A collective.

        Args:
            first: number of the first prompt in the step: prompt i draws from the noise of (seed, step, first + i).

        Raises:
            Preempted: on all ranks.
            GaveUpTogether: a reward function failed and grpo.on_reward_error is "stop"; on all ranks.
        """
        own = range(self._world.rank, len(prompts), self._world.size)
        # Ranks take different times for their shares, and wait for each other only here.
        shares = self._world.gather(self._share([prompts[i] for i in own], [first + i for i in own], sampling, n))
        if any(share.stopped for share in shares):
            self._raise_if_preempted()
        # The slowest rank is what all waited for.
        self.timing.rollout_seconds += max(share.rollout_seconds for share in shares)
        self.timing.reward_seconds += max(share.reward_seconds for share in shares)
        self._note_faults([fault for share in shares for fault in share.faults])
        rounds = itertools.zip_longest(*(share.groups for share in shares))
        groups = [group for one_each in rounds for group in one_each if group is not None]
        self.timing.tokens += sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
        return groups

    def _share(self, prompts: Sequence[Prompt], numbers: Sequence[int], sampling: Sampling, n: int) -> _Share:
        start = time.perf_counter()
        groups: list[Group] = []
        faults: list[rewards.RewardProblem] = []
        try:
            completions = self._engine.generate([p.token_ids for p in prompts], sampling, n, numbers) if prompts else []
        except GenerationStopped:
            return _Share(True, [], [])
        _check_engine(completions, len(prompts), n)
        sampled = time.perf_counter()
        for i, prompt in enumerate(prompts):
            if self._stop_requested():
                return _Share(True, [], [])
            own = completions[i * n : (i + 1) * n]
            groups.append(Group(prompt, tuple(self._grade(prompt, each, sampling, faults) for each in own)))
        return _Share(False, groups, faults, sampled - start, time.perf_counter() - sampled)

    def _grade(
        self, prompt: Prompt, completion: Completion, sampling: Sampling, faults: list[rewards.RewardProblem]
    ) -> Rollout:
        """The completion and what it is worth; what goes wrong is appended to the faults."""
        task, truncated = self._tasks[prompt.task], completion.finish_reason == "length"
        ids = completion.token_ids
        text = self._tokenizer.decode(ids if truncated else ids[:-1])
        sample = rewards.Sample(
            problem=prompt.problem,
            completion=text,
            num_tokens=len(ids),
            max_new_tokens=sampling.max_new_tokens,
            truncated=truncated,
        )
        limit = self._options.reward_timeout_seconds
        hung = Counter(fault.reward for fault in faults if fault.kind == "timeout")
        score = rewards.score(sample, task, limit, {name for name, count in hung.items() if count >= MOST_TIMEOUTS})
        faults += score.problems
        right = {}
        for rule in ("strict", "official", "lenient"):
            right[rule], more = rewards.grade(sample, task, rule, limit)
            faults += more
        letter, more = rewards.find_letter(sample, task, limit)
        faults += more
        return Rollout(
            token_ids=tuple(ids),
            logprobs=tuple(completion.logprobs),
            truncated=truncated,
            text=text,
            parts=dict(score.parts),
            reward=overlong_reward(score.total, len(ids), truncated, sampling.max_new_tokens, self._options),
            letter=letter,
            trains=not (truncated and self._options.overlong == "mask"),
            **right,
        )

    def _note_faults(self, faults: Sequence[rewards.RewardProblem]) -> None:
        for fault in faults:
            self.timing.faults[fault.kind] += 1
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


def overlong_reward(reward: float, length: int, truncated: bool, max_new_tokens: int, options: Grpo) -> float:
    """The reward after grpo.overlong.

    `penalty` is DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): nothing up to max_new_tokens -
    overlong_buffer tokens, then linearly more, up to overlong_penalty at max_new_tokens.
    """
    if options.overlong == "zero":
        return min(0.0, reward) if truncated else reward
    if options.overlong == "mask":
        return reward
    over = length - (max_new_tokens - options.overlong_buffer)
    return reward - options.overlong_penalty * min(1.0, max(0.0, over / options.overlong_buffer))


def _check_engine(completions: Sequence[Completion], prompts: int, n: int) -> None:
    """An engine of a user's own may give anything."""
    if [completion.prompt for completion in completions] != [i for i in range(prompts) for _ in range(n)]:
        raise RuntimeError(
            f"rollout.engine gave {len(completions)} completions, or in another order: want {n} of each of {prompts} "
            "prompts, by prompt"
        )
    for completion in completions:
        if not completion.token_ids or len(completion.token_ids) != len(completion.logprobs):
            raise RuntimeError("rollout.engine gave a completion without tokens, or without a logprob for each token")
