"""Files that extend others, and shipped experiments by name. Imported where a config is not one file that is there."""

import os
from pathlib import Path

from titan_pt.config.errors import ConfigError, shown
from titan_pt.config.resolve.toml_files import DEEPEST, Tables, expanded, read_toml


def with_parents(name: str) -> dict[str, Tables]:
    """A file and all that it extends, parents first: the tables of each by its path. The file may be a shipped name.

    Raises:
        ConfigError: as `read_layers` does.
    """
    files: dict[str, tuple[str, Tables]] = {}
    _read_into(files, Path(), name, ())
    return dict(files.values())


def _read_into(files: dict[str, tuple[str, Tables]], folder: Path, name: str, children: tuple[str, ...]) -> None:
    path = folder / name
    if not os.path.isfile(path):
        from titan_pt.config.shipped import find

        path = find(name, extended=bool(children)) or path
    absolute = os.path.abspath(path)
    if absolute in children:
        chain = " -> ".join((*children, absolute))
        raise ConfigError(f"extends: files extend each other in a circle: {chain}")
    if absolute in files:
        return
    if len(children) > DEEPEST or len(files) > DEEPEST**2:
        raise ConfigError(f"extends: more than {DEEPEST} files, one by another, or {DEEPEST**2} in all; up to {path}")
    said_by = f" (extends of {children[-1]})" if children else " (--job.config_file)"
    tables = read_toml(path, said_by)
    parents = tables.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"extends = {shown(parents)} ({path}): must be a file name or a list of file names")
    for parent in parents:
        _read_into(files, path.parent, expanded(parent, f"extends of {path}"), (*children, absolute))
    files[absolute] = str(path), tables
