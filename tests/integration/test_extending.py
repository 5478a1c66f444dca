"""Modules of a stranger's own: an optimizer with its keys, a model that every tool opens, errors by file and line."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import assert_same_step, read_rows, train_here, write_toml
from test_custom_spec import PLUGIN

from titan_pt.config import ConfigError, load_config
from titan_pt.data.sources import registry
from titan_pt.planner.dry_run_step import dry_run_step
from titan_pt.protocols import model_spec, optimizer_spec, trainer_spec
from titan_pt.protocols.optimizer_spec import register_optimizer
from titan_pt.tools import evaluate, export, generate

DOCS = Path(__file__).parents[2] / "docs/extending.md"
OPTIMIZER = (
    re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[0]
    + """

class Reads(SignSGD):
    def step(self, closure=None):
        float(self.param_groups[0]["params"][0].grad.norm())
        super().step()


register_optimizer("reads", lambda model, config: Reads(model.parameters(), {"lr": 1.0, "momentum": 0.9}))
register_optimizer("broken", lambda model, config: nothing_of_this_name)
"""
)


def line_of(text: str) -> int:
    return OPTIMIZER[: OPTIMIZER.index(text)].count("\n") + 1


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stranger's modules, and registries without what other tests brought."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for kind in (trainer_spec._TRAINERS, model_spec._MODELS, optimizer_spec._OPTIMIZERS, registry._SOURCES):
        monkeypatch.setattr(kind, "_registered", {})
    return tmp_path


def own_optimizer(folder: Path, module: str, **optimizer: object) -> Path:
    (folder / f"{module}.py").write_text(OPTIMIZER)
    return write_toml(
        folder,
        job={"dump_folder": str(folder / "run")},
        experimental={"custom_import": module},
        training={"steps": 4, "seq_len": 32, "local_batch_size": 2, "mixed_precision_param": "float32"},
        lr_scheduler={"warmup_steps": 2, "total_steps": 8},
        checkpoint={"interval": 2, "keep_latest_k": 0},
        optimizer=optimizer,
    )


def test_an_optimizer_with_keys_and_rates_of_its_own(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = own_optimizer(home, "my_sign", name="sign_sgd", momentum=0.9)
    assert train_here(config) == 0
    rows = read_rows(home / "run")
    assert rows[1]["lr"] == pytest.approx(0.02) and rows[1]["lr/others"] == pytest.approx(1e-3)
    assert "group others" in capsys.readouterr().err
    assert train_here(config, "--job.dump_folder", str(home / "parts"), "--training.steps", "2") == 0
    assert train_here(config, "--job.dump_folder", str(home / "parts")) == 0
    assert_same_step(home / "run/checkpoint/step-4", home / "parts/checkpoint/step-4")

    again = load_config(["--job.config_file", str(home / "run/config.toml")])
    assert again.optimizer.model_dump()["momentum"] == 0.9 and again.optimizer.weight_decay == 0.1
    for flags, said in (
        (["--optimizer.momentm=1"], "did you mean optimizer.momentum?"),
        (["--optimizer.momentum=high"], "must be a number (default 0.95)"),
        (["--optimizer.name=AdamW"], "optimizer.momentum"),
        (
            ["--optimizer.name=sing_sgd"],
            "AdamW, AdamW8bit, Muon, broken, reads, sign_sgd; did you mean sign_sgd?; one of your own",
        ),
        (
            ["--optimizer.name=muon", "--experimental.custom_import="],
            "is made known by register_optimizer in the module",
        ),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            load_config(["--job.config_file", str(config), *flags])
    with pytest.raises(ValueError, match="optimizer 'AdamW' is registered already"):
        register_optimizer("AdamW", lambda model, config: None)  # type: ignore[arg-type, return-value]


def test_the_planner_counts_the_state_of_an_optimizer(home: Path) -> None:
    config = load_config(["--job.config_file", str(own_optimizer(home, "my_planned", name="sign_sgd"))])
    found = dry_run_step(config, 1)
    assert found.memory["optimizer"] == found.state_bytes == 4 * found.num_parameters, "one momentum, half of Adam's"
    config = load_config(["--job.config_file", str(own_optimizer(home, "my_planned", name="reads"))])
    with pytest.raises(
        ConfigError,
        match=rf"optimizer Reads: its step reads the numbers of a tensor.*my_planned\.py:{line_of('float(self')}",
    ):
        dry_run_step(config, 1)

    states = {}
    for kind in (torch.optim.SGD, torch.optim.ASGD, torch.optim.NAdam, torch.optim.Rprop):
        register_optimizer(kind.__name__, lambda model, config, kind=kind: kind(model.parameters(), lr=0.1))
        config = load_config(["--job.config_file", str(own_optimizer(home, "my_planned", name=kind.__name__))])
        if kind is torch.optim.Rprop:
            with pytest.raises(ConfigError, match=r"optimizer Rprop: its step fails, as .* run: aten\.index_put_"):
                dry_run_step(config, 1)
        else:
            states[kind.__name__] = dry_run_step(config, 1).state_bytes // found.state_bytes
    assert states == {"SGD": 0, "ASGD": 1, "NAdam": 2}, "in copies of the parameters"


def test_a_module_that_raises_is_told_by_its_file_and_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_here(own_optimizer(home, "my_broken", name="broken")) == 2
    error = capsys.readouterr().err
    assert "build of optimizer.name = 'broken', a (model, config) -> Optimizer, fails: NameError" in error
    assert f"({home}/my_broken.py:{line_of('nothing_of_this')})" in error
    for number, (text, said) in enumerate(
        (
            ("x = (\ndef f(:\n", "SyntaxError"),
            ("import os\nimport nothing_here\n", "No module named 'nothing_here'"),
            ("def f():\n    return undefined\nf()\n", "name 'undefined' is not defined"),
        )
    ):
        (home / f"bad_{number}.py").write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_config([f"--experimental.custom_import=bad_{number}"])
        assert said in str(caught.value) and f"({home}/bad_{number}.py:2)" in str(caught.value)
    for module, said in (
        ("bad_1", f"install the package that has it, by {sys.executable} -m pip install"),
        ("my_brokn", "; did you mean my_broken?; give a module name such as my_pkg.my_trainer"),
        ("./my_broken.py", ": is a file; give the module's name, my_broken"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            load_config([f"--experimental.custom_import={module}"])


def test_a_model_of_ones_own_is_opened_by_every_tool(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "my_bigram.py").write_text(PLUGIN)
    (home / "mine.toml").write_text(
        'experimental.custom_import = "my_bigram"\njob.dump_folder = "run"\n'
        'model = {name = "bigram", flavor = "default"}\n'
        'data.sources = [{name = "counting"}]\noptimizer.lr = 5e-2\nvalidation.enable = false\n'
        'training = {steps = 20, seq_len = 32, local_batch_size = 4, mixed_precision_param = "float32"}\n'
    )
    assert train_here(home / "mine.toml") == 0
    capsys.readouterr()
    run = ["--checkpoint", "run"]
    assert generate.main([*run, "--prompt", "1 2", "--max_new_tokens", "6", "--temperature", "0"]) == 0
    text = capsys.readouterr().out
    (home / "prompts.txt").write_text("1 2\n1 2 3 4 5\n")
    assert generate.main([*run, "--prompts_file", "prompts.txt", "--max_new_tokens", "6", "--temperature", "0"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert text.rstrip("\n") == rows[0]["completions"][0], "alone as beside a longer prompt"
    (home / "text.txt").write_text("1 2 3 4 5 6 7 8 9")
    assert evaluate.main([*run, "--text", "text.txt", "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["text"]["loss"] < 5
    for tool, flags, said in (
        (
            export,
            ["--output", "hf"],
            "model 'bigram' has no Hugging Face layout, which an export needs: give its ModelSpec",
        ),
        (generate, ["--prompt", "1", "--quantize", "int8"], "--quantize = 'int8': needs the built-in transformer"),
    ):
        assert tool.main([*run, *flags]) == 2
        assert said in capsys.readouterr().err
