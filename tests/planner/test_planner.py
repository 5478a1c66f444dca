"""The planner: formulas and trace agree, and the numbers are those of the arithmetic."""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from memory_formula import estimate, estimated_kinds, shape_of
from tool_helpers import tool_here

from titan_pt.components.accelerators import ACCELERATORS, GIB, find_accelerator, named_device
from titan_pt.config import JobConfig, load_config
from titan_pt.config.errors import ConfigError
from titan_pt.config.resolve.checks import model_args
from titan_pt.planner.dry_run_step import dry_run_step
from titan_pt.planner.memory import needed_bytes
from titan_pt.planner.mixture import plan_sources
from titan_pt.planner.plan import Plan, Target, as_json, make_plan, memory_of, pace, rollouts_of, storage, update_time
from titan_pt.planner.report import lines
from titan_pt.planner.search import Choice, Search, apply, cheapest_changes, fastest, gpus_in_time
from titan_pt.planner.sized_tokenizer import tokenizer_size
from titan_pt.protocols.model_spec import get_model_spec
from titan_pt.tools.plan import main, measured_mfu

CONFIGS = ROOT / "train_configs"
A100, H100 = find_accelerator("a100-80gb"), find_accelerator("h100-80gb")
NONE, FULL = ("--activation_checkpoint.mode=none",), ("--activation_checkpoint.mode=full",)
OP = ("--activation_checkpoint.mode=selective", "--activation_checkpoint.selective_ac_option=op")
SECOND = ("--activation_checkpoint.mode=selective", "--activation_checkpoint.selective_ac_option=2")
ROWS_1, ROWS_4 = ("--training.local_batch_size=1",), ("--training.local_batch_size=4",)
FLOAT32 = ("--training.mixed_precision_param=float32",)


def config_of(name: str, *flags: str) -> JobConfig:
    return load_config(["--job.config_file", str(CONFIGS / f"{name}.toml"), "--training.max_hours=72", *flags])


def memory_benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/memory.py, as `python -m benchmarks.memory` finds it."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.memory")


def args_of(config: JobConfig) -> Any:
    return model_args(config, get_model_spec(config.model.name), tokenizer_size(config))


@pytest.mark.parametrize(
    ("name", "ranks", "device", "flags"),
    [
        ("quickstart", 8, "cuda", OP),
        ("quickstart", 8, "cpu", (*SECOND, *FLOAT32)),
        ("quickstart", 2, "cuda", FULL),
        ("quickstart", 4, "cuda", (*NONE, "--parallelism.fsdp_reshard_after_forward=never")),
        ("quickstart_sft", 2, "cpu", (*NONE, *ROWS_4)),
        pytest.param("debug", 8, "cuda", (*OP, *ROWS_1), marks=pytest.mark.slow),
        pytest.param("medium_3day", 8, "cuda", FULL, marks=pytest.mark.slow),
        pytest.param("medium_3day", 8, "cuda", (*OP, "--model.num_layers=6"), marks=pytest.mark.slow),
        pytest.param("small", 2, "cuda", ("--model.tie_embeddings=false",), marks=pytest.mark.slow),
    ],
)
def test_trace_and_formula_agree(name: str, ranks: int, device: Any, flags: tuple[str, ...]) -> None:
    config = config_of(name, *flags)
    traced = dry_run_step(config, ranks, device, counts=True)
    accumulates = traced.run_size.accumulation_steps > 1
    shape = shape_of(config, args_of(config), ranks, accumulates=accumulates, device=device)
    assert sum(estimate(shape).values()) == pytest.approx(traced.peak_bytes, rel=0.1)
    flops = get_model_spec("transformer").flops_per_token(args_of(config), config.training.seq_len) * shape.tokens
    recomputed = 1.4 if config.activation_checkpoint.mode in ("full", "selective") else 1.0
    assert traced.operations and 0.95 * flops < traced.operations.flops < 1.1 * recomputed * flops


