"""The step of a dry run of pretraining and fine-tuning."""

from dataclasses import replace

from titan_pt.data.stream.synthetic import SyntheticBatches
from titan_pt.protocols.context import TrainContext
from titan_pt.protocols.dry_run_step import DryRunStep
from titan_pt.protocols.trainer_spec import TrainerSpec


def build_dry_run(spec: TrainerSpec, context: TrainContext) -> DryRunStep:
    """The step that `spec.build_step` builds, on synthetic rows."""
    run_size, training = context.run_size, context.config.training
    step = spec.build_step(replace(context, dataloader=SyntheticBatches(context.config, run_size)))
    batch = (
        f"{run_size.rows:,} rows of {training.seq_len:,} tokens: {run_size.rows_per_rank:,} a rank as "
        f"{run_size.accumulation_steps:,} x {run_size.local_rows}, from "
        f"{run_size.num_streams // context.world.size} of {run_size.num_streams} data streams"
    )
    return DryRunStep(step, batch, accumulates=run_size.accumulation_steps > 1)
