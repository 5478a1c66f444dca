"""The experiments of the README's first page, as a user types them, and what comes out in the end."""

from pathlib import Path

import pytest
from documented import AFTER_QUICKSTART, run_pages
from helpers import ROOT, read_rows, run
from hf_helpers import export_here
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_from_raw_text_to_an_answer(tmp_path: Path) -> None:
    """Pretraining, then reinforcement learning alone, and after fine-tuning; a Hugging Face folder that answers.

    The commands of the pages that go on from these runs are run, too.
    """
    outputs = tmp_path / "outputs"
    missing = experiment(tmp_path, "quickstart_grpo", expected=2)
    assert "make it with ./run_train.sh --job.config_file" in missing
    experiment(tmp_path, "quickstart")
    validated = [row["val_loss"] for row in read_rows(outputs / "quickstart") if "val_loss" in row]
    assert validated[-1] < 0.6 * validated[0]

    experiment(tmp_path, "quickstart_grpo")
    rows = read_rows(outputs / "quickstart_grpo")
    accuracy = accuracies(rows)
    assert sorted(accuracy) == [0, 1, 10, 20]
    assert accuracy[0] <= 0.5 and accuracy[20] >= 0.9, "rewards alone raise it to its target"
    assert max(row["logprob_diff_max"] for row in rows[1:]) < 1e-3, "sampler and trainer are one model"

    experiment(tmp_path, "quickstart_sft")
    tuned = read_rows(outputs / "quickstart_sft")
    assert tuned[-1]["val_loss"] < 0.3 < 2.0 < tuned[0]["val_loss"]
    flags = ["--checkpoint.initial_load_path", "outputs/quickstart_sft", "--job.dump_folder", "outputs/chain"]
    experiment(tmp_path, "quickstart_grpo", *flags)
    taught = accuracies(read_rows(outputs / "chain"))
    assert min(taught.values()) > 0.5, "fine-tuning has taught the form, and rewards keep it"

    assert export_here(["--checkpoint", str(outputs / "chain"), "--output", str(tmp_path / "hf")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    asked = tokenizer("Question: What is 3 + 4?\nAnswer:", return_tensors="pt")
    answer = tokenizer.decode(model.generate(**asked, max_new_tokens=24, do_sample=False)[0])
    assert answer == "Question: What is 3 + 4?\nAnswer: 3 + 4 = 7\n#### 7<|endoftext|>"

    run_pages(AFTER_QUICKSTART, tmp_path, outputs)


def experiment(folder: Path, name: str, *flags: str, expected: int = 0) -> str:
    """`./run_train.sh` with a shipped TOML, in `folder`; returns what it logged."""
    config = ROOT / "train_configs" / f"{name}.toml"
    done = run([str(ROOT / "run_train.sh"), "--job.config_file", str(config), *flags], cwd=folder, timeout=900)
    assert done.code == expected, done.stderr
    return done.stderr


def accuracies(rows: list[dict[str, float]]) -> dict[float, float]:
    """Accuracy on held-out problems, by step."""
    return {row["step"]: row["eval/arithmetic/accuracy"] for row in rows if "eval/arithmetic/accuracy" in row}
