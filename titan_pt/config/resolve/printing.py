"""What `python -m titan_pt.config.manager` prints: the resolved TOML, or each value with where it came from."""

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import tomli_w

from titan_pt.config.errors import ConfigError
from titan_pt.protocols.registry import import_attribute
from titan_pt.run.log import open_console
from titan_pt.run.tool_files import nobody_reads

if TYPE_CHECKING:
    from titan_pt.config.manager import Resolved


def print_resolved(resolve: "Callable[[list[str]], Resolved]", argv: list[str]) -> int:
    """Print the config of the arguments; notices and mistakes go to stderr. Returns the exit code."""
    open_console()
    want_origins = "--explain" in argv
    try:
        resolved = resolve([arg for arg in argv if arg != "--explain"])
    except ConfigError as error:
        print(error.report(), file=sys.stderr)
        return 2
    for notice in resolved.notices:
        print(notice, file=sys.stderr)
    try:
        if want_origins:
            explain_optimizer = import_attribute("titan_pt.tools.explain:explain_optimizer")
            print(explain(resolved), *explain_optimizer(resolved.config), sep="\n", flush=True)
        else:
            print(resolved.config.to_toml().rstrip("\n"), flush=True)
    except BrokenPipeError:
        if not nobody_reads():
            raise
    return 0


def explain(resolved: "Resolved") -> str:
    """One line a value: its name, the value, and where it came from."""
    return "\n".join(_lines(resolved, (), resolved.config.dump()))


def _lines(resolved: "Resolved", path: tuple[str, ...], table: dict[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        here = (*path, key)
        name, origin = ".".join(here), resolved.merged.origin(*here)
        if isinstance(value, dict) and _is_table(resolved.config, here):
            yield from _lines(resolved, here, value)
        elif value and isinstance(value, list) and isinstance(value[0], dict):
            said = (resolved.merged.table_at([*path]) or {})[key] if origin != "default" else value
            for i, row in enumerate(value):
                for leaf_name, leaf in row.items():
                    row_origin = origin if leaf_name in said[i] else "default"
                    yield f"{name}[{i}].{leaf_name} = {literal(leaf)}  # {row_origin}"
        else:
            yield f"{name} = {literal(value)}  # {origin}"


def _is_table(config: Any, path: tuple[str, ...]) -> bool:
    """Whether the schema has a table at the path, not a value that is written as one."""
    for part in path:
        config = getattr(config, part)
    return not isinstance(config, dict)


def literal(value: Any) -> str:
    """The value as TOML on one line."""
    if isinstance(value, list):
        return f"[{', '.join(literal(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {literal(item)}' for key, item in value.items())}}}"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip()
