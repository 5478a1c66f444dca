"""The two experiments of the README's first page, as a user types them."""

from pathlib import Path

import pytest
from helpers import ROOT, read_rows, run


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_rewards_alone_raise_the_quickstarts_model_to_its_target(tmp_path: Path) -> None:
    script, learn = str(ROOT / "run_train.sh"), str(ROOT / "train_configs" / "quickstart_grpo.toml")
    missing = run([script, "--job.config_file", learn], cwd=tmp_path)
    assert missing.code == 2 and "make it with ./run_train.sh --job.config_file" in missing.stderr
    first = run([script], cwd=tmp_path, timeout=600)
    assert first.code == 0, first.stderr
    validated = [row["val_loss"] for row in read_rows(tmp_path / "outputs" / "quickstart") if "val_loss" in row]
    assert validated[-1] < 0.6 * validated[0]
    second = run([script, "--job.config_file", learn], cwd=tmp_path, timeout=600)
    assert second.code == 0, second.stderr
    rows = read_rows(tmp_path / "outputs" / "quickstart_grpo")
    accuracy = {row["step"]: row["eval/arithmetic/accuracy"] for row in rows if "eval/arithmetic/accuracy" in row}
    assert sorted(accuracy) == [0, 1, 10, 20, 30]
    assert accuracy[0] <= 0.5 and accuracy[30] >= 0.9
    assert max(row["logprob_diff_max"] for row in rows[1:]) < 1e-3, "sampler and trainer are one model"
