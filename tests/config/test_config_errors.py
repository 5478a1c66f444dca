"""What a user reads after a mistake: nearest names, TorchTitan's names, all problems, no secret, exit code 2."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from config_helpers import SOURCE, config_of, problem_of, problems_of, resolve_text, write

from titan_pt.components.tokenizer import build_tokenizer
from titan_pt.config import ConfigError, load_config
from titan_pt.config.manager import config_class, main
from titan_pt.config.names import closest_path, hub_download
from titan_pt.config.resolve.fields import keys
from titan_pt.config.resolve.report import SYNONYMS, renamed
from titan_pt.config.resolve.torchtitan import RENAMED, UNUSED
from titan_pt.config.schema.job_config import Float8, JobConfig
from titan_pt.train import check_files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nstpes = 5", "training.stpes (x.toml): unknown key; did you mean training.steps?"),  # #2386
        ("[training]\nlocal-batch-size = 5", "unknown key; did you mean training.local_batch_size?"),
        ("[training]\nSTEPS = 5", "training.STEPS (x.toml): unknown key; did you mean training.steps?"),
        ("[optimiser]\nlr = 1", "optimiser (x.toml): unknown table or key; did you mean optimizer?"),
        ("[Training]\nsteps = 1", "Training (x.toml): unknown table or key; did you mean training?"),
        ("[training]\nlr = 1", "training.lr (x.toml): unknown key; did you mean optimizer.lr?"),
        ("lr = 1", "lr (x.toml): unknown table or key; did you mean optimizer.lr?"),
        ("[training.a.b]\nc = 1", "training.a (x.toml): unknown key; the keys are bad_step_window, black_boxes"),
        ("[training]\nint = 1", "training.int (x.toml): unknown key"),
        ('[training]\n"" = 1', 'training."" (x.toml): unknown key'),
        ('[training]\n"a.b" = 1', 'training."a.b" (x.toml): unknown key'),
        ('"training.steps" = 1', '"training.steps" (x.toml): unknown table or key; did you mean training.steps?'),
        ("[list]\na = 1", "list (x.toml): unknown table or key"),
        ("[quantize.linear.fp8]\nemulate = true", "quantize.linear.fp8 (x.toml): unknown key; the keys are float8"),
        (
            "[quantize.linear.float8]\nemulat = true",
            "quantize.linear.float8.emulat (x.toml): unknown key; did you mean",
        ),
        ('[job]\n"ключ" = 1', 'job."ключ" (x.toml): unknown key'),
        ('[[data.sources]]\nname = "a"\npth = "b"', "data.sources[0].pth (x.toml): unknown key; did you mean path?"),
        ('[job]\ntrainer = "pretrian"', "job.trainer = 'pretrian' (x.toml): unknown; known are grpo, pretrain"),
        ('[model]\nname = "transfomer"', "did you mean transformer?"),
        ('[model]\nflavor = "meduim"', "model.flavor = 'meduim': transformer has debugmodel, medium"),
    ],
)
def test_an_unknown_name_brings_the_nearest_known_one(tmp_path: Path, text: str, message: str) -> None:
    assert message in problem_of(tmp_path, text)


def test_all_mistakes_of_all_layers_come_at_once(tmp_path: Path) -> None:
    write(tmp_path, '[training]\nsteps = "many"', "base.toml")
    text = (
        'extends = "base.toml"\n[job]\ntrainer = "pretrian"\n[optimiser]\nlr = 1\n[training]\nlocal_batch_size = 3\n'
        "global_batch_size = 16\n[parallelism]\ntensor_parallel_degree = 2\n[model]\nnum_heads = 5"
    )
    problems = problems_of(tmp_path, text, "--optimizer.lr=x", "--compile.enabel=1", "stray")
    starts = (
        "job.trainer = 'pretrian' (x.toml)",
        "--compile.enabel (command line)",
        "'stray' (command line)",
        "parallelism.tensor_parallel_degree = 2 (x.toml)",
        "optimiser (x.toml)",
        "training.steps = 'many' (base.toml)",
        "optimizer.lr = 'x' (command line)",
        "training.global_batch_size = 16: 16 rows are not a multiple",
        "model.num_heads = 5: not a multiple of model.num_kv_heads = 2",
    )
    for start in starts:
        assert sum(problem.startswith(start) for problem in problems) == 1, (start, problems)
    assert len(problems) == len(starts), problems


def test_a_rule_between_fields_is_silent_when_one_of_them_is_invalid_itself(tmp_path: Path) -> None:
    text = "[training]\nlocal_batch_size = -3\nglobal_batch_size = 16"
    assert problem_of(tmp_path, text).startswith("training.local_batch_size = -3")
    assert problem_of(tmp_path, "[model]\nflavor = 3\nnum_heads = 5").startswith("model.flavor = 3")
    assert problem_of(tmp_path, "[model]\nnum_heads = -5\nnum_kv_heads = 3").startswith("model.num_heads = -5")
    assert problem_of(tmp_path, "data = 3").startswith("data = 3 (x.toml): must be a table")


def test_a_broken_rule_says_which_layers_set_its_fields(tmp_path: Path) -> None:
    problem = problem_of(tmp_path, "[training]\nlocal_batch_size = 3", "--training.global_batch_size", "16")
    assert "x.toml" in problem.partition("(set by ")[2]
    assert "command line" in problem.partition("(set by ")[2]


def test_a_torchtitan_file_with_no_ops_runs_with_one_notice(tmp_path: Path) -> None:
    text = """
