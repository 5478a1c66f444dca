"""What is published: a wheel of a source archive runs by its command, where there is no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest
from helpers import ROOT, losses

import titan_pt

_BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(what: str, folder: Path, target: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, what, str(target)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_built_wheel_trains_the_quickstart(tmp_path: Path) -> None:
    unwanted = shutil.ignore_patterns("outputs", "build", "dist", "*.egg-info", "__pycache__", "tests", ".*_cache")
    checkout = shutil.copytree(ROOT, tmp_path / "checkout", ignore=unwanted, symlinks=True)
    (checkout / "k8s" / "secrets.yaml").write_text("a token")
    archive = build("build_sdist", checkout, tmp_path)
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    wheel = build("build_wheel", tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path)

    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    # Of what is installed here, all but titan_pt itself: its finder is in a .pth, which is not followed.
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True, env=env)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    shutil.rmtree(checkout)
    work = tmp_path / "work"
    work.mkdir()

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [str(python.with_name("titan-pt")), *arguments],
            cwd=work,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"titan_pt {titan_pt.__version__}, commit " in command("--version")
    assert "quickstart_grpo" in command("ls")
    command("train", "quickstart", "--training.steps", "3", "--validation.enable=false")
    run = work / "outputs" / "quickstart"
    assert 3 in losses(run)
    assert (run / "config.toml").read_text().startswith(f"# titan_pt {titan_pt.__version__}, commit ")
    assert command("generate", "--checkpoint", "outputs/quickstart", "--prompt", "1 + 1", "--max_new_tokens", "3")
    command("cp", "quickstart_sft", "mine.toml")
    assert "outputs/mine" in command("explain", "mine.toml")
    command("cp", "k8s", "k8s")
    kept = {path.relative_to(ROOT) for path in (ROOT / "k8s").rglob("*") if path.suffix != ".pyc"}
    kept -= {Path("k8s/secrets.yaml"), Path("k8s/__pycache__")}
    assert kept == {path.relative_to(work) for path in (work / "k8s").rglob("*")}
