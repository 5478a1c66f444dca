"""One dial: what follows from a depth, who overrides it, what is no depth."""

import json
from pathlib import Path

import pytest
from tool_helpers import tool_here

from titan_pt.config import load_config
from titan_pt.config.errors import ConfigError
from titan_pt.config.manager import resolve
from titan_pt.config.resolve.checks import model_args
from titan_pt.config.run_size import plan_run_size
from titan_pt.models.transformer import SPEC
from titan_pt.tools import plan

PLAIN = ["--data.sources", '[{name = "python_stdlib"}]']


def test_a_ladder_by_one_key() -> None:
    """The blocks have 12 width^2 parameters each and a little; tokens, batch and rates are monotonous in the depth."""
    before = None
    for depth in (1, 2, 3, 6, 12, 24):
        config = load_config([*PLAIN, "--model.flavor", f"depth-{depth}"])
        args, training = model_args(config, SPEC, 259), config.training
        assert (args.num_layers, args.hidden_size, args.num_heads, args.head_dim) == (depth, 64 * depth, depth, 64)
        blocks = 12 * depth * (64 * depth) ** 2
        assert training.tokens is not None and 20 * blocks <= training.tokens < 20 * blocks * 1.2
        size = plan_run_size(config, 1)
        assert size.tokens_per_step == training.global_batch_tokens and size.steps > 10 * size.rows / size.rows_per_rank
        rates = (config.optimizer.lr, config.optimizer.weight_decay)
        assert before is None or all(now <= then for now, then in zip(rates, before, strict=True))
        before = rates
    assert rates == (7.07e-4, 0.244) and training.global_batch_tokens == 2**19


def test_every_value_is_a_default_that_says_where_it_comes_from(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    tables = '[model]\nflavor = "depth-4"\nnum_kv_heads = 2\n[optimizer]\nlr = 0.5\n[training]\nsteps = 7\n'
    config.write_text(f'{tables}[[data.sources]]\nname = "python_stdlib"\n')
    found = resolve(["--job.config_file", str(config), "--optimizer.weight_decay", "0.25"])
    assert found.config.training.steps == 7 and found.config.training.tokens is None
    assert (found.config.optimizer.lr, found.config.optimizer.weight_decay) == (0.5, 0.25)
    assert model_args(found.config, SPEC, 259).num_kv_heads == 2 and found.config.model.hidden_size == 256
    assert found.merged.origin("model", "hidden_size") == "model.flavor = 'depth-4'"
    again = tmp_path / "again.toml"
    again.write_text(found.config.to_toml())
    assert load_config(["--job.config_file", str(again)]).to_toml() == found.config.to_toml()


def test_a_row_of_any_length() -> None:
    for length in ("100", "1K", "8192", "2048"):
        config = load_config([*PLAIN, "--model.flavor", "depth-2", "--training.seq_len", length])
        rows = plan_run_size(config, 1).rows
        assert rows & (rows - 1) == 0 and 0.7 < rows * config.training.seq_len / 27_400 < 1.5


def test_fine_tuning_takes_the_architecture_alone() -> None:
    sources = ["--data.sources", '[{name = "arithmetic", subset = "level-1"}]']
    config = load_config(["--job.trainer", "sft", *sources, "--model.flavor", "depth-3"])
    plain = load_config(["--job.trainer", "sft", *sources])
    assert config.model.hidden_size == 192 and config.optimizer == plain.optimizer and config.training == plain.training


@pytest.mark.parametrize("flavor", ["depth-0", "depth-", "depth-129", "depth-6.5", "depth--2", "depth-06", "depth-six"])
def test_what_is_no_depth(flavor: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config([*PLAIN, "--model.flavor", flavor])
    assert error.value.problems == [
        f'model.flavor = {flavor!r}: must be "depth-" and the number of blocks, 1 to 128, such as "depth-6"'
    ]


def test_the_planner_prints_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    flags = (*PLAIN, "--model.flavor", "depth-2", "--optimizer.lr", "0.5", "--training.seq_len", "256")
    assert tool_here(plan.main, *flags) == 0
    printed = capsys.readouterr().out
    assert "model.hidden_size                       128  64 N" in printed
    assert "optimizer.lr                        0.00245  1e-3 (768 / hidden_size)^0.5  (here 0.5)" in printed
    assert tool_here(plan.main, *flags, "--json") == 0
    follows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["follows"]}
    assert follows["optimizer.lr"]["by_rule"] == 0.00245 and follows["optimizer.lr"]["used"] == 0.5
    assert tool_here(plan.main, *flags, "--model.flavor", "debugmodel", "--json") == 0
    assert "follows" not in json.loads(capsys.readouterr().out)
