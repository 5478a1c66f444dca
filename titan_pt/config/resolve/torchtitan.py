"""TorchTitan's keys that titan_pt has no use for, and names that changed between its versions.

A key of `UNUSED` at its no-op value is dropped with one notice; at another value it is an error with the hint.
"""

from typing import Any, NamedTuple

from titan_pt.config.errors import shown
from titan_pt.config.resolve.layers import Merged, Tables


class Unused(NamedTuple):
    """A key without effect here: its no-op values (None: all of them) and what to do instead."""

    noop: tuple[Any, ...] | None
    hint: str


_ONE_WAY = "titan_pt parallelises over data only (parallelism.data_parallel_shard_degree)"
_NO_QUANTIZE = "titan_pt trains in bfloat16 or float32 (training.mixed_precision_param)"
_NO_FT = "resume from checkpoints instead ([checkpoint])"
_LOADER = "use data.prefetch_steps"
_RESOLVED = "the resolved config is always written to <job.dump_folder>/config.toml"
_INITIAL = "checkpoint.initial_load_path takes titan_pt checkpoints"
_SAVE_WHOLE = "the last step is always saved whole, so that the run can go on"

UNUSED: dict[str, Unused] = {
    "job.save_config_file": Unused(("",), _RESOLVED),
    "job.custom_config_module": Unused(("",), "use experimental.custom_import"),
    "metrics.save_for_all_ranks": Unused((False,), "metrics are global and written once, by rank 0"),
    "metrics.enable_wandb": Unused((False,), "use metrics.enable_tensorboard or metrics.jsonl"),
    "model.converters": Unused(([],), _NO_QUANTIZE),
    "model.print_after_conversion": Unused((False,), _NO_QUANTIZE),
    "optimizer.early_step_in_backward": Unused((False,), "gradients are clipped over the whole model before the step"),
    "parallelism.tensor_parallel_degree": Unused((1,), _ONE_WAY),
    "parallelism.disable_loss_parallel": Unused((False, True), _ONE_WAY),
    "parallelism.enable_async_tensor_parallel": Unused((False,), _ONE_WAY),
    "parallelism.pipeline_parallel_degree": Unused((1,), _ONE_WAY),
    "parallelism.context_parallel_degree": Unused((1,), _ONE_WAY),
    "parallelism.context_parallel_load_balancer": Unused(("headtail",), _ONE_WAY),
    "parallelism.context_parallel_rotate_method": Unused(("allgather", "alltoall"), _ONE_WAY),
    "parallelism.expert_parallel_degree": Unused((1,), _ONE_WAY),
    "parallelism.expert_tensor_parallel_degree": Unused((1,), _ONE_WAY),
    "parallelism.expert_parallel_comm_backend": Unused(("standard",), _ONE_WAY),
    "parallelism.module_fqns_per_model_part": Unused(([],), _ONE_WAY),
    "parallelism.pipeline_parallel_first_stage_less_layers": Unused((1,), _ONE_WAY),
    "parallelism.pipeline_parallel_last_stage_less_layers": Unused((1,), _ONE_WAY),
    "parallelism.pipeline_parallel_layers_per_stage": Unused((), _ONE_WAY),
    "parallelism.pipeline_parallel_schedule": Unused(("1F1B", "Interleaved1F1B"), _ONE_WAY),
    "parallelism.pipeline_parallel_schedule_csv": Unused(("",), _ONE_WAY),
    "parallelism.pipeline_parallel_microbatch_size": Unused((1,), _ONE_WAY),
    "parallelism.pipeline_parallel_expert_parallel_overlap": Unused((True, False), _ONE_WAY),
    "checkpoint.enable_ft_dataloader_checkpoints": Unused((True, False), _NO_FT),
    "checkpoint.initial_load_model_only": Unused((True,), "initial_load_path loads weights; the run folder resumes"),
    "checkpoint.initial_load_in_hf": Unused((False,), _INITIAL),
    "checkpoint.initial_load_in_hf_quantized": Unused((False,), _INITIAL),
    "checkpoint.last_save_model_only": Unused((False,), _SAVE_WHOLE),
    "checkpoint.last_save_in_hf": Unused((False,), _SAVE_WHOLE),
    "checkpoint.export_dtype": Unused(("float32",), _SAVE_WHOLE),
    "checkpoint.create_seed_checkpoint": Unused((False,), "initial weights are the same on any number of ranks"),
    "activation_checkpoint.per_op_sac_force_recompute_mm_shapes_by_fqns": Unused(
        ([], ["moe.router.gate"]), "use activation_checkpoint.selective_ac_option"
    ),
    "activation_checkpoint.early_stop": Unused((False,), "use activation_checkpoint.mode"),
    "activation_checkpoint.memory_budget": Unused((0.5,), "use activation_checkpoint.mode"),
    "activation_checkpoint.visualize_memory_budget_pareto": Unused((False,), "use activation_checkpoint.mode"),
    "activation_checkpoint.preserve_rng_state": Unused((True, False), "the model draws no random numbers"),
    "activation_checkpoint.determinism_check": Unused(("default", "none"), "use debug.deterministic"),
    "activation_checkpoint.debug": Unused((False,), "use activation_checkpoint.mode"),
    "comm.save_traces_file_prefix": Unused(("rank_",), "use comm.save_traces_folder"),
    "experimental.custom_args_module": Unused(("",), "use experimental.custom_import"),
    "debug.moe_force_load_balance": Unused((False,), "the model is dense"),
    "memory_estimation.enable": Unused((False,), "leave it out"),
    "memory_estimation.disable_fake_mode": Unused((False, True), "leave it out"),
    "fault_tolerance.enable": Unused((False,), _NO_FT),
    **{
        f"fault_tolerance.{key}": Unused(None, _NO_FT)
        for key in (
            "process_group",
            "process_group_timeout_ms",
            "replica_id",
            "group_size",
            "min_replica_size",
            "semi_sync_method",
            "sync_steps",
            "should_quantize",
            "fragment_sync_delay",
            "fragment_update_alpha",
        )
    },
    "quantize.linear.float8.enable_fsdp_float8_all_gather": Unused((False,), _NO_QUANTIZE),
    "quantize.linear.float8.precompute_float8_dynamic_scale_for_fsdp": Unused((False,), _NO_QUANTIZE),
    "quantize.linear.float8.emulate": Unused((False,), _NO_QUANTIZE),
    # In TorchTitan these do nothing by themselves: model.converters is the switch.
    **{
        f"quantize.{key}": Unused(None, _NO_QUANTIZE)
        for key in (
            "linear.float8.recipe_name",
            "linear.float8.filter_fqns",
            "linear.mx.mxfp8_dim1_cast_kernel_choice",
            "linear.mx.recipe_name",
            "linear.mx.filter_fqns",
            "grouped_mm.float8.fqns",
            "grouped_mm.mx.recipe_name",
            "grouped_mm.mx.fqns",
        )
    },
    **{
        f"{section}.dataloader.{key}": Unused(noop, _LOADER)
        for section in ("training", "validation")
        for key, noop in {
            "num_workers": (0,),
            "persistent_workers": (False,),
            "pin_memory": (False, True),
            "prefetch_factor": (),
        }.items()
    },
}

