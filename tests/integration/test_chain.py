"""The whole way on a CPU: pretraining, fine-tuning, reinforcement learning, a Hugging Face folder that answers."""

from pathlib import Path

import pytest
from helpers import ROOT, read_rows, train
from hf_helpers import export_here
from transformers import AutoModelForCausalLM, AutoTokenizer

CONFIGS = ROOT / "train_configs"


@pytest.mark.slow
def test_from_raw_text_to_an_answer(tmp_path: Path) -> None:
    for name, start in (("quickstart", None), ("quickstart_sft", None), ("quickstart_grpo", "outputs/quickstart_sft")):
        flags = ["--checkpoint.initial_load_path", start] if start else []
        done = train(CONFIGS / f"{name}.toml", *flags, cwd=tmp_path, timeout=1500)
        assert done.code == 0, done.stderr
    tuned = read_rows(tmp_path / "outputs" / "quickstart_sft")
    assert tuned[-1]["val_loss"] < 0.3 < 2.0 < tuned[0]["val_loss"]
    rewarded = read_rows(tmp_path / "outputs" / "quickstart_grpo")
    accuracies = [row["eval/arithmetic/accuracy"] for row in rewarded if "eval/arithmetic/accuracy" in row]
    assert min(accuracies) > 0.5, "fine-tuning has taught the form, and rewards keep it"
    run_folder, folder = tmp_path / "outputs" / "quickstart_grpo", tmp_path / "hf"
    assert export_here(["--checkpoint", str(run_folder), "--output", str(folder)]) == 0
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    asked = tokenizer("Question: What is 3 + 4?\nAnswer:", return_tensors="pt")
    answer = tokenizer.decode(model.generate(**asked, max_new_tokens=24, do_sample=False)[0])
    assert answer == "Question: What is 3 + 4?\nAnswer: 3 + 4 = 7\n#### 7<|endoftext|>"
