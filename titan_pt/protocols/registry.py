"""Values by name: built-in ones, imported when they are first asked for, and those that a plugin registers."""

import importlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

from titan_pt.config.errors import ConfigError, nearest, one_of

T = TypeVar("T")


def import_attribute(place: str) -> Any:
    """Import the module of a "module:attribute" and return the attribute.

    Raises:
        ConfigError: a module from outside the package fails, or has no such attribute.
    """
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, NameError, SyntaxError, AttributeError) as error:
        if module.split(".")[0] == "titan_pt":
            raise
        from titan_pt.protocols.plugins import reason

        raise ConfigError(f"{place}: cannot be imported: {reason(error)}") from error


class Registry(Mapping[str, T]):
    """A mapping from names to values of one kind; each name can be registered once.

    Args:
        title: one value in words, with {} for its name, such as "model spec {}".
        builtin: "module:attribute" of each built-in value, by name. Only reading a value imports its module.
        reserved: further names that nobody may register.
    """

    def __init__(self, title: str, builtin: Mapping[str, str] | None = None, reserved: Collection[str] = ()) -> None:
        self._title, self._reserved = title, reserved
        self.builtin = dict(builtin or {})
        self._registered: dict[str, T] = {}

    def register(self, name: str, value: T) -> T:
        """Add a value and return it.

        Raises:
            ValueError: the name is built in, reserved or registered already.
        """
        if name in self or name in self._reserved:
            raise ValueError(f"{self._title.format(repr(name))} is registered already")
        self._registered[name] = value
        return value

    def find(self, name: str, key: str, hint: str = "") -> T:
        """The value that a config key names.

        Args:
            key: the key, such as "model.name", for the message.
            hint: ends the message.

        Raises:
            ConfigError: the name is unknown; lists the known ones.
        """
        if name not in self:
            raise ConfigError(f"{key} = {name!r}: unknown; known are {one_of(self)}{nearest(name, self)}{hint}")
        return self[name]

    def __getitem__(self, name: str) -> T:
        if name in self.builtin:
            value: T = import_attribute(self.builtin[name])
            return value
        return self._registered[name]

    def __contains__(self, name: object) -> bool:
        return name in self.builtin or name in self._registered

    def __iter__(self) -> Iterator[str]:
        yield from self.builtin
        yield from self._registered

    def __len__(self) -> int:
        return len(self.builtin) + len(self._registered)
