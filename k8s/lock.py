#!/usr/bin/env python3
"""Write k8s/locks/: the exact version and the hashes of everything that the image installs. Needs Python 3.11 and uv.

k8s/lock.py: after a change of the dependencies in pyproject.toml, or to take newer versions. `base.lock` holds what
titan_pt needs, and each other file what the extra of its name adds. torch and what it alone brings (CUDA's libraries,
triton) are not in there: they belong to the base image, or to TORCH_VERSION in the Dockerfile.
"""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "3.12"
"""Of the base image in the Dockerfile."""
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
NOT_IN_THE_IMAGE = ("test", "dev", "docs")
OF_TORCH = ("torch", "triton", "nvidia-", "cuda-")
"""Beginnings of names; torchao and torchdata are packages like any other."""

Locked = dict[str, tuple[str, set[str]]]


def resolve(extras: list[str], platform: str, versions: Path) -> Locked:
    """Version and hashes by name; `versions` holds constraints."""
    flags = [word for extra in extras for word in ("--extra", extra)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pylock.toml"
        where = ["--python-version", PYTHON, "--python-platform", platform, "--constraint", str(versions)]
        out = ["--format", "pylock.toml", "--output-file", str(file)]
        project = str(ROOT / "pyproject.toml")
        subprocess.run(["uv", "pip", "compile", "--quiet", *where, *flags, *out, project], check=True)
        packages = tomllib.loads(file.read_text())["packages"]
    return {entry["name"]: (entry["version"], hashes_of(entry)) for entry in packages if not is_of_torch(entry["name"])}


def hashes_of(package: dict[str, Any]) -> set[str]:
    """Of its wheels for the platform; of its source where there is none."""
    return {file["hashes"]["sha256"] for file in package.get("wheels") or [package["sdist"]]}


def is_of_torch(name: str) -> bool:
    return name in OF_TORCH or name.startswith(tuple(prefix for prefix in OF_TORCH if prefix.endswith("-")))


def write(file: Path, locked: Locked) -> None:
    lines = ["# Made by k8s/lock.py."]
    for name, (version, hashes) in sorted(locked.items()):
        lines.append(" \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{text}" for text in sorted(hashes))]))
    file.write_text("\n".join(lines) + "\n")


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for name in project["optional-dependencies"] if name not in NOT_IN_THE_IMAGE]
    with tempfile.TemporaryDirectory() as folder:
        versions = Path(folder) / "versions.txt"
        versions.touch()
        everything: Locked = {}
        for platform in PLATFORMS:  # one version of each for all extras and platforms
            for name, (version, hashes) in resolve(extras, platform, versions).items():
                everything[name] = version, hashes | everything.get(name, (version, set()))[1]
            versions.write_text("".join(f"{name}=={version}\n" for name, (version, _) in everything.items()))
        base = resolve([], PLATFORMS[0], versions).keys()
        write(ROOT / "k8s" / "locks" / "base.lock", {name: everything[name] for name in base})
        for extra in extras:
            added = resolve([extra], PLATFORMS[0], versions).keys() - base
            write(ROOT / "k8s" / "locks" / f"{extra}.lock", {name: everything[name] for name in added})


if __name__ == "__main__":
    main()
