"""Advantages of groups of samples.

Legend: P prompts, G samples per prompt.
"""

import torch

SCALES = ("group", "batch", "none")
EPSILON = 1e-6  # added to the standard deviation, as verl and torchtitan do; TRL adds 1e-4


def group_advantages(rewards_PG: torch.Tensor, scale: str = "group") -> torch.Tensor:
    """The advantage of each sample: its reward relative to the mean of its group.

    - `group`: (R - mean_G) / (std_G + 1e-6). GRPO, DeepSeekMath, arXiv 2402.03300, section 4.1.2.
    - `batch`: (R - mean_G) / (std_PG + 1e-6), the deviation of all rewards. Lite PPO, arXiv 2508.08221.
    - `none`: R - mean_G. Dr. GRPO, arXiv 2503.20783.

    Standard deviations are Bessel's (divided by n - 1), as in TRL and verl. A group whose rewards are all the same
    gets exact zeros, not rounding errors divided by 1e-6.

    Args:
        rewards_PG: rewards of any number type. For `batch`: those of the GLOBAL batch, from all ranks, because the
            deviation of a part is another number.
        scale: "group", "batch" or "none".

    Returns:
        advantages_PG without gradient: float64 for float64 rewards, else float32.

    Raises:
        ValueError: an unknown scale, a shape that is not (P, G), fewer than two samples per prompt, or a reward that
            is not finite (its position is named).
    """
    if scale not in SCALES:
        raise ValueError(f"scale = {scale!r}: allowed are {', '.join(SCALES)}")
    if rewards_PG.ndim != 2:
        raise ValueError(f"rewards_PG has shape {tuple(rewards_PG.shape)}: want (prompts, samples per prompt)")
    if rewards_PG.shape[1] < 2:
        raise ValueError(
            f"rewards_PG has {rewards_PG.shape[1]} samples per prompt: a group needs at least 2, the mean of one is "
            "itself; raise rollout.num_samples"
        )
    # Rewards are few: in float64 the mean of equal large rewards does not drown the differences.
    wide_PG = rewards_PG.detach().to(torch.float64)
    _check_finite(wide_PG)
    centred_PG = wide_PG - wide_PG.mean(dim=1, keepdim=True)
    same_P1 = (wide_PG == wide_PG[:, :1]).all(dim=1, keepdim=True)
    centred_PG = torch.where(same_P1, 0.0, centred_PG)
    if len(wide_PG) and scale == "group":
        centred_PG = centred_PG / (wide_PG.std(dim=1, keepdim=True) + EPSILON)
    elif len(wide_PG) and scale == "batch":
        centred_PG = centred_PG / (wide_PG.std() + EPSILON)
    return centred_PG.to(torch.float64 if rewards_PG.dtype == torch.float64 else torch.float32)


def _check_finite(rewards_PG: torch.Tensor) -> None:
    wrong = (~rewards_PG.isfinite()).nonzero()
    if len(wrong):
        prompt, sample = wrong[0].tolist()
        raise ValueError(
            f"rewards_PG[{prompt}, {sample}] = {rewards_PG[prompt, sample].item()}: want finite rewards "
            f"({len(wrong)} of {rewards_PG.numel()} are not)"
        )
