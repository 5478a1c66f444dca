"""The shipped experiments: each loads, says what it is, and has the size it names."""

from pathlib import Path

import pytest

from titan_pt.config import load_config
from titan_pt.config.resolve.checks import model_args
from titan_pt.config.run_size import plan_run_size
from titan_pt.data.builtin.worked_problems import WorkedProblems
from titan_pt.models.transformer import FLAVORS
from titan_pt.protocols.model_spec import get_model_spec

FOLDER = Path(__file__).resolve().parents[2] / "train_configs"
FILES = sorted(FOLDER.glob("**/*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_loads_and_opens_with_what_it_is(file: Path) -> None:
    config = load_config(["--job.config_file", str(file)])
    assert config.job.dump_folder == f"outputs/{file.stem}"
    header = [line for line in file.read_text().splitlines()[:4] if line.startswith("# ")]
    assert len(header) >= 2 and "Hardware:" in " ".join(header)
    assert "tokens/s" in " ".join(header) or "Estimate" in " ".join(header)
    model_args(config, get_model_spec(config.model.name), 50257)


@pytest.mark.parametrize(
    ("name", "flavor", "tokens", "tokens_per_step"),
    [
        ("debug", "tiny", 10e6, 32768),
        ("small", "small", 3e9, 524288),
        ("medium_1day", "medium", 15e9, 524288),
        ("medium_3day", "medium", 50e9, 524288),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_budgets(name: str, flavor: str, tokens: float, tokens_per_step: int, ranks: int) -> None:
    config = load_config(["--job.config_file", str(FOLDER / f"{name}.toml")])
    run_size = plan_run_size(config, ranks)
    assert run_size.tokens_per_step == tokens_per_step
    assert 0 <= run_size.tokens - tokens < tokens_per_step
    args = model_args(config, get_model_spec("transformer"), 50257)
    assert args.num_parameters == FLAVORS[flavor].num_parameters


def test_sft_math_makes_other_problems_than_midtrain_math_read() -> None:
    made = []
    for name in ("midtrain_math", "sft_math"):
        config = load_config(["--job.config_file", str(FOLDER / f"{name}.toml")])
        made.append(WorkedProblems(config.debug.seed if config.data.seed is None else config.data.seed))
    assert [made[0][i] for i in range(20)] != [made[1][i] for i in range(20)]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_fits_a_machine_of_1_to_8(file: Path, ranks: int) -> None:
    run_size = plan_run_size(load_config(["--job.config_file", str(file)]), ranks)
    assert run_size.rows_per_rank * ranks == run_size.rows and run_size.num_streams % ranks == 0


def test_medium_3day_is_the_run_of_the_readme() -> None:
    config = load_config(["--job.config_file", str(FOLDER / "medium_3day.toml")])
    assert (config.optimizer.lr, config.lr_scheduler.decay_type) == (3e-4, "cosine")
    for ranks in (1, 2, 4, 8):
        assert plan_run_size(config, ranks).rows_per_rank * ranks == 256
