"""Episodes: the conversations of sampled completions with the environments of their tasks, and what they earned."""

import queue
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.grpo import Rollout
from titan_pt.environments.pool import Call, EnvironmentPool, Failure, PoolLimits
from titan_pt.environments.protocol import CORRECT, EpisodeState, Message, ModelTurn
from titan_pt.environments.turns import AnswerTokens
from titan_pt.generation.engine import ConversationEngine, GenerationStopped, RolloutEngine
from titan_pt.hf.tool_form import tool_form
from titan_pt.tasks.prompts import Prompt
from titan_pt.tasks.rollouts import MOST_TIMEOUTS
from titan_pt.tasks.task import Problem, Task

_LOOK_SECONDS = 0.1
_NOT_ASKED = Failure("timeout", "took too long before, and is not asked again in this step")


@dataclass(frozen=True)
class PlayedTurn:
    """One turn of an episode, for records."""

    text: str
    """What the model wrote, without the token that ended the turn."""
    num_tokens: int
    messages: tuple[Message, ...] = ()
    """What the environment said to it; empty where the episode ended."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Reward parts of the turn."""


@dataclass
class Episode:
    """One conversation of a completion with an environment."""

    task: int
    state: EpisodeState
    turns: list[PlayedTurn] = field(default_factory=list)
    tokens: int = 0
    """Tokens so far, the answers' included."""
    truncated: bool = False
    """Whether a turn was cut off, or the answer to it would have left no room for another."""
    failure: Failure | None = None
    """What went wrong with the environment."""

    @property
    def parts(self) -> dict[str, float]:
        """Reward parts, added up over the turns."""
        total: Counter[str] = Counter()
        for turn in self.turns:
            for name, value in turn.rewards.items():
                total[name] += value  # type: ignore[assignment]
        return {name: float(value) for name, value in total.items()}

    def given(self, task: Task) -> dict[str, float]:
        """Rewards that the environment decides; all, and none earned, where it failed."""
        if self.failure:
            return dict.fromkeys((*task.rewards, CORRECT), 0.0)
        return {**dict.fromkeys(task.environment.rewards if task.environment else (), 0.0), **self.parts}


class Episodes:
    """Plays the tasks of a run that have environments.

    Args:
        max_tokens: most tokens of an episode.
        stop_requested: whether this process is asked to stop.

    Raises:
        ConfigError: an environment cannot be run in another process, or a chat template cannot be continued.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: Tokenizer,
        limits: PoolLimits,
        *,
        max_turns: int,
        max_tokens: int,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.tasks, self.tokenizer, self.stop_requested = list(tasks), tokenizer, stop_requested
        self.max_turns, self.max_tokens = max_turns, max_tokens
        played = [t for t, task in enumerate(tasks) if task.environment]
        self.numbers = {t: number for number, t in enumerate(played)}
        self.encode = {t: AnswerTokens(tokenizer, tasks[t]) for t in played}
        self.forms = {t: tool_form(tokenizer) for t in played if tasks[t].tools}
        self.pool = EnvironmentPool([(tasks[t].name, tasks[t].environment) for t in played], limits)  # type: ignore[misc]
        self.pool.check()

    def begin(self, prompts: Sequence[Prompt], n: int) -> "Talk | None":
        """The partner of `n` completions of each prompt; None where no prompt's task has an environment."""
        if all(prompt.task not in self.numbers for prompt in prompts):
            return None
        return Talk(self, prompts, n)


