"""Where a run keeps its black boxes; `components/black_box.py` writes them."""

import re
from pathlib import Path

FOLDER = "blackbox"


def boxes(run_folder: Path) -> list[Path]:
    """The boxes of a run, by step."""
    folders = (run_folder / FOLDER).glob("step-*-*")
    found = [path for path in folders if re.fullmatch(r"step-\d+-[0-9a-f]+", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (int(path.name.split("-")[1]), path.name))
