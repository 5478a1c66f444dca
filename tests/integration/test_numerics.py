"""Whole runs: loss values that must not change, and the same loss whatever the number of ranks or micro-batches."""

from pathlib import Path

import pytest
from helpers import read_rows, train

CONFIG = """
job.dump_folder = "run"
model = {num_layers = 2, hidden_size = 64, intermediate_size = 128, head_dim = 32, num_heads = 2, num_kv_heads = 1}
training = {steps = 20, seq_len = 64, local_batch_size = 2, global_batch_size = 8, mixed_precision_param = "float32"}
optimizer.lr = 3e-3
lr_scheduler = {warmup_steps = 4, decay_type = "cosine"}
validation = {enable = true, steps = 1, freq = 20}
metrics.log_freq = 1
data.sources = [{name = "arithmetic"}]
"""

# float32 on a CPU, steps 1, 10, 20; rounding differs between processors and thread counts by less than the tolerance.
GOLDEN = {1: 5.7279, 10: 3.9088, 20: 3.3561}


def run(folder: Path, *flags: str, ranks: int = 1) -> dict[int, dict[str, float]]:
    """Train in a folder of its own; the rows of metrics.jsonl by step."""
    folder.mkdir()
    (folder / "small.toml").write_text(CONFIG)
    done = train(Path("small.toml"), *flags, ranks=ranks, cwd=folder)
    assert done.code == 0, done.stderr
    return {row["step"]: row for row in read_rows(folder / "run")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, float]]:
    return run(tmp_path_factory.mktemp("base") / "one")


def test_golden_losses(base: dict[int, dict[str, float]]) -> None:
    for step, loss in GOLDEN.items():
        assert base[step]["loss"] == pytest.approx(loss, rel=2e-3), f"step {step}"


@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (2, []),
        (2, ["--parallelism.fsdp_reshard_after_forward=always", "--activation_checkpoint.mode=full"]),
        (1, ["--training.local_batch_size=8", "--activation_checkpoint.selective_ac_option=op"]),
        (1, ["--data.prefetch_steps=0", "--activation_checkpoint.mode=none"]),
        pytest.param(4, ["--parallelism.data_parallel_replicate_degree=2"], marks=pytest.mark.slow),
        pytest.param(1, ["--compile.enable"], marks=pytest.mark.slow),
    ],
)
def test_loss_does_not_depend_on_how_a_step_is_split(
    base: dict[int, dict[str, float]], tmp_path: Path, ranks: int, flags: list[str]
) -> None:
    other = run(tmp_path / "other", *flags, ranks=ranks)
    for step in base:
        for key in ("loss", "grad_norm"):
            assert other[step][key] == pytest.approx(base[step][key], rel=1e-4), f"{key} of step {step}"
    assert other[20]["val_loss"] == pytest.approx(base[20]["val_loss"], rel=1e-4)
    assert other[20]["tokens_seen"] == base[20]["tokens_seen"]


def test_untied_output_and_bfloat16_learn(base: dict[int, dict[str, float]], tmp_path: Path) -> None:
    flags = ["--model.tie_embeddings=false", "--training.mixed_precision_param=bfloat16", "--training.document_mask"]
    rows = run(tmp_path / "other", *flags)
    assert rows[20]["loss"] < 0.8 * rows[1]["loss"]
    assert rows[20]["loss"] == pytest.approx(base[20]["loss"], rel=0.1)
