"""tools.evaluate: accuracies, pass@k, letters, examples, losses of texts, intervals; and tasks during training."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import losses, read_rows, train, train_here, write_toml
from hf_helpers import write_model
from task_helpers import CASES, SUMS, write_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tool_helpers import tool_here, train_known
from transformers import AutoTokenizer

from titan_pt.evaluation.eval_tasks import TaskRequest, open_eval_task
from titan_pt.evaluation.intervals import wilson
from titan_pt.evaluation.scoring import likelihoods
from titan_pt.evaluation.text import text_loss
from titan_pt.generation.native import NativeEngine
from titan_pt.hf.chat import chat_tokens
from titan_pt.hf.model_source import ModelSource, open_model_source
from titan_pt.tasks.prompts import PromptRules, held_out_prompts
from titan_pt.tools.evaluate import main

PROBLEMS = [
    {"question": "What is 3 + 4?", "answer": "3 + 4 = 7\n#### 7"},
    {"question": "Where are 12 apples of 30?", "answer": "#### 18"},
    {"question": "What is 3 + 5?", "answer": "no\n#### 8"},
    {"question": "How many are 5 eggs?", "answer": "#### 5"},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_known(tmp_path_factory.mktemp("known"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with random weights that reads 256 tokens."""
    path = tmp_path_factory.mktemp("random")
    write_model(path, qwen=False, tied=False)
    return path


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert tool_here(main, *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_accuracy_and_pass_at_k_of_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "test.jsonl", PROBLEMS)
    flags = ["--checkpoint", run, "--tasks", "gsm8k", "--data", f"gsm8k={data}", "--max_new_tokens", 24]
    found = evaluate(capsys, *flags, "--samples", 4, "--k", "1,2,4", "--temperature", 0.01)["tasks"]["gsm8k"]
    assert found["problems"] == 4
    names = ("accuracy", "accuracy_official", "accuracy_lenient", "pass_at_1", "pass_at_2", "pass_at_4")
    assert [found[name] for name in names] == [0.25] * 6
    assert found["intervals"]["accuracy"] == list(wilson(0.25, 4)) and set(names) < found["intervals"].keys()
    assert tool_here(main, *flags, "--limit", 3) == 0
    printed = capsys.readouterr().out
    assert "gsm8k: 3 problems" in printed and "accuracy_official" in printed and "95% interval" in printed


def test_letter_accuracy_equals_full_logits(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "test.jsonl", CASES[:12])
    flags = ["--checkpoint", folder, "--tasks", "medqa", "--data", f"medqa={data}", "--max_new_tokens", 4]
    found = evaluate(capsys, *flags, "--chat", "false")["tasks"]["medqa"]
    source = open_model_source(str(folder))
    model, right = source.load("cpu", torch.float32), 0
    task = open_eval_task(TaskRequest("medqa", path=data), 0, "--tasks")
    for i in range(12):
        problem = task.evaluation.get(i, 0)
        ids = source.tokenizer.encode(task.prompt(problem) + "Answer: ")
        logits = model(torch.tensor([ids]))[0, -1]
        best = max("ABCD", key=lambda letter: float(logits[source.tokenizer.encode(letter)[0]]))
        right += best == problem.gold
    assert found["accuracy_loglikelihood"] == right / 12
    assert found["constant_letter_baseline"] == 0.25 and found["truncated_fraction"] == 1.0


