"""Every completion of a step in rollouts/step-N.jsonl, for people to read."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from titan_pt.tasks.rollouts import Group

logger = logging.getLogger("titan_pt")

FOLDER = "rollouts"


def record(run_folder: Path, step: int, groups: Sequence[Group], advantages: Mapping[int, Sequence[float]]) -> None:
    """Write the groups of a step; the file is whole or not there. A full disk costs the file, not the run.

    Args:
        advantages: of the samples of each group that was trained on, by the group's number.
    """
    path = run_folder / FOLDER / f"step-{step}.jsonl"
    temporary = path.with_suffix(".jsonl.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            for i, group in enumerate(groups):
                for row in rows(group, advantages.get(i)):
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        logger.error(f"{path} could not be written: {error}; training goes on")


def rows(group: Group, advantages: Sequence[float] | None) -> list[dict[str, Any]]:
    """One row a completion; `advantage` is null where the group was not trained on."""
    problem = group.prompt.problem
    return [
        {
            "task": problem.task,
            "id": problem.id,
            "prompt": group.prompt.text,
            "gold": problem.gold,
            "sample": number,
            "completion": rollout.text,
            "num_tokens": len(rollout.token_ids),
            "finish_reason": "length" if rollout.truncated else "stop",
            "rewards": rollout.parts,
            "reward": rollout.reward,
            "strict": rollout.strict,
            "lenient": rollout.lenient,
            "advantage": None if advantages is None else advantages[number],
        }
        for number, rollout in enumerate(group.rollouts)
    ]


def shown(groups: Sequence[Group], count: int) -> str:
    """The first samples as text for the console: a prompt, its answer, its reward."""
    texts = []
    for group in groups[:count]:
        rollout = group.rollouts[0]
        texts.append(
            f"[{group.prompt.problem.id}] {group.prompt.text}\n"
            f"--> {rollout.text}\n"
            f"gold {group.prompt.problem.gold}, reward {rollout.reward:g}, {len(rollout.token_ids)} tokens"
            + (", cut off" if rollout.truncated else "")
        )
    return "\n\n".join(texts)
