"""Spikes of the loss against the same rule in numpy."""

import numpy as np
import pytest
import torch

from titan_pt.components.spikes import LossSpikes
from titan_pt.config.schema.job_config import Training

WINDOW, THRESHOLD = 16, 5.0


def expected_score(window: list[float], loss: float) -> float:
    """Of a loss against those of good steps before it."""
    median = lower_median(np.array(window))
    spread = 1.4826 * lower_median(np.abs(np.array(window) - median))
    return (loss - median) / max(spread, 1e-3 * abs(median))


def lower_median(values: np.ndarray) -> float:
    """Of an even number of values the lower one of the two in the middle, as torch's."""
    return float(np.sort(values)[(len(values) - 1) // 2])


def test_scores_are_those_of_the_rule_and_survive_a_resume() -> None:
    options = Training(spike_zscore=THRESHOLD, spike_window=WINDOW)
    spikes, noise = LossSpikes(options), np.random.default_rng(0)
    window: list[float] = []
    found = []
    for step in range(60):
        loss = float(
            np.float32(4.0 - step / 50 + noise.normal(0, 0.05) + (step in (30, 31, 45)) * 3 - (step == 40) * 3)
        )
        finite = step != 20
        flag = float(spikes.judge(torch.tensor(loss if finite else float("nan")), torch.tensor(0.0 if finite else 1.0)))
        score = expected_score(window[-WINDOW:], loss) if len(window) >= WINDOW // 2 else 0.0
        if not finite:
            assert flag == 1.0
        elif score > THRESHOLD:
            found.append(step)
            assert abs(flag / score - 1) < 1e-3
        else:
            assert flag == 0.0
            window.append(loss)
        if step == 35:
            state, spikes = spikes.state_dict(), LossSpikes(options)
            spikes.load_state_dict(state)
    assert found == [30, 31, 45], "a NaN, two spikes in a row and a low loss do not hide the next spike"
    assert spikes.state_dict()["losses"] == [window[-WINDOW:][(i - len(window)) % WINDOW] for i in range(WINDOW)]


def test_another_window_begins_anew() -> None:
    spikes = LossSpikes(Training(spike_zscore=THRESHOLD, spike_window=WINDOW))
    spikes.load_state_dict({"losses": [1.0] * 8, "count": 9})
    assert spikes.state_dict() == {"losses": [], "count": 0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_judgement_on_cuda_does_not_wait() -> None:
    spikes = LossSpikes(Training(spike_zscore=THRESHOLD, spike_window=WINDOW))
    losses, good = torch.linspace(4.0, 3.9, 12, device="cuda"), torch.zeros((), device="cuda")
    spikes.judge(losses[0], good)  # moves the window
    torch.cuda.set_sync_debug_mode("error")
    try:
        flags = [spikes.judge(loss, good) for loss in (*losses[1:], losses[0] + 5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [float(flag) > 0 for flag in flags] == [False] * 11 + [True]