[metrics]
save_for_all_ranks = false
[training.dataloader]
num_workers = 0
[parallelism]
tensor_parallel_degree = 1
pipeline_parallel_degree = 1
[fault_tolerance]
enable = false
process_group = "gloo"
[memory_estimation]
enable = false
"""
    resolved = resolve_text(tmp_path, text)
    assert resolved.config == config_of(tmp_path, ""), "a no-op changes nothing"
    (notice,) = resolved.notices
    for name in (
        "metrics.save_for_all_ranks = false",
        "training.dataloader.num_workers = 0",
        "fault_tolerance.process_group",
    ):
        assert name in notice


def test_converters_turn_the_table_on_as_in_torchtitan_and_a_table_alone_is_an_error(tmp_path: Path) -> None:
    """TorchTitan ignores it: neither may a run be of another precision than its TOML's reader thinks."""
    table = '[quantize.linear.float8]\nfilter_fqns = ["down_proj"]\n'
    for converters in ([], ["quantize.linear.float8"]):
        resolved = resolve_text(tmp_path, f"[model]\nconverters = {converters}\n{table}")
        assert resolved.config.model.converters == converters and not resolved.notices
        assert resolved.config.quantize.linear.float8 == Float8(filter_fqns=["down_proj"])
        assert config_of(tmp_path, resolved.config.to_toml()) == resolved.config
    for flag in ("--model.converters=quantize.linear.float8", '--model.converters=["quantize.linear.float8"]'):
        assert config_of(tmp_path, "", flag).model.converters == ["quantize.linear.float8"]
    for text, flags in ((table, ()), ("", ("--quantize.linear.float8.emulate",))):
        problem = problem_of(tmp_path, text, *flags)
        assert problem.startswith('quantize.linear.float8: model.converters = ["quantize.linear.float8"] turns this')
    for text in ("quantize = 3", "[quantize]\nlinear = 3", "[quantize.linear]\nfloat8 = true"):
        assert ": must be a table, [quantize" in problem_of(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "name", "hint"),
    [
        ("[parallelism]\ntensor_parallel_degree = 2", "parallelism.tensor_parallel_degree = 2", "data only"),
        ("[parallelism]\ntensor_parallel_degree = true", "parallelism.tensor_parallel_degree = true", "data only"),
        ("[parallelism.tensor_parallel_degree]\na = 1", "parallelism.tensor_parallel_degree = {...}", "data only"),
        ("[training.dataloader]\nnum_workers = 4", "training.dataloader.num_workers = 4", "data.prefetch_steps"),
        ("[training.dataloader]\nfoo = 4", "training.dataloader.foo", "data.prefetch_steps"),
        ("[fault_tolerance]\nenable = true\nreplica_id = 0", "fault_tolerance.enable = true", "checkpoint"),
        ('[quantize.linear.mx]\nrecipe = "x"', "quantize.linear.mx.recipe", "bfloat16"),
        ("[float8]\nenable_float8_linear = true", "float8.enable_float8_linear", "[quantize.linear.float8]"),
    ],
)
def test_at_another_value_a_torchtitan_key_is_an_error(tmp_path: Path, text: str, name: str, hint: str) -> None:
    problem = problem_of(tmp_path, text)
    assert problem.startswith(f"{name} (x.toml): titan_pt does not have this TorchTitan ")
    assert hint in problem


