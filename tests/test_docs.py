"""The documentation holds: its links, its keys and flags, and its commands, of which those marked so are run."""

import functools
import importlib.util
import itertools
import re
import runpy
from pathlib import Path
from typing import Any

import documented
import pytest
from documented import ROOT, SHELLS, Block, words

from titan_pt.config.manager import config_class
from titan_pt.config.resolve.fields import rows_of, sections
from titan_pt.config.resolve.toml_files import tomllib
from titan_pt.config.schema.job_config import Section

FOLDERS = ("train_configs/", "k8s/", "scripts/", "examples/", "docs/", "benchmarks/", "tests/", "titan_pt/")
LONGEST_PAGE = 12_000
GENERATED_OR_LONG = (
    "docs/keys.md",
    "docs/LOG.md",
    "docs/architecture.md",
    "docs/interfaces.md",
    "docs/metrics.md",
)

FILE_ENDINGS = (".json", ".jsonl", ".py", ".toml", ".svg", ".slurm", ".parquet", ".safetensors", ".state")

ALL = [block for page in documented.pages() for block in documented.blocks(page)]
IN_SHELL = [block for block in ALL if block.language in SHELLS]


def test_pages_are_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8192
    sizes = {str(page.relative_to(ROOT)): page.stat().st_size for page in documented.pages()}
    assert not {page: size for page, size in sizes.items() if size > LONGEST_PAGE and page not in GENERATED_OR_LONG}


def test_every_command_is_marked() -> None:
    unmarked = [block.where for block in IN_SHELL if block.mark not in ("run", "shown")]
    assert not unmarked, "a line <!-- run --> or <!-- shown: why --> is missing before these blocks"
    assert not [block.where for block in IN_SHELL if block.mark == "shown" and not block.argument], "shown: why?"
    total = documented.count().values()
    assert sum(row["run"] for row in total) >= 25


def test_links_and_anchors() -> None:
    anchors = {page: _anchors(page) for page in documented.pages()}
    broken = []
    for page, _ in anchors.items():
        text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
            path, _, anchor = (target[0] or target[1]).partition("#")
            if re.match(r"[a-z]+:", path):
                continue
            there = (page.parent / path).resolve() if path else page
            if not there.exists() or (anchor and there in anchors and anchor not in anchors[there]):
                broken.append(f"{page.relative_to(ROOT)}: {target[0] or target[1]}")
    assert not broken


def test_links_of_the_site_stay_in_it() -> None:
    """mkdocs knows docs/ alone: a page of the site names what is outside as a path, without a link."""
    outside = [
        f"{page.name}: {target}"
        for page in (ROOT / "docs").rglob("*.md")
        for target in re.findall(r"\]\((\.\./[^)\s]+)\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).resolve().is_relative_to(ROOT / "docs")
    ]
    assert not outside


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert not [page for page in pages if f": {page}\n" not in menu]


def test_every_shipped_experiment_is_in_the_table() -> None:
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert not [path.stem for path in (ROOT / "train_configs").glob("*.toml") if f"`{path.stem}`" not in page]


def test_the_key_reference_is_current() -> None:
    module = runpy.run_path(str(ROOT / "docs" / "make" / "keys.py"))
    assert module["PAGE"].read_text(encoding="utf-8") == module["render"](), "run python docs/make/keys.py"


def test_messages_of_the_troubleshooting_page_are_the_programs() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "titan_pt").rglob("*.py"))
    joined = re.sub(r"\"\n\s*f?\"", "", code)
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)`", page, flags=re.MULTILINE)
    assert len(messages) > 15 and not [message for message in messages if message not in joined]


def test_keys_in_texts_exist() -> None:
    """`section.key` in a page; in coming-from.md the first column has the keys of others."""
    tables, wrong = {name.partition(".")[0] for name in known_keys()}, []
    for page in documented.pages():
        if page.name in ("LOG.md", "CONTRIBUTING.md") or page.parent.name == "log":
            continue
        text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        if page.name == "coming-from.md":
            text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE)
        own = own_keys(str(page.relative_to(ROOT)))
        for name in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?: = [^`]*)?`", text):
            if name.partition(".")[0] in tables and name not in known_keys() | own and not name.endswith(FILE_ENDINGS):
                wrong.append(f"{page.relative_to(ROOT)}: {name}")
    assert not wrong


@pytest.mark.parametrize("page", sorted({block.page for block in IN_SHELL}))
def test_flags_and_files_of_commands_exist(page: str) -> None:
    own = own_keys(page)
    files = {block.argument for block in ALL if block.page == page and block.mark == "file"}
    wrong = [
        f"{block.where}: {mistake}: {command}"
        for block in IN_SHELL
        if block.page == page
        for command in block.commands()
        for mistake in _mistakes(words(command), own, files)
    ]
    assert not wrong


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "toml"], ids=lambda block: block.where)
def test_keys_of_toml_exist(block: Block) -> None:
    known = known_keys() | own_keys(block.page)
    assert not [name for name in _names(tomllib.loads(block.text)) if name not in known]


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "python"], ids=lambda block: block.where)
def test_python_parses_and_its_imports_exist(block: Block) -> None:
    compile(block.text, block.where, "exec")
    for line in re.findall(
        r"^ *(from titan_pt[\w.]* import [\w, ]+|import titan_pt.*)", block.text, flags=re.MULTILINE
    ):
        exec(line, {})


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_commands_run(tmp_path: Path) -> None:
    """The commands of every page that needs no model of the quickstart, each page in an empty folder."""
    pages = {block.page for block in IN_SHELL if block.mark == "run"} - set(documented.AFTER_QUICKSTART)
    documented.run_pages(sorted(pages), tmp_path)


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", title.lower().replace("`", "")).strip() for title in titles]
    return {re.sub(r"\s", "-", title) for title in plain} | {re.sub(r"[-\s]+", "-", title) for title in plain}


