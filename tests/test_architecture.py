"""The house: a core that is small to read and knows no wing. `lint-imports` (pyproject.toml) holds the layers."""

import ast
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from helpers import ROOT

PACKAGE = ROOT / "titan_pt"
LINES_OF_A_PRETRAINING_RUN = 9_000
LINES_OF_A_FUNCTION = 60
WINGS = (
    *("data.remote", "data.builtin", "hf", "generation", "tasks", "evaluation", "trainers.sft", "trainers.grpo"),
    *("data.stream.workers", "data.stream.synthetic", "data.sources.prepared", "data.sources.records", "data.overlap"),
    *("run.goodput", "run.jumps", "run.stopped", "run.idle_starts", "run.failure", "run.pipes", "run.parents"),
    *("distributed.float8", "config.resolve.printing", "config.resolve.hugging_face"),
    *("run.watchdog", "run.watched", "sinks", "components.earlier_rows"),
    *(
        "planner",
        "sweeps",
        "tools",
        "launch",
        "dry_run",
        "run.deadline",
        "optimizers",
        "config.schema.sft",
        "config.schema.grpo",
        "config.schema.lora",
        "lora",
    ),
)
"""What a pretraining run on local files does not load, by the beginnings of module names."""

OPTIONAL_WINGS = (
    *("environments", "lora", "sandbox", "generation.vllm_engine", "config.vllm_package", "trainers.grpo.distillation"),
    *("config.schema.teacher", "hf.tool_calls", "hf.tool_form"),
)
"""What a run of reinforcement learning that asks for none of it does not load either."""

# Runs a config; prints the modules of the package that were loaded.
RUN = """
import json, sys
from titan_pt.train import main
code = main(sys.argv[1:])
files = {name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "titan_pt"}
print(json.dumps([code, files]))
"""


def loaded_by_a_pretraining_run(folder: Path) -> dict[str, str]:
    """File of each module of the package that three steps of the quickstart load, by module name."""
    text = folder / "text.txt"
    text.write_text("\n\n".join(" ".join(str(i * j) for j in range(99)) for i in range(999)))
    sources = f'[{{name = "local", path = "{text}"}}]'
    flags = ["--data.sources", sources, "--validation.enable", "--validation.holdout_fraction", "0.2"]
    return loaded_by_a_run(folder, "quickstart", "--training.steps", "3", *flags, "--validation.steps", "2")


def loaded_by_a_run(folder: Path, config: str, *flags: str) -> dict[str, str]:
    """File of each module of the package that a run of a shipped config loads, by module name."""
    flags = (
        *("--job.config_file", str(ROOT / "train_configs" / f"{config}.toml")),
        *("--job.dump_folder", str(folder / "run")),
        *("--comm.init_timeout_seconds", "10000"),  # a run that took long would have a watcher
        *flags,
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN, *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    code, files = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return files


def test_a_pretraining_run_loads_the_core_alone(tmp_path: Path) -> None:
    files = loaded_by_a_pretraining_run(tmp_path)
    names = [name.removeprefix("titan_pt.") for name in files]
    wings = [name for name in names if any(name == wing or name.startswith(f"{wing}.") for wing in WINGS)]
    assert not wings
    lines = {name: len(Path(file).read_text().splitlines()) for name, file in files.items()}
    assert sum(lines.values()) <= LINES_OF_A_PRETRAINING_RUN, sorted(lines.items(), key=lambda item: -item[1])


def test_a_run_of_reinforcement_learning_loads_what_it_asks_for(tmp_path: Path) -> None:
    flags = "--training.steps 1 --checkpoint.initial_load_path= --validation.enable false --grpo.probe off"
    one_group = "--grpo.prompts_per_step 1 --grpo.dynamic_sampling none"
    files = loaded_by_a_run(tmp_path, "grpo_debug", *flags.split(), *one_group.split())
    names = [name.removeprefix("titan_pt.") for name in files]
    assert "trainers.grpo.step" in names
    assert not [name for name in names if any(name == wing or name.startswith(f"{wing}.") for wing in OPTIONAL_WINGS)]


def definitions() -> Iterator[tuple[Path, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield path.relative_to(ROOT), node


def test_no_function_is_long() -> None:
    found = [
        f"{path}:{node.lineno} {node.name}: {length} lines"
        for path, node in definitions()
        if not isinstance(node, ast.ClassDef) and (length := node.end_lineno - node.lineno + 1) > LINES_OF_A_FUNCTION
    ]
    assert not found


def test_a_class_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, node in definitions():
        if isinstance(node, ast.ClassDef):
            places[node.name].append(f"{path}:{node.lineno}")
    assert not {name: found for name, found in places.items() if len(found) > 1}


def imports() -> dict[str, set[str]]:
    """Modules of the package that each module imports, at its top or in a function; not those for type checkers."""
    names = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in PACKAGE.rglob("*.py")
    }
    found: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        tree = ast.parse(path.read_text())
        checkers = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
        unseen = {id(node) for block in checkers for node in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in unseen:
                targets = {f"{node.module}.{alias.name}" for alias in node.names} & names.keys() or {node.module}
                found[name] |= {target for target in targets if target in names}
    return found


def test_no_modules_import_each_other() -> None:
    """A module that nobody imports, or that imports nobody, is in no circle; what is left when all are gone is one."""
    graph = imports()
    while True:
        imported = set().union(*graph.values()) if graph else set()
        ends = {name for name, targets in graph.items() if not targets or name not in imported}
        if not ends:
            break
        graph = {name: targets - ends for name, targets in graph.items() if name not in ends}
    assert not graph


def test_the_documented_files_exist() -> None:
    """docs/architecture.md names files by their path in the package, or beside the one named before."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    named = set(re.findall(r"`(?:titan_pt/)?([\w/]+\.py)`", text))
    named = {name for name in named if not (ROOT / name).is_file()}
    assert not {name for name in named if not any(f"/{known}".endswith(f"/{name}") for known in names)}
