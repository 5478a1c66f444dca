"""Rules between fields, the model's arguments, and the numbers that follow from a number of ranks."""

from pathlib import Path

import pytest
import tomli_w
from config_helpers import SOURCE, config_of, problem_of, problems_of

from titan_pt.config import ConfigError, JobConfig, load_config
from titan_pt.config.resolve.checks import model_args, padded_size
from titan_pt.config.run_size import divisors, plan_run_size
from titan_pt.config.saved_streams import with_saved_streams
from titan_pt.models.transformer import FLAVORS
from titan_pt.protocols.model_spec import get_model_spec

# Each line: what the file says, and what the message must hold.
BROKEN_RULES = [
    (
        "[model]\nnum_heads = 5\nnum_kv_heads = 2",
        "model.num_heads = 5: not a multiple of model.num_kv_heads = 2, which may be 1, 5",
    ),
    ("[model]\nhead_dim = 5", "model.head_dim = 5: must be even"),
    (
        '[tokenizer]\nname = "gpt2"\n[model]\nvocab_size = 1000',
        "model.vocab_size = 1000: smaller than tokenizer 'gpt2' (50257); leave it out for 50304",
    ),
    ("[model]\nvocab_size = 258", "model.vocab_size = 258: smaller than tokenizer 'byte' (259); leave it out for 320"),
    ("[model]\nmax_seq_len = 128", "training.seq_len = 2048: above model.max_seq_len = 128"),
    ("[training]\nglobal_batch_size = 0", "training.global_batch_size = 0: must be positive, or -1"),
    (
        "[training]\nglobal_batch_size = 12",
        "12 rows are not a multiple of training.local_batch_size = 8; the nearest are 8 or 16, "
        "or set local_batch_size to 6 or 12",
    ),
    (
        "[training]\nglobal_batch_tokens = 5000\nseq_len = 2048",
        "training.global_batch_tokens = 5000: not a multiple of training.seq_len = 2048; the nearest are 4096 or 6144",
    ),
    ("[training]\nglobal_batch_tokens = 100\nseq_len = 2048", "the nearest are 2048"),
    (
        "[training]\nglobal_batch_tokens = 6144\nseq_len = 2048\nlocal_batch_size = 2",
        "training.global_batch_tokens = 6144: 3 rows are not a multiple of training.local_batch_size = 2; the "
        "nearest are 4096 or 8192, or set local_batch_size to 1 or 3",
    ),
    (
        f"[training]\nglobal_batch_size = 16\n[data]\nnum_streams = 5\n{SOURCE}",
        "data.num_streams = 5: must divide the global batch of 16 rows; allowed are 1, 2, 4, 8, 16",
    ),
    ("[data]\nsources = []", "data.sources: empty"),
    (f"{SOURCE}{SOURCE}", "data.sources: two sources are named 'python_stdlib'; names must differ"),
    (
        f"{SOURCE}[data]\nstall_policy = 'substitute'\nmax_stall_seconds = 60",
        "data.substitute_after_seconds = 600: must be below data.max_stall_seconds = 60, at which the run ends",
    ),
    (
        '[[data.sources]]\nname = "a"\npath = "x"\ndataset = "y"',
        "data.sources[0] ('a'): path and dataset are both given; give one",
    ),
    (
        '[[validation.sources]]\nname = "a"\npath = "x"\nsplit = "test"',
        "validation.sources[0] ('a'): split belong to dataset, which is not given",
    ),
    ("[validation]\nenable = true\nsteps = 0", "validation.steps = 0: must be positive, or -1"),
    ("[validation]\nenable = true\nholdout_fraction = 0", "leaves no documents to validate on"),
    ("[validation]\nholdout_fraction = 1.0", "leaves no documents to train on"),
    ('[activation_checkpoint]\nselective_ac_option = "0"', 'must be "op" or a positive integer'),
    (
        "[profiling]\nenable_profiling = true\nprofile_freq = 3",
        "must be at least profiler_warmup + profiler_active = 4",
    ),
]


@pytest.mark.parametrize(("text", "message"), BROKEN_RULES, ids=[row[1][:50] for row in BROKEN_RULES])
def test_an_impossible_combination_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in problem_of(tmp_path, text)


def test_rules_are_checked_together(tmp_path: Path) -> None:
    text = "[model]\nnum_heads = 5\n[training]\nglobal_batch_size = 12\n[validation]\nholdout_fraction = 1.0"
    assert len(problems_of(tmp_path, text)) == 3


def test_a_warmup_longer_than_the_run_is_no_error(tmp_path: Path) -> None:
    assert config_of(tmp_path, "[training]\nsteps = 5\n[lr_scheduler]\nwarmup_steps = 200").training.steps == 5


def test_the_vocabulary_is_the_tokenizer_rounded_up_to_64(tmp_path: Path) -> None:
    spec = get_model_spec("transformer")
    assert model_args(config_of(tmp_path, '[tokenizer]\nname = "gpt2"'), spec, 50257).vocab_size == 50304
    assert model_args(config_of(tmp_path, "[model]\nvocab_size = 300"), spec, 259).vocab_size == 300
    assert model_args(config_of(tmp_path, ""), spec, 259).num_tokens == 259
    assert (padded_size(64), padded_size(65)) == (64, 128)


