"""The page in headless Chromium, from file://: what is seen, what the keyboard does, and that nothing leaves."""

import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_helpers import HOSTILE, write_run
from tool_helpers import tool_here

from titan_pt.run.secrets import printable
from titan_pt.tools.report import HTML_FILE, main

_BROWSER, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (_BROWSER and _DRIVER):
    pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver", allow_module_level=True)
for _module in ("selenium", "uplot"):
    if importlib.util.find_spec(_module) is None:
        pytest.skip(f"no {_module}: pip install -e '.[test]'", allow_module_level=True)

from selenium.webdriver import Chrome, ChromeOptions, Keys  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402

_DRAWN = """
return [...document.querySelectorAll('figure')].filter((figure) => figure.plot)
  .map((figure) => figure.plot.data.map((column) => column.filter((value) => value !== null).length));
"""
_INKED = """
const canvas = document.querySelector('figure canvas');
return new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size;
"""
_CONTRAST = """
const light = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (node) => {
  const found = getComputedStyle(node).backgroundColor;
  return found === 'rgba(0, 0, 0, 0)' && node.parentElement ? ground(node.parentElement) : found;
};
const texts = 'h1, .facts, .card dt, .hint, .mark, nav a, .chips span, .events .kind, summary, td';
return Math.min(...[...document.querySelectorAll(texts)]
  .filter((node) => node.offsetParent).map((node) => {
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
"""


