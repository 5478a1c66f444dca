"""What the page and REPORT.md hold, without a browser."""

import json
import math
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_helpers import HOSTILE, write_lines, write_run
from tool_helpers import tool_here

from titan_pt.report import page as pages
from titan_pt.report.markdown import markdown
from titan_pt.report.record import read_runs
from titan_pt.report.rollouts import read_rollouts
from titan_pt.tools.compare import comparison_text
from titan_pt.tools.report import main


class _Elements(HTMLParser):
    """The elements of a page, as a browser parses them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._id = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id") or "" if tag == "script" else ""

    def handle_endtag(self, tag: str) -> None:
        self._id = ""

    def handle_data(self, data: str) -> None:
        self.text[self._id] = self.text.get(self._id, "") + data


def test_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both files, in report/ of the run; what is foreign is text; the policy allows no network and no other script."""
    run = write_run(tmp_path / "a", 50, 100, hostile=HOSTILE)
    assert tool_here(main, run) == 0
    html = (run / "report" / "report.html").read_text(encoding="utf-8")
    elements = _Elements(html)
    assert str(run / "report" / "report.html") in capsys.readouterr().out
    scripts = [attributes for tag, attributes in elements.found if tag == "script"]
    library = 1 if all(pages.plotting_library()) else 0
    assert len(scripts) == 2 + 2 + 1 + library, "the theme's, the page's own; data, index; one part of rollouts; uPlot"
    assert not any("src" in attributes or "href" in attributes for attributes in scripts)
    assert not any(tag in ("img", "iframe", "link", "object") for tag, _ in elements.found)
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    links = [attributes.get("href") or "" for tag, attributes in elements.found if tag == "a"]
    assert links and all(link.startswith("#") for link in links)
    policy = next(a["content"] for _, a in elements.found if a.get("http-equiv") == "Content-Security-Policy") or ""
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("sha256-") == 3 + 2 * library
    data = json.loads(elements.text["data"])
    assert len(data["runs"][0]["columns"]["loss"]) == 50
    assert "lr = 0.001" in html and "the loss is a spike &lt;/script&gt;" in html
    for shown in (
        "best val loss",
        "goodput",
        "arithmetic",
        "bad step",
        "85.1 to 93.4 %",
        "titan_pt 0.9, commit abc1234",
    ):
        assert shown in html, shown
    text = (run / "report" / "REPORT.md").read_text(encoding="utf-8")
    assert "| steps | 50 | of 50 |" in text and "- step 25: bad step, the loss is a spike" in text
    assert "<script" not in text.replace("\\<", ""), "no HTML in Markdown either"


def test_several_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlaid in one page, in report/ of the first, with the keys that differ and no others."""
    first, second = write_run(tmp_path / "a", 50), write_run(tmp_path / "b", 80, lr=3e-3)
    monkeypatch.setattr(pages, "_most_points", lambda runs: 60)
    assert tool_here(main, first, second, "--output", tmp_path / "out") == 0
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    curves = {run["name"]: len(run["columns"]["loss"]) for run in json.loads(_Elements(html).text["data"])["runs"]}
    assert curves == {"a": 50, "b": 40} and "b: each point is the mean of 2 logged steps." in html
    differing = html[html.index("Keys that differ") : html.index('id="curves"')].replace("<wbr>", "")
    assert re.findall("<code>([a-z_.]+)</code>", differing) == ["training.steps", "optimizer.lr"]
    text = (tmp_path / "out" / "REPORT.md").read_text(encoding="utf-8")
    assert "| optimizer.lr | 0.001 | 0.003 |" in text.replace("\\", "")
    assert not (first / "report").exists()


def test_a_folder_with_next_to_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.toml").write_text("[job\n")
    assert tool_here(main, tmp_path / "a") == 0
    html = (tmp_path / "a" / "report" / "report.html").read_text(encoding="utf-8")
    for note in ("no metrics.jsonl", "config.toml is damaged", "no goodput.jsonl"):
        assert note in html and note in (tmp_path / "a" / "report" / "REPORT.md").read_text()
    assert 'id="curves"' not in html and 'id="rollouts"' not in html
    assert tool_here(main, tmp_path / "none") == 2 and "no such folder" in capsys.readouterr().err


def test_damaged_bytes_anywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is in a run's files, a page and a text are made of them, and both can be written."""
    caplog.set_level("CRITICAL", "titan_pt")  # a warning a line
    whole = write_run(tmp_path / "whole", 8, 10)
    values = [None, True, HOSTILE, 1e308, math.nan, 10**400, [[1]], {"a": 1}, -5, 0, "\ud800"]
    for seed in range(18):
        draw = random.Random(seed)
        folder = tmp_path / f"damaged-{seed}"
        shutil.copytree(whole, folder)
        path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        if seed % 3 == 0:
            content = bytearray(path.read_bytes())
            for _ in range(20):
                content[draw.randrange(len(content))] = draw.randrange(256)
            path.write_bytes(content[: draw.randint(0, len(content))])
        elif seed % 3 == 1 and path.suffix != ".toml":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for row in rows:
                row |= {draw.choice([*row, f"</script>{seed}"]): draw.choice(values) for _ in range(3)}
            write_lines(path, rows)
        else:
            path.unlink()
            path.mkdir()
        runs = read_runs([folder, whole])
        for some in (runs, runs[:1]):
            html = pages.page(some, read_rollouts(some, 100))
            json.loads(_Elements(html).text["data"])
            (html + markdown(some, "x") + comparison_text(some, 80)).encode()


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """No curves, which is told; the rest is there."""
    monkeypatch.setattr(pages.importlib.util, "find_spec", lambda name: None)
    run = write_run(tmp_path / "a", 20)
    caplog.set_level("WARNING", "titan_pt")
    assert tool_here(main, run) == 0
    html = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert "var uPlot" not in html and "pip install 'titan-pt[report]'" in html + caplog.text
