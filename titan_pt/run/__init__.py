"""The life of a run: its folder, log, signals, exit codes and ending. Called, it trains: `titan_pt.api.run`."""

import sys
from types import ModuleType
from typing import Any


class _Run(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from titan_pt.api import run

        return run(*arguments, **options)


sys.modules[__name__].__class__ = _Run
