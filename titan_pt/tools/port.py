"""`titan-pt port FILE > mine.toml`: TorchTitan's TOML file as one of titan_pt, with what was left out at its top."""

import re
import sys
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from titan_pt.config.errors import ConfigError, one_of, shown
from titan_pt.config.manager import config_class
from titan_pt.config.resolve.checks import cross_check
from titan_pt.config.resolve.layers import Merged
from titan_pt.config.resolve.report import describe_mistake, renamed, tree_path
from titan_pt.config.resolve.toml_files import Tables, read_toml
from titan_pt.config.resolve.torchtitan import DATASETS, FLAVORS, MODELS, RENAMED, drop_foreign
from titan_pt.run.tool_files import flag_path
from titan_pt.tools.command import ToolParser, run_tool

_KEY = re.compile(r"[a-z_]+\.[a-z_]+")
_FLOAT8 = "quantize.linear.float8"
_DEFAULT_DATASET = "c4_test"


def main(argv: list[str] | None = None) -> int:
    """Print the ported file; what was left out goes to stderr too. Returns the exit code."""
    return run_tool(lambda: _port(argv))


def _port(argv: list[str] | None) -> None:
    parser = ToolParser(prog="python -m titan_pt.tools.port", description=__doc__)
    parser.add_argument("file", metavar="FILE", help="a TOML file of TorchTitan")
    path = flag_path("FILE", parser.parse_args(argv).file)
    found, notes = ported(read_toml(path, " (FILE)"))
    left = [f"#   {note}" for note in notes]
    print(f"# From TorchTitan's {path.name}, by titan-pt port.")
    print("\n".join([f"# {_heading(notes)}", *left]), end="\n\n")
    print(tomli_w.dumps(found), end="")
    print("\n".join([_heading(notes), *(f"  {note}" for note in notes)]), file=sys.stderr)


def _heading(notes: list[str]) -> str:
    return "Left out or changed; see whether that is what you want:" if notes else "Everything has its place here."


def ported(tables: Tables) -> tuple[Tables, list[str]]:
    """The tables that the config loader accepts, and what became of each value that is not in them.

    Raises:
        ConfigError: titan_pt has no such model, or the file is its own already.
    """
    if tables.keys() & {"extends", "data"}:
        raise ConfigError("this is a file of titan_pt already: titan-pt train takes it as it is")
    notes = [f"{name} = {shown(value)}: no table" for name, value in tables.items() if not isinstance(value, dict)]
    found = {name: dict(table) for name, table in tables.items() if isinstance(table, dict)}
    model = found.setdefault("model", {})
    _take_model(model, notes)
    _take_sources(found, notes)
    if not found.get("metrics", {}).pop("enable_color_printing", True):
        found["metrics"]["disable_color_printing"] = True
    _take_renamed(found, notes)
    dropped: list[str] = []
    ignored = drop_foreign(Merged(found), dropped)
    notes += [*(text.replace(" (default)", "") for text in dropped), *(t.replace(" (default)", "") for t in ignored)]
    _drop_refused(found, notes)
    return {name: table for name, table in found.items() if table != {}}, notes


def _take_model(model: Tables, notes: list[str]) -> None:
    """Name and flavor of its model become ours and fields."""
    name, flavor = model.get("name", "llama3"), model.pop("flavor", "debugmodel")
    if name not in MODELS:
        raise ConfigError(
            f"model.name = {shown(name)}: titan_pt trains dense transformers, and of TorchTitan's {one_of(MODELS)}"
        )
    sizes = FLAVORS[name]
    own = {**sizes["all"], **sizes.get(flavor, {})} if flavor != "all" else {}
    if flavor not in sizes or flavor == "all":
        known = one_of(sizes.keys() - {"all"})
        notes.append(f"model.flavor = {shown(flavor)}: not a dense {name}, of which known are {known}; give its fields")
    converters = model.get("converters", [])
    if isinstance(converters, list) and "float8" in converters:
        model["converters"] = [_FLOAT8 if item == "float8" else item for item in converters]
    model.update({**own, **model, "name": "transformer"})


def _take_sources(found: Tables, notes: list[str]) -> None:
    for table, rows in (("training", "data"), ("validation", "validation")):
        section = found.get(table, {})
        name, path = section.pop("dataset", None), section.pop("dataset_path", None)
        if name is None and path is None:
            if table == "validation":
                continue
            name = _DEFAULT_DATASET
            notes.append(f"training.dataset: not set, which is {name} there; here it is the source below")
        if path:
            source: Tables = {"name": str(name or Path(path).stem), "path": path}
            notes.append(
                f"{table}.dataset_path = {shown(path)}: became a path; for a name of the hub: dataset = {shown(path)}"
            )
        elif name in DATASETS:
            source = dict(DATASETS[name])
        else:
            source = {"name": str(name), "dataset": str(name)}
            notes.append(
                f"{table}.dataset = {shown(name)}: a dataset of its code; became the hub's dataset of that name"
            )
        found.setdefault(rows, {})["sources"] = [source]


def _take_renamed(found: Tables, notes: list[str]) -> None:
    """Move what has another name here; where that is no key, it is left out."""
    for name, new in RENAMED.items():
        section, key = name.split(".")
        if not isinstance(found.get(section), dict) or key not in found[section]:
            continue
        value = found[section].pop(key)
        if _KEY.fullmatch(new):
            table, new_key = new.split(".")
            if new_key not in found.setdefault(table, {}):
                found[table][new_key] = value
        else:
            notes.append(f"{name} = {shown(value)}: {renamed(new)}")


def _drop_refused(found: Tables, notes: list[str]) -> None:
    """Leave out what the config loader would refuse, with its reason."""
    config_type, spec = config_class("pretrain", "transformer")
    while True:
        try:
            config = config_type.model_validate(found)
        except ValidationError as error:
            refused: dict[tuple[Any, ...], str] = {}
            for mistake in error.errors(include_url=False):
                path = tree_path(found, mistake["loc"], missing=mistake["type"] == "missing")
                refused[path[:2]] = describe_mistake(config_type, Merged(found), path, mistake)
            for path, text in refused.items():
                why = text.partition("(default): ")[2].partition("; the keys are")[0]
                notes.append(f"{_said(found, path)}: {why}")
                _drop(found, path)
            continue
        broken = cross_check(config, spec)
        fields = sorted({tuple(name.split(".")) for rule in broken for name in rule.fields})
        given = [path for path in fields if _has(found, path)]
        if not given:
            notes += [rule.text for rule in broken]
            return
        notes += [f"{_said(found, path)}: {broken[0].text}" for path in given[:1]]
        _drop(found, given[0])


def _has(found: Tables, path: tuple[Any, ...]) -> bool:
    return path[0] in found and (len(path) == 1 or path[1] in found[path[0]])


def _said(found: Tables, path: tuple[Any, ...]) -> str:
    value = found[path[0]] if len(path) == 1 else found[path[0]].get(path[1])
    return f"{'.'.join(map(str, path))} = {shown(value)}"


def _drop(found: Tables, path: tuple[Any, ...]) -> None:
    if len(path) == 1:
        del found[path[0]]
    else:
        found[path[0]].pop(path[1], None)


if __name__ == "__main__":
    sys.exit(main())