@functools.cache
def known_keys() -> frozenset[str]:
    """All keys and tables of all kinds of training and of Muon, `extends` included; of an array those of its rows."""
    known = {"extends"}
    for kind in ("pretrain", "sft", "grpo"):
        for name, table in sections(config_class(kind, "transformer", "Muon")[0]).items():
            known |= {name, *_own(name, table)}
    return frozenset(known)


def _own(name: str, table: type[Section]) -> set[str]:
    found = set()
    for key, info in table.model_fields.items():
        found.add(f"{name}.{key}")
        if row := rows_of(info.annotation):
            found |= {f"{name}.{key}.{leaf}" for leaf in row.model_fields}
    return found


def own_keys(page: str) -> set[str]:
    """Keys that the page's own Python code brings: a class of a Section, and where it is registered."""
    code = "\n".join(block.text for block in ALL if block.page == page and block.language == "python")
    found = set()
    for table, cls in re.findall(r"sections?=\{\"(\w+)\": (\w+)\}", code):
        body = re.search(rf"class {cls}\(.*?(?=^\S|\Z)", code, flags=re.DOTALL | re.MULTILINE)
        found |= {
            table,
            *(f"{table}.{key}" for key in re.findall(r"^    (\w+):", body[0] if body else "", re.MULTILINE)),
        }
    model = re.search(r"class \w+Args\(.*?(?=^\S|\Z)", code, flags=re.DOTALL | re.MULTILINE)
    return found | {f"model.{key}" for key in re.findall(r"^    (\w+):", model[0] if model else "", re.MULTILINE)}


def _names(tables: dict[str, Any], above: str = "") -> set[str]:
    found = set()
    for key, value in tables.items():
        name = f"{above}{key}"
        found.add(name)
        if name.endswith((".options", ".rewards")):
            continue
        for table in value if isinstance(value, list) else [value]:
            if isinstance(table, dict):
                found |= _names(table, f"{name}.")
    return found


def _mistakes(command: list[str], own: set[str], files: set[str]) -> list[str]:
    """What a command names and the repository does not have: keys, flags, modules, tools, files."""
    wrong, tool = [], _tool(command)
    if tool and tool not in tools().values() and importlib.util.find_spec(tool) is None:
        return [f"no module {tool}"]
    if "titan-pt" in command and (name := command[command.index("titan-pt") + 1]) not in (
        *tools(),
        "--version",
        "--help",
    ):
        wrong.append(f"no tool {name}")
    for word in command:
        flag = word.partition("=")[0].rstrip(",;)")
        if re.fullmatch(r"--[a-z_0-9]+(\.[a-z_0-9]+)+", flag):
            if flag[2:] not in known_keys() | own:
                wrong.append(f"no key {flag}")
        elif re.fullmatch(r"--[a-z_]+", flag) and tool and tool.startswith("titan_pt."):
            if not _has_flag(tool, flag):
                wrong.append(f"{tool} has no flag {flag}")
        elif word.startswith(FOLDERS) and not any(sign in word for sign in "*$<{"):
            if not (ROOT / word.partition(":")[0].rstrip(");,")).exists() and word not in files:
                wrong.append(f"no file {word}")
        elif extra := re.fullmatch(r"(?:titan-pt|\.)\[([\w,-]+)\]", word):
            wrong += [f"no extra {name}" for name in extra[1].split(",") if f"\n{name} = [" not in pyproject()]
    return wrong


def _tool(command: list[str]) -> str | None:
    """The module that a command runs; of two the last."""
    modules = [word for before, word in itertools.pairwise(command) if before == "-m"]
    if "titan-pt" in command:
        return tools().get(command[command.index("titan-pt") + 1])
    return next((module for module in reversed(modules) if module.startswith("titan_pt")), None)


def _has_flag(tool: str, flag: str) -> bool:
    if flag in ("--help", "--explain", "--version"):
        return True
    if tool in ("titan_pt.train", "titan_pt.launch"):
        from torch.distributed.run import get_args_parser

        return flag in get_args_parser().format_help()
    return flag in documented.tool_help(tool)


@functools.cache
def tools() -> dict[str, str]:
    """Module of each tool of `titan-pt`, by name."""
    from titan_pt.cli import TOOLS

    return {tool.name: tool.module for tool in TOOLS}


@functools.cache
def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text()
