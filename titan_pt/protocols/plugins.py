"""Modules of a user's own: their import, and what went wrong in them, told by file and line.

Imported where a config names such a module, or where code of a user's fails.
"""

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

from titan_pt.config.errors import ConfigError, nearest


def import_plugin(module: str, key: str, problems: Sequence[str] = ()) -> None:
    """Import a user's module from the Python path or the working folder.

    Args:
        key: what named it, for the message.
        problems: other ones, told before its own: what else there may be is unknown where it fails.

    Raises:
        ConfigError: there is no such module, or it fails; tells its file and line.
    """
    if "/" in module or os.path.isfile(module):
        name = module.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError(f"{key} = {module!r}: is a file; give the module's name, {name}")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's module may raise anything; the reason is theirs to read
        said = f"{key} = {module!r}: cannot be imported: {reason(error)}"
        if isinstance(error, SyntaxError) and not error.filename and (place := _place(module)):  # zero bytes in it
            said += f" ({place})"
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):  # the module itself, or a package that it is in
            said += _meant_module(module)
        elif missing:
            said += f"; install the package that has it, by {sys.executable} -m pip install"
        raise ConfigError(*problems, said) from error


def users_line(error: BaseException) -> str:
    """File and line of the innermost code of a user's own that an error went through; empty where there is none."""
    ours = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"), "<")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(ours) and "-packages" not in frame.filename
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def reason(error: BaseException) -> str:
    """An error with the file and line of the code that made it, in one line."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}" if error.filename else users_line(error)
        return f"{type(error).__name__}: {error.msg}{f' ({place})' if place else ''}"
    text, place = " ".join("".join(traceback.format_exception_only(error)).split()), users_line(error)
    return f"{text} ({place})" if place else text


def _meant_module(module: str) -> str:
    """What to write for a module that is not there."""
    here = [path.stem for path in Path().glob("*.py")] + [path.parent.name for path in Path().glob("*/__init__.py")]
    how = "; give a module name such as my_pkg.my_trainer that is importable from the working folder"
    return f"{nearest(module, here)}{how}"


def _place(module: str) -> str:
    """File of a module; empty where there is none to be found."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # a package around it fails
        return ""
    return (spec.origin or "") if spec else ""