def test_torchtitan_keys_as_flags(tmp_path: Path) -> None:
    flags = ("--parallelism.tensor_parallel_degree", "1", "--training.dataloader.num_workers=0")
    (notice,) = resolve_text(tmp_path, "", *flags).notices
    assert "parallelism.tensor_parallel_degree = 1 (command line), " in notice
    problem = problem_of(tmp_path, "", "--metrics.save_for_all_ranks")
    assert problem.startswith("metrics.save_for_all_ranks = true (command line): titan_pt does not have")


def test_every_renamed_key_points_at_one_that_exists(tmp_path: Path) -> None:
    known = keys(JobConfig)
    for name, new in RENAMED.items():
        section, key = name.split(".")
        said = renamed(new)
        assert problem_of(tmp_path, f"[{section}]\n{key} = 1") == f"{name} (x.toml): {said}"
        assert problem_of(tmp_path, "", f"--{name}=1") == f"--{name} (command line): {said}"
        target = new.replace("[[", "").replace("]]", "").split(" ")[0]
        assert target in known or new.startswith("no key"), f"{name} -> {new}"
    assert not RENAMED.keys() & known.keys()
    assert not UNUSED.keys() & known.keys()


def test_a_key_of_another_framework_leads_to_the_one_here(tmp_path: Path) -> None:
    known = {*keys(config_class("sft", "transformer")[0]), *keys(config_class("grpo", "transformer")[0])}
    for name, new in SYNONYMS.items():
        targets = re.findall(r"\b[a-z_]+\.[a-z_0-9]+", re.sub(r"\(.*|run_train.sh", "", new))
        assert (targets or new.startswith(("no key", "text_field"))) and known.issuperset(targets), f"{name} -> {new}"
    for flag, said in (
        ("training.learning_rate", "in titan_pt it is optimizer.lr"),
        ("learning-rate", "in titan_pt it is optimizer.lr"),
        ("optimizer.max_grad_norm", "in titan_pt it is training.max_norm"),
        ("model.n_embd", "in titan_pt it is model.hidden_size"),
        ("model.n_heads", "did you mean model.num_heads?"),  # a slip of a key of the table is nearer
        ("model.resid_pdrop", "in titan_pt it is model.dropout"),
        ("model.bias", "titan_pt has none like it: the model has no biases"),
        ("block_size", "in titan_pt it is training.seq_len"),
        ("trainer.gradient_accumulation_steps", "titan_pt has none like it: gradients accumulate by training.global"),
    ):
        assert f"--{flag} (command line): unknown key; {said}" in problem_of(tmp_path, "", f"--{flag}=1")
        table, _, key = flag.rpartition(".")
        text = f'[{table}]\n"{key}" = 1' if table else f'"{key}" = 1'
        assert said in problems_of(tmp_path, text)[0] or table == "trainer", flag


