"""Peak rates, profiling, process groups and determinism: small parts around the loop."""

import gc
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from titan_pt.components import flops
from titan_pt.components.flops import measure_matmul, peak_flops
from titan_pt.components.metrics import format_seconds
from titan_pt.config import ConfigError, load_config
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import Comm, Compile, JobConfig, Training
from titan_pt.distributed.compile import check_compiler
from titan_pt.distributed.garbage import GarbageCollection
from titan_pt.distributed.lone_world import lone_world
from titan_pt.distributed.world import find_device, start_world, stop_world, world_size
from titan_pt.run.exit_codes import CannotStart
from titan_pt.train import build_trainer, run

SOURCE = '--data.sources=[{name="arithmetic"}]'
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", 70e12),
        ("Tesla T4", None),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA RTX A4000", None),
        ("Some future device", None),
    ],
)
def test_peak_of_gpus_by_name(monkeypatch: pytest.MonkeyPatch, name: str, expected: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    assert peak_flops(torch.device("cuda", 0), torch.bfloat16) == expected
    assert peak_flops(torch.device("cuda", 0), torch.float32) is None, "the table is for bfloat16"


def test_a_cpu_is_measured() -> None:
    rate = measure_matmul(CPU, torch.float32, size=256, seconds=0.05)
    assert 1e8 < rate < 1e14
    assert flops.peak_flops(CPU, torch.float32)


def test_emulated_bfloat16_is_bounded_by_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {torch.bfloat16: 1e9, torch.float32: 1e11}
    monkeypatch.setattr(flops, "measure_matmul", lambda _device, dtype: rates[dtype])
    assert peak_flops(CPU, torch.bfloat16) == 1e11
    rates[torch.bfloat16] = 1e12
    assert peak_flops(CPU, torch.bfloat16) == 1e12


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00"), (61.4, "01:01"), (3600, "01:00:00"), (90061, "1d 01:01:01"), (float("inf"), "?")],
)
def test_clock(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_budget_names_the_ranks_that_fit() -> None:
    flags = ["--training.local_batch_size", "4", "--training.global_batch_size", "16"]
    config = load_config([SOURCE, *flags])
    run_size = plan_run_size(config, 2)
    assert (run_size.rows_per_rank, run_size.accumulation_steps, run_size.num_streams) == (8, 2, 16)
    with pytest.raises(ConfigError) as error:
        plan_run_size(config, 3)
    assert "numbers of ranks that fit are 1, 2, 4" in str(error.value)
    many = load_config([SOURCE, "--training.global_batch_size", "192", "--training.local_batch_size", "1"])
    assert plan_run_size(many, 2).num_streams == 64
    with pytest.raises(ConfigError, match=r"data.num_streams = 64: cannot be shared by 3 ranks"):
        plan_run_size(many, 3)
    odd = load_config([SOURCE, "--parallelism.data_parallel_replicate_degree", "3"])
    with pytest.raises(ConfigError, match="allowed replicate degrees are 1, 2, 4"):
        plan_run_size(odd, 4)


def test_tokens_are_rounded_up_to_whole_steps() -> None:
    flags = ["--training.tokens", "1M", "--training.seq_len", "1000", "--training.local_batch_size", "3"]
    run_size = plan_run_size(load_config([SOURCE, *flags]), 1)
    assert (run_size.steps, run_size.tokens) == (334, 1_002_000)


def test_compile_needs_a_known_backend_and_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"compile.backend = 'inductr': torch has .*inductor"):
        check_compiler(Compile(backend="inductr"), CPU)
    monkeypatch.setenv("CXX", "ccache clang++ -O2")
    for found in ("clang++", "g++"):
        monkeypatch.setattr("shutil.which", lambda name, found=found: name == found)
        check_compiler(Compile(), CPU)
        assert torch._inductor.config.cpp.cxx == (None, found)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"):
        check_compiler(Compile(), CPU)
    check_compiler(Compile(backend="eager"), CPU)


def test_more_ranks_than_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _index: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert find_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")  # rank 0 has a device, and leaves with the others all the same
    with pytest.raises(ConfigError, match="NGPU or --nproc_per_node = 3: above the number of accelerators here, 2"):
        find_device()