# Items of lists that have no effect: the learning rate follows from the step, so that there is no state to leave out.
UNUSED_ITEMS: dict[str, tuple[str, ...]] = {"checkpoint.exclude_from_loading": ("lr_scheduler",)}

# TorchTitan's whole tables; what is left of them without the keys above is an error.
UNUSED_TABLES: dict[str, str] = {
    "training.dataloader": _LOADER,
    "validation.dataloader": _LOADER,
    "quantize": _NO_QUANTIZE,
    "float8": _NO_QUANTIZE,
    "mx": _NO_QUANTIZE,
    "fault_tolerance": _NO_FT,
    "memory_estimation": "leave it out",
}

# TorchTitan's models that are one of titan_pt's.
MODELS: dict[str, str] = {
    "llama3": 'name = "transformer" with qk_norm = false',
    "qwen3": 'name = "transformer"',
}

RENAMED: dict[str, str] = {
    "training.dataset": "[[data.sources]] (name, or path)",
    "training.dataset_path": "[[data.sources]] path",
    "validation.dataset": "[[validation.sources]] (name, or path)",
    "validation.dataset_path": "[[validation.sources]] path",
    "validation.seq_len": "training.seq_len",
    "model.hf_assets_path": "tokenizer.name",
    "model.tokenizer_path": "tokenizer.name",
    "training.compile": "compile.enable",
    "training.seed": "debug.seed",
    "training.deterministic": "debug.deterministic",
    "training.batch_size": "training.local_batch_size",
    "training.num_tokens_per_microbatch_per_dp_rank": "training.local_batch_size (in rows)",
    "training.max_context_length": "training.seq_len",
    "training.num_tokens_per_train_step": "training.global_batch_tokens",
    "training.data_parallel_shard_degree": "parallelism.data_parallel_shard_degree",
    "checkpoint.enable_checkpoint": "checkpoint.enable",
    "checkpoint.model_weights_only": "checkpoint.initial_load_path",
    "checkpoint.last_save_model_weights_only": "no key (the last step is always saved whole)",
    "checkpoint.initial_load_model_weights_only": "checkpoint.initial_load_path",
    "lr_scheduler.lr_min": "lr_scheduler.min_lr_factor",
    "job.print_args": "job.print_config",
    "job.use_for_integration_test": "no key",
    "metrics.enable_color_printing": "metrics.disable_color_printing",
    "model.norm_type": "no key (the model uses RMSNorm)",
}


