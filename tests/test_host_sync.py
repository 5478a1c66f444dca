"""Between two log lines a training step never waits for the device, and after the first ones nothing is compiled."""

import contextlib
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import torch
from helpers import ROOT
from torch._dynamo.utils import counters
from torch.nn.attention.varlen import varlen_attn
from waits import CountWaits

from titan_pt.config import load_config
from titan_pt.distributed.world import stop_world
from titan_pt.generation.native import STRIDE, NativeEngine
from titan_pt.generation.sampling import Sampling
from titan_pt.models.transformer import Transformer, TransformerArgs
from titan_pt.train import build_trainer

SMALL = """
job = {{dump_folder = "{folder}", trainer = "{trainer}"}}
model = {{num_layers = 2, hidden_size = 64, intermediate_size = 96, head_dim = 32, num_heads = 2, num_kv_heads = 1}}
metrics.log_freq = 1000
validation = {{enable = {validates}, freq = 2, steps = 1}}
optimizer = {{name = "{optimizer}", implementation = "{implementation}"}}
compile = {{enable = {compiled}, backend = "eager"}}
data.sources = [{{name = "arithmetic"}}]
[training]
steps = 100
seq_len = 64
local_batch_size = 2
global_batch_size = 4
document_mask = {mask}
spike_zscore = 6
"""
CONFIGS = ROOT / "train_configs"
COMPILED = ["--compile.enable=true", "--compile.backend=aot_eager"]
MEDIUM = ["--job.config_file", str(CONFIGS / "medium_3day.toml"), "--training.local_batch_size=2", *COMPILED]


@contextlib.contextmanager
def trainer_of(folder: Path, mask: bool = False, **options: Any) -> Iterator[Any]:
    """A trainer of small steps, each of two micro-batches."""
    options = {"trainer": "pretrain", "implementation": "fused", "optimizer": "AdamW", **options}
    options = {"compiled": False, "validates": False, **options}
    words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in options.items()}
    file = folder / "small.toml"
    file.write_text(SMALL.format(folder=folder / "run", mask=str(mask).lower(), **words))
    trainer = build_trainer(load_config(["--job.config_file", str(file)]))
    try:
        trainer.load()
        yield trainer
    finally:
        trainer.close()
        stop_world()


def count_waits(trainer: Any) -> CountWaits:
    """The waits of two steps; not compiled, which torch does not do in a mode."""
    with stance("force_eager"), CountWaits() as counter:
        # The loss of a whole step runs in the autograd engine's own thread on accelerators; on a CPU in this one.
        for _ in range(2):
            trainer._one_step()
    return counter


@contextlib.contextmanager
def stance(name: str) -> Iterator[None]:
    torch.compiler.set_stance(name)
    try:
        yield
    finally:
        torch.compiler.set_stance("default")


@pytest.mark.parametrize(("trainer", "mask"), [("pretrain", False), ("sft", True)])
def test_a_steady_step_neither_waits_nor_compiles(tmp_path: Path, trainer: str, mask: bool) -> None:
    """Graphs of a block with activation checkpoints, of one without and of the loss; with gradients and without."""
    torch._dynamo.reset()
    counters.clear()
    with trainer_of(tmp_path, trainer=trainer, mask=mask, compiled=True, validates=True) as run:
        for _ in range(2):  # and a validation
            run._one_step()
        graphs = counters["stats"]["unique_graphs"]
        with stance("fail_on_recompile"):
            for _ in range(2):
                run._one_step()
        run._validator = None  # it reads its sums
        counter = count_waits(run)
    assert not counters["graph_break"]
    assert 3 <= graphs == counters["stats"]["unique_graphs"] <= 6
    assert counter.operators > 200, "the mode saw the steps"
    assert not counter.waits


def test_muon_skips_a_bad_step_without_a_wait(tmp_path: Path) -> None:
    with trainer_of(tmp_path, optimizer="Muon") as run:
        run._one_step()  # is logged
        counter = count_waits(run)
    assert counter.operators > 200 and not counter.waits


def test_the_counter_sees_a_wait(tmp_path: Path) -> None:
    """`foreach` reads the flag of a bad step on the host, as its help text says."""
    with trainer_of(tmp_path, implementation="foreach") as run:
        assert count_waits(run).waits["aten._local_scalar_dense.default"] >= 2
    with CountWaits() as counter:
        torch.arange(3)[torch.tensor([True, False, True])]
    assert counter.waits["aten.index.Tensor"] == 1


def test_sampling_waits_once_in_16_tokens_and_compiles_once() -> None:
    """Few graphs serve all numbers of rows and lengths: those of the first two requests."""
    args = TransformerArgs(
        hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=48, vocab_size=40
    )
    model = Transformer(args)
    model.init_weights(0)
    torch._dynamo.reset()
    counters.clear()
    engine = NativeEngine(model, [], compile_backend="eager")
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    engine.generate(prompts, Sampling(max_new_tokens=20), 4)
    engine.generate(prompts, Sampling(max_new_tokens=40), 1)
    tokens = 3 * STRIDE + 2
    with stance("fail_on_recompile"):
        engine.generate(prompts[1:], Sampling(max_new_tokens=50), 3)
    with CountWaits() as counter:
        NativeEngine(model, []).generate(prompts, Sampling(max_new_tokens=tokens), 2)
    assert counter.waits == {"aten._local_scalar_dense.default": -(-(tokens - 1) // STRIDE)}
    assert not counters["graph_break"] and 1 <= counters["stats"]["unique_graphs"] <= 2


@pytest.fixture(scope="module")
def on_fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two steps did on the device without numbers; a step that asked for one would have raised."""
    if torch.version.cuda:
        pytest.skip("needs a torch without CUDA")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    jobs = [
        {"flags": [*MEDIUM, "--model.num_layers=4"]},
        {"flags": [*MEDIUM, "--model.num_layers=4", "--training.document_mask"]},
        {"flags": [*MEDIUM, "--training.document_mask"], "varlen": True},
        *({"flags": ["--job.config_file", str(CONFIGS / f"quickstart_{kind}.toml"), *COMPILED]} for kind in KINDS),
        {"flags": [*MEDIUM, "--model.num_layers=2", "--optimizer.name=Muon", "--optimizer.muon.normuon"]},
    ]
    library = fake_cuda.build(tmp_path_factory.mktemp("device"))
    command = [sys.executable, fake_cuda.__file__, str(library), str(fake_cuda.torch_libraries())]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


KINDS = ("sft", "grpo")
FLEX = ["flex_attention", "flex_attention_backward"]
VARLEN = ["torch_attn._varlen_attn.default", "torch_attn._varlen_attn_backward.default"]


def test_whole_steps_on_cuda_never_wait(on_fake_cuda: list[dict[str, Any]]) -> None:
    """Forward, backward and update of medium, its blocks one graph, with each kernel of attention; SFT's and GRPO's.

    GRPO's is its update and a decoding step; the one wait of its step comes behind them, for its duration. The last
    update is Muon's.
    """
    shares_heads = "enable_gqa" in inspect.signature(varlen_attn).parameters  # not in every torch
    documents = VARLEN if shares_heads else FLEX
    for found, attention in zip(on_fake_cuda, ([], FLEX, documents, FLEX, FLEX, []), strict=True):
        first, second = found["graphs"]
        assert 2 <= first == second <= 4, "nothing is compiled anew in the second step"
        assert (found["breaks"], found["copies"], found["attention"]) == ({}, {}, attention)