def test_examples_come_from_the_training_problems(tmp_path: Path) -> None:
    train_path, path = write_rows(tmp_path / "train.jsonl", SUMS[:4]), write_rows(tmp_path / "test.jsonl", PROBLEMS)
    task = open_eval_task(TaskRequest("gsm8k", path=path, train_path=train_path, num_fewshot=2), 0, "--tasks")
    prompt = task.prompt(task.evaluation.get(0, 0))
    examples = [f"Question: {row['question'].strip()}\nAnswer: {row['answer']}\n\n" for row in SUMS[:4]]
    assert prompt.endswith("\n\nQuestion: What is 3 + 4?\nAnswer:")
    assert sorted(example in prompt for example in examples) == [False, False, True, True]
    assert len(prompt) == sum(len(e) for e in examples if e in prompt) + len("Question: What is 3 + 4?\nAnswer:")
    problem = task.evaluation.get(0, 0)
    assert task.grade(" 7\n#### 7\n\nQuestion: What is 5 + 5?\nAnswer: #### 10", problem, "strict")
    cases = write_rows(tmp_path / "cases.jsonl", CASES[:20])
    more = write_rows(tmp_path / "more.jsonl", CASES[20:])
    letters = open_eval_task(TaskRequest("medqa", path=cases, train_path=more, num_fewshot=1), 0, "--tasks")
    assert letters.prompt(letters.evaluation.get(0, 0)).count("Answer: ") == 1
    assert letters.find_letter is not None and letters.find_letter("Answer: B\n\nQuestion: x\nAnswer: C") == "B"


CHAT_ML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def chat_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "folder"
    shutil.copytree(folder, path)
    (path / "chat_template.jinja").write_text(CHAT_ML)
    return path


def test_prompts_of_a_chat_are_those_of_the_harness(chat_folder: Path, tmp_path: Path) -> None:
    """The turns of lm-evaluation-harness's --apply_chat_template, as the template of transformers writes them."""
    train_path = write_rows(tmp_path / "train.jsonl", [{"question": "What is 1 + 1?", "answer": "1 + 1 = 2\n#### 2"}])
    request = TaskRequest(
        "gsm8k",
        path=write_rows(tmp_path / "test.jsonl", PROBLEMS),
        train_path=train_path,
        num_fewshot=1,
        system_prompt="Be brief.",
    )
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Question: What is 1 + 1?\nAnswer:"},
        {"role": "assistant", "content": "1 + 1 = 2\n#### 2"},
        {"role": "user", "content": "Question: What is 3 + 4?\nAnswer:"},
    ]
    theirs = AutoTokenizer.from_pretrained(chat_folder)
    tokenizer = open_model_source(str(chat_folder)).tokenizer
    task = open_eval_task(request, 0, "--tasks", knows_chat=True)
    (prompt, *_), _ = held_out_prompts(task, 0, PromptRules(tokenizer, 400, "error"), 4)
    expected = theirs.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)["input_ids"]
    assert list(prompt.token_ids) == expected
    assert prompt.text == theirs.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    plain = open_eval_task(replace(request, chat=False), 0, "--tasks", knows_chat=True)
    text = "Be brief." + "\n\n".join(f"{q['content']} {a['content']}" for q, a in [turns[1:3]])
    assert plain.prompt(plain.evaluation.get(0, 0)) == f"{text}\n\n{turns[3]['content']}"


def test_models_of_conversations_are_asked_through_their_template(
    run: Path, chat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "test.jsonl", CASES[:6])
    flags = ["--tasks", "medqa", "--data", f"medqa={data}", "--max_new_tokens", 4]
    found = evaluate(capsys, "--checkpoint", chat_folder, *flags)["tasks"]["medqa"]
    assert found["chat"] is True
    source = open_model_source(str(chat_folder))
    model, right = source.load("cpu", torch.float32), 0
    task = open_eval_task(TaskRequest("medqa", path=data), 0, "--tasks")
    for i in range(6):
        problem = task.evaluation.get(i, 0)
        content = f"{task.prompt(problem)}Answer:"
        ids = chat_tokens(source.tokenizer, [{"role": "user", "content": content}])
        logits = model(torch.tensor([ids]))[0, -1]
        best = max("ABCD", key=lambda letter: float(logits[source.tokenizer.encode(letter)[0]]))
        right += best == problem.gold
    assert found["accuracy_loglikelihood"] == right / 6
    assert evaluate(capsys, "--checkpoint", chat_folder, *flags, "--chat", "false")["tasks"]["medqa"]["chat"] is False
    assert evaluate(capsys, "--checkpoint", run, *flags)["tasks"]["medqa"]["chat"] is False, "a base model"
    assert tool_here(main, "--checkpoint", chat_folder, *flags) == 0
    assert "medqa: 6 problems, asked through the chat template" in capsys.readouterr().out