def test_what_stands_for_no_flag_brings_the_way_to_write_it(tmp_path: Path) -> None:
    assert "belongs to no flag; write --optimizer.lr=1e-3" in problem_of(tmp_path, "", "optimizer.lr=1e-3")
    assert "write it as in --training.steps 100" in problem_of(tmp_path, "", "--compile.enable", "false", "100")
    rows = problem_of(tmp_path, "", "--data.sources", "texts/*.txt")
    assert """--data.sources '[{name = "mine", path = "texts/*.txt"}]', in a file:\n    [[data.sources]]""" in rows
    assert """--validation.sources '[{name = "mine", path = "mine.txt"}]'""" in problem_of(
        tmp_path, "", "--validation.sources", "mine.txt"
    )
    task = problem_of(tmp_path, '[job]\ntrainer = "grpo"\n[grpo]\ntasks = "gsm8k"')
    assert """--grpo.tasks '[{name = "gsm8k"}]'""" in task
    for value, meant in (("yes", "true"), ("off", "false"), ("Auto", "auto")):
        said = problem_of(tmp_path, "", f"--compile.enable={value}")
        assert f'must be true, false or "auto"; did you mean {meant}?' in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\nsteps = = 3", "(at line 2, column 9)\n  steps = = 3\n          ^"),
        ('[training]\n\tseq_len = "abc\nsteps = 1', '\n  \tseq_len = "abc\n  \t              ^'),
        ("[training]\nsteps = 1\nsteps = 2", "it stands in the file twice: keep one\n  steps = 2"),
        ("[compile]\nenable = True # or not", "TOML writes true\n  enable = True # or not\n           ^"),
        ("[job]\ndump_folder = outputs/mine", 'text stands in quotes: "outputs/mine"\n  dump_folder = outputs/mine\n'),
        ("[model]\nvocab_size = None", "TOML has no empty value: leave the key out\n"),
        ("[training", "\n  [training\n           ^"),
        ('[job]\ndump_folder = "C:\\users"', "a backslash begins an escape: put the text in single quotes\n"),
        ('[job]\ndump_folder = "mine\n', "close the quotes\n  dump_folder = "),
        ("[compile]\nenable = yes", "TOML writes true or false\n  enable = yes\n"),
        ('# [\nsteps = [1, "]"\n\nlr = 1', 'it begins in line 2\n  steps = [1, "]"\n          ^'),
        ('a = 1\nname = """text\n\n', 'it begins in line 2\n  name = """text\n         ^'),
        (f"a = {'x' * 3000} = 3", f"\n  a = {'x' * 92}\n"),
        ("", None),
    ],
)
def test_a_mistake_in_toml_is_shown_with_a_caret(tmp_path: Path, text: str, said: str | None) -> None:
    if said is None:  # a line with a secret stays in the file
        assert problem_of(tmp_path, f"token = {SECRET}").endswith('(at line 1, column 9); text stands in quotes: "***"')
        return
    assert said in problem_of(tmp_path, text)


