"""`titan-pt completion bash`: makes a shell complete tools, experiments and flags, from the table of `titan_pt.cli`.

bash: titan-pt completion bash > ~/.local/share/bash-completion/completions/titan-pt

zsh:  titan-pt completion zsh > ~/.titan-pt.zsh, and `source ~/.titan-pt.zsh` behind `compinit` in ~/.zshrc
"""

import importlib.util
import re
import sys
from pathlib import Path

from titan_pt.config.resolve.fields import keys
from titan_pt.config.shipped import FOLDERS, experiments
from titan_pt.protocols.registry import import_attribute
from titan_pt.protocols.trainer_spec import BUILTIN_CONFIGS, trainer_config
from titan_pt.tools.command import ToolParser, run_tool

_HEAD = "# Of `titan-pt completion`; write it anew with another version of titan-pt.\n"
_SCRIPTS = {
    "bash": """\
_titan_pt() {
    local word="${COMP_WORDS[COMP_CWORD]}" tool="${COMP_WORDS[1]}" number="$COMP_CWORD" found="" files="" name
@CASES@
    COMPREPLY=($(compgen -W "$found" -- "$word"))
    if [[ -n "$files" ]]; then
        while IFS= read -r name; do COMPREPLY+=("$name"); done < <(compgen -f -- "$word")
        compopt -o filenames 2>/dev/null
    fi
}
complete -F _titan_pt titan-pt
""",
    "zsh": """\
_titan_pt() {
    local word="$PREFIX" tool="$words[2]" number="$((CURRENT - 1))" found="" files=""
@CASES@
    compadd -- ${=found}
    if [[ -n "$files" ]]; then _files; fi
}
compdef _titan_pt titan-pt
""",
}
_CASES = """\
    if [[ "$number" == 1 ]]; then
        found='@TOOLS@ --help --version'
    elif [[ "$word" == -* ]]; then
        case "$tool" in
@FLAGS@
        esac
        found="$found --help"
    else
        files=yes
        case "$tool$number" in
        @TAKERS@) found='@EXPERIMENTS@' ;;
        cp2) found='@EXPERIMENTS@ @FOLDERS@' ;;
        completion2) found='@SHELLS@' files="" ;;
        help2) found='@TOOLS@' files="" ;;
        esac
    fi"""


def main(argv: list[str] | None = None) -> int:
    """Print the script of a shell; returns the exit code."""
    return run_tool(lambda: print(script(_parser().parse_args(argv).shell), end=""))


def _parser() -> ToolParser:
    parser = ToolParser(prog="python -m titan_pt.tools.completion", description=__doc__)
    parser.add_argument("shell", choices=list(_SCRIPTS), help=" or ".join(_SCRIPTS))
    return parser


def script(shell: str) -> str:
    """The functions that complete titan-pt in a shell."""
    of_config = {f"--{name}" for kind in BUILTIN_CONFIGS for name in keys(trainer_config(kind))}
    tools = import_attribute("titan_pt.cli:TOOLS")  # which is above all tools
    lines = []
    for tool in tools:
        flags = sorted(own_flags(tool.module) | (of_config if tool.takes == "experiment" else set()))
        if flags:
            lines.append(f"        {tool.name}) found='{' '.join(flags)}' ;;")
    values = {
        "TOOLS": " ".join(tool.name for tool in tools),
        "FLAGS": "\n".join(lines),
        "TAKERS": " | ".join(f"{tool.name}2" for tool in tools if tool.takes == "experiment"),
        "EXPERIMENTS": " ".join(experiments()),
        "FOLDERS": " ".join(FOLDERS),
        "SHELLS": " ".join(_SCRIPTS),
    }
    text = _SCRIPTS[shell].replace("@CASES@", _CASES)
    return _HEAD + re.sub("@([A-Z]+)@", lambda name: values[name[1]], text)


def own_flags(module: str) -> set[str]:
    """The flags that a tool's parser adds, read from its source: to import every tool would take half a minute."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None or not module.startswith("titan_pt.tools."):
        return set()
    source = Path(found.origin).read_text(encoding="utf-8")
    flags = set(re.findall(r'add_argument\(\s*"(--\w+)"', source))
    for name, more in _SHARED.items():
        if f"{name}(parser" in source:
            flags |= set(more)
    return flags


_MODEL = ("--checkpoint", "--tokenizer", "--weights")
_SHARED = {
    "add_source_flags": _MODEL,
    "add_model_flags": (*_MODEL, "--dtype", "--quantize"),
    "add_sampling_flags": ("--temperature", "--top_p", "--top_k", "--seed"),
}
"""Flags that several tools share, by the function of `tools/model.py` that adds them."""


if __name__ == "__main__":
    sys.exit(main())