def test_core_by_texts_that_the_model_has_learnt(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"context": "Question: What is 3 +", "continuation": end} for end in ("4?", "4?\nAnswer: 3", "5?", "9?")]
    write_rows(tmp_path / "data/reading_comprehension/coqa.jsonl", rows)
    flags = ["--checkpoint", run, "--tasks", "core", "--data", f"core={tmp_path / 'data'}"]
    found = evaluate(capsys, *flags)["tasks"]["core"]
    assert found["tasks"]["coqa"]["accuracy"] == found["core_metric"] == 0.5
    assert tool_here(main, *flags) == 0
    printed = capsys.readouterr().out
    assert "core: 1 of 22 tasks, 4 problems" in printed and "without hellaswag_zeroshot, jeopardy" in printed


def test_num_fewshot_is_reported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--checkpoint", run, "--tasks", "arithmetic", "--limit", 3, "--max_new_tokens", 4]
    assert evaluate(capsys, *flags, "--num_fewshot", 2)["tasks"]["arithmetic"]["num_fewshot"] == 2
    assert evaluate(capsys, *flags)["tasks"]["arithmetic"]["num_fewshot"] == 0


def test_text_loss_equals_full_logits(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["The first text, with é. " * 9, "short", "3 + 4 = 7\n" * 20]
    path = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    found = evaluate(capsys, "--checkpoint", folder, "--text", path, "--seq_len", 64)["text"]
    source = open_model_source(str(folder))
    model, tokenizer = source.load("cpu", torch.float32), source.tokenizer
    ids = [tokenizer.eos_id]
    for text in texts:
        ids += [*tokenizer.encode(text), tokenizer.eos_id]
    total = 0.0
    for start in range(0, len(ids) - 1, 64):
        row = torch.tensor([ids[start : start + 65]])
        logits = model(row[:, :-1], None, torch.nn.functional.linear)[0]  # all rows of the vocabulary, as in training
        total += float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
    assert found["tokens"] == len(ids) - 1 and found["bytes"] == sum(len(text.encode()) for text in texts)
    assert found["loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / found["bytes"], rel=1e-5)
    (tmp_path / "one.txt").write_text(texts[0])
    assert evaluate(capsys, "--checkpoint", folder, "--text", tmp_path / "one.txt")["text"]["seq_len"] == 256
    assert text_loss(model, tokenizer, [texts[0]], 256).tokens == len(tokenizer.encode(texts[0])) + 1


WORDS = [{"text": f"word {i} " * (3 + 7 * i % 23)} for i in range(40)]
ANSWERS = [{"prompt": f"How much is {i} and {i}?", "completion": f" {2 * i}" * (1 + i % 3)} for i in range(40)]


@pytest.mark.parametrize("trainer", ["pretrain", "sft"])
def test_text_loss_of_a_run_equals_its_own_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trainer: str
) -> None:
    """By default the rows, the mask and the precision are those of the logged val_loss, also of a copy elsewhere."""
    rows = ANSWERS if trainer == "sft" else WORDS
    path = write_rows(tmp_path / "held_out.jsonl", rows[:30])
    sources: list[dict[str, Any]] = [{"name": "mine", "path": path}]
    if trainer == "pretrain":  # names of special tokens that are tokens, and a dollar sign in a path
        rows = [{"text": f"{row['text']}<|endoftext|>{row['text']}"} for row in rows]
        (tmp_path / "for $HOME").mkdir()
        write_rows(tmp_path / "for $HOME" / "held_out.jsonl", [{"body": row["text"]} for row in rows[:30]])
        path = str(tmp_path / "for $$HOME" / "held_out.jsonl")
        sources = [{"name": "mine", "path": path, "text_field": "body", "special_tokens": True}]
    if trainer == "sft":  # two sources: their files together are the validation's
        sources.append({"name": "other", "path": write_rows(tmp_path / "held_out_2.jsonl", rows[30:]), "weight": 2.0})
        path = str(tmp_path / "held_out*.jsonl")
    config = write_toml(
        tmp_path,
        job={"trainer": trainer, "dump_folder": str(tmp_path / "run")},
        training={"steps": 2, "seq_len": 96, "document_mask": True, "mixed_precision_param": "bfloat16"},
        optimizer={"lr": 0.01},
        data={"sources": [{"name": "t", "path": write_rows(tmp_path / "t.jsonl", rows)}], "cache_dir": str(tmp_path)},
        validation={"enable": True, "freq": 2, "sources": sources},
    )
    assert train_here(config) == 0
    logged = read_rows(tmp_path / "run")[-1]
    flags = ["--checkpoint", tmp_path / "run", "--text"]
    capsys.readouterr()
    found = evaluate(capsys, *flags, path)["text"]
    assert (found["document_mask"], found["precision"]) == (True, "bfloat16")
    assert found["loss"] == pytest.approx(logged["val_loss"], abs=1e-6)
    assert found["bits_per_byte"] == pytest.approx(logged["val_bpb"], abs=1e-6)
    for changed in (["--document_mask", "false"], ["--precision", "float32"], ["--dtype", "float32"]):
        assert evaluate(capsys, *flags, path, *changed)["text"]["loss"] != pytest.approx(found["loss"], abs=1e-7)
    if trainer == "pretrain":
        for column in ("text", "body"):
            copy = write_rows(tmp_path / "elsewhere" / "copy.jsonl", [{column: row["text"]} for row in rows[:30]])
            assert evaluate(capsys, *flags, copy)["text"]["loss"] == found["loss"]
        assert tool_here(main, *flags, write_rows(tmp_path / "x.jsonl", [{"words": "a"}])) == 2
        assert "rows need the column body or text" in capsys.readouterr().err


def test_likelihoods_equal_full_logits(folder: Path) -> None:
    source = open_model_source(str(folder))
    model = source.load("cpu", torch.float32)
    generator = torch.Generator().manual_seed(0)
    lengths = [(5, 1), (5, 1), (3, 9), (200, 2), (300, 4), (1, 1)]
    pairs = [tuple(torch.randint(0, 259, (n,), generator=generator).tolist() for n in pair) for pair in lengths]
    pairs[1] = (pairs[0][0], [17])  # the same row, another answer
    for (context, continuation), found in zip(pairs, likelihoods(model, pairs), strict=True):
        row = [*context, *continuation][-257:]
        logprobs = torch.log_softmax(model(torch.tensor([row[:-1]]))[0], dim=-1)[-len(continuation) :]
        expected = sum(float(logprobs[i, token]) for i, token in enumerate(continuation))
        assert found.logprob == pytest.approx(expected, rel=1e-4)
        assert found.is_greedy == (logprobs.argmax(-1).tolist() == list(continuation))
    for context, continuation in (([], [1]), ([1], []), ([1], [1] * 257)):
        with pytest.raises(ValueError, match="pair 0"):
            likelihoods(model, [(context, continuation)])


def test_wilson_intervals_equal_those_of_statsmodels() -> None:
    """Values of statsmodels.stats.proportion.proportion_confint(count, nobs, method="wilson")."""
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson(0.5, 10) == pytest.approx((0.2365931, 0.7634069), abs=1e-6)
    assert wilson(1.0, 100) == pytest.approx((0.9630065, 1.0), abs=1e-6)
    for total in range(1, 500):
        assert wilson(0.0, total)[0] == 0.0 and wilson(1.0, total)[1] == 1.0, "exactly"
    for share, total in ((-0.1, 5), (1.1, 5), (0.5, 0)):
        with pytest.raises(ValueError, match="want 0 to 1"):
            wilson(share, total)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to evaluate: give --tasks"),
        (["--tasks", "gsm9k"], "--tasks: name = 'gsm9k': unknown; did you mean gsm8k?"),
        (["--tasks", "arithmetic,arithmetic"], "--tasks: 'arithmetic' is given twice"),
        (["--tasks", "gsm8k", "--data", "gsm8k"], "--data = 'gsm8k': want TASK=FILE"),
        (["--tasks", "gsm8k", "--data", "medqa=x"], "'medqa' is not in --tasks; there are gsm8k"),
        (["--tasks", "gsm8k", "--data", "gsm8k=missing.jsonl"], "--tasks ('gsm8k'): --data = 'missing.jsonl'"),
        (
            ["--tasks", "arithmetic", "--num_fewshot", 2, "--train_data", "arithmetic=x"],
            "--train_data = 'x' has no effect",
        ),
        (["--tasks", "mine"], "a task of your own is evaluated in a run, by [[validation.tasks]]"),
        (["--text", "  "], "--text = '  ': must name a file or folder"),
        (["--tasks", "gsm8k", "--train_data", "gsm8k=x"], "--train_data: examples are taken from it; give --num_few"),
        (["--tasks", "arithmetic", "--level", 9], "level = 9: unknown; allowed are"),
        (["--tasks", "gsm8k", "--level", 1], "--level: is of arithmetic, sorting, none of which is in --tasks"),
        (["--tasks", "arithmetic", "--limit", 0], "--limit = 0: must be at least 1"),
        (["--tasks", "arithmetic", "--samples", 4, "--k", "1,8"], "want numbers from 1 to --samples = 4"),
        (["--tasks", "arithmetic", "--samples", 4, "--k", "a"], "--k = 'a': want numbers"),
        (["--tasks", "arithmetic", "--samples", 4, "--temperature", 0], "--temperature = 0: all --samples"),
        (["--tasks", "arithmetic", "--samples", -1], "--samples = -1: must be 0 (greedy answers only) or from 1"),
        (
            ["--tasks", "arithmetic", "--max_new_tokens", 256],
            "max_new_tokens = 256: must be below what the",
        ),
        (["--text", "missing.txt"], "--text = 'missing.txt'"),
        (["--text", __file__], "known are"),
        (["--text", "README.md", "--seq_len", 1024], "--seq_len = 1024: the model reads at most 256 tokens"),
    ],
)
def test_wrong_usage(folder: Path, capsys: pytest.CaptureFixture[str], flags: list[object], message: str) -> None:
    assert tool_here(main, "--checkpoint", folder, *flags) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err and not printed.out


