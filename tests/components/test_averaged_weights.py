"""Averages of the weights, over all steps of a run and over its last checkpoints, against the formula in numpy."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import read_json, read_rows, read_tensors, train_here, write_toml
from safetensors.torch import load_file
from tool_helpers import tool_here

import titan_pt
from titan_pt.components.averaged_weights import AveragedWeights
from titan_pt.config import ConfigError, load_config
from titan_pt.config.schema.job_config import JobConfig, Training
from titan_pt.hf.model_source import open_model_source
from titan_pt.tools import average, export

DECAY = 0.6
RUN = {
    "training": {"steps": 5, "ema_decay": DECAY},
    "checkpoint": {"interval": 1, "keep_latest_k": 0, "export_hf_interval": 5, "export_weights": "ema"},
    "validation": {"enable": True, "freq": 5, "steps": 1, "weights": "both"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("averaged")
    assert train_here(write_toml(folder, **RUN)) == 0
    return folder


def weights_of(folder: Path, step: int, kind: str = "model") -> dict[str, torch.Tensor]:
    tensors = read_tensors(folder / "run" / "checkpoint" / f"step-{step}")
    return {name.removeprefix(f"{kind}."): t for name, t in tensors.items() if name.startswith(f"{kind}.")}


def test_a_run_keeps_the_average_of_its_weights(trained: Path) -> None:
    expected: dict[str, torch.Tensor] = {}
    for step in range(1, 6):
        decay = min(DECAY, (step - 1) / (step + 8))
        for name, weight in weights_of(trained, step).items():
            expected[name] = decay * expected.get(name, 0.0) + (1 - decay) * weight.double()
        held = weights_of(trained, step, "ema")
        assert held.keys() == expected.keys()
        for name, value in held.items():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-7)
    last = read_rows(trained / "run")[-1]
    assert last["ema/val_loss"] != last["val_loss"] and last["ema/val_loss"] == pytest.approx(last["val_loss"], abs=0.1)


def test_exports_and_tools_take_the_weights_that_are_asked_for(trained: Path, tmp_path: Path) -> None:
    averaged, trained_weights = weights_of(trained, 5, "ema"), weights_of(trained, 5)
    names = {"model." + name: name for name in averaged}
    hf = load_file(trained / "run" / "hf" / "step-5" / "model.safetensors")
    arguments = ["--checkpoint", trained / "run", "--output", tmp_path / "hf"]
    assert tool_here(export.main, *arguments, "--weights", "ema") == 0
    for folder in (hf, load_file(tmp_path / "hf" / "model.safetensors")):
        for there, name in names.items():
            assert torch.equal(folder[there], averaged[name][: len(folder[there])]), name
    for file in (trained / "run" / "hf" / "step-5" / "README.md", tmp_path / "hf" / "README.md"):
        assert f"exponential moving average, decay {DECAY:g} a step" in file.read_text()
    for kind, expected in (("ema", averaged), ("trained", trained_weights)):
        loaded = open_model_source(str(trained / "run"), weights=kind).load("cpu", torch.float32)
        assert all(torch.equal(weight, expected[name]) for name, weight in loaded.named_parameters())
    assert titan_pt.load(trained / "run", weights="ema").generate("1", max_new_tokens=1, temperature=0) is not None
    with pytest.raises(ConfigError, match=r"--weights ema: .* holds one set of weights"):
        open_model_source(str(tmp_path / "hf"), weights="ema")
    with pytest.raises(ConfigError, match=r"weights = 'avg': must be trained or ema|weights = 'avg'"):
        titan_pt.load(trained / "run", weights="avg")


def test_another_run_starts_from_them_and_an_older_one_begins_to_average(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    averaged = weights_of(trained, 5, "ema")
    frozen = {"optimizer": {"lr": 1e-30, "weight_decay": 0.0}, "training": {"steps": 1}}
    start = {"initial_load_path": str(trained / "run"), "initial_load_weights": "ema"}
    assert train_here(write_toml(tmp_path, checkpoint=start, **frozen)) == 0
    assert all(torch.equal(weight, averaged[name]) for name, weight in weights_of(tmp_path, 1).items())
    assert not weights_of(tmp_path, 1, "ema")
    plain = tmp_path / "run" / "checkpoint" / "step-1"
    with pytest.raises(ConfigError, match=r"no averaged weights, as its run had no training\.ema_decay"):
        open_model_source(str(plain), weights="ema")
    capsys.readouterr()
    assert train_here(tmp_path / "run.toml", "--training.ema_decay", "0.9", "--training.steps", "2") == 0
    assert "its run had no training.ema_decay; the average begins here" in capsys.readouterr().err
    assert all(torch.equal(weight, weights_of(tmp_path, 2)[n]) for n, weight in weights_of(tmp_path, 2, "ema").items())
    assert read_json(tmp_path / "run" / "checkpoint" / "step-2", "train")["ema"] == {"updates": 1, "decay": 0.9}
    assert train_here(tmp_path / "run.toml", "--training.steps", "3") == 0, "and off again"
    assert not weights_of(tmp_path, 3, "ema")


def test_bad_steps_do_not_count_and_a_swap_is_undone() -> None:
    model = torch.nn.Linear(3, 2)
    averages = AveragedWeights(model, JobConfig(training=Training(ema_decay=0.5)))
    good, bad = torch.tensor(0.0), torch.tensor(7.5)
    averages.update(good)
    with torch.no_grad():
        first = {name: value.clone() for name, value in model.state_dict().items()}
        model.weight += 1.0
    averages.update(bad)
    assert all(torch.equal(value, first[name]) for name, value in averages.tensors().items())
    for _ in range(40):
        averages.update(good)
    torch.testing.assert_close(averages.tensors()["weight"], first["weight"] + 1.0)
    with torch.no_grad():
        model.weight.fill_(float("inf"))
    with pytest.raises(ZeroDivisionError), averages.swapped():
        assert model.weight.isfinite().all()
        raise ZeroDivisionError
    assert model.weight.isinf().all() and averages.tensors()["weight"].isfinite().all()


def test_the_last_checkpoints_have_a_mean_that_opens_like_them(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = trained / "run", tmp_path / "mean"
    assert tool_here(average.main, run, "--last", "3", "--output", out) == 0
    assert capsys.readouterr().out.strip() == str(out / "step-5")
    expected = {
        name: torch.stack([weights_of(trained, step)[name].double() for step in (3, 4, 5)]).mean(0).float()
        for name in weights_of(trained, 5)
    }
    loaded = open_model_source(str(out)).load("cpu", torch.float32)
    for name, weight in loaded.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-8)
    assert tool_here(export.main, "--checkpoint", out, "--output", tmp_path / "hf") == 0
    assert "average of the checkpoints of steps 5, 4, 3" in (tmp_path / "hf" / "README.md").read_text()
    start = write_toml(tmp_path, training={"steps": 1}, checkpoint={"initial_load_path": str(out)})
    assert train_here(start) == 0
    assert tool_here(average.main, run / "checkpoint" / "step-1", run, "--last", "2", "--output", tmp_path / "b") == 0
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (damaged / "checkpoint" / "step-4" / "train.json").write_text("{}")
    (linked := tmp_path / "linked").symlink_to(run)
    other = tmp_path / "other"
    assert train_here(write_toml(other, model={"num_layers": 1}, training={"steps": 1})) == 0
    capsys.readouterr()
    for arguments, said in (
        ((run, "--last", "3", "--output", out), f"--output = '{out}': has a step-5 already"),
        ((run, "--last", "9", "--output", tmp_path / "c"), f"--last = 9: {run} has 5 steps, down to step-1"),
        ((run, "--last", "1", "--output", tmp_path / "c"), "one step alone has no average"),
        ((run, linked, "--last", "1", "--output", tmp_path / "c"), "one step alone has no average"),
        ((tmp_path / "none", "--output", tmp_path / "c"), "no such folder"),
        ((damaged, "--last", "2", "--output", tmp_path / "c"), "step-4: not a whole checkpoint"),
        ((run, other / "run", "--last", "1", "--output", tmp_path / "c"), "model.num_layers is 1, and 2 in"),
        ((other / "run", run, "--weights", "ema", "--last", "1", "--output", tmp_path / "c"), "no averaged weights"),
    ):
        assert tool_here(average.main, *arguments) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--validation.weights=ema", "needs training.ema_decay"),
        ("--checkpoint.export_weights=ema", "needs checkpoint.export_hf_interval"),
        ("--checkpoint.initial_load_weights=ema", "needs checkpoint.initial_load_path"),
    ],
)
def test_a_choice_without_what_it_needs_is_refused(tmp_path: Path, flag: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config([str(write_toml(tmp_path)), flag])
