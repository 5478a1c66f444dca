"""REPORT.md: what a report says, as text."""

import re
from collections.abc import Iterable, Sequence

from titan_pt.report.figures import differing_keys, duration, evaluations, share
from titan_pt.report.page import cards, clock, comparison, facts
from titan_pt.report.record import RunRecord, dump, encodable
from titan_pt.run.goodput import goodput_of

_MOST_EVENTS = 50


def markdown(runs: Sequence[RunRecord], html_name: str) -> str:
    """The report of one run or several as Markdown."""
    lines = [f"# {_plain(runs[0].name) if len(runs) == 1 else f'{len(runs)} runs'}", "", _plain(facts(runs)), ""]
    lines += [f"Curves and rollouts: [{html_name}]({html_name}).", ""]
    notes = [f"- {_plain(run.name)}: {_plain(note)}" for run in runs for note in run.notes]
    lines += ["## What is missing or damaged", "", *notes, ""] if notes else []
    if len(runs) == 1:
        rows = [[card["name"], card["text"], card["note"]] for card in cards(runs[0])]
        lines += ["## Figures", "", *table(["figure", "value", ""], rows), ""]
    else:
        found = comparison(runs)
        rows = [[row["name"], *(cell["text"] for cell in row["cells"])] for row in found["rows"]]
        lines += ["## Figures", "", *table(["run", *found["names"]], rows), "", "## Keys that differ", ""]
        keys = differing_keys(runs)
        different = [[key, *("" if v is None else dump(v) for v in values)] for key, values in keys.items()]
        lines += table(["key", *(run.name for run in runs)], different) if keys else ["None."]
        lines.append("")
    for run in runs:
        lines += _of_run(run, several=len(runs) > 1)
    return encodable("\n".join(lines).rstrip() + "\n")


def _of_run(run: RunRecord, *, several: bool) -> list[str]:
    name = f" of {_plain(run.name)}" if several else ""
    lines = []
    if found := evaluations(run):
        rows = [
            [
                e.task,
                e.name,
                share(e.value),
                f"{share(e.interval[0])} to {share(e.interval[1])}" if e.interval else "",
                str(e.problems or ""),
                f"{e.step:,}",
                f"{share(e.best)} at {e.best_step:,}",
            ]
            for e in found
        ]
        head = ["task", "value", "last", "95 % interval", "problems", "step", "best"]
        lines += [f"## Evaluations{name}", "", *table(head, rows), ""]
    if total := sum(run.seconds.values()):
        spent = sorted(run.seconds.items(), key=lambda item: -item[1])
        rows = [[kind, duration(seconds), share(seconds / total)] for kind, seconds in spent]
        lines += [f"## Time{name}", "", f"Goodput {share(goodput_of(run.seconds))} of {duration(total)}.", ""]
        lines += [*table(["spent on", "time", "share"], rows), ""]
    if run.events:
        told = [
            f"- step {event.step:,}{f', {clock(event.time)}' if event.time else ''}: {event.kind}, {_plain(event.text)}"
            for event in run.events[:_MOST_EVENTS]
        ]
        left = len(run.events) - len(told)
        lines += [f"## Events{name}", "", *told, *([f"- and {left:,} more"] if left else []), ""]
    return lines


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return ["| " + " | ".join(map(_plain, cells)) + " |" for cells in (head, ["---"] * len(head), *rows)]


def _plain(text: str) -> str:
    """A text in one line that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
