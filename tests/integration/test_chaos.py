"""Random faults by seed: whatever comes, the run that was started again is the undisturbed one, to the last bit.

`pytest -m chaos` runs 1,000 seeds, any other run 60 (marked slow); a table of faults and losses follows the tests.
One seed: `pytest -m chaos -k 'seed17]'`.
"""

import dataclasses
import errno
import shutil
import sys
from collections.abc import Callable, Iterator

import pytest
from chaos.judge import Laboratory
from chaos.library import Rule
from chaos.scenarios import Scenario, Start, draw

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the library of faults is for Linux"),
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler: cc"),
]
FEW, MANY = 60, 1000

FOUND = {
    # The run had its steps, and the export of the last one was never made.
    "killed between the last save and its export": Scenario(
        "background saves",
        (Start("SIGKILL before an operation", (Rule("kill before", 1, kinds=("mkdir",), part="hf/step-16"),)),),
    ),
    # 2, after which a cluster gives the job up.
    "a disk that fails while a step is read": Scenario(
        "sft",
        (
            Start("SIGTERM", stops=6),
            Start("EIO for a while", (Rule("fail", 4, 40, ("read",), errno.EIO, part="__0_0.distcp"),)),
        ),
    ),
    "a disk that fails while steps are looked for": Scenario(
        "sft",
        (
            Start("SIGTERM", stops=6),
            Start("EIO for a while", (Rule("fail", 1, 10**6, ("read",), errno.EIO, part="checkpoint/"),)),
        ),
    ),
    # The other waited for it in a collective.
    "a disk that fails while one of two ranks reads the index of a step": Scenario(
        "two ranks",
        (
            Start("SIGTERM", stops=6),
            Start("EIO once", (Rule("fail", 2, 2, ("read",), errno.EIO, part=".metadata"),), rank=1),
        ),
    ),
    "a disk that is full at a start": Scenario(
        "sft", (Start("ENOSPC for a while", (Rule("fail", 1, 20, ("open", "write", "mkdir")),)),)
    ),
}
"""What seeds found."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """1,000 seeds where the marker expression asks for them; no expression that is true of all tests does."""
    if "seed" in metafunc.fixturenames:
        many = "chaos" in metafunc.config.option.markexpr
        marks = pytest.mark.chaos if many else pytest.mark.slow
        seeds = [pytest.param(seed, marks=marks, id=f"seed{seed}") for seed in range(MANY if many else FEW)]
        metafunc.parametrize("seed", seeds)


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    found = Laboratory(tmp_path_factory.mktemp("chaos"))
    yield found
    found.close()


@pytest.fixture
def survives(laboratory: Laboratory, record_property: Callable[[str, object], None]) -> Callable[[Scenario], None]:
    """Judges a scenario, for the table too, and fails where something was lost."""

    def judge(scenario: Scenario) -> None:
        verdict = laboratory.judge(scenario)
        record_property("chaos", dataclasses.asdict(verdict))
        assert not verdict.problems, "\n".join([verdict.name, *verdict.problems])

    return judge


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
def test_what_a_seed_found(name: str, survives: Callable[[Scenario], None]) -> None:
    survives(FOUND[name])


def test_faults_of_a_seed(seed: int, survives: Callable[[Scenario], None]) -> None:
    survives(draw(seed))