@pytest.mark.parametrize(
    ("name", "flags"),
    [("grpo_debug", ()), pytest.param("grpo_gsm8k", ("--model.num_layers=4",), marks=pytest.mark.slow)],
)
def test_trace_and_formula_agree_for_grpo(name: str, flags: tuple[str, ...]) -> None:
    flags = (*flags, "--rollout.max_rows=64", "--grpo.kl_coef=0.01")
    config = config_of(name, *flags, "--rollout.compile=false")
    plan = make_plan(config, Target(A100, 2))
    assert plan.rollouts
    formula = estimated_kinds(config, plan.args, 2) | {"rollout_engine": plan.rollouts.engine_bytes}
    assert sum(formula.values()) == pytest.approx(sum(plan.memory.by_kind.values()), rel=0.1)
    for kind in ("reference", "rollout_engine"):
        assert formula[kind] == pytest.approx(plan.memory.by_kind[kind], rel=0.1), kind
    assert plan.rollouts.kv_cache_bytes == pytest.approx(plan.memory.sampling_bytes, rel=0.05)
    graphs = make_plan(config_of(name, *flags, "--rollout.compile=true"), Target(A100, 2)).memory
    kept = graphs.by_kind["rollout_engine"] - plan.memory.by_kind["rollout_engine"]
    assert graphs.sampling_bytes == 0 and kept == plan.memory.sampling_bytes, "rows that CUDA graphs keep"
    served = make_plan(config_of(name, *flags, "--rollout.engine=vllm"), Target(A100, 2))
    assert served.rollouts and served.rollouts.kv_cache_bytes == served.memory.sampling_bytes
    assert served.rollouts.engine_bytes == pytest.approx(served.memory.by_kind["rollout_engine"], rel=0.1)


@pytest.mark.parametrize(
    ("gpus", "hours", "fits", "tokens"), [(1, 226, 0, 15.9), (4, 56.5, 1, 63.8), (8, 28.2, 1, 127.5)]
)
def test_medium_3day_is_the_table_of_its_hardware(gpus: int, hours: float, fits: int, tokens: float) -> None:
    config = config_of("medium_3day")
    flops = get_model_spec("transformer").flops_per_token(args_of(config), 2048)
    found = pace(0.5, 50_000_000_000, flops, gpus * A100.flops["bfloat16"], config.training.max_hours)
    assert found.hours == pytest.approx(hours, abs=0.5) and (found.hours <= 72) == bool(fits)
    assert found.tokens_in_max_hours == pytest.approx(tokens * 1e9, rel=0.01)


def json_of(capsys: pytest.CaptureFixture[str], name: str, *flags: str) -> dict[str, Any]:
    assert tool_here(main, "--job.config_file", str(CONFIGS / f"{name}.toml"), "--json", *flags) == 0
    return json.loads(capsys.readouterr().out)


def test_medium_3day_on_one_gpu_fits_memory_alone() -> None:
    plan = make_plan(config_of("medium_3day"), Target(A100, 1))
    found = as_json(plan)
    assert found["parameters"] == 322_097_152 and found["parameters_without_embedding"] == 270_585_856
    assert found["fits_memory"] and not found["fits_time"] and found["max_hours"] == 72
    (half,) = (pace for pace in found["paces"] if pace["mfu"] == 0.5)
    assert half["hours"] == pytest.approx(226, abs=0.5)
    assert half["tokens_in_max_hours"] == pytest.approx(15.9e9, rel=0.01)
    assert found["sources"][1]["epochs"] == 4.0 and found["sources"][0]["epochs"] == pytest.approx(0.5, abs=0.01)
    assert found["time_model"] == "roofline" and found["mfu_source"].startswith("roofline")
    assert 0.58 < found["mfu"] < 0.67 and found["hours"] == pytest.approx(half["hours"] * 0.5 / found["mfu"])
    on_h100 = update_time(plan.config, Target(H100, 1), plan.dry_run)
    flops = plan.flops_per_token * plan.dry_run.run_size.tokens_per_step
    assert 0.43 < flops / H100.flops["bfloat16"] / on_h100.total < 0.48


def test_json_says_what_the_time_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    roofline, given, assumed = (
        json_of(capsys, "quickstart", *flags) for flags in ([], ["--mfu", "0.5"], ["--gpu", "l4"])
    )
    assert roofline["time_model"] == "roofline" and roofline["changes"] == []
    assert sum(roofline["step_time"].values()) == pytest.approx(roofline["step_seconds"])
    assert [(found["time_model"], found["mfu_source"], found["mfu"]) for found in (given, assumed)] == [
        ("mfu", "given", 0.5),
        ("mfu", "assumed", 0.5),
    ]
    assert given["step_time"] is None


