"""The record of every completion, in rollouts/step-N.jsonl, for people to read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titan_pt.run.files import write_atomic
from titan_pt.run.records import Record
from titan_pt.tasks.rollouts import Group

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


def shown(groups: Sequence[Group], count: int) -> str:
    """Text for the console: the first completion of the first `count` groups, with its prompt and reward."""
    texts = []
    for group in groups[:count]:
        completion = group.completions[0]
        texts.append(
            f"[{group.prompt.problem.id}] {group.prompt.text}\n"
            f"--> {completion.text}\n"
            f"gold {group.prompt.problem.gold}, reward {completion.reward:g}, {len(completion.token_ids)} tokens"
            + (", cut off" if completion.truncated else "")
        )
    return "\n\n".join(texts)
