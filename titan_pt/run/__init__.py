"""The life of a run: its folder, log, signals, exit codes and ending. Called, it is `titan_pt.api.run`."""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Run(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return importlib.import_module("titan_pt.api").run(*arguments, **options)


sys.modules[__name__].__class__ = _Run