@pytest.mark.slow
def test_json_names_three_changes_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    shallow = ("--model.num_layers=4", "--training.local_batch_size=64")
    found = json_of(capsys, "medium_3day", "--gpu", "l4", *shallow)
    assert not found["fits_memory"] and not found["fits_time"]
    assert len(found["changes"]) == 3 and any("local_batch_size" in change for change in found["changes"])
    assert any("activation_checkpoint" in change for change in found["changes"])


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--gpu", "a100-81gb"], "did you mean a100-80gb"),
        (["--gpu", "t4"], "cannot compute in training.mixed_precision_param = 'bfloat16'"),
        (["--num_gpus", "0"], "must be an integer from 1 to 4096"),
        (["--num_gpus", "7"], "cannot be shared by 7 ranks; numbers of ranks that fit are 1, 2, 4, 8, 16"),
        (["--num_gpus", "many"], "must be an integer"),
        (["--mfu", "80"], "a share of the peak, above 0 and at most 1, such as 0.5"),
        (["--mfu", "nan"], "a share of the peak"),
        (["--from_run", "nowhere"], "give a run folder"),
        (["--from_run", "x", "--mfu", "0.4"], "give one"),
        (["--price_per_gpu_hour", "-2"], "must be 0 or more"),
        (["--tokenizer.name", "mine/tokenizer.json"], "set model.vocab_size"),
        (["--trainig.steps", "3"], "did you mean training.steps"),
        (["--num_gpus", "8", "--parallelism.data_parallel_replicate_degree", "3"], "must make 8"),
    ],
)
def test_mistakes_end_with_2(flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool_here(main, "--job.config_file", CONFIGS / "medium_3day.toml", "--json", *flags) == 2
    said = capsys.readouterr()
    assert reason in said.err and not said.out and "Traceback" not in said.err


@pytest.fixture(scope="module")
def small_plan() -> Plan:
    """A plan of a small model on a GPU that has two thirds of the memory for it."""
    large = dataclasses.replace(A100, name="large-gpu", bandwidth=1e12, flops={"bfloat16": 1e14})
    batch = ("--training.local_batch_size=16", "--training.global_batch_size=32", "--training.seq_len=1024")
    model = ("--model.hidden_size=256", "--training.tokens=1B", "--training.mixed_precision_param=bfloat16", *NONE)
    plan = make_plan(config_of("quickstart", *batch, *model), Target(large, 1, price_per_gpu_hour=2.0))
    room = needed_bytes(plan.memory.peak_bytes * 2 / 3) / GIB
    target = dataclasses.replace(plan.target, gpu=dataclasses.replace(large, memory_gib=room))
    return dataclasses.replace(plan, target=target, memory=memory_of(plan.config, target, plan.dry_run))


@pytest.fixture(scope="module")
def changes(small_plan: Plan) -> list[Choice]:
    return cheapest_changes(small_plan)


def test_text_of_a_plan_that_does_not_fit(
    small_plan: Plan, changes: list[Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not small_plan.memory.fits
    monkeypatch.setattr("titan_pt.planner.report.cheapest_changes", lambda _: changes)
    text = "\n".join(lines(small_plan))
    assert "DOES NOT FIT IN MEMORY" in text and "FITS IN TIME" in text and "Cost" in text
    assert all(f"  {number}. {change.flags}" in text for number, change in enumerate(changes, 1))
    assert small_plan.cost == pytest.approx(2.0 * small_plan.hours) and gpus_in_time(small_plan) == 1


def test_cheapest_changes_fit_and_differ_in_kind(small_plan: Plan, changes: list[Choice]) -> None:
    kinds = {tuple(name for name, _ in change.settings) for change in changes}
    assert 1 <= len(changes) <= 3 and len(kinds) == len(changes)
    assert all(change.fits and change.needed_bytes <= small_plan.memory.available_bytes for change in changes)
    hours = [change.hours for change in changes if change.hours and change.num_gpus == 1]
    assert hours == sorted(hours)


def test_fastest_choice_fits_and_keeps_the_batch(small_plan: Plan) -> None:
    best = fastest(small_plan)
    assert best is not None and best.needed_bytes <= small_plan.memory.available_bytes
    better = make_plan(apply(small_plan.config, best), small_plan.target)
    assert better.memory.fits and better.memory.needed_bytes == best.needed_bytes
    assert better.dry_run.run_size.rows == small_plan.dry_run.run_size.rows


def test_recomputation_and_small_batches_cost_hours(small_plan: Plan) -> None:
    search = Search(small_plan)
    full, small = (
        search.try_settings({key: value})
        for key, value in (("activation_checkpoint.mode", "full"), ("training.local_batch_size", 8))
    )
    assert full and full.hours and small and small.hours
    assert 1.05 < full.hours / small_plan.hours < 1.4, "a forward is a third of a step"
    assert 1.0 < small.hours / small_plan.hours < 2.1, "weights are read more often, the host launches more kernels"
    more = search.try_settings({}, num_gpus=2)
    assert more and more.hours == pytest.approx(small_plan.hours / 2, rel=0.1)


def test_on_several_gpus_gathered_weights_can_be_freed(small_plan: Plan) -> None:
    plan = make_plan(small_plan.config, dataclasses.replace(small_plan.target, num_gpus=2))
    found = {choice.flags: choice.memory for choice in Search(plan).single_changes()}
    freed = found["--parallelism.fsdp_reshard_after_forward always"].by_kind
    assert freed["communication"] < plan.memory.by_kind["communication"]


def test_memory_of_averages_and_without_offloaded_or_smaller_states() -> None:
    config, target = config_of("quickstart", "--training.ema_decay=0.999"), Target(A100, 1)
    whole = dry_run_step(config, 1)
    eight = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"name": "AdamW8bit"})})
    away = config.model_copy(update={"training": config.training.model_copy(update={"enable_cpu_offload": True})})
    quarter, none = (memory_of(other, target, whole).by_kind for other in (eight, away))
    assert quarter["optimizer"] == pytest.approx(whole.memory["optimizer"] / 4, rel=0.02)
    assert whole.memory["averaged_weights"] == 4 * whole.num_parameters
    assert storage(config, 1000, 1).checkpoint_bytes == 16_000 and "averaged_weights" not in none
    assert "optimizer" not in none and none["activations"] == whole.memory["activations"]
    assert needed_bytes(100 * GIB) == pytest.approx(109.25 * GIB)


