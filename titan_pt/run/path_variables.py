"""Paths with `~`, variables or letters beyond ASCII. Imported where there is one."""

import os
import re

_DOLLAR = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\}|\{)", re.ASCII)


def expanded_path(path: str) -> str:
    """The path with ~, ~user, $NAME and ${NAME} replaced; $$ is a dollar sign.

    Raises:
        ValueError: there is no such user or variable, or the locale has no such file name.
    """
    expanded = os.path.expanduser(replaced := _DOLLAR.sub(_value, path))
    if replaced.startswith("~") and expanded == replaced:
        raise ValueError(f"there is no user {path.partition('/')[0]}; ./{path} is a file or folder with that name")
    try:
        os.fsencode(expanded)
    except UnicodeEncodeError as error:
        if error.encoding != "utf-8":  # else it is no text at all
            raise ValueError(
                f"no file has {error.object[error.start]!a} in its name in this locale ({error.encoding}); "
                "set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
            ) from None
    return expanded


def _value(found: re.Match[str]) -> str:
    dollar, name = found[1], found[2] or found[3]
    if dollar:
        return dollar
    if not name:
        raise ValueError("${ begins the name of a variable, as in ${NAME}; $$ is a dollar sign")
    if not os.environ.get(name):
        raise ValueError(f"the variable {name} is not set; set it, or write $${name} for a name with a dollar sign")
    return os.environ[name]
