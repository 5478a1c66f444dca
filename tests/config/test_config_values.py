"""Values of a TOML file: sizes, times, types, ranges, and the tables a stranger may get wrong."""

from pathlib import Path
from typing import Any

import pytest
from config_helpers import SOURCE, config_of, problem_of, problems_of, write

from titan_pt.config import ConfigError, load_config
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.config.schema.values import parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50B", 50 * 10**9),
        ("0.5B", 5 * 10**8),
        ("32K", 32_000),
        ("10M", 10**7),
        ("1.5t", 15 * 10**11),
        ("0.1B", 10**8),
        ("0.0000001B", 100),
        ("1_000", 1000),
        (" 7 k ", 7000),
        ("12", 12),
        (12, 12),
    ],
)
def test_sizes_are_decimal_and_exact(text: Any, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("literal", ["2", '"2"'])
def test_a_number_of_blocks_may_be_written_as_a_number(tmp_path: Path, literal: str) -> None:
    config = config_of(tmp_path, f"[activation_checkpoint]\nselective_ac_option = {literal}")
    assert config.activation_checkpoint.selective_ac_option == "2"
    assert "must be text" in problem_of(tmp_path, "[activation_checkpoint]\nselective_ac_option = true")


def test_a_start_without_arguments_names_the_flag_of_the_experiment(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name an experiment with --job\.config_file FILE"):
        load_config([])
    assert "--job.config_file" not in problem_of(tmp_path, "[data]\nsources = []")


def test_a_model_of_torchtitan_is_known_by_its_name_here(tmp_path: Path) -> None:
    hint = 'known are transformer; in titan_pt it is name = "transformer" with qk_norm = false'
    assert problem_of(tmp_path, '[model]\nname = "llama3"').partition("; one of your own")[0].endswith(hint)


@pytest.mark.parametrize(
    "text", ["-3", "1e9", "1.5", "0.0001K", "", "B", "50 GB", "1,000", "50BB", "None", "9" * 5000, 1e9]
)
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(ValueError, match="a count"):
        parse_size(text)


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("s", "30m", 1800.0),
        ("h", "90m", 1.5),
        ("h", "3d", 72.0),
        ("s", "2", 2.0),
        ("h", 2, 2),
        ("s", "0.5H", 1800.0),
        ("h", "145.93819397534025", 145.93819397534025),
    ],
)
def test_times_name_their_unit_or_take_the_keys(unit: str, value: Any, expected: float) -> None:
    assert parse_duration(unit)(value) == expected


def test_sizes_and_times_in_a_file(tmp_path: Path) -> None:
    config = config_of(tmp_path, '[training]\ntokens = "0.5B"\nseq_len = "1K"\n[comm]\ngrace_seconds = "2m"')
    assert (config.training.tokens, config.training.seq_len) == (500_000_000, 1000)
    assert config.comm.grace_seconds == 120.0


def test_defaults_that_differ_from_torchtitan() -> None:
    config = JobConfig()
    assert config.checkpoint.enable is True
    assert config.metrics.enable_tensorboard is True
    assert config.debug.seed == 42
    assert config.job.dump_folder == "./outputs"
    assert config.model.vocab_size is None


def test_an_integer_is_a_float_but_nothing_else_changes_its_type(tmp_path: Path) -> None:
    lr = config_of(tmp_path, "[optimizer]\nlr = 1").optimizer.lr
    assert (lr, type(lr)) == (1.0, float)