class Browser:
    """A Chromium that opens pages of files, and knows what they asked for and complained about."""

    def __init__(self) -> None:
        options = ChromeOptions()
        options.binary_location = str(_BROWSER)
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.chrome = Chrome(options=options, service=Service(str(_DRIVER)))

    def open(self, page: Path, width: int = 1400, theme: str = "light") -> float:
        """Open a page; returns the seconds until its first curve and rollout are seen, where it has some."""
        self.chrome.get("about:blank")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = [{"name": "prefers-color-scheme", "value": theme}]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
        self.chrome.get_log("browser"), self.chrome.get_log("performance")
        start = time.monotonic()
        self.chrome.get(page.as_uri())
        self.until("return !document.querySelector('figure') || !!document.querySelector('figure canvas')")
        self.until(
            "return !document.querySelector('#list') || document.querySelector('.snippet').textContent.length > 1"
        )
        return time.monotonic() - start

    def run(self, script: str, *arguments: Any) -> Any:
        return self.chrome.execute_script(script, *arguments)

    def until(self, script: str, seconds: float = 20.0) -> Any:
        """Wait until a script returns something true."""
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"not in {seconds} s: {script}"
            time.sleep(0.02)
        return found

    def press(self, *keys: str) -> None:
        for key in keys:
            self.chrome.switch_to.active_element.send_keys(key)

    def set(self, name: str, value: str) -> None:
        """Give a field of the filters a value, as typing does."""
        self.run(
            "const f = document.getElementById('filters').elements[arguments[0]]; f.value = arguments[1];"
            "document.getElementById('filters').dispatchEvent(new Event('input'))",
            name,
            value,
        )

    def listed(self, what: str) -> list[Any]:
        """A column of the index over the rollouts that are listed, in their order."""
        return self.run(
            "const index = JSON.parse(document.getElementById('rollouts-index').textContent);"
            "return [...document.querySelectorAll('.row')].map((row) => index[arguments[0]][row.dataset.rollout])",
            what,
        )

    def check_quiet(self) -> None:
        """No error was logged, and nothing but files was asked for."""
        assert self.chrome.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in self.chrome.get_log("performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        assert asked and all(url.startswith("file://") and url.endswith(HTML_FILE) for url in asked), asked


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    opened = Browser()
    yield opened
    opened.chrome.quit()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes the page of run folders, each once."""
    folder = tmp_path_factory.mktemp("pages")
    kinds = {
        "large": lambda path: [write_run(path / "a", 10_000, 5_000, hostile=HOSTILE)],
        "two": lambda path: [write_run(path / "one/run", 120, 60), write_run(path / "two/run", 80, 60, lr=3e-3)],
        "torn": lambda path: [write_run(path / "a", 3)],
    }

    def make(kind: str) -> Path:
        page = folder / kind / "out" / HTML_FILE
        if not page.exists():
            runs = kinds[kind](folder / kind)
            if kind == "torn":
                (runs[0] / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0, "step_seconds": 0.1}\n{"st')
                (runs[0] / "config.toml").unlink()
            assert tool_here(main, *runs, "--output", page.parent) == 0
        return page

    return make


def test_a_large_run(browser: Browser, made: Callable[[str], Path]) -> None:
    """10,000 steps and 5,000 rollouts are there within 3 s; texts stay texts; nothing leaves the page."""
    page = made("large")
    for _ in range(3):  # the machine may be busy
        if (seconds := browser.open(page)) < 3:
            break
    assert seconds < 3, f"{seconds:.1f} s"
    columns = browser.run(_DRAWN)
    assert len(columns) >= 2 and columns[0] == [10_000] * 3, "of each curve: the steps, its values, the smoothed ones"
    assert all(min(counts) > 0 for counts in columns)
    assert browser.run(_INKED) > 20, "something is drawn"
    browser.run("document.querySelector('#more').open = true")
    for number in range(browser.run("return document.querySelectorAll('figure').length")):
        browser.run("document.querySelectorAll('figure')[arguments[0]].scrollIntoView()", number)
    browser.until("return [...document.querySelectorAll('figure')].every((figure) => figure.plot)")
    browser.run("document.querySelector('.row').click()")
    shown = browser.until("return [...document.querySelectorAll('.detail pre')].map((pre) => pre.textContent)")
    assert printable(HOSTILE) in shown[1] and browser.run("return document.title") == "a"
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert browser.run("return document.querySelectorAll('script').length") == 3 + 2 + 25
    browser.check_quiet()


def test_rollouts_are_filtered(browser: Browser, made: Callable[[str], Path]) -> None:
    browser.open(made("large"))
    assert browser.listed("step")[0] == 9901 and len(browser.listed("step")) == 40
    for view, column, order in (("best", "reward", max), ("worst", "reward", min), ("longest", "tokens", max)):
        browser.set("view", view)
        extreme = {"reward": {max: 1.1, min: 0}, "tokens": {max: 142}}[column][order]
        assert set(browser.listed(column)) == {extreme}
    browser.set("view", "disagree")
    assert all(a != b for a, b in zip(browser.listed("strict"), browser.listed("lenient"), strict=True))
    count = sum(n % 3 != 0 and n % 7 == 0 for n in range(5000))
    assert browser.run("return document.getElementById('count').textContent") == f"{count} of 5,000 rollouts"
    browser.set("view", "cut")
    assert set(
        browser.run("return [...document.querySelectorAll('.mark')].map((m) => m.textContent.includes('cut off'))")
    ) == {True}
    browser.set("view", "newest")
    browser.set("task", "gsm8k")
    assert set(browser.listed("task")) == {"gsm8k"}
    browser.set("step_from", "101")
    browser.set("step_to", "300")
    assert set(browser.listed("step")) == {101, 201}
    browser.set("reward_from", "1")
    assert browser.listed("reward") and all(reward >= 1 for reward in browser.listed("reward"))
    browser.run("document.querySelector('#filters [type=reset]').click()")
    browser.until("return document.getElementById('count').textContent === '5,000 of 5,000 rollouts'")
    browser.run("document.getElementById('next').click()")
    assert len(browser.listed("step")) == 80
    browser.run("document.querySelectorAll('.row')[9].click()")
    browser.until("return document.querySelector('.detail button')")
    browser.run("document.querySelector('.detail button').click()")
    assert len(browser.listed("id")) == 5 and len(set(browser.listed("id"))) == 1
    browser.check_quiet()


def test_the_keyboard_is_enough(browser: Browser, made: Callable[[str], Path]) -> None:
    """Tab reaches everything in its order; arrows read curves and walk through rollouts; Enter opens."""
    browser.open(made("two"))
    browser.run(
        "window.reached = []; addEventListener('focusin', ({ target }) => "
        "reached.push(target.id || target.name || target.className || target.tagName))"
    )
    browser.press(Keys.TAB * 90)
    reached = browser.run("return reached")
    assert reached[0] == "skip"
    for stop in ("theme", "show-run", "scroll", "x", "smooth", "log", "plot", "view", "task", "reward_from", "row"):
        assert stop in reached, (stop, reached)
    browser.run("document.querySelector('.row').focus()")
    first = browser.run("return document.activeElement.dataset.rollout")
    browser.press(Keys.ARROW_DOWN)
    assert browser.run("return document.activeElement.dataset.rollout") != first
    browser.press(Keys.ENTER)
    assert browser.until("return document.querySelectorAll('.detail pre').length") == 3
    browser.run("document.querySelector('.plot').focus()")
    browser.press(Keys.HOME)
    told = "return document.activeElement.getAttribute('aria-valuetext')"
    assert browser.run(told).startswith("step 1: ")
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert browser.run(told).startswith("step 3: one/run ")
    browser.press("+")
    assert not browser.run("return document.getElementById('unzoom').hidden")
    assert browser.run("return document.querySelector('figure').plot.scales.x.max") < 120
    browser.press(Keys.ESCAPE)
    assert browser.run("return document.getElementById('unzoom').hidden")
    browser.run("document.querySelector('.legend button').focus()")
    browser.press(Keys.ENTER)
    assert browser.run("return document.querySelector('.legend button').getAttribute('aria-pressed')") == "false"
    browser.check_quiet()


def test_axes_and_runs(browser: Browser, made: Callable[[str], Path]) -> None:
    """Steps, tokens and hours; smoothing; a logarithmic axis; curves of both runs in one frame, and a hidden run."""
    browser.open(made("two"))
    loss = "const f = [...document.querySelectorAll('figure')].find((f) => f.textContent.includes('Reward')); return "
    assert browser.run(loss + "f.plot.data[0].length") == 120 and browser.run(loss + "f.plot.data.length") == 1 + 4
    choose = (
        "const f = document.getElementById('axes'); f.elements[arguments[0]].{} = arguments[1];"
        "f.dispatchEvent(new Event('change'))"
    )
    browser.run(choose.format("value"), "smooth", "0")
    assert browser.run(loss + "f.plot.data.length") == 1 + 2
    for axis, last in (("tokens", 120 * 4096), ("hours", 0.02)):
        browser.run(choose.format("value"), "x", axis)
        assert browser.run(loss + "f.plot.data[0].at(-1)") == pytest.approx(last)
        assert browser.run(
            loss + "f.textContent.includes(arguments[0])", {"hours": "hours of training"}.get(axis, axis)
        )
    browser.run(choose.format("checked"), "log", True)
    browser.run("document.querySelectorAll('.show-run')[1].click()")
    assert browser.run(loss + "f.plot.data.length") == 1 + 1
    browser.run("document.querySelectorAll('.show-run')[0].click()")
    assert browser.run(loss + "f.textContent.includes('No run that is shown')")
    browser.check_quiet()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_widths_and_themes(browser: Browser, made: Callable[[str], Path], width: int, theme: str) -> None:
    """No sideways scrolling; text that stands out from its ground; the button turns light into dark and back."""
    for kind in ("two", "torn"):
        browser.open(made(kind), width, theme)
        browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        if kind == "two":
            browser.run("document.querySelector('.row').click()")
            browser.until("return document.querySelector('.detail pre')")
        assert browser.run("return document.documentElement.scrollWidth") <= width
        assert browser.run("return document.documentElement.dataset.theme") == theme
        assert browser.run(_CONTRAST) >= 4.5, "WCAG AA"
    browser.run("document.getElementById('theme').click()")
    assert browser.run("return document.documentElement.dataset.theme") != theme and browser.run(_CONTRAST) >= 4.5
    browser.check_quiet()
