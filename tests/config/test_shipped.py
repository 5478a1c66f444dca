"""Experiments by name: what is run, extended, listed and copied without a path."""

from pathlib import Path

import pytest
from helpers import ROOT
from tool_helpers import tool_here

from titan_pt.config import ConfigError
from titan_pt.config.manager import resolve
from titan_pt.config.shipped import experiments, find
from titan_pt.tools import cp, ls

FOLDER = ROOT / "train_configs"


def test_each_shipped_file_has_a_name() -> None:
    assert set(experiments().values()) == set(FOLDER.rglob("*.toml"))
    assert experiments()["quickstart"] == FOLDER / "quickstart.toml"
    assert find("train_configs/presets/dapo.toml") == experiments()["presets/dapo"]
    assert find("quickstart.toml") is None, "a file of one's own, in another folder"
    assert find("quickstart.toml", extended=True) == FOLDER / "quickstart.toml"


@pytest.mark.parametrize(
    "arguments",
    [
        ["quickstart", "--training.steps", "5"],
        ["train_configs/quickstart.toml", "--training.steps=5"],
        ["--training.steps", "5", "own.toml"],
        ["--job.config_file", "nowhere.toml", "--training.steps", "5", "own.toml"],
        ["--job.config_file", "quickstart", "--training.steps", "5"],
    ],
)
def test_an_experiment_needs_no_flag(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name in any folder, or by its file; what a file extends may be a shipped one too."""
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text('extends = "quickstart.toml"\n')
    Path("quickstart").mkdir()  # no experiment
    resolved = resolve(arguments)
    assert (resolved.config.training.steps, resolved.config.model.hidden_size) == (5, 128)
    assert resolved.merged.origin("model", "hidden_size") == str(FOLDER / "quickstart.toml")
    with pytest.raises(ConfigError, match=r"'mine\.toml' .* one experiment is named already"):
        resolve(["own.toml", "mine.toml"])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("quickstrat", "did you mean quickstart?"),
        ("quickstart.toml", "did you mean quickstart?"),
        ("train_configs/smal.toml", "did you mean small?"),
        ("mien.toml", "did you mean mine.toml?"),
        ("zzz.toml", "shipped experiments are debug, "),
    ],
)
def test_an_unknown_experiment_names_the_nearest_and_all(
    name: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").touch()
    with pytest.raises(ConfigError, match="no such file") as caught:
        resolve([name])
    assert meant in str(caught.value) and "quickstart_grpo" in str(caught.value)


def test_the_list_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool_here(ls.main) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[0] for line in lines if line.split()]
    assert set(experiments()) <= set(shown)
    assert max(map(len, lines[:-2])) <= 100, "the last lines hold a path"
    assert "  medium_3day -> midtrain_math -> sft_math -> grpo_math" in lines


def test_a_copy_has_its_own_run_folder_and_finds_what_it_extends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    for source, target in (
        ("quickstart_sft", "mine.toml"),
        ("presets/dapo", "sub"),
        ("mine.toml", "sub"),
        ("k8s", "cluster"),
    ):
        assert tool_here(cp.main, source, target) == 0
    Path("child.toml").write_text("extends = ['mine.toml', \"sub/dapo.toml\"]\n[job]\ndump_folder = 'here'\n")
    assert tool_here(cp.main, "child.toml", "sub/other.toml") == 0
    for name, steps in (("mine.toml", "outputs/mine"), ("sub/mine.toml", "outputs/mine"), ("sub/dapo.toml", None)):
        config = resolve([name]).config
        assert steps is None or config.job.dump_folder == steps
    text = Path("sub/other.toml").read_text()
    assert text == 'extends = [\'../mine.toml\', "dapo.toml"]\n[job]\ndump_folder = "outputs/other"\n'
    assert (Path("cluster") / "deploy.sh").is_file()
    for i, tables in enumerate(("", "[job]  # mine\ndescription = 'x'\n[training]\nsteps = 3\n")):
        Path("heir.toml").write_text(f"extends = 'mine.toml'\n{tables}")
        assert tool_here(cp.main, "heir.toml", f'the "{i}".toml') == 0
        assert f"titan-pt train 'the \"{i}\".toml'" in capsys.readouterr().out
        assert resolve([f'the "{i}".toml']).config.job.dump_folder == f'outputs/the "{i}"'
    capsys.readouterr()
    assert tool_here(cp.main, "quickstart", "mine.toml") == 2
    assert "exists; name another, or write over it with --force" in capsys.readouterr().err
    assert tool_here(cp.main, "quickstart", "mine.toml", "--force") == 0
    for wrong, said in ((["quickstrat"], "mean quickstart?"), (["small", "no/x.toml"], "there is no folder no")):
        assert tool_here(cp.main, *wrong) == 2
        assert said in capsys.readouterr().err