# Each line: what stands in the file, and what the message says; the key, the value and the file are always named.
WRONG_VALUES = [
    ("[training]\nsteps = 10.0", "training.steps = 10.0", "integer"),
    ("[training]\nsteps = 1e3", "training.steps = 1000.0", 'text such as "32K"'),
    ("[training]\nsteps = true", "training.steps = true", "integer"),
    ("[training]\nsteps = 0", "training.steps = 0", "an integer above 0 (default 10000)"),
    ("[training]\nsteps = [1, 2]", "training.steps = [...]", "integer"),
    ("[training.steps]\na = 3", "training.steps = {...}", "integer"),
    ("[training]\nsteps = 2025-01-01", "training.steps = 2025-01-01", "integer"),
    ("[training]\nsteps = 99999999999999999999999", "training.steps = 99999999999999999999999", "64 bits"),
    ('[training]\nsteps = "99999999999999999T"', "training.steps = '99999999999999999T'", "64 bits"),
    (f"[debug]\nseed = 0x{'f' * 5000}", "debug.seed = a huge integer", "64 bits"),
    ('[training]\ntokens = "1.5"', "training.tokens = '1.5'", "whole number"),
    ('[training]\ntokens = "None"', "training.tokens = 'None'", 'such as "32K"'),
    (
        "[training]\nglobal_batch_size = 9999999999999",
        "training.global_batch_size = 9999999999999",
        "at most 1,099,511,627,776",
    ),
    ("[training]\nmax_norm = nan", "training.max_norm = nan", "finite"),
    ("[optimizer]\nlr = inf", "optimizer.lr = inf", "finite"),
    ("[optimizer]\nbeta2 = 1.0", "optimizer.beta2 = 1.0", "a number of at least 0 and below 1 (default 0.95)"),
    ("[lr_scheduler]\ndecay_ratio = nan", "lr_scheduler.decay_ratio = nan", "of at least 0 and at most 1"),
    ("[comm]\ngrace_seconds = inf", "comm.grace_seconds = inf", "finite"),
    ('[comm]\ngrace_seconds = "2 weeks"', "comm.grace_seconds = '2 weeks'", '"72h"'),
    ('[comm]\ngrace_seconds = "99999999999d"', "comm.grace_seconds = '99999999999d'", "at most 31,536,000"),
    ("[compile]\nenable = 1", "compile.enable = 1", 'true, false or "auto"; did you mean true?'),
    ('[compile]\nenable = "true"', "compile.enable = 'true'", "did you mean true, without quotes?"),
    ('[compile]\ncomponents = "model"', "compile.components = 'model'", "list"),
    ('[model]\nconverters = ["float8"]', "model.converters[0] = 'float8'", 'must be "quantize.linear.float8"'),
    ('[compile]\ncomponents = ["modl"]', "compile.components[0] = 'modl'", '"model" or "loss"; did you mean model?'),
    ('[training]\ndtype = "bf16"', "training.dtype = 'bf16'", 'must be "float32"'),
    ("[job]\ndescription = 10:00:00", "job.description = 10:00:00", "must be text"),
    ('[job]\ndump_folder = ""', "job.dump_folder = ''", "must be text that is not empty"),
    ('[job]\ndescription = "a\\u0000b"', "job.description = 'a\\x00b'", "NUL"),
    ("[job]\ntrainer = 3", "job.trainer = 3", "must be text"),
    ("[job]\ntrainer = []", "job.trainer = []", "must be text"),
    ("[model]\nname = 3", "model.name = 3", "must be text"),
    ("[model]\nqk_norm = 3", "model.qk_norm = 3", "must be true or false"),
    ("[experimental]\ncustom_import = 3", "experimental.custom_import = 3", "must be text"),
    ("[[training]]\nsteps = 3", "training = [...]", "must be a table, [training]"),
    ("optimizer = 3", "optimizer = 3", "must be a table, [optimizer]"),
    ("job = 3", "job = 3", "must be a table, [job]"),
    ("data = 3", "data = 3", "must be a table, [data]"),
    ('[data.sources]\nname = "a"', "data.sources = {...}", "must be an array of tables, [[data.sources]]"),
    ('[data]\nsources = "a"', "data.sources = 'a'", "must be an array of tables, [[data.sources]]"),
    ('[data]\nsources = ["a"]', "data.sources[0] = 'a'", "must be a table, [[data.sources]]"),
    ('[[data.sources]]\nname = "a"\nweight = 0', "data.sources[0].weight = 0", "a number above 0"),
    ('[[data.sources]]\nname = ""', "data.sources[0].name = ''", "must be text that is not empty"),
]