def test_a_grading_that_fails_on_everything_measures_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any) -> bool:
        raise RuntimeError("the judge is down")

    monkeypatch.setattr("titan_pt.tasks.rewards._is_right", down)
    flags = ["--tasks", "arithmetic", "--limit", 2, "--max_new_tokens", 2, "--system_prompt", ""]
    assert tool_here(main, "--checkpoint", folder, *flags) == 1
    printed = capsys.readouterr()
    assert "task arithmetic: the grading failed on all 2 completions" in printed.err and not printed.out


@pytest.mark.parametrize("flags", [["--tasks", "arithmetic", "--limit", 2], ["--text", "text.txt"]])
def test_a_broken_model_has_no_accuracy(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("A text of some words.")
    load = ModelSource.load

    def broken(self: ModelSource, *arguments: Any) -> Any:
        model = load(self, *arguments)
        model.norm.weight.data[0] = float("inf")
        return model

    monkeypatch.setattr(ModelSource, "load", broken)
    assert tool_here(main, "--checkpoint", folder, "--max_new_tokens", 4, *flags) == 1
    printed = capsys.readouterr()
    assert "failed: logits are not finite: " in printed.err and "Traceback" not in printed.err and not printed.out


# -- during training --------------------------------------------------------------------------------------------------

TASKS = {
    "enable": True,
    "freq": 3,
    "steps": 1,
    "tasks": [{"name": "arithmetic", "limit": 4, "max_new_tokens": 6}],
    "sample_prompts": ["<|im_start|>user", "What is"],
    "sample_tokens": 5,
}


def written_texts(run: Path) -> dict[str, list[int]]:
    """The steps of each text in TensorBoard."""
    found = EventAccumulator(str(run / "tb"))
    found.Reload()
    return {tag: [event.step for event in found.Tensors(tag)] for tag in found.Tags()["tensors"]}


def test_validation_tasks_leave_the_training_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = write_rows(tmp_path / "cases.jsonl", CASES[:8])
    tasks = [*TASKS["tasks"], {"name": "medqa", "path": cases, "max_new_tokens": 4}]
    validation, board = {**TASKS, "tasks": tasks}, {"metrics": {"enable_tensorboard": True}}
    assert train_here(write_toml(tmp_path / "with", validation=validation, **board)) == 0
    printed = capsys.readouterr().err
    assert "Validation: 8 problems of medqa" in printed and printed.count("What is\n  --> ") == 3
    assert written_texts(tmp_path / "with" / "run") == {"validation_samples/text_summary": [1, 3, 6]}
    assert train_here(write_toml(tmp_path / "without", validation={"enable": True, "freq": 3, "steps": 1})) == 0
    assert losses(tmp_path / "with/run") == losses(tmp_path / "without/run"), "an evaluation changes no weights"
    rows = {row["step"]: row for row in read_rows(tmp_path / "with/run")}
    assert [step for step, row in rows.items() if "eval/arithmetic/accuracy" in row] == [1, 3, 6]
    assert {
        "eval/arithmetic/accuracy_lenient",
        "eval/medqa/problems",
        "eval/medqa/accuracy_loglikelihood",
        "val_loss",
    } < rows[6].keys()


@pytest.mark.parametrize("kept", ["tasks", "sample_prompts"])
def test_a_broken_model_ends_the_run_with_70(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = NativeEngine.sync_weights

    def poisoned(self: NativeEngine, model: torch.nn.Module) -> None:
        sync(self, model)
        self.model.norm.weight.data[0] = float("nan")

    monkeypatch.setattr(NativeEngine, "sync_weights", poisoned)
    validation = {key: value for key, value in TASKS.items() if key not in {"tasks", "sample_prompts"} - {kept}}
    assert train_here(write_toml(tmp_path, validation=validation)) == 70
    assert "gave up: logits are not finite: prompt 1, token 1" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_two_ranks_give_the_same_task_values(tmp_path: Path) -> None:
    cases = write_rows(tmp_path / "cases.jsonl", CASES[:7])
    questions = [{"query": f"{i} {i}", "choices": [f"{i}", "two words"], "gold": i % 2} for i in range(9)]
    write_rows(tmp_path / "core/commonsense_reasoning/copa.jsonl", questions)
    core = {"name": "core", "path": str(tmp_path / "core"), "limit": 7}
    tasks = {**TASKS, "tasks": [{"name": "medqa", "path": cases, "max_new_tokens": 4}, core]}
    rows = []
    for ranks in (1, 2):
        config = write_toml(tmp_path / str(ranks), validation=tasks)
        assert train(config, ranks=ranks).code == 0
        rows.append({k: v for k, v in read_rows(tmp_path / str(ranks) / "run")[-1].items() if k.startswith("eval/")})
    assert rows[0] == rows[1] and len(rows[0]) > 12 and rows[0]["eval/core/problems"] == 7


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"tasks": TASKS["tasks"]}, "validation.tasks: has no effect without validation"),
        ({**TASKS, "tasks": TASKS["tasks"] * 2}, "validation.tasks: two tasks are named 'arithmetic'"),
        ({**TASKS, "tasks": [{"name": "gsm9k"}]}, "validation.tasks: name = 'gsm9k': unknown; did you mean gsm8k?"),
        ({**TASKS, "tasks": [{"name": "gsm8k", "path": "missing.jsonl"}]}, "validation.tasks ('gsm8k'): eval_path"),
        ({**TASKS, "sample_tokens": 32768}, "are more than model.max_seq_len = 32768"),
    ],
)
def test_wrong_validation_tasks_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], validation: dict, message: str
) -> None:
    assert train_here(write_toml(tmp_path, validation=validation)) == 2
    assert message in capsys.readouterr().err