def test_a_missing_file_brings_the_one_that_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 'extends = "../basis/base.toml"', "experiments/mine.toml")
    write(tmp_path, "", "bases/base.toml")
    for path, said in (
        ("quickstrat.toml", "; did you mean quickstart?; shipped experiments are "),
        ("experiments/mien.toml", f"the working folder is {tmp_path}; did you mean experiments/mine.toml?"),
        ("experiment/mine.toml", "did you mean experiments/mine.toml?"),
        ("experiments", "a folder; give a TOML file, such as experiments/mine.toml"),
        ("experiments/mine.toml", f"it is looked for in {tmp_path}/basis, the folder of the file that extends it; did"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(["--job.config_file", path])
        assert said in str(caught.value)


def test_a_missing_path_leads_to_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("texts/a.txt", "texts/b.txt", "rows/x.jsonl", "rows/y.jsonl", "rows/z.md", "outputs/first/x"):
        write(tmp_path, "", name)
    for path, meant in (
        ("text/*.txt", "texts/*.txt"),
        ("rows/*.txt", "rows/*.jsonl"),
        ("texts/a.text", "texts/a.txt"),
        (f"{tmp_path}/texs/a.txt", f"{tmp_path}/texts/a.txt"),
        ("outputs/frist", "outputs/first"),
        ("nothing/of/this", None),
        ("empty*/none", None),
    ):
        assert closest_path(path) == meant, path
    assert "hf download Qwen/Qwen3-0.6B --local-dir models/Qwen3-0.6B`, then give models/" in hub_download(
        "Qwen/Qwen3-0.6B"
    )
    assert [hub_download(path) for path in ("outputs/mine", "texts/c", "./a/b", "a", "a/b/c", "/a/b")] == [""] * 6
    for key in ("model.from_hf", "tokenizer.name", "checkpoint.initial_load_path"):
        with pytest.raises(ConfigError, match="hf download org/some-model"):
            config = config_of(tmp_path, "", f"--{key}=org/some-model")
            check_files(config)
            build_tokenizer(config.tokenizer)


SECRET = "hf_" + "aBcDeFgH" * 4


@pytest.mark.parametrize(
    "text",
    [
        f'hf_token = "{SECRET}"',
        f'[job]\nhf_token = "{SECRET}"',
        f'[secrets]\nwandb = {{ key = "{SECRET}" }}',
        f'[[data.sources]]\nname = "a"\ntoken = "{SECRET}"',
        f'[data]\nsources = {{ token = "{SECRET}" }}',
        f'[data]\nsources = ["{SECRET}"]',
        f'[training.steps]\ntoken = "{SECRET}"',
        f'training = "{SECRET}"',
        f'extends = [3, "{SECRET}"]',
        f'[training]\nsteps = "{SECRET}"',
        f'[job]\ndescription = "with {SECRET}"',
        f'[[data.sources]]\nname = "a"\npath = "https://me:{SECRET}@host/x"',
        f'[fault_tolerance]\ntoken = "{SECRET}"',
        f'[metrics]\nsave_for_all_ranks = "{SECRET}"',
    ],
)
def test_no_message_holds_a_secret(tmp_path: Path, text: str) -> None:
    assert SECRET not in "\n".join(problems_of(tmp_path, text))


def test_a_secret_cannot_land_in_the_resolved_config(tmp_path: Path) -> None:
    """An unknown key is refused; so is a known one whose value looks like a token or a password in a URL."""
    for value in (SECRET, "https://me:pass@host/data", "sk-" + "a1" * 20, "-----BEGIN RSA PRIVATE KEY-----"):
        assert "looks like a secret" in problem_of(tmp_path, f'[job]\ndescription = "{value}"')
    for value in ("hf_transfer", "https://host:8080/x@y", "task-sk-1", "s3://bucket/a"):
        assert config_of(tmp_path, f'[job]\ndescription = "{value}"').job.description == value
    for flags in ((f"--hf_token={SECRET}",), ("--job.hf_token", SECRET), (SECRET,), ("--job.description", SECRET)):
        assert SECRET not in problem_of(tmp_path, "", *flags)


def test_bad_input_ends_with_2_one_report_and_an_empty_stdout(tmp_path: Path) -> None:
    path = write(tmp_path, f"{SOURCE}[training]\nstpes = 5\nseq_len = 0")
    command = [sys.executable, "-m", "titan_pt.config.manager", "--job.config_file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    first, *lines = done.stderr.splitlines()
    assert first == "config error: 2 problems"
    assert [line[:5] for line in lines] == ["  1. ", "  2. "]
    assert "Traceback" not in done.stderr


def test_good_input_prints_the_toml_and_notices_go_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, f"{SOURCE}[parallelism]\ntensor_parallel_degree = 1")
    assert main(["--job.config_file", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("[job]\n")
    assert "tensor_parallel_degree" not in out
    assert "tensor_parallel_degree" in err
    assert main(["--job.config_file", str(path), "--explain"]) == 0
    assert f'data.sources[0].name = "python_stdlib"  # {path}\n' in capsys.readouterr().out


def test_load_config_logs_the_notice_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, f"{SOURCE}[parallelism]\ntensor_parallel_degree = 1\n[metrics]\nsave_for_all_ranks = false")
    load_config(["--job.config_file", str(path)])
    assert len(caplog.records) == 1


def test_one_problem_is_reported_on_one_line() -> None:
    assert ConfigError("a.b = 1: too small").report() == "config error: a.b = 1: too small"
    assert ConfigError("a", "b").report() == "config error: 2 problems\n  1. a\n  2. b"


def test_reading_a_config_does_not_import_torch() -> None:
    flags = ["--data.sources", '[{name = "python_stdlib"}]']
    code = (
        "import sys; from titan_pt.config import manager; manager.resolve(sys.argv[1:]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