def test_paths_are_checked_before_there_are_other_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def too_late(*_arguments: Any) -> None:
        pytest.fail("joined the other ranks first")

    monkeypatch.setattr("titan_pt.distributed.world.start_world", too_late)
    config = load_config(['--data.sources=[{name="mine", path="none-*.txt"}]', f"--job.dump_folder={tmp_path / 'run'}"])
    with pytest.raises(ConfigError, match=r"data source 'mine': .* matches no file"):
        run(config, 0.0)
    assert not (tmp_path / "run").exists()


def test_the_collector_runs_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    collections: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda generation: collections.append(generation) or 0)
    with GarbageCollection(Training(gc_freq=3)) as garbage:
        assert not gc.isenabled()
        for step in range(1, 8):
            garbage.step(step)
    assert gc.isenabled() and collections == [2, 1, 1]


def test_traces_and_determinism_of_a_short_run(tmp_path: Path) -> None:
    flags = {
        "job.dump_folder": tmp_path,
        "model.num_layers": 1,
        "model.hidden_size": 32,
        "model.intermediate_size": 32,
        "training.seq_len": 32,
        "training.local_batch_size": 2,
        "training.steps": 4,
        "checkpoint.enable": "false",
        "profiling.enable_profiling": "true",
        "profiling.profile_freq": 2,
        "profiling.profiler_warmup": 1,
        "debug.deterministic": "true",
    }
    trainer = build_trainer(load_config([SOURCE, *(f"--{name}={value}" for name, value in flags.items())]))
    try:
        assert torch.are_deterministic_algorithms_enabled()
        trainer.load()
        trainer.train()
    finally:
        torch.use_deterministic_algorithms(False)
        trainer.close()
        stop_world()
    traces = sorted(path.parent.name for path in tmp_path.glob("profile_traces/*/rank0_trace.json"))
    assert traces == ["iteration_2", "iteration_4"]
    trace = json.loads((tmp_path / "profile_traces" / "iteration_2" / "rank0_trace.json").read_text())
    assert any("aten::" in event.get("name", "") for event in trace["traceEvents"])


LAUNCHER = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, r"^WORLD_SIZE = '2' in the environment, without RANK, MASTER_ADDR, MASTER_PORT: start"),
        ({"RANK": "0"}, r"^RANK = '0' in the environment, without WORLD_SIZE, MASTER_ADDR, MASTER_PORT: start"),
        ({"RANK": ""}, r"^RANK in the environment, without RANK, WORLD_SIZE"),
        ({**LAUNCHER, "MASTER_ADDR": ""}, r"without MASTER_ADDR: .*unset what is left over$"),
        ({**LAUNCHER, "WORLD_SIZE": "two"}, r"^WORLD_SIZE = 'two' in the environment: must be a number"),
        ({**LAUNCHER, "RANK": "-1"}, r"^RANK = '-1' in the environment: must be a number"),
        ({**LAUNCHER, "MASTER_PORT": "99999"}, r"^MASTER_PORT = '99999' in the environment: must be a number"),
        ({**LAUNCHER, "RANK": "2"}, r"^RANK = '2' in the environment: must be below WORLD_SIZE = '2'"),
    ],
)
def test_variables_of_a_launcher_that_were_left(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        world_size()


def test_variables_that_say_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    for size in ("", "1"):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert world_size() == 1


def test_a_port_in_use_and_ranks_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = str(used.getsockname()[1])
        for name, value in {**LAUNCHER, "RANK": "0", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(CannotStart, match=rf"MASTER_PORT = {port}: another process uses MASTER_PORT; take another"):
            start_world(JobConfig(comm=Comm(init_timeout_seconds=1.0)), Path())
        with lone_world() as world:
            assert world.size == 1, "a tool is alone whatever was left"
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(CannotStart, match=r"MASTER_ADDR = 127\.0\.0\.1, .*: the ranks did not meet in time; see that"):
        start_world(JobConfig(comm=Comm(init_timeout_seconds=1.0)), Path())
