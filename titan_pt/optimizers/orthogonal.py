"""Orthogonalisation of matrices by a Newton-Schulz iteration, many of one shape at a time.

Of a matrix U S V^T it finds about U V^T: each iteration applies an odd polynomial a s + b s^3 + c s^5 to the singular
values s by three matrix products.
"""

from collections.abc import Sequence

import torch

Coefficients = tuple[float, float, float]

# Muon's own (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): steepest at 0, ends within 0.7 to 1.2.
_QUINTIC: Coefficients = (3.4445, -4.7750, 2.0315)

# The best polynomial for each iteration, of Algorithm 1 of "The Polar Express" (2505.16932); the last one repeats.
_POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
# Room for rounding in bfloat16, of the same algorithm.
_SAFETY = 1.01


def product_type(device: torch.device, dtype: torch.dtype, compute_type: torch.dtype) -> torch.dtype:
    """The type to orthogonalise in: bfloat16 on CUDA and where the model computes in it, else `dtype`.

    Args:
        dtype: of the matrices.
        compute_type: training.mixed_precision_param, since many CPUs are slow in bfloat16.
    """
    return torch.bfloat16 if device.type == "cuda" or compute_type == torch.bfloat16 else dtype


def iterations(coefficients: str, steps: int) -> list[Coefficients]:
    """The polynomial of each iteration for `optimizer.muon.coefficients`."""
    if coefficients == "quintic":
        return [_QUINTIC] * steps
    *first, last = _POLAR_EXPRESS
    first = [_stretched(polynomial, _SAFETY) for polynomial in first]
    first[0] = _stretched(first[0], _SAFETY)  # of the matrix, which is divided by so much more than its norm
    return [*first, *[last] * steps][:steps]


def orthogonalize(batch_NRC: torch.Tensor, polynomials: Sequence[Coefficients], eps: float = 1e-7) -> torch.Tensor:
    """About the nearest matrices with orthonormal rows or columns, in the type of the input."""
    is_tall = batch_NRC.shape[1] > batch_NRC.shape[2]
    x = batch_NRC.mT if is_tall else batch_NRC  # the products are of the smaller side
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_(min=eps)
    for a, b, c in polynomials:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _stretched(polynomial: Coefficients, factor: float) -> Coefficients:
    """The polynomial of s / factor."""
    a, b, c = polynomial
    return a / factor, b / factor**3, c / factor**5
