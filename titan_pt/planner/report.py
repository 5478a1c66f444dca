"""A plan as text."""

from collections.abc import Iterator
from dataclasses import asdict

from titan_pt.components.accelerators import GIB
from titan_pt.planner.memory import CONTEXT_BYTES, FRAGMENTATION
from titan_pt.planner.plan import Plan
from titan_pt.planner.search import Choice, cheapest_changes, gpus_in_time

FORMULA = "6 N + 12 layers heads head_dim seq_len per token, tied output layer counted once, attention not halved"


def lines(plan: Plan) -> Iterator[str]:
    """The whole report of a plan."""
    config, target = plan.config, plan.target
    yield f"{config.job.config_file or 'the defaults'}: {config.job.description}"
    yield f"on {target.num_gpus} x {target.gpu.name} ({plan.dry_run.mesh}), trainer {config.job.trainer}"
    yield ""
    embedding = getattr(plan.args, "num_embedding_parameters", 0)
    yield f"Parameters        {plan.num_parameters:,}, {plan.num_parameters - embedding:,} without the embedding"
    yield f"FLOPs a token     {plan.flops_per_token:.4g} = {FORMULA}"
    if plan.update_flops:
        yield f"FLOPs an update   {plan.update_flops:.4g} of a rank, of the optimizer's matrix products"
    yield f"Step              {plan.dry_run.batch}"
    seconds = plan.hours * 3600 / plan.steps
    yield f"Run               {plan.steps:,} steps of {seconds:.2f} s, {plan.tokens:,} tokens"
    yield ""
    yield from _memory(plan)
    yield ""
    yield from _time(plan)
    yield ""
    yield from _disk(plan)
    yield from _sources(plan)
    for note in plan.dry_run.notes:
        yield f"Note: {note}"
    yield ""
    yield from verdicts(plan)


def verdicts(plan: Plan) -> Iterator[str]:
    """Whether the run fits in memory and time, and changes that make it fit."""
    memory, target = plan.memory, plan.target
    room = f"needs {memory.needed_bytes / GIB:.1f} of {memory.available_bytes / GIB:.1f} GiB on each {target.gpu.name}"
    if memory.fits:
        yield f"FITS IN MEMORY: {room}"
    else:
        yield f"DOES NOT FIT IN MEMORY: {room}"
        changes = cheapest_changes(plan)
        if changes:
            yield "  the cheapest changes that make it fit, each alone, by a dry run of each:"
        for number, change in enumerate(changes, 1):
            yield f"  {number}. {shown(change)}"
        if not changes:
            yield "  no local batch size, activation checkpointing or resharding makes it fit; use more or larger GPUs"
    limit = plan.config.training.max_hours
    if limit is None:
        return
    pace = f"{plan.tokens / 1e9:.3g}B tokens need {plan.hours:.0f} h at {plan.pace.mfu:.0%} MFU"
    if plan.fits_time:
        yield f"FITS IN TIME: {pace}, training.max_hours is {limit:g}"
        return
    yield f"DOES NOT FIT IN TIME: {pace}, and training.max_hours is {limit:g}"
    possible = plan.pace.tokens_in_max_hours or 0.0
    yield f"  {limit:g} h on {target.num_gpus} x {target.gpu.name} are {possible / 1e9:.1f}B tokens: it would end there"
    count = gpus_in_time(plan)
    if count:
        hours = plan.hours * target.num_gpus / count
        yield f"  {plan.tokens / 1e9:.3g}B tokens fit on {count} x {target.gpu.name}: {hours:.1f} h"


def shown(choice: Choice) -> str:
    """One line: the flags, the memory of one GPU and the hours of the run."""
    hours = "hours not known" if choice.hours is None else f"about {choice.hours:.1f} h"
    return f"{choice.flags}  ({choice.needed_bytes / GIB:.1f} GiB, {hours})"


