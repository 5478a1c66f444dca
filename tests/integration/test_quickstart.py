"""The experiments of the README's first page, as a user types them, and what comes out in the end."""

import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented import AFTER_QUICKSTART, fast_commands, run_pages
from helpers import ROOT, read_rows, run
from hf_helpers import export_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from titan_pt.data.builtin.conversations import UNKNOWN, answer, held_out_sums

TURNS = ((3, 4, 2), (1, 2, 4), (5, 5, 1), (2, 6, 3), (4, 0, 5), (1, 1, 6), (7, 2, 4), (3, 3, 2), (2, 5, 8), (6, 1, 1))
NEVER_READ = (
    "What is the capital of France?",
    "Who invented the telephone?",
    "When does the next bus leave?",
    "Which colour has the sea at night?",
    "Write a song for Clara.",
)


@pytest.fixture(autouse=True)
def _fast_commands(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`python` in the script is a fork: six starts of a launcher and a worker are a minute of imports."""
    with fast_commands(tmp_path_factory.mktemp("fast") / "bin") as folder:
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_from_raw_text_to_an_answer(tmp_path: Path) -> None:
    """Pretraining; reinforcement learning alone, and after fine-tuning; an export that answers; a model that talks.

    The commands of the pages that go on from these runs are run, too. `.ci/run` names the run that its first step has
    made by the README's command, in TITAN_PT_QUICKSTART.
    """
    outputs = tmp_path / "outputs"
    missing = experiment(tmp_path, "quickstart_grpo", expected=2)
    assert "make it with titan-pt train quickstart" in missing
    if trained := os.environ.get("TITAN_PT_QUICKSTART"):
        shutil.copytree(trained, outputs / "quickstart", symlinks=True)
    else:
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
    experiment(tmp_path, "quickstart_grpo", *flags, "--training.steps", "6")
    taught = accuracies(read_rows(outputs / "chain"))
    assert min(taught.values()) > 0.5, "fine-tuning has taught the form, and rewards keep it"

    assert export_here(["--checkpoint", str(outputs / "chain"), "--output", str(tmp_path / "hf")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    asked = tokenizer("Question: What is 3 + 4?\nAnswer:", return_tensors="pt")
    said = tokenizer.decode(model.generate(**asked, max_new_tokens=24, do_sample=False)[0])
    assert said == "Question: What is 3 + 4?\nAnswer: 3 + 4 = 7\n#### 7<|endoftext|>"

    experiment(tmp_path, "quickstart_reason_sft")
    experiment(tmp_path, "quickstart_reason", "--training.steps", "80", "--validation.freq", "80")
    rows = read_rows(outputs / "quickstart_reason")
    passed = [row["eval/sorting/pass_at_1"] for row in rows if "eval/sorting/pass_at_1" in row]
    assert 0.02 < passed[0] < 0.3 and passed[-1] > 2 * passed[0], "rewards alone teach a skill"

    experiment(tmp_path, "quickstart_chat")
    a_model_to_talk_to(tmp_path)

    run_pages(AFTER_QUICKSTART, tmp_path, outputs)


def a_model_to_talk_to(folder: Path) -> None:
    """It adds what it never read, goes on from its last answer, and says what it does not know, by the defaults."""
    sums = [[turn] for turn in itertools.islice(held_out_sums(), 50)]
    more = [[(f"What is {a} plus {b}?", answer(a, b)), (f"And {n} more?", answer(a + b, n))] for a, b, n in TURNS]
    unknown = [[(question, UNKNOWN)] for question in NEVER_READ]
    talks = [*sums, *more, *unknown]
    lines = [line for talk in talks for line in ("/reset", *(question for question, _ in talk))]
    command = [sys.executable, "-m", "titan_pt.tools.chat", "outputs/quickstart_chat"]
    done = run(command, cwd=folder, input="\n".join(lines))
    assert done.code == 0, done.stderr
    answers = iter(done.stdout.splitlines())
    right = [[next(answers) for _ in talk] == [wanted for _, wanted in talk] for talk in talks]
    assert sum(right[:50]) >= 45, done.stdout
    assert sum(right[50:60]) >= 7 and sum(right[60:]) >= 4, done.stdout


def experiment(folder: Path, name: str, *flags: str, expected: int = 0) -> str:
    """`./run_train.sh` with a shipped TOML, in `folder`; returns what it logged."""
    config = ROOT / "train_configs" / f"{name}.toml"
    done = run([str(ROOT / "run_train.sh"), "--job.config_file", str(config), *flags], cwd=folder, timeout=900)
    assert done.code == expected, done.stderr
    return done.stderr


def accuracies(rows: list[dict[str, float]]) -> dict[float, float]:
    """Accuracy on held-out problems, by step."""
    return {row["step"]: row["eval/arithmetic/accuracy"] for row in rows if "eval/arithmetic/accuracy" in row}
