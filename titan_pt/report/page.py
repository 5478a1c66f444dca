"""The HTML file of a report: one file without network, whose foreign texts stay texts."""

import base64
import functools
import hashlib
import importlib.util
import json
import time
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from titan_pt.report.charts import MOST_POINTS, Chart, charts, points, rows_a_point
from titan_pt.report.figures import FIGURES, differing_keys, duration, evaluations, share
from titan_pt.report.record import RunRecord, dump, encodable
from titan_pt.report.rollouts import PART_ROWS, PackedRollouts
from titan_pt.run.goodput import goodput_of
from titan_pt.version import made_by

_THEME_SCRIPT = (
    'document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";'
)
_KINDS = ("training", "sampling", "data", "compile", "lost", "restart", "start", "validation", "save")
"""What takes time and has a colour of its own."""


def plotting_library() -> tuple[str, str]:
    """The JavaScript and the style of uPlot, out of the wheel of uplot-python; empty where that is not installed.

    The wheel's own Python is not imported: it would load IPython.
    """
    spec = importlib.util.find_spec("uplot")
    folders = [Path(place) / "static" for place in (spec.submodule_search_locations or [])] if spec else []
    for folder in folders:
        script, style = folder / "uPlot.iife.js", folder / "uPlot.min.css"
        if script.is_file() and style.is_file():
            return script.read_text(encoding="utf-8"), style.read_text(encoding="utf-8")
    return "", ""


def page(runs: Sequence[RunRecord], rollouts: PackedRollouts) -> str:
    """The report of one run or several as HTML."""
    drawn = charts(runs)
    drawn.sort(key=lambda chart: chart.more)
    more = [chart for chart in drawn if chart.more]
    library, library_style = plotting_library()
    texts = {
        "theme_script": _THEME_SCRIPT,
        "library": library,
        "script": _own("page.js"),
        "library_style": library_style,
        "style": _own("page.css"),
    }
    assert not any("</" in text for name, text in texts.items() if name != "library") and "</script" not in library
    html = _template().render(
        **{name: Markup(text) for name, text in texts.items()},
        script_hashes=Markup(_hashes(texts["theme_script"], library, texts["script"])),
        style_hashes=Markup(_hashes(library_style, texts["style"])),
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        facts=facts(runs),
        sections=_sections(runs, drawn, rollouts),
        notes=[f"{run.name}: {note}" if len(runs) > 1 else note for run in runs for note in run.notes],
        runs=runs,
        cards=cards(runs[0]),
        comparison=comparison(runs),
        differing=differing_keys(runs),
        charts=drawn,
        thinned=_thinned(runs),
        more=more,
        first_more=len(drawn) - len(more),
        evaluations=[(number, found) for number, run in enumerate(runs) for found in evaluations(run)],
        num_rollouts=len(rollouts),
        rollout_notes=rollouts.notes,
        rollouts_index=_json(rollouts.index),
        rollout_parts=[Markup(part) for part in rollouts.parts],
        accounts=[_account(run) for run in runs],
        data=_json(_data(runs, drawn)),
        footer=f"Made by {made_by()} on {clock(time.time())}. This file needs no network.",
    )
    return encodable(html)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.globals.update(share=share, duration=duration, dump=dump, clock=clock)
    return environment.from_string(_own("page.html"))


def facts(runs: Sequence[RunRecord]) -> str:
    """One line about the runs."""
    if len(runs) > 1:
        states = Counter(run.state for run in runs)
        return ", ".join(f"{count} {state}" for state, count in states.items())
    run = runs[0]
    job = run.config.get("job") or {}
    trainer = job.get("trainer", "")
    said = [
        str(job.get("description") or ""),
        f"trainer {trainer}" if trainer else "",
        run.state,
        run.made_by,
        str(run.folder),
    ]
    return " · ".join(part for part in said if part)


def cards(run: RunRecord) -> list[dict[str, str]]:
    """The figures that a run has, each with its name, its value as text, and a note."""
    found = ((figure, figure.value(run)) for figure in FIGURES)
    return [{"name": f.name, "text": f.text(value), "note": f.note(run)} for f, value in found if value is not None]


def comparison(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """The figures of the runs as rows; those that no run has are left out."""
    columns = [(figure, [figure.value(run) for run in runs]) for figure in FIGURES]
    columns = [(figure, values) for figure, values in columns if any(value is not None for value in values)]
    rows = []
    for number, run in enumerate(runs):
        cells = []
        for figure, values in columns:
            value, known = values[number], [value for value in values if value is not None]
            best = figure.best is not None and len(set(known)) > 1 and value == figure.best(known)
            cells.append({"text": "" if value is None else figure.text(value), "best": best})
        rows.append({"name": run.name, "cells": cells})
    return {"names": [figure.name for figure, _ in columns], "rows": rows}


def clock(seconds: float) -> str:
    """A moment in UTC, to the minute."""
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "at an unknown time"


def _data(runs: Sequence[RunRecord], drawn: Sequence[Chart]) -> dict[str, Any]:
    keys = [key for chart in drawn for key in chart.keys]
    return {
        "part_rows": PART_ROWS,
        "charts": [
            {"keys": chart.keys, "labels": [chart.label(key) for key in chart.keys], "percent": chart.percent}
            for chart in drawn
        ],
        "runs": [{"name": run.name, "columns": points(run, keys, _most_points(runs))} for run in runs],
    }


def _most_points(runs: Sequence[RunRecord]) -> int:
    return max(MOST_POINTS // len(runs), 500)


def _thinned(runs: Sequence[RunRecord]) -> list[str]:
    sizes = {run.name: rows_a_point(run, _most_points(runs)) for run in runs}
    return [f"{name}: each point is the mean of {size} logged steps." for name, size in sizes.items() if size > 1]


def _sections(runs: Sequence[RunRecord], drawn: Sequence[Chart], rollouts: PackedRollouts) -> list[tuple[str, str]]:
    there = {
        "summary": True,
        "curves": bool(drawn),
        "evaluations": any(evaluations(run) for run in runs),
        "rollouts": len(rollouts) > 0,
        "time": True,
        "config": True,
    }
    return [(name, name.capitalize()) for name, is_there in there.items() if is_there]


def _account(run: RunRecord) -> dict[str, Any] | None:
    total = sum(run.seconds.values())
    if total <= 0:
        return None
    parts: list[dict[str, Any]] = []
    start = 0.0
    for name, seconds in sorted(run.seconds.items(), key=lambda item: -item[1]):
        color = name if name in _KINDS else "other"
        parts.append({"name": name, "kind": color, "seconds": seconds, "share": seconds / total, "start": start})
        start += seconds / total
    return {"goodput": goodput_of(run.seconds), "total": total, "parts": parts}


def _own(name: str) -> str:
    return (resources.files("titan_pt.report") / name).read_text(encoding="utf-8")


def _hashes(*texts: str) -> str:
    """The sources of a content security policy that allow these inline texts and no others."""
    digests = (hashlib.sha256(text.encode()).digest() for text in texts if text)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests) or "'none'"


def _json(value: Any) -> Markup:
    """JSON for a script element, which no text in it can end."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