def test_rollouts_of_gsm8k_on_one_a100() -> None:
    config = config_of("grpo_gsm8k")
    args = args_of(config)
    flops = get_model_spec("transformer").flops_per_token(args, 2048)
    found = rollouts_of(config, args, Target(A100, 1), flops)
    assert found and found.kv_bytes_per_token == 24 * 2 * 4 * 64 * 2
    assert found.completions == 24 * 16 and found.rows == 1024
    assert found.slots == 640 + 128, "CUDA graphs spare a span"
    assert 0.5 < found.floor_seconds < found.rollout_seconds < 10 and 1 < found.train_seconds < 4
    eight = rollouts_of(config, args, Target(A100, 8), flops)
    assert eight and eight.train_seconds == pytest.approx(found.train_seconds / 8) and eight.rows < found.rows


def test_disk_and_sources() -> None:
    config = config_of("medium_3day")
    kept = storage(config, 322_097_152, 95_368)
    assert kept.checkpoint_bytes == 12 * 322_097_152 and kept.kept == 3
    assert kept.disk_bytes == 4 * kept.checkpoint_bytes, "one is under way"
    fineweb, medqa = plan_sources(config, 50_000_000_000)
    assert medqa.tokens == pytest.approx(4 * 2.1e6) and fineweb.tokens + medqa.tokens == pytest.approx(5e10)
    (local,) = plan_sources(config_of("small"), 1_000_000)
    assert local.epochs is None, "files are not opened"