def drop_foreign(merged: Merged, problems: list[str]) -> list[str]:
    """Take TorchTitan's unused keys out of the tree: no-ops become one notice, the rest problems."""
    ignored = []
    for name, unused in UNUSED.items():
        *path, key = name.split(".")
        table = merged.table_at(path)
        if table is None or key not in table:
            continue
        value = table.pop(key)
        where = f"{name} = {shown(value)} ({merged.blame(*path, key)})"
        if unused.noop is None or any(type(value) is type(noop) and value == noop for noop in unused.noop):
            ignored.append(where)
        else:
            problems.append(f"{where}: titan_pt does not have this TorchTitan key; {unused.hint}")
    for name, unused_items in UNUSED_ITEMS.items():
        section, key = name.split(".")
        table = merged.table_at([section]) or {}
        value = table.get(key)
        if isinstance(value, list) and (dropped := [item for item in value if item in unused_items]):
            table[key] = [item for item in value if item not in dropped]
            ignored.append(f"{', '.join(map(shown, dropped))} in {name} ({merged.blame(section, key)})")
    for name, hint in UNUSED_TABLES.items():
        *path, key = name.split(".")
        table = merged.table_at(path)
        if table is None or not isinstance(table.get(key), dict):
            continue
        rest = ", ".join(f"{name}.{leaf}" for leaf in _leaves(table.pop(key)))
        if rest:
            problems.append(
                f"{rest} ({merged.blame(*path, key)}): titan_pt does not have this TorchTitan table; {hint}"
            )
    if not ignored:
        return []
    return [f"ignored, TorchTitan keys that have no effect in titan_pt: {', '.join(ignored)}"]


def _leaves(table: Tables) -> list[str]:
    """The dotted names of all values."""
    names = []
    for key, value in table.items():
        names += [f"{key}.{leaf}" for leaf in _leaves(value)] if isinstance(value, dict) else [key]
    return names
