"""Out of memory: which errors are, and what is said of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import train_here, write_toml

from titan_pt.protocols.context import StepMetrics
from titan_pt.run.out_of_memory import is_out_of_memory
from titan_pt.trainers import pretrain


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 bytes"), True),
        (RuntimeError("shape mismatch"), False),
        (OSError(12, "Cannot allocate memory"), False),
    ],
)
def test_allocators_errors_are_known(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_the_last_line_says_what_was_held_and_what_lowers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = pretrain.forward

    def full(*arguments: Any) -> StepMetrics:
        forward(*arguments)
        torch.empty(2**50)
        raise AssertionError("more memory than any machine has")

    monkeypatch.setattr(pretrain, "forward", full)
    assert train_here(write_toml(tmp_path)) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("failed: RuntimeError: out of memory; this rank held parameters 0.4 MiB, the rest")
    assert "training.local_batch_size = 2; activation_checkpoint.mode" in last and "training.seq_len = 64" in last
