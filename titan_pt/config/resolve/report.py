"""Mistakes in a config in a user's words: where the value was set, what is allowed, and what was meant.

Imported where there is a mistake.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from titan_pt.config.errors import ConfigError, nearest, one_of, shown
from titan_pt.config.names import closest, dotted
from titan_pt.config.resolve.expected import expected, meant, rows_for
from titan_pt.config.resolve.fields import keys, rows_of, sections, table_of
from titan_pt.config.resolve.layers import Merged
from titan_pt.config.resolve.toml_files import Tables, parse_toml
from titan_pt.config.resolve.torchtitan import RENAMED, UNUSED_TABLES, drop_foreign
from titan_pt.config.schema.job_config import JobConfig, Section
from titan_pt.config.schema.training import BUILTIN_OPTIMIZERS
from titan_pt.protocols.optimizer_spec import get_optimizer_spec, optimizer_names
from titan_pt.protocols.trainer_spec import trainer_config, trainer_names
from titan_pt.run.outgoing import looks_secret

_LISTS: dict[str, dict[str, list[str]]] = parse_toml(
    Path(__file__).with_name("synonyms.toml").read_text(encoding="utf-8")
)
SYNONYMS = {name: key for table in _LISTS.values() for key, names in table.items() for name in names}
"""The key that is meant by the last part of another framework's."""
_ASSIGNMENT = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+=")
KeyPath = Sequence[str | int]
_SURE = 0.75


def valid_part(
    config_type: type[JobConfig], merged: Merged, problems: list[str], notices: list[str]
) -> tuple[JobConfig | None, set[str]]:
    """The config of all valid values and the names of the invalid ones, whose problems are appended.

    The config is None where not even that exists: a required key is missing.
    """
    notices += drop_foreign(merged, problems)
    tables = merged.copied()
    try:
        return config_type.model_validate(tables), set()
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
    invalid = set()
    for mistake in mistakes:
        path = tree_path(merged.tables, mistake["loc"], missing=mistake["type"] == "missing")
        problems.append(f"{dotted(path)}{describe_mistake(config_type, merged, path, mistake)}")
        invalid.add(path[:2])
    for section, *key in (tuple(map(str, path)) for path in invalid):
        if key and isinstance(tables.get(section), dict):
            tables[section].pop(key[0], None)
        else:
            tables.pop(section, None)
    try:
        return config_type.model_validate(tables), {dotted(path) for path in invalid}
    except ValidationError:
        return None, set()


def tree_path(tables: Tables, location: KeyPath, *, missing: bool) -> tuple[str | int, ...]:
    """pydantic's location without the names of the branches of unions, which are no keys of the tree."""
    path: list[str | int] = []
    node: Any = tables
    for i, part in enumerate(location):
        is_key = isinstance(node, dict) and part in node
        if is_key or (isinstance(node, list) and isinstance(part, int)):
            node = node[part]
            path.append(part)
        elif missing and i == len(location) - 1:
            path.append(part)
    return tuple(path)


def describe_mistake(config_type: type[JobConfig], merged: Merged, path: KeyPath, mistake: Any) -> str:
    origin = merged.blame(*path)
    if mistake["type"] == "extra_forbidden":
        return f" ({origin}): {unknown(config_type, path)}"
    if mistake["type"] == "missing":
        return f" ({origin}): missing"
    message = re.sub(r"^(Value error, |Input |String |List )", "", mistake["msg"])
    is_item = isinstance(path[-1], int)
    key = path[:-1] if is_item else path
    holder = table_type(config_type, key[:-1])
    info = holder.model_fields.get(str(key[-1])) if holder else None
    if mistake["type"] in ("model_type", "model_attributes_type"):
        message = f"must be a table, {_header(path)}"
    elif info and rows_of(info.annotation) and mistake["type"] == "list_type":
        message = f"must be an array of tables, [[{dotted(path)}]]{rows_for(dotted(path), mistake['input'])}"
    elif info and mistake["type"] not in ("value_error", "finite_number"):
        message = f"must be {expected(info, is_item)}{meant(info, mistake['input'])}"
    elif info:
        message += meant(info, mistake["input"])
    return f" = {shown(mistake['input'])} ({origin}): {message}"


def _header(path: KeyPath) -> str:
    return f"[[{dotted(path[:-1])}]]" if isinstance(path[-1], int) else f"[{dotted(path)}]"


