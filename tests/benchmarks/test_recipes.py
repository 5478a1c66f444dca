"""The benchmarks of what a recipe learns: what they prepare, count and go on with. No training here."""

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT

from titan_pt.components.tokenizer import build_tokenizer
from titan_pt.config import load_config
from titan_pt.config.schema.job_config import TokenizerSection
from titan_pt.tools import train_tokenizer

Open = Callable[[str], ModuleType]
TOMLS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "benchmarks").rglob("*.toml"))


@pytest.fixture
def open_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Open:
    """Import a script of benchmarks/, which finds those beside it, in an empty folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    for name in ("common", "recipes", "shakespeare", "optimizers", "nanochat"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


class FakeRun:
    """Stands for `titan_pt.train`: writes the last rows of a run, or fails first."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        flags = dict(flag.removeprefix("--").split("=", 1) for flag in command if "=" in flag)
        folder = Path(flags["job.dump_folder"])
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"tokens_seen": tokens, "val_loss": 2.0 + 1 / tokens, "val_bpb": 3.0} for tokens in (10, 20)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "goodput.jsonl").write_text("")
        return subprocess.CompletedProcess(command, self.codes.pop(0) if self.codes else 0)


@pytest.mark.parametrize("path", TOMLS)
def test_each_experiment_of_a_benchmark_resolves(path: str) -> None:
    config = load_config([f"--job.config_file={ROOT / path}"])
    assert config.job.dump_folder.startswith("outputs/")


def test_a_run_is_trained_once_and_goes_on_after_a_failure(open_script: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = open_script("recipes")
    run = FakeRun(75)
    monkeypatch.setattr(recipes.subprocess, "run", run)
    monkeypatch.setattr(recipes, "all_seconds", lambda path: {"training": 4.0})
    with pytest.raises(SystemExit, match="75"):
        recipes.train(Path("a.toml"), Path("run"), 1)
    trained = recipes.train(Path("a.toml"), Path("run"), 1)
    assert trained == recipes.train(Path("a.toml"), Path("run"), 1) and len(run.commands) == 2
    assert (trained.tokens, trained.loss, trained.step_seconds) == (20, 2.05, 4.0)
    assert trained.seconds > 0
    with pytest.raises(SystemExit, match="other flags"):
        recipes.train(Path("a.toml"), Path("run"), 1, ["--optimizer.lr=1"])


def test_the_cost_of_a_loss_is_read_between_two_lengths(open_script: Open) -> None:
    reached = open_script("recipes").reached
    assert reached([1, 4], [3.0, 1.0], 2.0) == pytest.approx(2.0)
    assert reached([1, 4, 8], [3.0, 2.0, 1.0], 1.0) == pytest.approx(8.0)
    assert reached([1, 4], [3.0, 1.0], 0.9) is None and reached([1, 4], [3.0, 1.0], 3.1) is None


def test_shakespeare_is_cut_as_nanogpt_cuts_it(open_script: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    shakespeare = open_script("shakespeare")
    monkeypatch.setattr(shakespeare, "tool", lambda name, *flags: train_tokenizer.main(list(flags)))
    text = "".join(chr(97 + i % 26) for i in range(9993)) + "é\r\n"
    Path("input.txt").write_bytes(text.encode())
    shakespeare.prepare(Path("input.txt"))
    lines = Path("outputs/shakespeare/train-64.jsonl").read_text().splitlines()
    rows = "".join(json.loads(line)["text"] + "." for line in lines)  # a token that ends each document
    windows = {rows[at : at + 64] for at in range(0, len(rows), 65)}
    size = int(0.9 * len(text))
    assert windows == {text[at : at + 64] for at in range(0, size - 64, 65)}
    assert Path("outputs/shakespeare/val.txt").read_bytes().decode() == text[size:]
    tokenizer = build_tokenizer(TokenizerSection(name="outputs/shakespeare/characters"))
    assert len(tokenizer.encode("abc")) == 3 and tokenizer.vocab_size < 64


def test_muon_is_measured_to_adamw_s_loss(open_script: Open) -> None:
    optimizers, recipes = open_script("optimizers"), open_script("recipes")

    def run(tokens: int, loss: float) -> Any:
        return recipes.Trained({tokens: loss}, 1.0, 9.0, 2.0 * tokens, tokens)

    adamw, muon = [run(100, 2.0)], [[run(50, 2.5)], [run(100, 1.5)]]
    found = optimizers.ratios(adamw, muon, "tokens")
    assert found == pytest.approx([math.sqrt(2)]) == optimizers.ratios(adamw, muon, "processor_seconds")


def test_nanochat_gets_our_texts_and_we_get_its_seconds(open_script: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    nanochat = open_script("nanochat")
    checkout = Path("checkout")
    for folder in ("nanochat", "scripts"):
        (checkout / folder).mkdir(parents=True)
    base = "import os\nDATA_DIR = os.environ['NANOCHAT_BASE_DIR'] + '/base_data_other'\n"
    (checkout / "nanochat/dataset.py").write_text(base)
    (checkout / "scripts/tok_train.py").write_text("import sys\nassert '--vocab-size=300' in sys.argv\n")
    lines = ["Step 0 | Validation bpb: 3.5", "step 0 | dt: 1500.00ms |", "step 1 | dt: 500.00ms |"]
    told = "\n".join([*lines, "Step 2 | Validation bpb: 1.25"])
    (checkout / "scripts/base_train.py").write_text(f"print({told!r})\n")
    for side in ("train", "val"):
        pq.write_table(pa.table({"text": [side]}), f"{side}-00000.parquet")
    asked: list[Any] = []
    monkeypatch.setattr(nanochat, "tool", lambda *flags: asked.append(flags))

    def train(*arguments: Any) -> Any:
        asked.append(arguments)
        return open_script("recipes").Trained({10: 2.0}, 1.2, 1.0, 1.0, 1.0)

    monkeypatch.setattr(nanochat, "train", train)
    flags = ["--nanochat=checkout", "--data=.", "--steps=2", "--vocab_size=300"]
    monkeypatch.setattr(sys, "argv", ["nanochat.py", *flags])
    assert nanochat.main() == 0
    shown = sorted(Path().glob("outputs/**/base_data_other/*.parquet"))
    assert [pq.read_table(path)["text"].to_pylist() for path in shown] == [["train"], ["val"]]
    assert asked[-1][-1] == ["--training.max_hours=0.000556"]
    monkeypatch.setattr(sys, "argv", ["nanochat.py"])
    assert nanochat.main() == 0 and len(asked) == 2
