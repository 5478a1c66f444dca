"""`titan-pt`: its table, and what it says where a name is unknown."""

import importlib.util

import pytest

from titan_pt import __version__, cli


def test_the_table_has_each_tool_once_and_no_dead_entry() -> None:
    names = [tool.name for tool in cli.TOOLS]
    assert len(set(names)) == len(names)
    dead = [tool.name for tool in cli.TOOLS if importlib.util.find_spec(tool.module) is None]
    assert not dead
    lines = cli.help_text().splitlines()
    assert all(any(line.split()[:1] == [tool.name] and tool.help in line for line in lines) for tool in cli.TOOLS)
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trian", "unknown tool; did you mean train?"),
        ("Evalaute", "did you mean evaluate?"),
        ("await-start", "did you mean await_start?"),
        ("mine.toml", "to train it: titan-pt train mine.toml"),
        ("quickstart", "to train it: titan-pt train quickstart"),
        ("--lr", "the tools are train, "),
    ],
)
def test_an_unknown_tool_names_the_nearest_and_all(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--job.config_file", "x.toml"]) == 2
    error = capsys.readouterr().err
    assert said in error and all(tool.name in error for tool in cli.TOOLS)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        assert cli.main(arguments) == 0
        assert capsys.readouterr().out.startswith("usage: titan-pt TOOL")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"titan_pt {__version__}, commit ")
