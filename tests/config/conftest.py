"""Shared by the tests of the config: built-in trainers and models alone, whatever ran before on the same worker."""

import pytest

from titan_pt.protocols import model_spec, optimizer_spec, trainer_spec


@pytest.fixture(autouse=True)
def _built_in_specs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages list all known names; a run of an earlier test in this process may have registered more."""
    for registry in (trainer_spec._TRAINERS, model_spec._MODELS, optimizer_spec._OPTIMIZERS):
        monkeypatch.setattr(registry, "_registered", {})
