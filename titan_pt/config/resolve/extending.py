"""Files that extend others, and shipped experiments by name. Imported where a config is not one file that is there."""

import os
from pathlib import Path

from titan_pt.config.errors import ConfigError, shown
from titan_pt.config.resolve.layers import DEEPEST, Layer, expanded, read_toml


def with_parents(name: str) -> list[Layer]:
    """The layers of a file, parents first, by its path or a shipped name.

    Raises:
        ConfigError: as `read_layers` does.
    """
    layers: dict[str, Layer] = {}
    _read_into(layers, Path(), name, ())
    return list(layers.values())


def _read_into(layers: dict[str, Layer], folder: Path, name: str, children: tuple[str, ...]) -> None:
    path = folder / name
    if not os.path.isfile(path):
        from titan_pt.config.shipped import find

        path = find(name, extended=bool(children)) or path
    absolute = os.path.abspath(path)
    if absolute in children:
        chain = " -> ".join((*children, absolute))
        raise ConfigError(f"extends: files extend each other in a circle: {chain}")
    if absolute in layers:
        return
    if len(children) > DEEPEST or len(layers) > DEEPEST**2:
        raise ConfigError(f"extends: more than {DEEPEST} files, one by another, or {DEEPEST**2} in all; up to {path}")
    said_by = f" (extends of {children[-1]})" if children else " (--job.config_file)"
    tables = read_toml(path, said_by)
    parents = tables.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"extends = {shown(parents)} ({path}): must be a file name or a list of file names")
    for parent in parents:
        _read_into(layers, path.parent, expanded(parent, f"extends of {path}"), (*children, absolute))
    layers[absolute] = Layer(str(path), tables)
