"""The README.md of an exported model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import titan_pt

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
---

# {name}

Trained and exported by titan_pt {version}.

{facts}

## Use

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("{name}")
    tokenizer = AutoTokenizer.from_pretrained("{name}")
{inputs}
    print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))

## Vocabulary

{vocabulary}
"""


_CONTINUE = """    inputs = tokenizer("Once upon a time", return_tensors="pt")"""
_ASK = """    messages = [{"role": "user", "content": "What is 3 + 4?"}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )"""


def model_card(facts: Mapping[str, str], name: str, num_rows: int, num_tokens: int, *, knows_chat: bool) -> str:
    """Render the README.md of an exported model.

    Args:
        facts: lines of its table, by label.
        num_rows: rows of the embedding, of which the first num_tokens are tokens.
        knows_chat: prompts go through its chat template.
    """
    lines = [f"| {_cell(label)} | {_cell(value)} |" for label, value in facts.items()]
    table = "\n".join(["| | |", "|---|---|", *lines])
    return _CARD.format(
        name=name,
        version=titan_pt.__version__,
        facts=table,
        inputs=_ASK if knows_chat else _CONTINUE,
        vocabulary=_vocabulary(num_rows, num_tokens),
    )


def run_facts(config: Mapping[str, Any], *, num_parameters: int, step: int, tokens: int) -> dict[str, str]:
    """Facts of a run for the model card, by label.

    Args:
        config: the config's tables, as JobConfig.dump gives them.
    """

    def value(section: str, key: str) -> Any:
        return config.get(section, {}).get(key, "")

    def table(section: str) -> str:
        return ", ".join(f"{key} = {value}" for key, value in config.get(section, {}).items())

    facts = {
        "Run": value("job", "description"),
        "Trainer": value("job", "trainer"),
        "Steps": f"{step:,}",
        "Tokens": f"{tokens:,}",
        "Parameters": f"{num_parameters:,}",
        "Started from": Path(value("checkpoint", "initial_load_path")).name or "random weights",
        "Data": ", ".join(source["name"] for source in config.get("data", {}).get("sources", [])),
        "Tokenizer": Path(value("tokenizer", "name")).name,
        "Sequence length": str(value("training", "seq_len")),
        "Optimizer": table("optimizer"),
        "Learning rate": table("lr_scheduler"),
    }
    return {label: text for label, text in facts.items() if text}


def averaged_facts(train: Mapping[str, Any], weights: str) -> dict[str, str]:
    """What a step's weights are an average of, by label; nothing where they are those of its last update.

    Args:
        train: the step's train.json.
        weights: "trained" or "ema".
    """
    if weights == "ema":
        return {"Weights": f"exponential moving average, decay {train['ema']['decay']:g} a step"}
    if steps := train.get("averaged_steps"):
        return {"Weights": f"average of the checkpoints of steps {', '.join(f'{step:,}' for step in steps)}"}
    return {}


def _vocabulary(num_rows: int, num_tokens: int) -> str:
    if num_rows <= num_tokens:
        return f"{num_rows:,} rows, each a token. Rows that padded the vocabulary in training are left out."
    return (
        f"{num_rows:,} rows, of which the first {num_tokens:,} are tokens. The others are padding that the model came "
        "with; `suppress_tokens` of generation_config.json keeps transformers from choosing them."
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
