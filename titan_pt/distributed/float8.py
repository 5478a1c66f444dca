"""Linear layers whose products are computed in 8-bit floating point (torchao), as `[quantize.linear.float8]` says."""

import dataclasses
import logging
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torchao.float8 import Float8LinearConfig, convert_to_float8_training, precompute_float8_dynamic_scale_for_fsdp
from torchao.float8.float8_linear import Float8Linear
from torchao.float8.fsdp_utils import WeightWithDynamicFloat8CastTensor

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Float8, JobConfig
from titan_pt.distributed.world import World

logger = logging.getLogger("titan_pt")

_TABLE = "quantize.linear.float8"
# The first with products of 8-bit floats: NVIDIA's Ada and Hopper (H100).
_CAPABILITY = (8, 9)
_MULTIPLE = 16  # of both sizes of a matrix, for the kernels


def convert_blocks(model: nn.Module, config: JobConfig, world: World) -> None:
    """Let the linear layers of the blocks compute in float8, in place; embedding and output layer stay.

    Before the model is compiled or sharded. Names, shapes and types of the parameters stay as they are.

    Raises:
        ConfigError: the device has no such products, or the options do not go together.
    """
    options = config.quantize.linear.float8 or Float8()
    check_float8(config, world.device)
    if config.training.mixed_precision_param != "bfloat16" and not options.emulate:
        logger.warning(f"{_TABLE}: what is not computed in float8 is in float32; bfloat16 is faster")
    if options.recipe_name == "rowwise":
        import torch._inductor.config

        # Compiled, the scales would be those of numbers that were never rounded to bfloat16 (pytorch#150859).
        torch._inductor.config.emulate_precision_casts = True
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = {name for name, module in linear.items() if _is_chosen(name, module, options)}
    if not chosen:
        raise ConfigError(
            f"{_TABLE}.filter_fqns = {options.filter_fqns}: leaves no layer to convert; the layers are such as "
            f"{next(iter(linear), 'none')}, and both sizes of one must be multiples of {_MULTIPLE}"
        )
    gathers = options.enable_fsdp_float8_all_gather and world.size > 1
    if options.enable_fsdp_float8_all_gather and not gathers:
        logger.warning(f"{_TABLE}.enable_fsdp_float8_all_gather has no effect: one rank gathers nothing")
    convert_to_float8_training(
        model, config=_torchao_config(options, gathers), module_filter_fn=lambda _module, name: name in chosen
    )
    for module in model.modules():
        if gathers and isinstance(module, Float8Linear):
            module.register_state_dict_post_hook(_plain_weight)
    if gathers and options.precompute_float8_dynamic_scale_for_fsdp:
        _reduce_scales_at_once(model)
    logger.info(f"{_TABLE}: {len(chosen)} of {len(linear)} linear layers compute in float8")


def check_float8(config: JobConfig, device: torch.device) -> None:
    """Check that the device has float8 products, and that the options go together.

    Raises:
        ConfigError: they do not.
    """
    options = config.quantize.linear.float8 or Float8()
    compiles = config.compile.is_on(device.type) and "model" in config.compile.components
    if options.emulate:
        if compiles:
            raise ConfigError(f"{_TABLE}.emulate = true: cannot be compiled; set compile.enable = false")
    elif _capability(device) < _CAPABILITY:
        raise ConfigError(
            f"[{_TABLE}]: {_described(device)} has no products of 8-bit floats; they need an H100 or later (compute "
            f"capability {_CAPABILITY[0]}.{_CAPABILITY[1]}); set model.converters = [], or to try it here, slowly, set "
            f"{_TABLE}.emulate = true"
        )
    elif not compiles:
        logger.warning(f"[{_TABLE}] without compile.enable is slower than bfloat16: nothing joins casts and products")
    if options.enable_fsdp_float8_all_gather and options.recipe_name not in (None, "tensorwise"):
        raise ConfigError(
            f'{_TABLE}.enable_fsdp_float8_all_gather = true: needs recipe_name = "tensorwise", not '
            f'"{options.recipe_name}"; a rank knows no scale of rows that others hold'
        )
    if options.precompute_float8_dynamic_scale_for_fsdp and not options.enable_fsdp_float8_all_gather:
        raise ConfigError(
            f"{_TABLE}.precompute_float8_dynamic_scale_for_fsdp = true: needs enable_fsdp_float8_all_gather = true"
        )


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def _described(device: torch.device) -> str:
    if device.type != "cuda":
        return f"a {device.type} device"
    major, minor = _capability(device)
    return f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"


def _is_chosen(name: str, module: nn.Linear, options: Float8) -> bool:
    """Whether a layer is one of a block's, of a size that the kernels take, and not left out."""
    sizes = (module.in_features, module.out_features)
    return (
        name.startswith("layers.")
        and all(size % _MULTIPLE == 0 for size in sizes)
        and not any(part in name for part in options.filter_fqns)
    )


def _torchao_config(options: Float8, gathers: bool) -> Float8LinearConfig:
    recipe = Float8LinearConfig.from_recipe_name(options.recipe_name or "tensorwise")
    return dataclasses.replace(recipe, enable_fsdp_float8_all_gather=gathers, emulate=options.emulate)


def _plain_weight(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Put the weight's own numbers, without torchao's class for the gather, into a state that is saved or loaded."""
    name = f"{prefix}weight"
    weight = state[name]
    if isinstance(weight, DTensor) and isinstance(local := weight.to_local(), WeightWithDynamicFloat8CastTensor):
        state[name] = DTensor.from_local(
            local._tensor,
            weight.device_mesh,
            weight.placements,
            run_check=False,
            shape=weight.shape,
            stride=weight.stride(),
        )


def _reduce_scales_at_once(model: nn.Module) -> None:
    """Compute the scales of all weights by one reduction, in the first forward after an update."""

    def before_forward(*_arguments: Any) -> None:
        if all(parameter.grad is None for parameter in model.parameters()):  # else the weights are those of before
            precompute_float8_dynamic_scale_for_fsdp(model)

    model.register_forward_pre_hook(before_forward)
