"""One section of gpu_check.sh: `python gpu_check.py SECTION`. Appends JSON lines to $OUT/results.jsonl.

On a machine without CUDA (or with SMALL=1) every section runs in a reduced shape, so that the script is known to run.
"""

import contextlib
import dataclasses
import gc
import gzip
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch

OUT = Path(os.environ.get("OUT", "gpu_check_out"))
CUDA = torch.cuda.is_available()
SMALL = not CUDA or os.environ.get("SMALL") == "1"
DEVICE = torch.device("cuda" if CUDA else "cpu")
PRECISION = "bfloat16" if CUDA else "float32"  # many a CPU has no kernels for bfloat16
COMPILER = "inductor" if CUDA else "aot_eager"  # a CPU traces the same graphs, without a C++ compiler's minutes
DTYPE = getattr(torch, PRECISION)
ROOT = Path(os.environ.get("TITAN_ROOT", ".")).resolve()
WORK = Path(os.environ.get("WORK", tempfile.gettempdir())) / "gpu_check"
STARTED = time.time()
END = STARTED + float(os.environ.get("SECTION_SECONDS", "3600"))
SECTION = sys.argv[1] if len(sys.argv) > 1 else "env"
GIB = 2**30


def emit(what, **values):
    row = {"section": SECTION, "what": what, **values, "t": round(time.time() - STARTED, 1)}
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "results.jsonl").open("a") as file:
        file.write(json.dumps(row, default=str) + "\n")
    print(json.dumps(row, default=str), flush=True)


@contextlib.contextmanager
def part(what, seconds_needed=5.0):
    """A part whose failure is one line, and which is left out where the section's time is nearly over."""
    if time.time() + seconds_needed > END:
        emit(what, skipped="no time left")
        yield False
        return
    try:
        yield True
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)][-6:]
        emit(what, error=f"{type(error).__name__}: {str(error)[:600]}", frames=frames)
    finally:
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()


def sync():
    if CUDA:
        torch.cuda.synchronize()


def timed(function, warmup=2, repeat=5):
    """Seconds of each of `repeat` calls, the device waited for."""
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeat):
        sync()
        start = time.perf_counter()
        function()
        sync()
        times.append(time.perf_counter() - start)
    return times


def batch_time(function, warmup=3, repeat=20):
    """Seconds a call, of many in a row: launches overlap."""
    for _ in range(warmup):
        function()
    sync()
    start = time.perf_counter()
    for _ in range(repeat):
        function()
    sync()
    return (time.perf_counter() - start) / repeat


def spread(times):
    return {
        "median_s": round(statistics.median(times), 5),
        "min_s": round(min(times), 5),
        "max_s": round(max(times), 5),
    }


# -- env ----------------------------------------------------------------------------------------------------------


