"""Trainers and models of a user's own: their sections, their arguments, their mistakes."""

import dataclasses
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from config_helpers import SOURCE, config_of, problem_of, problems_of, resolve_text, write
from helpers import train_here, write_toml

from titan_pt.config import ConfigError, JobConfig, Section
from titan_pt.config.manager import dump_toml
from titan_pt.config.resolve.printing import explain
from titan_pt.protocols import model_spec, trainer_spec
from titan_pt.protocols.model_spec import get_model_spec, register_model_spec
from titan_pt.protocols.own_sections import with_sections
from titan_pt.protocols.trainer_spec import register_trainer_spec

# A user's module: a trainer "{name}" with a section of its own and a model "{name}_model" with arguments of its own.
MODULE = '''
from pydantic import BaseModel
from titan_pt.config import Section
from titan_pt.protocols.model_spec import ModelSpec, register_model_spec
from titan_pt.protocols.trainer_spec import TrainerSpec, register_trainer_spec

class Row(Section):
    name: str
    weight: float = 1.0

class Distill(Section):
    """How a teacher is followed."""
    temperature: float = 2.0
    """Softness of the targets."""
    teachers: list[Row] = []
    """Whom to follow."""

class Needy(Section):
    must: int

class Args(BaseModel):
    width: int = 8
    """Width of everything."""
    gate: bool = False
    names: list[str] = []

parts = ("tokenizer", "model", "optimizers", "lr_schedulers", "dataloader", "step", "validator")
functions = {{f"build_{{part}}": print for part in parts}} | {{"parallelize": print}}
register_trainer_spec(TrainerSpec(name="{name}", sections={{"distill": Distill}}, **functions))
register_trainer_spec(TrainerSpec(name="{name}_needy", sections={{"needy": Needy}}, **functions))
register_model_spec(ModelSpec(name="{name}_model", args_type=Args, flavors={{"one": Args(width=4)}}, build=print,
                              parallelize=print, flops_per_token=print))
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an importable user's module; what it registers is forgotten afterwards."""
    name = "custom_" + re.sub(r"\W", "_", request.node.name)
    write(tmp_path, MODULE.format(name=name), f"{name}.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(trainer_spec._TRAINERS, "_registered", dict(trainer_spec._TRAINERS._registered))
    monkeypatch.setattr(model_spec._MODELS, "_registered", dict(model_spec._MODELS._registered))
    yield name
    sys.modules.pop(name, None)


def text_of(module: str, rest: str = "", trainer: str = "", model: str = "_model") -> str:
    """A run with the user's trainer and model."""
    return (
        f'[experimental]\ncustom_import = "{module}"\n[job]\ntrainer = "{module}{trainer}"\n'
        f'[model]\nname = "{module}{model}"\nflavor = "one"\n{rest}'
    )


def test_a_users_sections_and_arguments_are_config_like_any_other(tmp_path: Path, module: str) -> None:
    text = text_of(module, 'width = 16\n[distill]\ntemperature = 3\n[[distill.teachers]]\nname = "a"\n')
    resolved = resolve_text(tmp_path, text, "--model.gate", "--model.names", "a,b")
    tables = resolved.config.dump()
    assert tables["distill"] == {"temperature": 3.0, "teachers": [{"name": "a", "weight": 1.0}]}
    assert (tables["model"]["width"], tables["model"]["gate"], tables["model"]["names"]) == (16, True, ["a", "b"])
    assert "distill.teachers[0].weight = 1.0  # default" in explain(resolved)
    assert resolve_text(tmp_path, dump_toml(resolved.config)).config == resolved.config


def test_mistakes_in_a_users_section_are_named_like_any_other(tmp_path: Path, module: str) -> None:
    text = text_of(module, "widht = 16\n[distill]\ntemprature = 3\n[[distill.teachers]]\nnam = 'a'\n")
    problems = problems_of(tmp_path, text, "--distill.temperature=hot")
    assert set(problems) == {
        "model.widht (x.toml): unknown key; did you mean model.width?",
        "distill.temprature (x.toml): unknown key; did you mean distill.temperature?",
        "distill.temperature = 'hot' (command line): must be a number (default 2.0)",
        "distill.teachers[0].name (x.toml): missing",
        "distill.teachers[0].nam (x.toml): unknown key; did you mean name?",
    }


def test_help_shows_a_users_section(tmp_path: Path, module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        resolve_text(tmp_path, text_of(module), "--help")
    out = capsys.readouterr().out
    assert "[distill] How a teacher is followed:" in out
    assert "--distill.temperature VALUE" in out
    assert "--model.width VALUE" in out


def test_a_required_key_is_asked_for(tmp_path: Path, module: str) -> None:
    assert problem_of(tmp_path, text_of(module, trainer="_needy")) == "needy (default): missing"
    assert problem_of(tmp_path, text_of(module, "[needy]", trainer="_needy")) == "needy.must (x.toml): missing"
    config = config_of(tmp_path, text_of(module, trainer="_needy"), "--needy.must", "3")
    assert config.dump()["needy"] == {"must": 3}


def test_a_flag_can_choose_trainer_model_and_import(tmp_path: Path, module: str) -> None:
    flags = ("--experimental.custom_import", module, "--job.trainer", module, f"--model.name={module}_model")
    config = config_of(tmp_path, "", *flags, "--model.flavor=one", "--distill.temperature", "4")
    assert config.dump()["distill"]["temperature"] == 4.0


def test_a_section_of_another_trainer_says_whose_it_is(
    tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(Section):
        key: int = 1

    configs = types.SimpleNamespace(OwnConfig=with_sections(JobConfig, {"own2": Own}))
    monkeypatch.setitem(sys.modules, "own_configs", configs)
    monkeypatch.setitem(trainer_spec.BUILTIN_CONFIGS, "builtin2", "own_configs:OwnConfig")
    monkeypatch.setitem(trainer_spec._TRAINERS.builtin, "builtin2", "no.module:SPEC")
    assert problem_of(tmp_path, "[own2]\nkey = 3") == (
        'own2 (x.toml): unknown table: it belongs to job.trainer = "builtin2"'
    )
    text = f'[experimental]\ncustom_import = "{module}"\n[distill]\ntemperature = 3'
    assert problem_of(tmp_path, text).endswith(f'it belongs to job.trainer = "{module}"')
    assert problem_of(tmp_path, "", "--own2.key=3").endswith('it belongs to job.trainer = "builtin2"')


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("\nimport no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("from json import no_such_name", "ImportError: cannot import name 'no_such_name' from 'json'"),
        ("\n\nf(:", "SyntaxError: invalid syntax"),
        ("raise SystemExit('bye')", "SystemExit: bye"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("\nx = no_such_name", "NameError: name 'no_such_name' is not defined"),
        ("\nimport json\njson.loads('')", "JSONDecodeError"),
    ],
)
def test_an_import_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, reason: str) -> None:
    write(tmp_path, body, "broken_module.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    problem = problem_of(tmp_path, '[experimental]\ncustom_import = "broken_module"')
    assert problem.startswith("experimental.custom_import = 'broken_module': cannot be imported: ")
    assert reason in problem
    lines = enumerate(body.split("\n"), 1)
    line = next(i for i, text in lines if text and not text.startswith(("def f()", "    ", "import json")))
    assert f"(broken_module.py:{line})" in problem, problem


@pytest.mark.parametrize("where", ["build_optimizers", "build_model", "build_step"])
def test_a_name_that_a_plugin_lacks_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """Not at its import but when the run calls it; of any other error there is a traceback, and the line."""
    body = (
        "import dataclasses\nfrom titan_pt.protocols.trainer_spec import register_trainer_spec\n"
        "from titan_pt.trainers import pretrain\ndef build(*arguments):\n    return {}\n"
        f"register_trainer_spec(dataclasses.replace(pretrain.SPEC, name={{!r}}, {where}=build))"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for kind, expression, code in (("lacks", "no_such_name", 2), ("fails", "1 / 0", 1)):
        name = f"{kind}_{where}"
        write(tmp_path, body.format(expression, name), f"{name}.py")
        config = write_toml(tmp_path, job={"trainer": name}, experimental={"custom_import": name})
        if where == "build_optimizers":  # no state of a run can make it fail: the plugin's mistake
            code = 2
        assert train_here(config) == code
        error = capsys.readouterr().err
        assert error.splitlines()[-1].endswith(f"({tmp_path / name}.py:5)")
        assert ("Traceback" in error) == (code == 1)


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    for name in ("no.such.module", ".relative", "a b"):
        problem = problem_of(tmp_path, f'[experimental]\ncustom_import = "{name}"')
        assert f"experimental.custom_import = '{name}': cannot be imported" in problem


def test_a_name_is_registered_once(tmp_path: Path, module: str) -> None:
    config_of(tmp_path, text_of(module))
    own = trainer_spec.get_trainer_spec(module)
    for spec in (own, dataclasses.replace(own, name="pretrain")):
        with pytest.raises(ValueError, match="is registered already"):
            register_trainer_spec(spec)
    with pytest.raises(ValueError, match="is registered already"):
        register_model_spec(get_model_spec("transformer"))
    copy = dataclasses.replace(own, name=f"{module}_2")
    assert register_trainer_spec(copy) is trainer_spec.get_trainer_spec(f"{module}_2")


def test_an_unknown_spec_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"job\.trainer = 'pretrian': unknown; known are .*pretrain.*did you mean"):
        trainer_spec.get_trainer_spec("pretrian")
    with pytest.raises(ConfigError, match=r"model\.name = 'x': unknown; known are .*transformer"):
        get_model_spec("x")


def test_the_module_is_found_in_the_working_folder_of_a_real_run(tmp_path: Path) -> None:
    write(tmp_path, MODULE.format(name="mine"), "my_pkg/my_trainer.py")
    write(tmp_path, text_of("mine").replace('"mine"', '"my_pkg.my_trainer"', 1) + SOURCE, "run.toml")
    command = [sys.executable, "-m", "titan_pt.config.manager", "--job.config_file", "run.toml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "[distill]\ntemperature = 2.0\n" in done.stdout