class Talk:
    """A `Partner` that speaks for environments: answers in the order of the completions, whoever was first."""

    def __init__(self, episodes: Episodes, prompts: Sequence[Prompt], n: int) -> None:
        self._all, self.max_tokens = episodes, episodes.max_tokens
        self.episodes: dict[int, Episode] = {}
        """By the number of the completion; one-turn tasks have none."""
        for i, prompt in enumerate(prompts):
            if prompt.task in episodes.numbers:
                state = self._state(prompt.task, prompt.problem)
                self.episodes |= {i * n + sample: Episode(prompt.task, state) for sample in range(n)}
        self._done: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._open: dict[int, Call] = {}
        self._timeouts: Counter[int] = Counter()

    def hear(self, number: int, tokens: Sequence[int], *, ended: bool) -> None:
        """Have the environment answer a turn; one that was cut off ends its episode."""
        episode = self.episodes.get(number)
        if episode is None:
            return
        text = self._all.tokenizer.decode(tokens[:-1] if ended else tokens)
        read_calls = self._all.forms.get(episode.task)
        turn = ModelTurn(text, len(tokens), tuple(read_calls(text)) if read_calls else ())
        episode.turns.append(PlayedTurn(turn.text, turn.num_tokens))
        episode.tokens += len(tokens)
        if not ended:
            episode.truncated = True
        elif self._timeouts[episode.task] >= MOST_TIMEOUTS:
            episode.failure = _NOT_ASKED
        else:
            call = Call(self._all.numbers[episode.task], episode.state, turn, self._done, number)
            self._open[number] = call
            self._all.pool.submit(call)

    def answers(self) -> list[tuple[int, list[int]]]:
        """Answers to the turns that were heard; those of late environments come with a later call."""
        ready: list[tuple[int, list[int]]] = []
        over = 0
        while self._open:
            if self._all.stop_requested():
                for call in self._open.values():
                    call.dropped.set()
                raise GenerationStopped
            try:
                call = self._done.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                # Others do not wait for late ones, unless most are.
                if ready and len(ready) + over >= len(self._open) and all(c.is_late for c in self._open.values()):
                    break
                continue
            if self._open.pop(call.key, None) is not call:  # dropped when a process had just taken it
                continue
            tokens = self._answer(self.episodes[call.key], call)
            over += tokens is None
            if tokens is not None:
                ready.append((call.key, tokens))
        return sorted(ready)

    def _state(self, t: int, problem: Problem) -> EpisodeState:
        return EpisodeState(problem, tuple(self._all.tasks[t].opening(problem)))

    def _answer(self, episode: Episode, call: Call) -> list[int] | None:
        """The tokens of a reply; None where the episode is over."""
        reply = call.result
        if isinstance(reply, Failure) or reply is None:
            episode.failure = reply
            self._timeouts[episode.task] += isinstance(reply, Failure) and reply.kind == "timeout"
            if self._timeouts[episode.task] >= MOST_TIMEOUTS:
                self._drop_queued(episode.task)
            return None
        messages = () if reply.done else tuple(reply.messages)
        episode.turns[-1] = replace(episode.turns[-1], messages=messages, rewards=reply.rewards)
        state = episode.state
        said = (*state.messages, call.turn.message(), *messages)
        episode.state = EpisodeState(state.problem, said, state.turn + 1, reply.memory)
        if reply.done or episode.state.turn == self._all.max_turns:
            return None
        try:
            tokens = self._all.encode[episode.task](messages)
        except Exception as error:  # a template may fail on them in any way
            episode.failure = Failure("error", f"its messages cannot be encoded: {error}")
            return None
        if episode.tokens + len(tokens) >= self.max_tokens:
            episode.truncated = True
            return None
        episode.tokens += len(tokens)
        return tokens

    def _drop_queued(self, task: int) -> None:
        """Fail the episodes of a task whose calls no process has taken yet."""
        for key, call in list(self._open.items()):
            if self.episodes[key].task == task and call.started is None:
                call.dropped.set()
                del self._open[key]
                self.episodes[key].failure = _NOT_ASKED


def episode_tokens(rollout: Rollout, names: Iterable[str]) -> int:
    """The most tokens of an episode of the tasks that are played in turns.

    Raises:
        ConfigError: rollout.max_episode_tokens is not set.
    """
    if rollout.max_episode_tokens is None:
        raise ConfigError(
            f"rollout.max_episode_tokens is not set: {_told(names)} is played in turns; set it to the most tokens of "
            f"an episode, such as {4 * rollout.max_new_tokens} for 4 turns of rollout.max_new_tokens"
        )
    return rollout.max_episode_tokens


def _told(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def build_episodes(
    tasks: Sequence[Task],
    tokenizer: Tokenizer,
    engine: RolloutEngine,
    rollout: Rollout,
    stop_requested: Callable[[], bool],
) -> Episodes:
    """The player of a run's tasks by [rollout].

    Raises:
        ConfigError: rollout.max_episode_tokens is not set, or the engine has no conversations.
    """
    names = [task.name for task in tasks if task.environment]
    max_tokens = episode_tokens(rollout, names)
    if not isinstance(engine, ConversationEngine):
        raise ConfigError(
            f'rollout.engine = "{rollout.engine}": has no conversations (`converse`), and {_told(names)} is played in '
            'turns; take rollout.engine = "native", or tasks of one turn'
        )
    limits = PoolLimits(
        rollout.environment_workers, rollout.environment_timeout_seconds, rollout.environment_memory_gib
    )
    return Episodes(
        tasks,
        tokenizer,
        limits,
        max_turns=rollout.max_turns,
        max_tokens=max_tokens,
        stop_requested=stop_requested,
    )
