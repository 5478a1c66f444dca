"""What a shell offers, asked of the shell itself."""

import shutil
import subprocess
from pathlib import Path

import pytest
from tool_helpers import tool_here

from titan_pt.cli import TOOLS
from titan_pt.tools import completion
from titan_pt.tools.completion import own_flags, script

CASES = [
    (["titan-pt", "expl"], ["explain"]),
    (["titan-pt", "train", "quickstart_g"], ["quickstart_grpo"]),
    (["titan-pt", "plan", "min"], ["mine.toml"]),
    (["titan-pt", "train", "mine.toml", "--optimizer.l"], ["--optimizer.lr"]),
    (["titan-pt", "generate", "--temp"], ["--temperature"]),
    (["titan-pt", "cp", "k8"], ["k8s"]),
    (["titan-pt", "completion", ""], ["bash", "zsh"]),
    (["titan-pt", "help", "exp"], ["export", "explain"]),
    (["titan-pt", "plan", "my"], ["my dir"]),
]


def test_bash_completes_tools_experiments_files_and_flags(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").touch()
    (tmp_path / "my dir").mkdir()
    lines = [script("bash")]
    for words, _ in CASES:
        quoted = " ".join(f"'{word}'" for word in words)
        lines.append(
            f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _titan_pt; (IFS="|"; echo "${{COMPREPLY[*]}}")'
        )
    done = subprocess.run(["bash"], input="\n".join(lines), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line.split("|") for line in done.stdout.splitlines()] == [wanted for _, wanted in CASES], done.stderr
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n"], input=script("zsh"), text=True, check=True)


def test_without_a_shell_both_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool_here(completion.main) == 2
    assert "shell: missing: bash or zsh;" in capsys.readouterr().err


def test_the_flags_of_each_tool_are_found() -> None:
    for tool in TOOLS:
        if tool.module.startswith("titan_pt.tools.") and tool.name not in ("completion",):
            assert own_flags(tool.module) or tool.name in ("port", "completion"), tool.name
    assert {"--checkpoint", "--tokenizer", "--top_p", "--dtype", "--prompt"} <= own_flags("titan_pt.tools.generate")
