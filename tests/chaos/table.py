"""The summary of many scenarios: fault, times injected, runs lost, steps lost, data lost or repeated, exit codes."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


def table(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """One row for each kind of fault; a scenario that failed counts for all of its faults.

    Args:
        verdicts: the fields of each `judge.Verdict`.
    """
    rows: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = defaultdict(list)
    for verdict in verdicts:
        for start in verdict["starts"]:
            rows[start["fault"]].append((verdict, start))
    lines = [("fault", "injected", "runs lost", "steps lost: most, mean", "data lost or repeated", "exit codes")]
    for fault, cases in sorted(rows.items()):
        hit = [start for _, start in cases if start["fired"]]
        steps = [start["steps lost"] for start in hit]
        codes = Counter(start["code"] for start in hit)
        lines.append(
            (
                fault,
                f"{len(hit)} of {len(cases)}",
                str(len({id(verdict) for verdict, _ in cases if verdict["problems"]})),
                f"{max(steps, default=0)}, {sum(steps) / max(1, len(steps)):.1f}",
                str(sum(any(problem.startswith("data of") for problem in verdict["problems"]) for verdict, _ in cases)),
                ", ".join(f"{code}: {count}" for code, count in sorted(codes.items())),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)
