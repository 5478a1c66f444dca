"""The experiments of the README's first page, as a user types them, and what comes out in the end."""

import itertools
import sys
from pathlib import Path

import pytest
from helpers import ROOT, read_rows, run
from hf_helpers import export_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from titan_pt.data.builtin.conversations import UNKNOWN, answer, held_out_sums


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_from_raw_text_to_an_answer(tmp_path: Path) -> None:
    """Pretraining; reinforcement learning alone, and after fine-tuning; an export that answers; a model that talks."""
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
    said = tokenizer.decode(model.generate(**asked, max_new_tokens=24, do_sample=False)[0])
    assert said == "Question: What is 3 + 4?\nAnswer: 3 + 4 = 7\n#### 7<|endoftext|>"

    experiment(tmp_path, "quickstart_chat")
    a_model_to_talk_to(tmp_path)


def a_model_to_talk_to(folder: Path) -> None:
    """It adds what it never read, goes on from its last answer, and says what it does not know, by the defaults."""
    sums = list(itertools.islice(held_out_sums(), 50))
    begun = answer(3, 4), answer(7, 2)
    said = [question for question, _ in sums] + ["/reset", "What is three plus four?", "And two more?"]
    unknown = ["What is the capital of France?", "Who invented the telephone?", "When does the next bus leave?"]
    lines = [*said, *itertools.chain(*(("/reset", question) for question in unknown))]
    command = [sys.executable, "-m", "titan_pt.tools.chat", "outputs/quickstart_chat"]
    done = run(command, cwd=folder, input="\n".join(lines))
    assert done.code == 0, done.stderr
    answers = done.stdout.splitlines()
    right = sum(found == wanted for found, (_, wanted) in zip(answers, sums, strict=False))
    assert right >= 45, dict(zip(said, answers, strict=False))
    assert tuple(answers[50:52]) == begun
    assert answers[52:].count(UNKNOWN) >= 2 and len(answers) == 55, answers[52:]


def experiment(folder: Path, name: str, *flags: str, expected: int = 0) -> str:
    """`./run_train.sh` with a shipped TOML, in `folder`; returns what it logged."""
    config = ROOT / "train_configs" / f"{name}.toml"
    done = run([str(ROOT / "run_train.sh"), "--job.config_file", str(config), *flags], cwd=folder, timeout=900)
    assert done.code == expected, done.stderr
    return done.stderr


def accuracies(rows: list[dict[str, float]]) -> dict[float, float]:
    """Accuracy on held-out problems, by step."""
    return {row["step"]: row["eval/arithmetic/accuracy"] for row in rows if "eval/arithmetic/accuracy" in row}
