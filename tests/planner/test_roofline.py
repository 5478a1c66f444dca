"""A step's time by the rates of a card: each kernel by its operations or its bytes."""

import pytest
import torch

from titan_pt.components.accelerators import find_accelerator
from titan_pt.planner.operations import Kernel, Operations
from titan_pt.planner.roofline import LAUNCH_SECONDS, data_sheet, known_rates, step_time

A100, L4 = find_accelerator("a100"), find_accelerator("l4")
BF16, FLOAT32 = torch.bfloat16, torch.float32
RATES = known_rates(A100)
assert RATES
LARGE = Kernel("product", BF16, (4000, 4096, 5000), 2 * 4000 * 4096 * 5000, 100)
SMALL = Kernel("product", BF16, (1024, 1024, 32768), 2 * 1024 * 1024 * 32768, 100)


def work(**changes: object) -> Operations:
    return Operations(**{"flops": 0, "moved_bytes": 0, "update_bytes": 0, **changes})  # type: ignore[arg-type]


def test_products_take_the_rate_of_the_nearest_shape_and_others_their_bytes() -> None:
    kernels = {LARGE: 3, SMALL: 2, Kernel("product", BF16, (16, 1024, 1024), 10, 10**9): 1}
    found = step_time(work(kernels=kernels, other_bytes=10**9, fused_bytes=10**8), A100, 2, compiled=False)
    large, small = (1e12 * RATES.products[sides] for sides in ((4096, 4096), (1024, 1024)))
    bound = 1 / RATES.copy
    assert found.products == pytest.approx(2 * (3 * LARGE.flops / large + 2 * SMALL.flops / small + bound))
    assert found.other == pytest.approx(2 * bound) and found.launches == 0
    fused = step_time(work(kernels=kernels, other_bytes=10**9, fused_bytes=10**8), A100, 2, compiled=True)
    assert fused.other == pytest.approx(0.2 * bound) and fused.products == found.products


def test_types_and_directions_have_their_own_rates() -> None:
    one = {dtype: Kernel("product", dtype, (4096,) * 3, 10**12, 0) for dtype in (BF16, FLOAT32, torch.float8_e4m3fn)}
    seconds = {dtype: step_time(work(kernels={kernel: 1}), A100, 1, compiled=True) for dtype, kernel in one.items()}
    assert seconds[FLOAT32].products == pytest.approx(seconds[BF16].products * 312 / 19.5)
    assert seconds[torch.float8_e4m3fn].products == pytest.approx(seconds[BF16].products / 2)
    kinds = [Kernel(kind, BF16, (64,), 10**12, 0) for kind in ("attention", "attention_backward")]
    forward, backward = (step_time(work(kernels={kernel: 1}), A100, 1, compiled=True) for kernel in kinds)
    assert forward.attention == pytest.approx(1 / RATES.attention[64][0]) and backward.attention > forward.attention


def test_collectives_hide_behind_the_layers_but_for_the_first_and_last() -> None:
    gathers = {nodes: Kernel("collective", BF16, (8, nodes), 0, 230 * 10**6) for nodes in (1, 8)}
    computing = {LARGE: 100}
    busy = step_time(work(kernels={**computing, gathers[1]: 10}), A100, 1, compiled=True)
    assert busy.communication == pytest.approx(2 * 0.23 / RATES.link)
    slow = step_time(work(kernels={**computing, gathers[8]: 10}), A100, 1, compiled=True)
    assert slow.communication == pytest.approx(10 * 0.23 / RATES.network - slow.products)
    assert step_time(work(kernels=computing), A100, 1, compiled=True).communication == 0
    every, once = (
        step_time(work(kernels={**computing, gathers[8]: 10}), A100, 16, compiled=True, sums_once=sums_once)
        for sums_once in (False, True)
    )
    assert every.communication == pytest.approx(16 * slow.communication) and once.communication == slow.communication


def test_small_kernels_wait_for_the_host() -> None:
    found = step_time(work(kernels={SMALL: 1}, launches=1000, fused_launches=10), A100, 1, compiled=False)
    assert found.total == pytest.approx(1000 * LAUNCH_SECONDS)
    assert step_time(work(kernels={SMALL: 1}, fused_launches=10), A100, 1, compiled=True).launches == 0


def test_a_card_without_rates_is_its_data_sheet() -> None:
    assert known_rates(L4) is None and data_sheet(L4).copy == 300
    found = step_time(work(kernels={LARGE: 1}, update_bytes=3 * 10**9), L4, 1, compiled=True)
    assert found.products == pytest.approx(LARGE.flops / 121e12) and found.update == pytest.approx(0.01)