@pytest.mark.parametrize(("text", "named", "allowed"), WRONG_VALUES, ids=[row[1][:40] for row in WRONG_VALUES])
def test_a_wrong_value_is_named_with_what_is_allowed(tmp_path: Path, text: str, named: str, allowed: str) -> None:
    problem = problem_of(tmp_path, text)
    assert problem.startswith(f"{named} (x.toml): ")
    assert allowed in problem


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    assert len(problem_of(tmp_path, f'[training]\nsteps = "{"x" * 5000}"')) < 250


def test_the_file_that_is_not_toml(tmp_path: Path) -> None:
    for text in ("[training\nsteps = 3", "steps = 3\nsteps = 4", '{"training": {}}', "training:\n  steps: 3"):
        assert "x.toml" in problem_of(tmp_path, text)
        assert "not valid TOML" in problem_of(tmp_path, text)
    for text in (
        "a." * 3000 + "b = 3",
        "a . " * 30_000 + "b = 3",
        "[" + "a.\t" * 30_000 + "b]",
        '"$".' * 30_000 + "b = 3",
        f"{'a' * 90}." * 3000 + "b = 3",
        'a = {b = """\nx"""", ' + '"$".' * 3000 + "b = 1}",
        "a = '#'\n'#'.\"'\"." + "b." * 3000 + "b = 3",
        f"a = {'[' * 3000}{']' * 3000}",
        "[job]\na = " + "{a=" * 30 + "1" + "}" * 30,
    ):
        assert "nested too deeply" in problem_of(tmp_path, text)
    for text in ('a = "{}"', 'a = """\n{}\n"""', "a = 3  # {}"):
        assert "nested too deeply" not in problem_of(tmp_path, text.format("a." * 3000))
    assert "is larger than the 1,048,576 bytes" in problem_of(tmp_path, "#" * (1 << 20) + "\n")
    assert "model.num_layers" in problem_of(tmp_path, "[model]\nnum_layers = 10_000_000")
    assert "cannot be read" in problem_of(tmp_path, f"[debug]\nseed = {'9' * 5000}")


def test_bytes_that_are_no_utf8_and_a_mark_that_is(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe[\x00j\x00")
    with pytest.raises(ConfigError, match=r"x\.toml, line 1, byte 1: the file is UTF-16, not UTF-8; .* \(--job"):
        load_config(["--job.config_file", str(path)])
    path.write_bytes(b"\xef\xbb\xbf[job]\r\ndescription = 'a mark and Windows line ends'\r\n" + SOURCE.encode())
    assert load_config(["--job.config_file", str(path)]).job.description == "a mark and Windows line ends"


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml.*no such file; the working folder is"):
        load_config(["--job.config_file", "no.toml"])
    for nothing in (str(tmp_path), ""):
        with pytest.raises(ConfigError, match="a folder; give a TOML file"):
            load_config(["--job.config_file", nothing])


def test_an_empty_file_says_what_to_add(tmp_path: Path) -> None:
    write(tmp_path, "")
    with pytest.raises(ConfigError, match=r"data\.sources: empty; add a \[\[data\.sources\]\] table"):
        load_config(["--job.config_file", str(tmp_path / "x.toml")])


def test_unicode_is_text_like_any_other(tmp_path: Path) -> None:
    assert config_of(tmp_path, '[job]\ndescription = "héllo ✓ 日本"').job.description == "héllo ✓ 日本"


def test_rows_of_sources_are_counted_from_0(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, f'{SOURCE}[[data.sources]]\npath = "x"\nwieght = 3')
    assert "data.sources[1].name (x.toml): missing" in problems
    assert "data.sources[1].wieght (x.toml): unknown key; did you mean weight?" in problems
