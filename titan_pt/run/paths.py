"""Paths as users write them, in a config or in a flag: `~` and variables of the environment in them are replaced."""


def expand_path(path: str) -> str:
    """The path with ~, ~user, $NAME and ${NAME} replaced; $$ is a dollar sign.

    Raises:
        ValueError: there is no such user or variable, or the locale has no such file name.
    """
    if path.isascii() and "$" not in path and "~" not in path:
        return path
    from titan_pt.run.path_variables import expanded_path

    return expanded_path(path)


def escape_path(path: str) -> str:
    """The text that `expand_path` turns into this path."""
    return path.replace("$", "$$")