def test_the_mfu_of_a_run(tmp_path: Path) -> None:
    rows = [{"step": step, "mfu": 0.1 if step < 12 else 0.43, "step_seconds": 2.0} for step in range(0, 41, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert measured_mfu(tmp_path) == 0.43
    sampled = [{"step": 20, "mfu": 0.1, "step_seconds": 8.0, "seconds/train": 2.0}]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(sampled[0]) + "\n")
    assert measured_mfu(tmp_path) == pytest.approx(0.4), "of the updates alone"
    (tmp_path / "metrics.jsonl").write_text('{"step": 20, "mfu": null}\n')
    with pytest.raises(ConfigError, match="none of its 1 rows has an MFU"):
        measured_mfu(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        measured_mfu(tmp_path)


def test_the_table_of_accelerators() -> None:
    assert find_accelerator("A100").name == "a100-80gb" and find_accelerator("h200").memory_gib > 139
    names = {"NVIDIA A100-SXM4-40GB": "a100-40gb", "NVIDIA A100-PCIE-40GB": "a100-40gb", "NVIDIA L4": "l4"}
    assert {device: found.name for device in names if (found := named_device(device))} == names
    assert len({gpu.name for gpu in ACCELERATORS}) == len(ACCELERATORS)


TINY = (
    "--tokenizer.name=byte",
    "--model.flavor=debugmodel",
    "--model.num_layers=3",
    "--model.hidden_size=128",
    "--model.num_heads=4",
    "--model.num_kv_heads=2",
    "--model.head_dim=32",
    "--model.intermediate_size=256",
    "--model.vocab_size=1024",
    "--training.seq_len=128",
    "--training.local_batch_size=4",
    "--training.mixed_precision_param=float32",
    '--data.sources=[{name="arithmetic"}]',
)
ALLOCATOR_NOISE = 2**16


@pytest.mark.parametrize("flags", [NONE, OP, SECOND, FULL], ids=["none", "op", "second", "full"])
def test_a_real_step_takes_the_memory_that_was_predicted(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak of torch's CPU allocator, which sees what no dispatch mode does."""
    monkeypatch.chdir(tmp_path)
    memory = memory_benchmark(monkeypatch)
    measured, predicted = memory.measure(*TINY, *flags), memory.predict(*TINY, *flags)
    assert predicted["bytes"] == pytest.approx(measured["bytes"], rel=0.05, abs=ALLOCATOR_NOISE)
    assert predicted["flops"] == measured["flops"]
    recomputed = 1.0 if flags == NONE else 1.34
    assert predicted["formula_flops"] < 1.1 * predicted["flops"] < 1.25 * recomputed * predicted["formula_flops"]


def test_muons_state_and_products_are_planned() -> None:
    """Two ranks have each half of the state and orthogonalise half of the matrices."""
    config = config_of("quickstart", "--optimizer.name=Muon")
    found, args = dry_run_step(config, 2, counts=True), args_of(config)
    width, heads, inner = args.hidden_size, args.head_dim, args.intermediate_size
    queries, keys = args.num_heads * heads, args.num_kv_heads * heads
    shapes = [(width, queries)] * 2 + [(width, keys)] * 2 + [(width, inner)] * 3
    products = [
        2 * (2 * min(shape) * rows * columns + min(shape) ** 3) for shape in shapes for rows, columns in [shape]
    ]
    assert found.operations and 2 * found.operations.update_flops == args.num_layers * 5 * sum(products)
    matrices = args.num_layers * sum(rows * columns for rows, columns in shapes)
    others = found.num_parameters - matrices
    assert found.state_bytes == pytest.approx(4 * matrices + 8 * others, abs=1000)
    assert found.memory["optimizer"] == pytest.approx(found.state_bytes / 2, abs=1000)
    collectives = [kernel for kernel in found.operations.update_kernels if kernel.kind == "collective"]
    assert {kernel.dtype for kernel in collectives} == {torch.bfloat16}


@pytest.mark.slow
def test_moments_of_8_bits_take_the_memory_that_was_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: the update is compiled."""
    monkeypatch.chdir(tmp_path)
    memory = memory_benchmark(monkeypatch)
    wanted = (*TINY, *FULL, "--optimizer.name=AdamW8bit")
    predicted = memory.predict(*wanted)["bytes"]
    assert predicted == pytest.approx(memory.in_process("measure", *wanted)["bytes"], rel=0.05, abs=ALLOCATOR_NOISE)
    assert predicted < memory.predict(*TINY, *FULL)["bytes"]
