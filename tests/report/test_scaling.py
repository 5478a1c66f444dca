"""Power laws through runs: what they find, how wide they are, what they refuse."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from report_helpers import write_lines
from tool_helpers import tool_here

from titan_pt.config.errors import ConfigError
from titan_pt.models.transformer import FLAVORS, TransformerArgs
from titan_pt.models.transformer.args import flops_per_token
from titan_pt.report.scaling import fit_power_law
from titan_pt.tools import scaling

FLOPS = [10.0**x for x in (14, 14.6, 15.2, 15.8, 16.4, 17)]


def law(flops: float, floor: float = 1.5, exponent: float = 0.25) -> float:
    return floor + 3 * (1e13 / flops) ** exponent


def test_runs_that_follow_a_law_give_it_back() -> None:
    for floor, exponent in ((1.5, 0.25), (0.0, 0.05), (2.9, 0.5)):
        found = fit_power_law(FLOPS, [law(flops, floor, exponent) for flops in FLOPS])
        assert found.floor == pytest.approx(floor, abs=2e-3) and found.exponent == pytest.approx(exponent, rel=1e-2)
        assert found.predict(1e19).loss == pytest.approx(law(1e19, floor, exponent), rel=1e-3)


def test_the_interval_holds_a_further_run_19_times_of_20() -> None:
    held, widths, rng = 0, [], random.Random(5)
    for _ in range(60):
        found = fit_power_law(FLOPS, [law(flops) + rng.gauss(0, 0.01) for flops in FLOPS]).predict(1e18)
        held += found.low <= law(1e18) + rng.gauss(0, 0.01) <= found.high
        widths.append(found.high - found.low)
    assert held >= 53  # 57 less two standard deviations and a half
    assert sorted(widths)[30] < 0.2  # and it says something


def test_of_three_runs_no_floor_is_known() -> None:
    found = fit_power_law(FLOPS[:3], [law(flops, 0.0) for flops in FLOPS[:3]])
    assert not found.has_floor and found.floor == 0 and found.exponent == pytest.approx(0.25)
    noisy = fit_power_law(FLOPS[:3], [law(flops) for flops in FLOPS[:3]]).predict(1e18)
    assert noisy.low < law(1e18) < noisy.high


@pytest.mark.parametrize(
    ("flops", "losses", "said"),
    [
        ([1e14, 1e15], [2.0, 1.9], "2 different amounts of compute"),
        ([1e14, 1e14, 1e15, 1e15], [2.0, 2.0, 1.9, 1.9], "2 different amounts of compute"),
        ([1e14, 1e15, 1e16], [2.0, 2.1, 2.2], "does not fall with compute"),
        ([1e14, 1e15, 1e16, 1e17], [2.0, 2.1, 2.2, 2.3], "does not fall with compute"),
        ([1e12, 1e13, 1e14], [3.0, 2.999, 2.998], "does not fall with compute"),  # its scale is no number
        ([1e14, 1e15, 1e16], [2.0, 0.0, -1.0], "not positive"),
    ],
)
def test_what_has_no_law(flops: list[float], losses: list[float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fit_power_law(flops, losses)


def run_of(folder: Path, tokens: int, loss: float, flavor: str = "debugmodel", **row: Any) -> Path:
    folder.mkdir()
    sources = '[[data.sources]]\nname = "python_stdlib"\n'
    (folder / "config.toml").write_text(f'[model]\nflavor = "{flavor}"\n[training]\nsteps = 2\nseq_len = 64\n{sources}')
    rows = [
        {"step": 1, "tokens_seen": tokens // 2, "val_loss": 9.0, "loss": 9.0},
        {"step": 2, "tokens_seen": tokens, "val_loss": loss, "loss": loss + 0.5, **row},
    ]
    write_lines(folder / "metrics.jsonl", rows)
    return folder


def test_the_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens, flavors = (10**6, 10**7, 10**8, 10**9), ("debugmodel", "debugmodel", "depth-4", "tiny")
    depth_4 = {"hidden_size": 256, "num_layers": 4, "num_heads": 4, "num_kv_heads": 4, "intermediate_size": 704}
    debug, tiny = FLAVORS["debugmodel"], FLAVORS["tiny"]
    models = [
        model.model_copy(update={"vocab_size": 320}) for model in (debug, debug, TransformerArgs(**depth_4), tiny)
    ]
    each = [flops_per_token(model, 64) for model in models]
    flops = [count * one for count, one in zip(tokens, each, strict=True)]
    runs = [run_of(tmp_path / f"r{n}", tokens[n], law(flops[n]), flavors[n]) for n in range(4)]
    assert tool_here(scaling.main, *runs[::-1], "--compute", "1e19", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [point["flops"] for point in found["runs"]] == pytest.approx(flops)
    assert found["predictions"]["1e+19 FLOPs"]["loss"] == pytest.approx(law(1e19), rel=1e-3)
    larger = (
        "--job.config_file",
        tmp_path / "r3" / "config.toml",
        "--model.flavor",
        "depth-8",
        "--training.steps",
        "9M",
    )
    assert tool_here(scaling.main, *runs, *larger) == 0
    printed = capsys.readouterr().out
    assert "val_loss = 1.50" in printed and "x the largest" in printed and "tokens (" in printed
    assert tool_here(scaling.main, *runs, "--metric", "loss") == 0
    assert "ten times the largest" in capsys.readouterr().out
    for arguments, said in (
        ((runs[0], runs[1]), "2 different amounts of compute; a law needs 3"),
        ((*runs, "--metric", "val_bpb"), "no step has val_bpb; --metric may be"),
        ((*runs, tmp_path / "none"), "none"),
        ((*runs, "--compute", "much"), "--compute = 'much': must be a number"),
        ((*runs, "--predict", "3"), "--predict"),
    ):
        assert tool_here(scaling.main, *arguments) == 2
        assert said in capsys.readouterr().err