def _memory(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    yield "Memory of one GPU at the peak of a step, MiB"
    yield f"  {'':<18}{'traced':>10}"
    for kind, size in memory.by_kind.items():
        yield f"  {kind.replace('_', ' '):<18}{_mib(size)}"
    yield f"  {'peak':<18}{_mib(sum(memory.by_kind.values()))}"
    if memory.sampling_bytes:
        yield f"  {'while it samples':<18}{_mib(memory.sampling_bytes)}  (with the states, without the activations)"
    yield (
        f"  {'needed':<18}{_mib(memory.needed_bytes)}  ({FRAGMENTATION:.0%} for the allocator, "
        f"{CONTEXT_BYTES / GIB:g} GiB for CUDA and NCCL)"
    )
    if plan.config.compile.is_on("cuda"):
        yield "  compile.enable is not counted: it keeps no more of the activations"


def _time(plan: Plan) -> Iterator[str]:
    limit = plan.config.training.max_hours
    deadline = f"{f'tokens in {limit:g} h':>18}" if limit else ""
    yield f"Time              {'MFU':>6}{'tokens/s':>12}{'hours':>10}{deadline}"
    paces = {pace.mfu: (pace, "") for pace in plan.paces}
    paces[plan.pace.mfu] = (plan.pace, f"  {plan.mfu_source}")
    for pace, source in sorted(paces.values(), key=lambda item: item[0].mfu):
        tokens = "" if pace.tokens_in_max_hours is None else f"{pace.tokens_in_max_hours / 1e9:>17.1f}B"
        yield f"{'':<18}{pace.mfu:>6.1%}{pace.tokens_per_second:>12,.0f}{pace.hours:>10.1f}{tokens}{source}"
    if plan.step_time:
        parts = {name.replace("_", " "): seconds for name, seconds in asdict(plan.step_time).items() if seconds}
        told = ", ".join(f"{name} {1000 * seconds:,.0f}" for name, seconds in parts.items())
        yield f"Roofline, ms      {told}; each kernel at the card's rate for its shape, or by its bytes"
    if plan.cost is not None:
        price = plan.target.price_per_gpu_hour
        yield f"Cost              {plan.cost:,.2f} = {plan.target.num_gpus} GPUs x {plan.hours:.1f} h x {price:g}"
    rollouts = plan.rollouts
    if rollouts:
        yield (
            f"Step of GRPO      {rollouts.step_seconds:.1f} s: sampling {rollouts.rollout_seconds:.1f} s (bandwidth of "
            f"the memory alone: {rollouts.floor_seconds:.1f} s), updates {rollouts.train_seconds:.1f} s"
        )
        yield (
            f"Completions       {rollouts.completions:,} a step, taken at their full length behind prompts of "
            f"{rollouts.prompt_tokens} tokens"
        )
        yield (
            f"KV cache          {rollouts.kv_cache_bytes / GIB:.2f} GiB: {rollouts.rows:,} rows x {rollouts.slots:,} "
            f"positions x {rollouts.kv_bytes_per_token:,} bytes; set by rollout.max_rows"
        )


def _disk(plan: Plan) -> Iterator[str]:
    one, kept, disk = plan.storage.checkpoint_bytes, plan.storage.kept, plan.storage.disk_bytes
    yield f"Checkpoint        {one / 1e9:.2f} GB; {kept} kept, {disk / 1e9:.1f} GB of disk with one under way"


def _sources(plan: Plan) -> Iterator[str]:
    for source in plan.sources:
        if source.epochs is None:
            passes = "passes unknown: its size is not known without opening it"
        else:
            passes = f"{source.epochs:.3g} passes over about {_millions(source.tokens_per_epoch)}"
        cap = "" if source.max_epochs is None else f", at most {source.max_epochs:g}"
        yield f"Source            {source.name}: {_millions(source.tokens)}, {passes}{cap}"


def _millions(tokens: float | None) -> str:
    return f"{(tokens or 0.0) / 1e6:,.1f}M tokens"


def _mib(size: float) -> str:
    return f"{size / 2**20:>10,.1f}"
