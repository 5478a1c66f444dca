"""Registries promise: a name is taken once, built-in values are imported only when read, and no torch is needed."""

import subprocess
import sys

import pytest

from titan_pt.config.errors import ConfigError
from titan_pt.protocols.registry import Registry


@pytest.fixture
def registry() -> Registry[float]:
    return Registry("number {}", {"pi": "math:pi", "broken": "no_such_module:value"}, reserved=("one",))


def test_a_registered_value_is_returned_and_found(registry: Registry[float]) -> None:
    assert registry.register("two", 2.0) == 2.0
    assert registry["two"] == registry.find("two", "job.number") == 2.0
    assert list(registry) == ["pi", "broken", "two"] and len(registry) == 3


@pytest.mark.parametrize("name", ["pi", "broken", "one", "two"])
def test_a_name_is_taken_once(registry: Registry[float], name: str) -> None:
    registry.register("two", 2.0)
    with pytest.raises(ValueError, match=f"^number '{name}' is registered already$"):
        registry.register(name, 3.0)


def test_only_reading_imports_a_builtin(registry: Registry[float]) -> None:
    assert "broken" in registry and registry["pi"] > 3
    with pytest.raises(ConfigError, match="no_such_module"):
        registry["broken"]


def test_unknown_names_list_the_known(registry: Registry[float]) -> None:
    registry.register("two", 2.0)
    with pytest.raises(KeyError):
        registry["tow"]
    with pytest.raises(ConfigError) as caught:
        registry.find("tow", "job.number", "; or count")
    message = "job.number = 'tow': unknown; known are broken, pi, two; did you mean two?; or count"
    assert caught.value.problems == [message]


def test_registries_need_no_torch() -> None:
    code = "import sys, titan_pt.protocols.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