def test_a_key_of_the_model_overrides_its_flavor(tmp_path: Path) -> None:
    spec = get_model_spec("transformer")
    config = config_of(
        tmp_path, '[model]\nflavor = "tiny"\nnum_layers = 2\nqk_norm = false', "--model.rope_theta", "5e5"
    )
    args, tiny = model_args(config, spec, 259), FLAVORS["tiny"]
    assert (args.num_layers, args.qk_norm, args.rope_theta) == (2, False, 500_000.0)
    assert (args.hidden_size, args.norm_eps) == (tiny.hidden_size, tiny.norm_eps)


def test_the_name_of_what_follows_from_the_tokenizer_is_no_key(tmp_path: Path) -> None:
    assert "model.num_tokens (x.toml): unknown key" in problem_of(tmp_path, "[model]\nnum_tokens = 5")


def test_divisors_of_the_largest_batch_are_quick_and_complete() -> None:
    assert [divisors(n) for n in (1, 2, 12, 16)] == [[1], [1, 2], [1, 2, 3, 4, 6, 12], [1, 2, 4, 8, 16]]
    assert divisors(2**40) == [2**i for i in range(41)]


def training(**keys: object) -> JobConfig:
    """A config with these keys of [training], [data] and [parallelism]."""
    tables: dict[str, dict[str, object]] = {"training": {}, "data": {}, "parallelism": {}}
    for key, value in keys.items():
        section = "data" if key == "num_streams" else "parallelism" if "parallel" in key else "training"
        tables[section][key] = value
    return JobConfig.model_validate(tables)


def test_the_budget_of_a_run() -> None:
    run_size = plan_run_size(training(global_batch_size=96, local_batch_size=4, seq_len=128, tokens="1M"), 8)
    assert (run_size.rows, run_size.rows_per_rank, run_size.accumulation_steps) == (96, 12, 3)
    assert run_size.num_streams == 48, "the largest divisor of 96 that is at most 64"
    assert run_size.tokens_per_step == 96 * 128
    assert run_size.steps == 82, "1,000,000 tokens rounded up to whole steps of 12,288"
    assert plan_run_size(training(local_batch_size=4), 2).rows == 8, "-1 is one micro-batch on each rank"
    shared = [plan_run_size(training(global_batch_size=16, local_batch_size=16), ranks) for ranks in (1, 2, 8, 16)]
    assert [(size.local_rows, size.accumulation_steps) for size in shared] == [(16, 1), (8, 1), (2, 1), (1, 1)]
    with pytest.raises(ConfigError, match=r"cannot be shared by 3 ranks; numbers of ranks that fit are 1, 2, 4, 8, 16"):
        plan_run_size(training(global_batch_size=16, local_batch_size=16), 3)


@pytest.mark.parametrize("local", [8, 16, 24, 64, 128, 2, 1])
def test_the_streams_of_a_batch_that_follows_from_the_ranks_do_not(local: int) -> None:
    config = training(local_batch_size=local)
    sizes = {ranks: plan_run_size(config, ranks) for ranks in (1, 2, 4, 8)}
    alike = {size.num_streams for ranks, size in sizes.items() if local % ranks == 0}
    assert alike == {min(local, 64)}
    for ranks, size in sizes.items():
        assert size.rows == local * ranks and size.rows % size.num_streams == 0 == size.num_streams % ranks


def test_the_streams_of_a_checkpoint_are_kept_where_they_fit() -> None:
    """Also those that earlier releases chose: of 2 ranks with 8 rows each 16 streams."""
    config = training(local_batch_size=8)
    two, one = plan_run_size(config, 2), plan_run_size(config, 1)
    assert with_saved_streams(config, two, 2, 16).num_streams == 16
    assert with_saved_streams(config, one, 1, 16) == one, "they do not divide the batch of one rank"
    assert with_saved_streams(config, two, 2, None) == two
    asked = training(local_batch_size=8, num_streams=4)
    assert with_saved_streams(asked, plan_run_size(asked, 2), 2, 16).num_streams == 4


@pytest.mark.parametrize(
    ("keys", "ranks", "message"),
    [
        ({"global_batch_size": 24, "local_batch_size": 4}, 4, "numbers of ranks that fit are 1, 2, 3, 6"),
        (
            {"num_streams": 3, "local_batch_size": 4},
            2,
            "must divide the global batch of 8 rows; allowed are 1, 2, 4, 8",
        ),
        (
            {"num_streams": 2, "local_batch_size": 4},
            4,
            "cannot be shared by 4 ranks; numbers of ranks that fit are 1, 2",
        ),
        (
            {"data_parallel_replicate_degree": 3},
            4,
            "must make 4, the number of ranks; allowed replicate degrees are 1, 2",
        ),
        # The same list whatever fails first: with the 16 streams of 48 rows, 3 ranks that share the rows do not fit.
        ({"global_batch_size": 48, "local_batch_size": 4, "num_streams": 16}, 3, "that fit are 1, 2, 4"),
        ({"global_batch_size": 48, "local_batch_size": 4, "num_streams": 16}, 8, "that fit are 1, 2, 4"),
        ({"data_parallel_shard_degree": 2}, 4, "must make 4, the number of ranks"),
    ],
)
def test_ranks_that_do_not_fit_are_refused_with_those_that_do(
    keys: dict[str, object], ranks: int, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_run_size(training(**keys), ranks)
    assert message in str(caught.value)


ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "train_configs").rglob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_a_shipped_config_is_valid_and_has_its_own_run_folder(path: Path) -> None:
    config = load_config(["--job.config_file", str(path)])
    assert config.job.dump_folder == f"outputs/{path.stem}"
    assert path.read_text(encoding="utf-8").startswith("# "), "it says what it trains, where and for how long"
    assert tomli_w.dumps(config.dump())
