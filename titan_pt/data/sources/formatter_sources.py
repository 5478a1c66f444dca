"""The source code that a formatter's texts depend on: its module and every module of the user's that this imports."""

import functools
import hashlib
import inspect
import os
import re
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator
from modulefinder import ModuleFinder
from types import CodeType, ModuleType
from typing import Any

_PACKAGE = __name__.partition(".")[0]
_PLAIN = (str, bytes, int, float, bool, type(None))


def body_hash(function: Callable[..., Any]) -> str:
    """Hash of the function's source, or of its byte code where there is none."""
    try:
        body = inspect.getsource(function).encode()
    except (OSError, TypeError):
        body = getattr(getattr(function, "__code__", None), "co_code", b"")
    return hashlib.sha256(body).hexdigest()[:12]


def sources_hash(function: Callable[..., Any]) -> str:
    """Hash that changes when the code of a function may: with its module, modules it imports, values it holds.

    Modules of the standard library and of installed packages do not count, but for the function's own package. What a
    function reads from elsewhere, such as a file or an environment variable, cannot be known.
    """
    found = hashlib.sha256()
    for part in _parts(function, set()):
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()[:32]


def _parts(function: Any, seen: set[int]) -> Iterator[bytes]:
    """Everything that decides about a function: its code, values bound to it, and the sources of its module."""
    if id(function) in seen:
        return
    seen.add(id(function))
    if isinstance(function, functools.partial):
        yield from _values([function.args, sorted(function.keywords.items())], seen)
        yield from _parts(function.func, seen)
        return
    if inspect.ismethod(function):
        yield from _values(sorted(getattr(function.__self__, "__dict__", {}).items()), seen)
        function = function.__func__
    if not inspect.isfunction(function):  # an object that can be called
        yield from _values(sorted(getattr(function, "__dict__", {}).items()), seen)
        yield from _module_sources(type(function).__module__)
        return
    yield repr(_code(function.__code__)).encode()
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    yield from _values([function.__defaults__, function.__kwdefaults__, cells], seen)
    yield from _module_sources(function.__module__)
    own = [function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__]
    for value in own:  # of this package, whose modules are not followed; a user's are whole
        if isinstance(value, (*_PLAIN, re.Pattern)):
            yield repr(value).encode()
        elif inspect.isfunction(value) and value.__module__.partition(".")[0] == _PACKAGE:
            yield from _parts(value, seen)
    if hasattr(function, "__wrapped__"):
        yield from _parts(function.__wrapped__, seen)


def _values(values: Any, seen: set[int]) -> Iterator[bytes]:
    if isinstance(values, _PLAIN):
        yield repr(values).encode()
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _values(value, seen)
    elif isinstance(values, dict):
        yield from _values(sorted(values.items(), key=repr), seen)
    elif callable(values) and not isinstance(values, type):
        yield from _parts(values, seen)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _names(code: CodeType) -> list[str]:
    """Names that a function looks up, and those of functions in it."""
    inner = [name for value in code.co_consts if isinstance(value, CodeType) for name in _names(value)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _code(code: CodeType) -> list[Any]:
    """The byte code of a function, with its constants and names and those of functions in it; no line numbers."""
    constants = [_constant(value) for value in code.co_consts]
    return [code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, tuple | frozenset):  # a set's own order is another one in each process
        return (
            sorted(repr(_constant(item)) for item in value)
            if isinstance(value, frozenset)
            else [*map(_constant, value)]
        )
    return repr(value)


@functools.cache
def _module_sources(name: str) -> tuple[bytes, ...]:
    """The sources of a module and of what it imports, where they are files."""
    module = sys.modules.get(name)
    paths = {path for path in [_file_of(module)] if path}
    if name.partition(".")[0] != _PACKAGE:
        paths |= _imported(name, module)
    found = []
    for path in sorted(paths):
        with open(path, "rb") as file:
            found.append(os.path.basename(path).encode() + b"\0" + file.read())
    return tuple(found)


def _imported(name: str, module: ModuleType | None) -> set[str]:
    """Files of the modules that a module imports, anywhere in its code; they are looked at, not run."""
    folders = _folders_of_users()
    if (path := _file_of(module)) and name != "__main__":  # where it is installed, its own package counts
        depth = name.count(".") + (os.path.basename(path) == "__init__.py")
        folders = list(dict.fromkeys([*folders, os.path.abspath(os.path.join(path, *[".."] * (depth + 1)))]))
    top = name.partition(".")[0]
    finder = ModuleFinder(path=folders, excludes=[_PACKAGE])
    try:
        finder.import_hook(name, fromlist=None) if name != "__main__" else finder.run_script(str(path))
    except Exception:  # a module that was made at run time, or one in a language of its own: its own file counts alone
        return set()
    users = _folders_of_users()
    files = {key: str(getattr(found, "__file__", None) or "") for key, found in finder.modules.items()}
    return {path for key, path in files.items() if path and (key.partition(".")[0] == top or _is_below(path, users))}


def _file_of(module: ModuleType | None) -> str | None:
    path = getattr(module, "__file__", None)
    return path if path and path.endswith(".py") and os.path.isfile(path) else None


def _folders_of_users() -> list[str]:
    """Folders that modules are imported from, without those of Python and of installed packages."""
    installed = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    installed |= {os.path.join(sysconfig.get_path("platstdlib"), "lib-dynload"), *site.getsitepackages()}
    installed |= {site.getusersitepackages()}
    folders = [os.path.abspath(path or os.getcwd()) for path in sys.path]
    real = {os.path.realpath(path) for path in installed}
    return [path for path in folders if os.path.isdir(path) and os.path.realpath(path) not in real]


def _is_below(path: str, folders: list[str]) -> bool:
    return any(os.path.abspath(path).startswith(f"{folder}{os.sep}") for folder in folders)