def env():
    import importlib.metadata as metadata

    names = [
        "torch",
        "triton",
        "torchao",
        "torchdata",
        "datasets",
        "pyarrow",
        "numpy",
        "pydantic",
        "tiktoken",
        "tokenizers",
        "safetensors",
        "transformers",
        "tensorboard",
        "huggingface_hub",
        "requests",
        "urllib3",
        "jinja2",
    ]
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    emit(
        "versions",
        python=sys.version.split()[0],
        cuda=torch.version.cuda,
        packages=found,
        cpus=os.cpu_count(),
        device=torch.cuda.get_device_name() if CUDA else "cpu",
        memory_gib=round(torch.cuda.mem_get_info()[1] / GIB, 2) if CUDA else None,
    )
    size = 8192 if not SMALL else 512
    with part("matmul") as go:
        if go:
            a, b = (torch.randn(size, size, device=DEVICE, dtype=DTYPE) for _ in range(2))
            seconds = batch_time(lambda: a @ b, repeat=30 if CUDA else 3)
            emit("matmul", size=size, dtype="bf16", tflops=round(2 * size**3 / seconds / 1e12, 2))
            c, d = a.float()[: size // 2, : size // 2].contiguous(), b.float()[: size // 2, : size // 2].contiguous()
            for tf32 in (False, True):
                torch.backends.cuda.matmul.allow_tf32 = tf32
                seconds = batch_time(lambda: c @ d, repeat=10 if CUDA else 3)
                emit(
                    "matmul",
                    size=size // 2,
                    dtype="tf32" if tf32 else "fp32",
                    tflops=round(2 * (size // 2) ** 3 / seconds / 1e12, 2),
                )
            torch.backends.cuda.matmul.allow_tf32 = False
    with part("copy") as go:
        if go:
            x = torch.empty(2**30 if not SMALL else 2**22, dtype=torch.uint8, device=DEVICE)
            y = torch.empty_like(x)
            seconds = batch_time(lambda: y.copy_(x), repeat=20 if CUDA else 3)
            emit("copy", gb_s_read_plus_write=round(2 * x.numel() / seconds / 1e9, 1))
    with part("layer shapes of medium") as go:
        if go:
            tokens = 32768 if not SMALL else 256
            for name, k, n in (
                ("q/o", 1024, 1024),
                ("kv", 1024, 256),
                ("qkv", 1024, 1536),
                ("gate/up", 1024, 2816),
                ("gate+up", 1024, 5632),
                ("down", 2816, 1024),
                ("head", 1024, 50304),
            ):
                rows = tokens if name != "head" else min(tokens, 4096)
                x, w = torch.randn(rows, k, device=DEVICE, dtype=DTYPE), torch.randn(n, k, device=DEVICE, dtype=DTYPE)
                seconds = batch_time(lambda: x @ w.T, repeat=20 if CUDA else 2)
                emit("layer", name=name, rows=rows, k=k, n=n, tflops=round(2 * rows * k * n / seconds / 1e12, 2))
    with part("head chunk: rows against padded rows") as go:
        if go:  # CHUNK_ELEMENTS // 50304 = 1334 rows of logits: no multiple of a tile
            w = torch.randn(50304 if not SMALL else 512, 1024, device=DEVICE, dtype=DTYPE)
            for rows in (1334, 1280, 2048, 4096, 8192) if not SMALL else (100, 128):
                x = torch.randn(rows, 1024, device=DEVICE, dtype=DTYPE)
                seconds = batch_time(lambda: x @ w.T, repeat=20 if CUDA else 2)
                emit("head chunk", rows=rows, tflops=round(2 * rows * 1024 * w.shape[0] / seconds / 1e12, 2))


# -- train --------------------------------------------------------------------------------------------------------


class RandomBatches:
    """Random tokens in pinned memory; documents of random lengths."""

    def __init__(self, config, accumulate, vocabulary):
        from titan_pt.data.stream.batch import MicroBatch, StepBatch

        rows, length = config.training.local_batch_size, config.training.seq_len
        generator = torch.Generator().manual_seed(0)
        made = []
        for _ in range(accumulate):
            tokens = torch.randint(0, vocabulary, (rows, length), generator=generator)
            targets = torch.randint(0, vocabulary, (rows, length), generator=generator)
            positions = torch.stack([self._positions(length, generator) for _ in range(rows)])
            tensors = (tokens, targets, positions, torch.zeros_like(tokens))
            made.append(MicroBatch(*(t.pin_memory() if CUDA else t for t in tensors)))
        count = rows * length * accumulate
        self._batch = StepBatch(tuple(made), count, count, 0, 0, (), {})

    @staticmethod
    def _positions(length, generator):
        starts, at = [], 0
        while at < length:
            step = min(length - at, int(torch.randint(length // 16 + 1, length // 2 + 2, (1,), generator=generator)))
            starts.append(torch.arange(step))
            at += step
        return torch.cat(starts)

    def next_batch(self):
        return self._batch

    def commit(self, batch):
        pass


BASE = (
    "--tokenizer.name=byte",
    "--model.vocab_size=50304",
    '--data.sources=[{name="arithmetic"}]',
    "--training.steps=1000",
    "--checkpoint.enable=false",
    "--comm.trace_buf_size=0",
)
SIZES = {"tiny": "tiny", "small": "small", "medium": "medium"}


def flags(flavor, rows, seq_len=2048, ac="none", option="op", compiled=True, more=()):
    if SMALL:
        flavor, rows, seq_len = "debugmodel", min(rows, 2), 128
        more = (*more, "--model.vocab_size=512", "--model.num_layers=2", "--model.head_dim=32")
    return [
        *BASE,
        f"--model.flavor={flavor}",
        f"--training.local_batch_size={rows}",
        f"--training.seq_len={seq_len}",
        f"--training.global_batch_size={rows}",
        f"--activation_checkpoint.mode={ac}",
        f"--activation_checkpoint.selective_ac_option={option}",
        f"--compile.enable={str(compiled).lower()}",
        f"--compile.backend={COMPILER}",
        f"--training.mixed_precision_param={PRECISION}",
        f"--job.dump_folder={WORK}/run",
        *more,
    ]


def float8(recipe):
    """With products of 8-bit floats, emulated where the device has none."""
    emulates = SMALL or torch.cuda.get_device_capability() < (8, 9)
    table = "--quantize.linear.float8"
    more = ("--model.converters=quantize.linear.float8",)
    more += (f"{table}.recipe_name={recipe}", f"{table}.emulate={str(emulates).lower()}")
    return flags("medium", 16, compiled=not emulates, more=more)


def build(arguments, accumulate=1, world=None):
    from titan_pt.config import load_config
    from titan_pt.planner.without_data import build_without_data
    from titan_pt.protocols.trainer_spec import get_trainer_spec

    config = load_config(arguments)
    spec = get_trainer_spec(config.job.trainer)
    context = build_without_data(config, spec, world)
    batches = RandomBatches(config, accumulate, context.args.vocab_size)
    return config, spec, dataclasses.replace(context, dataloader=batches), context.args, context.flops_per_token


def the_world():
    from titan_pt.config import load_config
    from titan_pt.distributed.world import start_world

    config = load_config(flags("tiny", 1))
    start = time.perf_counter()
    world = start_world(config, WORK)
    if CUDA:
        torch.distributed.all_reduce(torch.ones(1, device=world.device))
        sync()
    emit(
        "process groups",
        backend=torch.distributed.get_backend(),
        device=world.device,
        seconds=round(time.perf_counter() - start, 2),
    )
    return world


def peak_rate():
    from titan_pt.components.flops import measure_matmul, peak_flops

    known = peak_flops(DEVICE, DTYPE)
    return known if known else measure_matmul(DEVICE, DTYPE)


def measure_steps(name, arguments, world, accumulate=1, steps=8, profile=False):
    from titan_pt.protocols.context import TrainState

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    config, spec, context, _args, flops_per_token = build(arguments, accumulate, world)
    step = spec.build_step(context)
    built = time.perf_counter() - start
    state = TrainState()

    def one():
        metrics = step(state)  # noqa: F821  # deleted below, after the last call
        state.step += 1
        return metrics

    start = time.perf_counter()
    first = float(one().loss)
    compiled = time.perf_counter() - start
    for _ in range(2):
        one()
    sync()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)] if CUDA else None
    start = time.perf_counter()
    if CUDA:
        events[0].record()
    host = []
    for i in range(steps):
        begun = time.perf_counter()
        metrics = one()
        host.append(time.perf_counter() - begun)
        if CUDA:
            events[i + 1].record()
    sync()
    whole = (time.perf_counter() - start) / steps
    each = [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)] if CUDA else [whole]
    tokens = config.training.local_batch_size * config.training.seq_len * accumulate
    rate, median = tokens / whole, statistics.median(each)
    row = {
        "config": name,
        "tokens_per_s": round(rate),
        "step_s": round(whole, 5),
        "median_s": round(median, 5),
        "mfu": round(rate * flops_per_token / peak_rate(), 4),
        "flops_per_token": flops_per_token,
        "host_s": round(statistics.median(host), 5),
        "first_step_s": round(compiled, 1),
        "build_s": round(built, 1),
        "loss_first": round(first, 4),
        "loss_last": round(float(metrics.loss), 4),
        "grad_norm": round(float(metrics.grad_norm), 4),
        "graphs": torch._dynamo.utils.counters["stats"].get("unique_graphs"),
        "graph_breaks": sum(torch._dynamo.utils.counters["graph_break"].values()),
    }
    if CUDA:
        row["peak_gib"] = round((torch.cuda.max_memory_allocated() - before) / GIB, 3)
        row["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 3)
        # Two steps in which every wait of the host for the device is a warning.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            for _ in range(2):
                one()
            torch.cuda.set_sync_debug_mode("default")
        found = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message).lower())
        row["host_syncs_in_2_steps"] = dict(found)
    emit("train", **row)
    if profile:
        profile_step(name, one)
    del context, step, one
    return row


def profile_step(name, one):
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    one()
    sync()
    with torch.profiler.profile(activities=kinds) as prof:
        one()
        sync()
    wanted = DeviceType.CUDA if CUDA else DeviceType.CPU
    events = [e for e in prof.events() if e.device_type == wanted and e.time_range.end > e.time_range.start]
    total, count = Counter(), Counter()
    for event in events:
        total[event.name] += event.time_range.elapsed_us()
        count[event.name] += 1
    busy, last = 0.0, None
    for begin, end in sorted((e.time_range.start, e.time_range.end) for e in events):
        begin = begin if last is None else max(begin, last)
        if end > begin:
            busy += end - begin
            last = end
    span = max(e.time_range.end for e in events) - min(e.time_range.start for e in events)
    emit(
        "profile",
        config=name,
        kernels=len(events),
        busy_ms=round(busy / 1e3, 2),
        span_ms=round(span / 1e3, 2),
        idle_share=round(1 - busy / span, 4),
        groups_ms=groups(total),
    )
    for kernel, micros in total.most_common(15):
        emit(
            "kernel",
            config=name,
            name=kernel[:110],
            ms=round(micros / 1e3, 3),
            calls=count[kernel],
            share=round(micros / max(busy, 1e-9), 4),
        )
    if name.startswith("rollout"):
        return
    with contextlib.suppress(Exception):  # a trace is a help, its failure costs nothing
        raw, file = WORK / "trace.json", f"trace_{name.replace(' ', '_')}.json.gz"
        prof.export_chrome_trace(str(raw))
        with raw.open("rb") as source, gzip.open(OUT / file, "wb", 6) as target:
            shutil.copyfileobj(source, target)


def groups(total):
    """Kernel time by kind, in ms."""
    kinds = Counter()
    for name, micros in total.items():
        low = name.lower()
        kind = (
            "attention"
            if any(w in low for w in ("flash", "fmha", "attention", "flex", "cudnn"))
            else "matmul"
            if any(w in low for w in ("gemm", "cutlass", "nvjet", "matmul", "mm_", "::mm", "addmm"))
            else "optimizer"
            if any(w in low for w in ("multi_tensor", "adam", "foreach"))
            else "triton"
            if low.startswith("triton")
            else "nccl"
            if "nccl" in low
            else "copy"
            if any(w in low for w in ("memcpy", "memset", "copy_", "cat"))
            else "other"
        )
        kinds[kind] += micros
    return {kind: round(micros / 1e3, 2) for kind, micros in kinds.most_common()}


def train():
    world = the_world()
    todo = [
        ("medium b16 compiled", flags("medium", 16), {"profile": True}),
        (
            "medium b16 compiled x2",
            flags("medium", 16, more=("--training.global_batch_size=32",)),
            {"accumulate": 2, "steps": 4},
        ),
        ("medium b16 eager", flags("medium", 16, compiled=False), {"steps": 4}),
        ("medium b16 docmask", flags("medium", 16, more=("--training.document_mask=true",)), {"profile": True}),
        ("medium b32 compiled", flags("medium", 32), {}),
        ("medium b16 sel-op", flags("medium", 16, ac="selective"), {}),
        ("tiny b64 compiled", flags("tiny", 64, 1024), {}),
        ("small b32 compiled", flags("small", 32, 1024), {}),
        ("medium b8 compiled", flags("medium", 8), {}),
        ("medium b16 ac-full", flags("medium", 16, ac="full"), {}),
        *((f"medium b16 float8 {recipe}", float8(recipe), {}) for recipe in ("tensorwise", "rowwise")),
        ("medium b16 AdamW8bit", flags("medium", 16, more=("--optimizer.name=AdamW8bit",)), {"steps": 4}),
    ]
    for name, arguments, options in todo:
        with part(f"train {name}", 15 if CUDA else 0) as go:
            if go:
                measure_steps(name, arguments, world, **{"steps": 8 if CUDA else 2, **options})


def plan():
    """The planner's predictions, on the CPU: run it beside the other sections."""
    gpu = "h200" if CUDA and "H200" in torch.cuda.get_device_name() else "h100-80gb"
    for name, arguments in (
        ("medium b16 compiled", flags("medium", 16)),
        ("medium b32 compiled", flags("medium", 32)),
        ("medium b8 compiled", flags("medium", 8)),
        ("medium b16 sel-op", flags("medium", 16, ac="selective")),
        ("medium b16 ac-full", flags("medium", 16, ac="full")),
        ("medium b16 docmask", flags("medium", 16, more=("--training.document_mask=true",))),
        ("small b32 compiled", flags("small", 32, 1024)),
        ("tiny b64 compiled", flags("tiny", 64, 1024)),
    )[: 8 if CUDA else 2]:
        with part(f"plan {name}") as go:
            if go:
                command = [sys.executable, "-m", "titan_pt.tools.plan", "--gpu", gpu, "--json", *arguments]
                env_ = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
                done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env_)
                if done.returncode:
                    emit("plan", config=name, error=done.stderr[-400:])
                    continue
                found = json.loads(done.stdout)
                memory = found.get("memory", {})
                emit(
                    "plan",
                    config=name,
                    gpu=gpu,
                    **{k: v for k, v in memory.items() if isinstance(v, (int, float, bool))},
                    tokens_per_second=found.get("tokens_per_second"),
                )


# -- attention ----------------------------------------------------------------------------------------------------


def attention():
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import flex_attention

    from titan_pt.models.transformer.attention import document_mask
    from titan_pt.models.transformer.kernels import available_backends

    rows, heads, kv, length, dim = (16, 16, 4, 2048, 64) if not SMALL else (1, 4, 2, 128, 32)
    q = torch.randn(rows, heads, length, dim, device=DEVICE, dtype=DTYPE, requires_grad=True)
    k, v = (torch.randn(rows, kv, length, dim, device=DEVICE, dtype=DTYPE, requires_grad=True) for _ in range(2))
    forward = 4 * rows * heads * length * length * dim / 2  # causal

    def report(name, run):
        with part(name) as go:
            if not go:
                return
            with torch.no_grad():
                one = batch_time(run, repeat=10 if CUDA else 1)
            gradient = torch.randn_like(q)

            def both():
                run().backward(gradient)

            two = batch_time(both, repeat=10 if CUDA else 1)
            emit(
                "attention",
                name=name,
                forward_ms=round(one * 1e3, 3),
                both_ms=round(two * 1e3, 3),
                forward_tflops=round(forward / one / 1e12, 1),
                both_tflops=round(3.5 * forward / two / 1e12, 1),
            )

    available = available_backends(DEVICE.type, DTYPE, dim)
    emit("backends", available=available, uncompiled_gqa=True)
    for name, backend in (
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("efficient", SDPBackend.EFFICIENT_ATTENTION),
    ):
        if not CUDA and name not in available:
            continue

        def run(backend=backend):
            with sdpa_kernel([backend]):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        report(f"sdpa {name} gqa", run)
    report("sdpa auto gqa", lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
    if not CUDA:
        return
    positions = torch.stack(
        [RandomBatches._positions(length, torch.Generator().manual_seed(i)) for i in range(rows)]
    ).to(DEVICE)
    compiled = torch.compile(flex_attention)
    masks = {
        "flex causal": document_mask(torch.arange(length, device=DEVICE).expand(rows, -1)),
        "flex documents": document_mask(positions),
    }
    for name, mask in masks.items():
        emit("sparsity", name=name, percent=mask.sparsity())
        report(name, lambda mask=mask: compiled(q, k, v, block_mask=mask, enable_gqa=True))
    with part("document_mask") as go:
        if go:
            emit("document_mask", seconds=round(batch_time(lambda: document_mask(positions), repeat=10), 6))
    with part("varlen") as go:
        if go:
            from torch.nn.attention.varlen import varlen_attn

            def flat(x):
                return x.detach().transpose(1, 2).reshape(-1, x.shape[1], dim).requires_grad_()

            q1, k1, v1 = flat(q), flat(k.repeat_interleave(heads // kv, 1)), flat(v.repeat_interleave(heads // kv, 1))
            starts = (positions.flatten() == 0).nonzero().flatten()
            cu = torch.cat([starts, starts.new_tensor([positions.numel()])]).int()
            longest = int(cu.diff().max())

            def run():
                return varlen_attn(q1, k1, v1, cu, cu, longest, longest, window_size=(-1, 0))  # causal

            with torch.no_grad():
                one = batch_time(run, repeat=10)
            gradient = torch.randn_like(q1)
            emit(
                "attention",
                name="varlen documents (heads repeated)",
                forward_ms=round(one * 1e3, 3),
                both_ms=round(batch_time(lambda: run().backward(gradient), repeat=10) * 1e3, 3),
            )


# -- rollouts -----------------------------------------------------------------------------------------------------


def medium(dtype=DTYPE):
    from titan_pt.models.transformer import FLAVORS, Transformer

    args = FLAVORS["medium" if not SMALL else "debugmodel"]
    if SMALL:
        args = args.model_copy(update={"num_layers": 2, "vocab_size": 512})
    with torch.device(DEVICE):
        model = Transformer(args)
    model.init_weights(0)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model, args


def prompts_of(args, count, low=64, high=128):
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(low, high + 1, (count,), generator=generator).tolist()
    return [torch.randint(0, args.vocab_size, (size,), generator=generator).tolist() for size in sizes]


def rollout():
    from titan_pt.generation.native import NativeEngine
    from titan_pt.generation.sampling import Sampling

    new = 256 if not SMALL else 16
    model, args = medium()
    prompts = prompts_of(args, 16 if not SMALL else 4, 64 if not SMALL else 4, 128 if not SMALL else 8)
    for samples in (16, 1, 64) if not SMALL else (2,):
        reference = None
        for name, backend in (("plain", None), ("graphs" if CUDA else "compiled", COMPILER)):
            with part(f"rollout {name} x{samples}", 8) as go:
                if not go:
                    continue
                engine = NativeEngine(model, [], 1024, compile_backend=backend)

                def run():
                    return engine.generate(prompts, Sampling(new, seed=1), samples)  # noqa: F821  # deleted below, after the last call

                if CUDA:
                    torch.cuda.reset_peak_memory_stats()
                first = timed(run, 0, 1)[0]
                times = timed(run, 0, 2)
                tokens = [c.token_ids for c in run()]
                drawn = sum(map(len, tokens))
                reference = reference or tokens
                same = (
                    sum(a == b for x, y in zip(reference, tokens, strict=False) for a, b in zip(x, y, strict=False))
                    / drawn
                )
                best = min(times)
                emit(
                    "rollout",
                    name=name,
                    rows=len(tokens),
                    new_tokens=new,
                    first_s=round(first, 3),
                    **spread(times),
                    tokens_per_s=round(drawn / best),
                    ms_a_step=round(best / new * 1e3, 3),
                    same_tokens_as_plain=round(same, 4),
                    peak_gib=round(torch.cuda.max_memory_allocated() / GIB, 2) if CUDA else None,
                )
                if CUDA and samples == 16:
                    profile_step(f"rollout_{name}", lambda: engine.generate(prompts, Sampling(17, seed=1), samples))  # noqa: F821  # deleted below, after the last call
                del engine
    with part("greedy: graphs against plain, bf16 and fp32") as go:
        if go:
            for dtype in (DTYPE, torch.float32):
                model, args = medium(dtype)
                pair = [NativeEngine(model, [], 256, compile_backend=b) for b in (None, COMPILER)]
                a, b = (
                    [c.token_ids for c in e.generate(prompts, Sampling(min(new, 64), temperature=0.0), 1)] for e in pair
                )
                emit("greedy", dtype=str(dtype), same=sum(x == y for x, y in zip(a, b, strict=False)), of=len(a))


def peers():
    """transformers: one training step and generate of the same shapes."""
    import logging

    import transformers

    sys.path.insert(0, str(ROOT))
    from benchmarks.rollout import convert, generate_theirs

    transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows, length = (16, 2048) if not SMALL else (2, 64)
    model, args = medium(torch.float32)
    theirs = convert(model)
    theirs.config._attn_implementation = "sdpa"
    theirs.train()
    del model
    tokens = torch.randint(0, args.vocab_size, (rows, length), device=DEVICE)
    flops = None
    from titan_pt.models.transformer.args import flops_per_token

    flops = flops_per_token(args, length)
    for name, compiled, size in (
        ("eager", False, rows),
        ("compiled", True, rows),
        ("compiled half", True, max(1, rows // 2)),
    ):
        with part(f"transformers train {name}", 20 if CUDA else 0) as go:
            if not go:
                continue
            optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, fused=True)
            module = torch.compile(theirs, backend=COMPILER) if compiled else theirs
            if CUDA:
                torch.cuda.reset_peak_memory_stats()

            def step(size=size, module=module, optimizer=optimizer):
                with torch.autocast(DEVICE.type, DTYPE, enabled=CUDA):
                    loss = module(input_ids=tokens[:size], labels=tokens[:size], use_cache=False).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            first = timed(step, 0, 1)[0]
            seconds = batch_time(step, 2, 6 if CUDA else 1)
            emit(
                "transformers train",
                name=name,
                rows=size,
                tokens_per_s=round(size * length / seconds),
                step_s=round(seconds, 4),
                mfu=round(size * length / seconds * flops / peak_rate(), 4),
                first_s=round(first, 1),
                peak_gib=round(torch.cuda.max_memory_allocated() / GIB, 2) if CUDA else None,
            )
            del optimizer
    with part("transformers generate", 15 if CUDA else 0) as go:
        if go:
            torch._dynamo.reset()
            theirs = theirs.to(DTYPE).eval()
            new = 256 if not SMALL else 8
            prompts = prompts_of(args, 16 if not SMALL else 2)
            n = 16 if not SMALL else 2
            with torch.no_grad():

                def run():
                    return generate_theirs(theirs, prompts, n, new, sampled=True, cache="dynamic")

                times = timed(run, 1, 1)
            emit(
                "transformers generate",
                rows=len(prompts) * n,
                new_tokens=new,
                **spread(times),
                tokens_per_s=round(len(prompts) * n * new / min(times)),
            )


# -- checkpoint, grpo, quantized, product -------------------------------------------------------------------------


def checkpoint():
    from titan_pt.components.checkpoint import Checkpointer, Documents, load_tensors
    from titan_pt.components.checkpoint.run_state import run_tensors
    from titan_pt.protocols.context import TrainState

    world = the_world()
    config, spec, context, _, _ = build(flags("medium", 4, compiled=False), 1, world)
    step, state = spec.build_step(context), TrainState()
    step(state)
    for mode in ("disabled", "async", "async_with_pinned_mem"):
        with part(f"checkpoint {mode}") as go:
            if not go:
                continue
            folder = WORK / f"checkpoint_{mode}"
            shutil.rmtree(folder, ignore_errors=True)
            saver = Checkpointer(
                folder, config.checkpoint.model_copy(update={"async_mode": mode, "keep_latest_k": 1}), world
            )
            for number in (1, 2, 3):
                sync()
                start = time.perf_counter()
                saver.save(number, run_tensors(context), Documents({}, {}, ""))
                stall = time.perf_counter() - start
                after = [timed(lambda: step(state), 0, 1)[0] for _ in range(2)]
                saver.wait()
                emit(
                    "checkpoint",
                    mode=mode,
                    number=number,
                    stall_s=round(stall, 3),
                    whole_s=round(time.perf_counter() - start, 3),
                    next_steps_s=[round(x, 4) for x in after],
                    bytes=sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()),
                )
            start = time.perf_counter()
            load_tensors(folder / "step-3", run_tensors(context), world)
            sync()
            emit("checkpoint load", mode=mode, seconds=round(time.perf_counter() - start, 3))
            shutil.rmtree(folder, ignore_errors=True)


COIN = """
from dataclasses import dataclass
from titan_pt.tasks.task import Problem, Task, register_task

@dataclass(frozen=True)
class Numbers:
    name: str
    first: int
    size: int
    @property
    def fingerprint(self):
        return f"{self.name}-{self.first}"
    def __len__(self):
        return self.size
    def get(self, index, visit):
        n = self.first + index
        return Problem(self.name, f"{self.name}/{n}", f"Say something about {n}, time {visit}. " * 3, str(n))

def even(completion, _problem, _rule):
    return sum(map(ord, completion)) % 2 == 0

register_task("coin", lambda row, _seed: Task(name=row.name, train=Numbers(row.name, 0, 400),
                                              evaluation=Numbers(row.name, 1000, 12), grade=even, open_ended=True))
"""


def run_cli(what, *arguments, folder=None, seconds=120, show=()):
    """The product's own command line; what its metrics.jsonl says."""
    env_ = {**os.environ, "PYTHONPATH": f"{ROOT}:{WORK}:{os.environ.get('PYTHONPATH', '')}", "PYTHON": sys.executable}
    start = time.perf_counter()
    done = subprocess.run(
        ["bash", str(ROOT / "run_train.sh"), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env_,
        timeout=seconds,
    )
    rows = []
    path = Path(folder) / "metrics.jsonl" if folder else None
    if path and path.exists():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    log = [
        line.split(" - ", 1)[-1]
        for line in done.stderr.splitlines()
        if "WARNING" in line or "ERROR" in line or "Device" in line
    ]
    emit(
        what,
        rc=done.returncode,
        seconds=round(time.perf_counter() - start, 1),
        log=log[:12],
        error=done.stderr[-1500:] if done.returncode else None,
        rows=[
            {
                k: r.get(k)
                for k in ("step", "loss", "val_loss", "tokens_per_second", "mfu", "memory_gib", *show)
                if r.get(k) is not None
            }
            for r in rows[-6:]
        ],
    )
    return done


def product():
    """What a user types: pretrain, resume, GRPO, generate; each small."""
    WORK.mkdir(parents=True, exist_ok=True)
    folder = WORK / "quickstart"
    shutil.rmtree(folder, ignore_errors=True)
    common = [
        "--job.config_file",
        "train_configs/quickstart.toml",
        f"--job.dump_folder={folder}",
        "--validation.freq=20",
        "--checkpoint.interval=20",
        "--checkpoint.async_mode=async_with_pinned_mem",
        "--metrics.log_freq=10",
    ]
    steps = 40 if CUDA else 4
    little = (
        ("--training.local_batch_size=2", "--training.global_batch_size=2", "--training.seq_len=32") if SMALL else ()
    )
    with part("quickstart"):
        run_cli("quickstart", *common, f"--training.steps={steps}", folder=folder)
        run_cli("quickstart resumed", *common, f"--training.steps={steps + 10}", folder=folder)
    with part("quickstart bf16 compiled, documents apart") as go:
        if go:
            other = WORK / "quickstart_compiled"
            shutil.rmtree(other, ignore_errors=True)
            run_cli(
                "quickstart compiled",
                *common[:2],
                f"--job.dump_folder={other}",
                "--training.steps=6",
                f"--training.mixed_precision_param={PRECISION}",
                "--compile.enable=true",
                f"--compile.backend={COMPILER}",
                "--validation.freq=3",
                "--model.head_dim=64",
                "--model.num_heads=4",
                "--model.num_kv_heads=2",
                "--metrics.log_freq=1",
                *little,
                folder=other,
            )
    with part("grpo quickstart") as go:
        if go:
            other = WORK / "quickstart_grpo"
            shutil.rmtree(other, ignore_errors=True)
            (WORK / "gpu_check_coin.py").write_text(COIN)
            run_cli(
                "quickstart_grpo",
                "--job.config_file",
                "train_configs/quickstart_grpo.toml",
                "--training.steps=2",
                f"--job.dump_folder={other}",
                f"--checkpoint.initial_load_path={folder}",
                "--grpo.probe=off",
                "--grpo.eval_prompts=8",
                "--experimental.custom_import=gpu_check_coin",
                '--grpo.tasks=[{name="coin"}]',
                "--training.seq_len=256",
                "--rollout.compile=true",
                f"--compile.backend={COMPILER}",
                folder=other,
                show=("seconds/rollout", "seconds/train", "logprob_diff_max"),
            )
    with part("generate") as go:
        if go:
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "titan_pt.tools.generate",
                    "--checkpoint",
                    str(folder),
                    "--prompt",
                    "def ",
                    "--max_new_tokens",
                    "16",
                ],
                capture_output=True,
                text=True,
                cwd=ROOT,
            )
            emit(
                "generate",
                rc=done.returncode,
                out=done.stdout[-200:],
                error=done.stderr[-500:] if done.returncode else None,
            )


def grpo():
    """The split of one GRPO step of the medium shape."""
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "gpu_check_coin.py").write_text(COIN)
    (WORK / "grpo.toml").write_text(  # run_train.sh would take quickstart.toml's shape and float32 without one
        '[job]\ndescription = "medium shape, random weights, a coin as reward"\ntrainer = "grpo"\n'
        f'[training]\nmixed_precision_param = "{PRECISION}"\n[lr_scheduler]\nwarmup_steps = 1\n'
    )
    shape = [
        "--model.flavor=medium",
        "--model.vocab_size=50304",
        "--training.seq_len=2048",
        "--training.local_batch_size=8",
        "--rollout.num_samples=16",
        "--rollout.max_new_tokens=256",
        "--grpo.prompts_per_step=16",
    ]
    if SMALL:
        shape = [
            "--model.flavor=debugmodel",
            "--model.num_layers=2",
            "--model.vocab_size=512",
            "--training.seq_len=256",
            "--training.local_batch_size=2",
            "--rollout.num_samples=4",
            "--rollout.max_new_tokens=8",
            "--grpo.prompts_per_step=2",
        ]
    show = (
        "step_seconds",
        "seconds/sync",
        "seconds/rollout",
        "seconds/reward",
        "seconds/train",
        "rollout_tokens_per_second",
        "logprob_diff_max",
        "logprob_diff_mean",
        "tokens_seen",
    )
    for name, more in (
        ("as shipped", ()),
        ("rollout.compile and compile.enable", ("--rollout.compile=true", "--compile.enable=true")),
    ):
        with part(f"grpo {name}", 20 if CUDA else 0) as go:
            if go:
                folder = WORK / "grpo"
                shutil.rmtree(folder, ignore_errors=True)
                run_cli(
                    f"grpo {name}",
                    "--job.config_file",
                    str(WORK / "grpo.toml"),
                    "--tokenizer.name=byte",
                    *shape,
                    "--training.steps=4",
                    f"--job.dump_folder={folder}",
                    "--checkpoint.enable=false",
                    "--validation.enable=false",
                    "--grpo.probe=off",
                    "--grpo.dynamic_sampling=none",
                    "--experimental.custom_import=gpu_check_coin",
                    '--grpo.tasks=[{name="coin"}]',
                    "--activation_checkpoint.mode=none",
                    "--comm.trace_buf_size=0",
                    f"--compile.backend={COMPILER}",
                    *more,
                    folder=folder,
                    show=show,
                    seconds=max(10, END - time.time()),
                )


def quantized():
    from titan_pt.generation.native import NativeEngine
    from titan_pt.generation.quantize import quantize_weights, weight_bytes
    from titan_pt.generation.sampling import Sampling

    for kind in (None, "int8", "int4"):
        with part(f"quantized {kind}", 8 if CUDA else 0) as go:
            if not go or (kind == "int4" and not CUDA):
                continue
            model, args = medium()
            if kind:
                quantize_weights(model, kind)
            size = weight_bytes(model)
            for backend in (None, "inductor") if CUDA else (None,):
                engine = NativeEngine(model, [], 256, compile_backend=backend)
                for count in (1, 64):
                    prompts, new = prompts_of(args, count, 32, 32), 64 if CUDA else 8
                    times = timed(lambda: engine.generate(prompts, Sampling(new, seed=1), 1), 1, 2)  # noqa: F821  # deleted below, after the last call
                    emit(
                        "quantized",
                        kind=kind or "bf16",
                        graphs=backend is not None,
                        rows=count,
                        tokens_per_s=round(count * new / min(times)),
                        weight_mb=round(size / 1e6, 1),
                    )
                del engine


def ideas():
    """Upper bounds without FSDP: forward and backward of medium in pure bf16, compiled by blocks, whole, and tuned."""
    from titan_pt.components.loss import ChunkedCrossEntropy, compiled_chunk, cross_entropy_chunk
    from titan_pt.models.transformer.args import flops_per_token

    rows, length = (16, 2048) if not SMALL else (2, 64)

    def run(name, compile_model, chunk, elements=2**26):
        with part(name, 15 if CUDA else 0) as go:
            if not go:
                return
            torch._dynamo.reset()
            model, args = medium()
            model.train()
            compile_model(model)
            loss = ChunkedCrossEntropy(0.0, chunk(), elements)
            tokens = torch.randint(0, args.vocab_size, (rows, length), device=DEVICE)
            if CUDA:
                torch.cuda.reset_peak_memory_stats()

            def step():
                (model(tokens, None, loss.head(tokens)).total / tokens.numel()).backward()
                model.zero_grad(set_to_none=True)

            first = timed(step, 0, 1)[0]
            seconds = batch_time(step, 2, 6 if CUDA else 1)
            emit(
                "idea",
                name=name,
                step_s=round(seconds, 4),
                tokens_per_s=round(rows * length / seconds),
                first_s=round(first, 1),
                mfu=round(rows * length / seconds * flops_per_token(args, length) / peak_rate(), 4),
                peak_gib=round(torch.cuda.max_memory_allocated() / GIB, 2) if CUDA else None,
            )

    backend = COMPILER

    def blocks(mode):
        return lambda model: [
            b.compile(backend=backend, fullgraph=True, **({"mode": mode} if mode and CUDA else {}))
            for b in model.layers
        ]

    def own():
        return compiled_chunk(backend)

    run("bf16 no FSDP, blocks", blocks(None), own)
    run("bf16 no FSDP, blocks, logits 2^28", blocks(None), own, 2**28)
    run("bf16 no FSDP, blocks, eager loss", blocks(None), lambda: cross_entropy_chunk)
    run("bf16 no FSDP, blocks max-autotune", blocks("max-autotune-no-cudagraphs"), own)
    run("bf16 no FSDP, whole model", lambda model: model.compile(backend=backend), own)


SECTIONS = (env, train, plan, attention, rollout, peers, checkpoint, product, grpo, quantized, ideas)

if __name__ == "__main__":
    WORK.mkdir(parents=True, exist_ok=True)
    function = {f.__name__: f for f in SECTIONS}[SECTION]
    with part(SECTION, 0):
        function()
    emit("end")
    sys.stdout.flush()
    os._exit(0)  # process groups and threads are not waited for
