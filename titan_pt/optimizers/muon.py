"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for matrices, AdamW for all else.

torch.optim.Muon takes matrices alone, one at a time, always in bfloat16, and knows neither shards nor the flag of a bad
step. Momentum, polynomial and factors of the rate here are its own.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from titan_pt.config.schema.muon import MuonOptimizer
from titan_pt.optimizers import orthogonal
from titan_pt.optimizers.whole_matrices import change_whole, local, num_ranks, sum_over_shards

# Values of whole matrices that a rank has in work at a time.
_AT_ONCE = 2**26
_EPS = 1e-8


class Muon(torch.optim.Optimizer):
    """Groups with "muon" are updated by Muon, the others by AdamW.

    Args:
        groups: parameter groups with all that their algorithm needs, see `build_muon`.
        implementation: of AdamW, see `optimizer.implementation`. With "fused" a bad step, whose flag is the attribute
            `found_inf`, is skipped on the device.
        compute_type: of the model, see `orthogonal.product_type`.
    """

    found_inf: torch.Tensor | None = None

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        implementation: str = "fused",
        compute_type: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "muon": False, "fused": implementation == "fused"})
        self._foreach, self._compute_type = implementation == "foreach", compute_type
        self._step_supports_amp_scaling = implementation == "fused"

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        turn = 0  # whose the next matrix is
        for group in self.param_groups:
            held = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not group["muon"]:
                self._step_adamw(group, held)
                continue
            for matrices in _rounds(held):
                self._step_muon(group, matrices, turn)
                turn += len(matrices)

    def _step_adamw(self, group: dict[str, Any], held: list[torch.Tensor]) -> None:
        for parameter in held:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device if group["fused"] else "cpu"),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in held]
        adamw(
            held,
            [parameter.grad for parameter in held if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=self._foreach,
            fused=group["fused"],
            found_inf=self.found_inf if group["fused"] else None,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _step_muon(self, group: dict[str, Any], matrices: list[torch.Tensor], turn: int) -> None:
        """Update matrices of one shape."""
        bad, like = self.found_inf if group["fused"] else None, matrices[0]
        grads, averages = [local(matrix.grad) for matrix in matrices], [self._average(matrix) for matrix in matrices]
        if bad is not None:  # an average moves to itself by nothing, to the bit
            grads = [torch.where(bad > 0, old, new) for old, new in zip(averages, grads, strict=True)]
        torch._foreach_lerp_(averages, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, averages, group["momentum"]) if group["nesterov"] else averages
        updates_NRC = self._orthogonal(group, like, torch.stack(list(ahead)), turn)
        if group["normuon_beta2"] is not None:
            self._even_rows(group, matrices, updates_NRC, bad)
        applied = 1.0 if bad is None else 1.0 - (bad > 0).to(torch.float32)
        updates_NRC.mul_(-group["lr"] * _factor(group["adjust_lr"], like) * applied)
        shards = [local(matrix) for matrix in matrices]
        weights_NRC = torch.stack(shards)
        if group["cautious"]:  # cautious weight decay (2510.12402): of what the update makes smaller too
            weights_NRC *= weights_NRC * updates_NRC <= 0
        updates_NRC -= weights_NRC * (group["lr"] * group["weight_decay"] * applied)
        torch._foreach_add_(shards, list(updates_NRC.unbind()))

    def _average(self, matrix: torch.Tensor) -> torch.Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return local(state["momentum_buffer"])

    def _orthogonal(
        self, group: dict[str, Any], like: torch.Tensor, shards_NRC: torch.Tensor, turn: int
    ) -> torch.Tensor:
        """This rank's rows of the orthogonalised matrices, in their own type and place."""
        # With CPU offload the shards are on the CPU, and the mesh is not.
        device = torch.device(like.device_mesh.device_type if isinstance(like, DTensor) else like.device.type)
        polynomials = orthogonal.iterations(group["coefficients"], group["ns_steps"])
        found = change_whole(
            like,
            shards_NRC.to(device, orthogonal.product_type(device, shards_NRC.dtype, self._compute_type)),
            lambda batch_NRC: orthogonal.orthogonalize(batch_NRC, polynomials),
            turn % num_ranks(like),
        )
        return found.to(shards_NRC)

    def _even_rows(
        self, group: dict[str, Any], matrices: list[torch.Tensor], updates_NRC: torch.Tensor, bad: torch.Tensor | None
    ) -> None:
        """NorMuon (2510.05491, algorithm 1): divide each row by the root of its mean square over the steps, in place.

        The norm of the whole is kept; of an orthogonal matrix it is the root of its smaller side, which the paper's
        factor of the rate assumes.
        """
        squares_NR = updates_NRC.square().mean(dim=2)
        means = [self._row_squares(matrix) for matrix in matrices]
        for mean_R1, now_R in zip(means, squares_NR, strict=True):
            now_R1 = now_R[:, None]
            mean_R1.lerp_(now_R1 if bad is None else torch.where(bad > 0, mean_R1, now_R1), 1 - group["normuon_beta2"])
        divisors_NR1 = torch.stack(means).sqrt_().add_(_EPS)
        norms_2N = torch.stack([squares_NR.sum(dim=1), (squares_NR / divisors_NR1[..., 0].square()).sum(dim=1)])
        before_N, after_N = sum_over_shards(matrices[0], norms_2N).sqrt_()
        updates_NRC.div_(divisors_NR1).mul_((before_N / after_N.clamp(min=_EPS))[:, None, None])

    def _row_squares(self, matrix: torch.Tensor) -> torch.Tensor:
        state = self.state[matrix]
        if "row_squares" not in state:
            shard = local(matrix.grad)
            zeros = shard.new_zeros(len(shard), 1)
            state["row_squares"] = zeros
            if isinstance(matrix, DTensor):
                state["row_squares"] = DTensor.from_local(
                    zeros,
                    matrix.device_mesh,
                    matrix.placements,
                    run_check=False,
                    shape=torch.Size([matrix.shape[0], 1]),
                    stride=(1, 1),
                )
        return local(state["row_squares"])


def build_muon(model: nn.Module, options: MuonOptimizer, compute_type: str = "float32") -> Muon:
    """The optimizer of `[optimizer]` for a model, whose `output_weight` is its output layer.

    Args:
        compute_type: training.mixed_precision_param.
    """
    own = options.muon
    groups: dict[str, list[torch.Tensor]] = {"matrices": [], "embeddings": [], "output": [], "others": []}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    output = id(getattr(model, "output_weight", None))
    for parameter in filter(lambda each: each.requires_grad, model.parameters()):
        kind = "matrices" if parameter.ndim == 2 else "others"
        kind = "output" if id(parameter) == output else kind
        groups["embeddings" if id(parameter) in embeddings else kind].append(parameter)
    decay = options.weight_decay
    rates = {
        "matrices": (own.lr, decay if own.weight_decay is None else own.weight_decay),
        "embeddings": (own.embedding_lr, own.embedding_weight_decay),
        "output": (own.output_lr, decay if own.output_weight_decay is None else own.output_weight_decay),
        "others": (own.other_lr, own.other_weight_decay),
    }
    muon = {
        "muon": True,
        **own.model_dump(include={"adjust_lr", "momentum", "nesterov", "coefficients", "ns_steps"}),
        "normuon_beta2": own.normuon_beta2 if own.normuon else None,
        "cautious": own.cautious_weight_decay,
    }
    adam = {"betas": (options.beta1, options.beta2), "eps": options.eps}
    return Muon(
        [
            {"name": name, "params": groups[name], "lr": lr or options.lr, "weight_decay": weight_decay}
            | (muon if name == "matrices" else adam)
            for name, (lr, weight_decay) in rates.items()
            if groups[name]
        ],
        lr=options.lr,
        implementation=options.implementation,
        compute_type=getattr(torch, compute_type),
    )


def _rounds(held: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Matrices of equal shape, as many as the ranks may have in work at a time."""
    by_shape: dict[torch.Size, list[torch.Tensor]] = {}
    for matrix in held:
        by_shape.setdefault(matrix.shape, []).append(matrix)
    for matrices in by_shape.values():
        size = num_ranks(matrices[0]) * max(1, _AT_ONCE // matrices[0].numel())
        yield from (matrices[first : first + size] for first in range(0, len(matrices), size))


def _factor(adjust_lr: str, matrix: torch.Tensor) -> float:
    """Of the rate: "original" of the post, "match_rms_adamw" of "Muon is Scalable for LLM Training" (2502.16982)."""
    rows, columns = matrix.shape
    return max(1.0, rows / columns) ** 0.5 if adjust_lr == "original" else 0.2 * max(rows, columns) ** 0.5
