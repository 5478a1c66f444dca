"""What pyproject.toml cannot say: experiments, k8s/ and scripts/ are in the wheel, and the commit it was built from."""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from titan_pt.version import COMMIT_FILE, made_by  # noqa: E402

SHIPPED = {"train_configs": "**/*.toml", "k8s": "**/*", "scripts": "**/*"}
SECRET = "secrets.yaml"
COMMIT = made_by().partition(", commit ")[2]


class BuildWithShipped(build_py):
    """Copies what `titan_pt/config/shipped.py` finds at the top of a checkout to titan_pt/shipped/ of the wheel."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "titan_pt"
        shutil.rmtree(package / "shipped", ignore_errors=True)  # of an earlier build
        for folder, pattern in SHIPPED.items():
            for path in (ROOT / folder).glob(pattern):
                if path.is_file() and path.name != SECRET and path.suffix != ".pyc":
                    target = package / "shipped" / path.relative_to(ROOT)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, target)
        (package / COMMIT_FILE.name).write_text(COMMIT, encoding="utf-8")


class SourcesWithCommit(sdist):
    """Tells the commit to what is built from the archive, which is no checkout."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        (Path(base_dir) / "titan_pt" / COMMIT_FILE.name).write_text(COMMIT, encoding="utf-8")


setup(cmdclass={"build_py": BuildWithShipped, "sdist": SourcesWithCommit})
