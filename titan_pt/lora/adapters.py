"""The adapters of a model: W x + alpha / rank B A dropout(x) with W frozen (LoRA, 2106.09685), in its linear layers.

W is held in the type of the computation, A and B in float32, in which the optimizer works; they are used in the type of
the computation, as all weights are. A begins as in PEFT, uniform in +-1 / sqrt(inputs), and B at zero.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from titan_pt.config.errors import ConfigError, nearest, one_of
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.config.schema.lora import ALL_LINEAR, Lora
from titan_pt.distributed.init import copy_full, keyed_generator, parameter_name, whole
from titan_pt.models.transformer.dropout import Dropout, dropout_of
from titan_pt.models.transformer.model import Linear

_OWN_NOISE = 0x10A4  # else the masks would be those of model.dropout
_PART = ".lora_"


class Adapted(nn.Linear):
    """What an adapter adds to the class of a linear layer."""

    lora_A: Linear
    lora_B: Linear
    scaling: float
    adapter_is_on = True
    drop: Dropout | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        if not self.adapter_is_on:
            return out
        seen = self.drop(x) if self.drop and self.training else x
        return out + self.scaling * self.lora_B(self.lora_A(seen))


class Adapters:
    """The adapters of a model by their layers' names: `model.state_dict()` holds nothing else."""

    def __init__(self, model: nn.Module, modules: dict[str, Adapted], options: Lora) -> None:
        self._model, self.modules, self._options = model, modules, options
        self.base: dict[str, Any] = {}
        """Place and fingerprint of the frozen weights, as JSON; empty before they are loaded."""
        self.holds_base = False
        """Whether the state of the model is that of the frozen weights, as while these are loaded."""
        model.register_state_dict_post_hook(functools.partial(Adapters._keep_state, self))
        if options.dropout:
            model.register_forward_pre_hook(self._key_dropout)

    def document(self) -> dict[str, Any]:
        """What a checkpoint says of them, as JSON."""
        shape = {"rank": self._options.rank, "alpha": self._options.alpha, "target_modules": sorted(self.modules)}
        return {**shape, "base": self.base}

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """In this context the model computes with the frozen weights alone."""
        for module in self.modules.values():
            module.adapter_is_on = False
        try:
            yield
        finally:
            for module in self.modules.values():
                module.adapter_is_on = True

    @torch.no_grad()
    def merged(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, whole weight with its adapter in it) of each frozen weight. A collective."""
        # FSDP2 leaves modules gathered after a forward, in the compute type; reading the state shards them again.
        self._model.state_dict(keep_vars=True)
        for raw_name, parameter in self._model.named_parameters():
            name = parameter_name(raw_name)
            if _PART in name:
                continue
            full, module = whole(parameter), self.modules.get(name.removesuffix(".weight"))
            if module:
                full = with_product(full, whole(module.lora_A.weight), whole(module.lora_B.weight), module.scaling)
            yield name, full

    @torch.no_grad()
    def init(self, init_base: Callable[[int], None], seed: int) -> None:
        """Fill the model's own parameters and buffers, then A and B by (seed, name)."""
        init_base(seed)
        for name, module in self.modules.items():
            full, bound = torch.empty(module.lora_A.weight.shape), module.lora_A.in_features**-0.5
            full.uniform_(-bound, bound, generator=keyed_generator(seed, f"{name}.lora_A.weight"))
            copy_full(module.lora_A.weight, full)
            nn.init.zeros_(module.lora_B.weight)

    def _keep_state(self, _model: nn.Module, state: dict[str, Any], *_: Any) -> None:
        for name in [name for name in state if (_PART in name) == self.holds_base]:
            del state[name]

    def _key_dropout(self, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seed, step = getattr(model, "noise", (0, 0))
        drop = dropout_of(inputs[0], self._options.dropout, seed ^ _OWN_NOISE, step)
        for number, module in enumerate(self.modules.values(), 1):
            module.drop = drop.layer(number)


def add_adapters(model: nn.Module, config: JobConfig, options: Lora) -> None:
    """Freeze a model on the meta device and give its layers adapters; `model.adapters` are these.

    Raises:
        ConfigError: a name of lora.target_modules is none of its linear layers.
    """
    modules = _targets(model, options.target_modules)
    for parameter in model.requires_grad_(False).parameters():
        parameter.data = parameter.data.to(getattr(torch, config.training.mixed_precision_param))
    for layer in modules.values():
        layer.__class__ = type(f"Adapted{type(layer).__name__}", (Adapted, type(layer)), {})
        layer.scaling = options.alpha / options.rank
        with torch.device("meta"):
            layer.lora_A = Linear(layer.in_features, options.rank)
            layer.lora_B = Linear(options.rank, layer.out_features)
    found: Any = model
    found.adapters = Adapters(model, modules, options)
    found.init_weights = functools.partial(found.adapters.init, found.init_weights)


def _targets(model: nn.Module, names: list[str]) -> dict[str, Any]:
    output = getattr(model, "lm_head", None)  # the loss takes its weight and no output of it
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not output}
    if names == [ALL_LINEAR]:
        return linears
    ends = {name: [n for n in linears if f".{n}".endswith(f".{name.removeprefix('model.')}")] for name in names}
    for name, found in ends.items():
        if not found:
            known = list(dict.fromkeys(n.rpartition(".")[2] for n in linears))
            raise ConfigError(
                f"lora.target_modules: {name!r} is no linear layer of the model; known are {one_of(known)}, each in a "
                f"layer too: such as {next(iter(linears), 'none')!r}{nearest(name, [*known, *linears])}"
            )
    chosen = {n for found in ends.values() for n in found}
    return {name: module for name, module in linears.items() if name in chosen}


def with_product(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """W + scaling B A, in the widest of their types."""
    return weight.to(torch.promote_types(weight.dtype, a.dtype)) + scaling * (b @ a)


class WithoutAdapters(nn.Module):
    """The frozen model of a policy with adapters, for a reference that takes no memory."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self._policy = [policy]  # no module of this one
        self.args = getattr(policy, "args", None)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        adapters: Any = self._policy[0].adapters
        with adapters.off():
            return self._policy[0](*inputs, **options)
