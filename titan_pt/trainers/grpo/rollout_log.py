"""The record of every completion, in rollouts/step-N.jsonl, for people to read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titan_pt.run.files import write_atomic
from titan_pt.run.records import Record
from titan_pt.tasks.rollouts import GradedCompletion, Group

FOLDER = "rollouts"


@dataclass(frozen=True)
class RolloutLog:
    """Writes the completions of every `frequency`-th step below a run folder; with a frequency of 0 it writes none."""

    run_folder: Path
    frequency: int
    record: Record = field(default_factory=lambda: Record(FOLDER))

    def write(self, step: int, groups: Sequence[Group], advantages: Mapping[int, Sequence[float]]) -> None:
        """Write the groups of a step to one file, whole or not at all. A failing disk costs no step.

        Args:
            step: step number; 0 is the readiness probe.
            advantages: advantages of each completion of the groups that were trained on, by the group's number.
        """
        if not self.frequency or step % self.frequency:
            return
        path = self.run_folder / FOLDER / f"step-{step}.jsonl"
        found = (row for i, group in enumerate(groups) for row in rows(group, advantages.get(i)))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)

        def put() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, text)

        self.record.write(str(path), len(text), put)


def rows(group: Group, advantages: Sequence[float] | None) -> list[dict[str, Any]]:
    """One JSON row for each completion; `advantage` is null where the group was not trained on."""
    problem = group.prompt.problem
    return [
        {
            "task": problem.task,
            "id": problem.id,
            "prompt": group.prompt.text,
            "gold": problem.gold,
            "sample": number,
            "completion": completion.text,
            **({"turns": list(turns(completion))} if completion.turns else {}),
            "num_tokens": len(completion.token_ids),
            "finish_reason": "length" if completion.truncated else "stop",
            "rewards": completion.parts,
            "reward": completion.reward,
            "strict": completion.strict,
            "lenient": completion.lenient,
            "advantage": None if advantages is None else advantages[number],
        }
        for number, completion in enumerate(group.completions)
    ]


def turns(completion: GradedCompletion) -> Iterator[dict[str, Any]]:
    """The conversation of an episode: what the model wrote, with its reward parts, and what was said to it."""
    for turn in completion.turns:
        yield {
            "role": "assistant",
            "content": turn.text,
            "num_tokens": turn.num_tokens,
            **({"rewards": dict(turn.rewards)} if turn.rewards else {}),
        }
        yield from ({"role": each["role"], "content": each["content"]} for each in turn.messages)


def shown(groups: Sequence[Group], count: int) -> str:
    """Text for the console: the first completion of the first `count` groups, with its prompt and reward.

    What the model wrote stands behind "-->", what its environment said behind "<--" and its role.
    """
    texts = []
    for group in groups[:count]:
        completion = group.completions[0]
        said = turns(completion) if completion.turns else [{"role": "assistant", "content": completion.text}]
        lines = [f"[{group.prompt.problem.id}] {group.prompt.text}"]
        lines += [f"{'-->' if it['role'] == 'assistant' else '<-- ' + it['role'] + ':'} {it['content']}" for it in said]
        verdict = f"gold {group.prompt.problem.gold}, reward {completion.reward:g}, {len(completion.token_ids)} tokens"
        texts.append("\n".join([*lines, verdict + (", cut off" if completion.truncated else "")]))
    return "\n\n".join(texts)
