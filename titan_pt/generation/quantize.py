"""Quantization of weights to 8 or 4 bits for generation and evaluation (torchao)."""

from typing import Literal

import torch
from torch import nn

from titan_pt.config.errors import ConfigError
from titan_pt.models.transformer.model import Transformer

Quantization = Literal["int8", "int4"]

# Weights of a row that share a scale in int4; torch's kernel knows 32, 64, 128 and 256.
_INT4_GROUP = 32


def quantize_weights(model: Transformer, kind: Quantization) -> None:
    """Quantize the weights of all blocks in place; activations keep their type.

    int8 has one scale for each output of a layer, int4 one for every 32 inputs of it. The embedding is a table, and the
    output layer is computed in float32 (`decode.OutputLayer`): both keep their type.

    Raises:
        ConfigError: int4 without CUDA, in another type than bfloat16, or with layers that it cannot hold.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    if kind == "int4":
        _check_int4(model)
    config = Int8WeightOnlyConfig(set_inductor_config=False) if kind == "int8" else _int4_config()
    quantize_(model.layers, config, lambda module, _name: isinstance(module, nn.Linear))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters."""
    return sum(_bytes(parameter) for parameter in model.parameters())


def _check_int4(model: Transformer) -> None:
    weight = model.output_weight
    if weight.device.type != "cuda":
        raise ConfigError(f"--quantize int4: its kernels need CUDA, and this is {weight.device.type}; int8 runs here")
    if weight.dtype != torch.bfloat16:
        raise ConfigError(f"--quantize int4: needs --dtype bfloat16, not {str(weight.dtype).removeprefix('torch.')}")
    for name, module in model.layers.named_modules():
        if isinstance(module, nn.Linear) and module.in_features % _INT4_GROUP:
            raise ConfigError(
                f"--quantize int4: layer {name} has {module.in_features} inputs, not a multiple of {_INT4_GROUP}; "
                "int8 takes any number"
            )


def _int4_config() -> "object":
    from torchao.quantization import Int4WeightOnlyConfig

    # The kernel of this packing is part of torch; the others need another package.
    return Int4WeightOnlyConfig(
        group_size=_INT4_GROUP, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
    )


def _bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, or of the tensors that a quantized one consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    names, _ = tensor.__tensor_flatten__()
    return sum(_bytes(getattr(tensor, name)) for name in names)
