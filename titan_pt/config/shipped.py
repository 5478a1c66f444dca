"""What comes with the package beside its modules: experiments by name, k8s/, scripts/. Imported where it is asked for.

A checkout has them at its top; `setup.py` puts them into a wheel as titan_pt/shipped/.
"""

from pathlib import Path

from titan_pt.config.errors import nearest
from titan_pt.config.names import meant_path

FOLDERS = ("k8s", "scripts")
"""What ships beside the experiments."""


def folder() -> Path:
    """The folder that holds train_configs/, k8s/ and scripts/."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parent


def experiments() -> dict[str, Path]:
    """The shipped TOML files by name: `quickstart`, `presets/dapo`."""
    root = folder() / "train_configs"
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.toml"))}


def find(name: str, *, extended: bool = False) -> Path | None:
    """The shipped file that a name means where there is no such file: `quickstart`, `train_configs/quickstart.toml`.

    Args:
        extended: of a file's `extends`, where `quickstart.toml` alone means a shipped one too. What one asks to run
            may be a file of one's own in another folder.
    """
    bare = name.removeprefix("train_configs/")
    if bare == name and name.endswith(".toml") and not extended:
        return None
    return experiments().get(bare.removesuffix(".toml"))


def known(path: Path) -> str:
    """What may have been meant by a path where there is no file: one beside it or a shipped one, and all of these."""
    beside = [file.name for file in sorted(path.parent.glob("*.toml"))] if path.parent.is_dir() else []
    names = experiments()
    runnable = [name for name in names if not name.startswith(("base_", "presets/"))]
    meant = meant_path(str(path)) or nearest(path.name, beside) or nearest(path.name.removesuffix(".toml"), names)
    return f"{meant}; shipped experiments are {', '.join(runnable)}"


def described(path: Path) -> str:
    """What a TOML file says of itself: its first comment, to the end of the sentence that the line holds."""
    try:
        first = path.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, ValueError):
        return ""
    return first.removeprefix("#").strip() if first.startswith("#") else ""
