"""Rotary frequencies for texts longer than those a model was trained on."""

import math

import torch

from titan_pt.models.transformer.args import TransformerArgs


def scale_frequencies(frequencies: torch.Tensor, args: TransformerArgs) -> torch.Tensor:
    """Scale rotary frequencies for longer texts as Llama 3.1 does; unchanged for a model without scaling.

    Wavelengths that turn less than rope_low_freq_factor times in rope_original_seq_len positions are stretched by
    rope_scaling_factor, those that turn more than rope_high_freq_factor times are kept, and between the two a
    frequency is the mean of both, weighted by its turns (apply_scaling of Llama 3.1's reference code).
    """
    factor, length = args.rope_scaling_factor, args.rope_original_seq_len
    low, high = args.rope_low_freq_factor, args.rope_high_freq_factor
    if factor is None or length is None or low is None or high is None:
        return frequencies
    turns = length * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return kept * frequencies + (1.0 - kept) * frequencies / factor