def unknown(config_type: type[JobConfig], path: KeyPath) -> str:
    """Why there is nothing at `path`, and what the user may have meant."""
    name = ".".join(part for part in path if isinstance(part, str))
    if name in RENAMED:
        return renamed(RENAMED[name])
    for table, hint in UNUSED_TABLES.items():
        if name.startswith(f"{table}."):
            return f"titan_pt does not have this TorchTitan table; {hint}"
    section, key, known = str(path[0]), str(path[-1]), sections(config_type)
    if key == "extends":
        return "unknown key; extends stands at the top of a file, before its first table"
    holder = table_type(config_type, path[:-1]) if len(path) > 1 else None
    if key.lower().replace("-", "_") in SYNONYMS and not (holder and closest(key, holder.model_fields, cutoff=_SURE)):
        return renamed(SYNONYMS[key.lower().replace("-", "_")])
    if section not in known:
        return _unknown_table(config_type, section, name)
    whole = ".".join(map(str, path[:2]))
    if len(path) > 2 and not isinstance(path[2], int) and _is_array_of_tables(config_type, whole):
        return f"not a flag; write the rows in the file, or all of them in --{whole} '[{{name = \"...\"}}]'"
    if section == "optimizer" and (names := _optimizers_with(known[section], str(path[1]))):
        return f"unknown key: it belongs to optimizer.name = {' or '.join(names)}"
    if holder is None:
        return f"not a key; the keys of [{section}] are {one_of(known[section].model_fields)}"
    hint = nearest(key, holder.model_fields)
    if hint:
        where = f"{section}." if len(path) == 2 else ""
        return f"unknown key{hint.replace('mean ', f'mean {where}')}"
    hint = _elsewhere(config_type, key) if len(path) == 2 else ""
    return f"unknown key{hint or f'; the keys are {one_of(holder.model_fields)}'}"


def unknown_flag(config_type: type[JobConfig], name: str) -> str:
    """What is wrong with a flag that is no key. Raises a ConfigError, of that alone, for a mistyped --help."""
    if "." not in name and closest(name, [*sections(config_type), "help"]) == "help":
        raise ConfigError(f"--{name} (command line): unknown flag; did you mean --help?")
    return unknown(config_type, name.split("."))


def renamed(to: str) -> str:
    """What is said of a key that has another name here, or none: "no key (why)"."""
    if to.startswith("no key"):
        why = to.removeprefix("no key").strip(" ()")
        return f"unknown key; titan_pt has none like it{f': {why}' if why else ''}"
    return f"unknown key; in titan_pt it is {to}"


def stray(text: str | None) -> str:
    """What is wrong with a value on the command line that belongs to no flag. Raises as `unknown_flag`."""
    if text and re.match("-+[hH]", text) and closest(text.strip("-"), ["help"]):
        raise ConfigError(f"{text} (command line): unknown flag; did you mean --help?")
    value = "a value" if text is None or looks_secret(text) else repr(text)
    how = f"write --{text}" if text and _ASSIGNMENT.match(text) else "write it as in --training.steps 100"
    if text and text.endswith(".toml"):
        how = "one experiment is named already; a file builds on another one by extends"
    return f"{value} (command line): belongs to no flag; {how}"


def _is_array_of_tables(config_type: type[JobConfig], name: str) -> bool:
    info = keys(config_type).get(name)
    return info is not None and rows_of(info.annotation) is not None


def _unknown_table(config_type: type[JobConfig], section: str, name: str) -> str:
    trainers = sorted(name for name in trainer_names() if section in trainer_config(name).model_fields)
    if trainers:
        choices = " or ".join(f'"{trainer}"' for trainer in trainers)
        return f"unknown table: it belongs to job.trainer = {choices}"
    full = closest(name, keys(config_type), cutoff=_SURE) if "." in name else None
    hint = f"; did you mean {full}?" if full else nearest(section, [*sections(config_type), "extends"])
    hint = hint or _elsewhere(config_type, name.rpartition(".")[2])
    return f"unknown table or key{hint or f'; the tables are {one_of(sections(config_type))}'}"


def _optimizers_with(chosen: type[Section], key: str) -> list[str]:
    """The optimizers that have this key of [optimizer], which the chosen one has not."""
    own = sorted(optimizer_names().difference(BUILTIN_OPTIMIZERS)) if key not in chosen.model_fields else ()
    return [f'"{name}"' for name in own if key in get_optimizer_spec(name).table.model_fields]


def _elsewhere(config_type: type[JobConfig], key: str) -> str:
    """The right key, or nearly, in the wrong table."""
    names = {name.rpartition(".")[2]: name for name in reversed(keys(config_type))}
    match = closest(key, names, cutoff=_SURE)
    return f"; did you mean {names[match]}?" if match else ""


def table_type(config_type: type[JobConfig], path: KeyPath) -> type[Section] | None:
    """The type of the table or row at `path`, such as ("data", "sources", 0), or None."""
    kind: type[Section] = config_type
    for part in path:
        if isinstance(part, int):
            continue
        info = kind.model_fields.get(part)
        annotation = info.annotation if info else None
        rows = table_of(annotation) or rows_of(annotation)
        if rows is None:
            return None
        kind = rows
    return kind
