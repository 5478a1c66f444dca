"""The tables [job], [model], [tokenizer], [comm], [debug], [experimental]."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from titan_pt.config.schema.section import (
    AnyPath,
    Count,
    PathName,
    Section,
    Timeout,
)
from titan_pt.config.schema.values import Size


class Job(Section):
    """[job] what runs and where its results go."""

    config_file: AnyPath | None = None
    """TOML file of this run."""
    trainer: str = "pretrain"
    """Registered trainer spec: "pretrain", "sft", "grpo" or a name brought by experimental.custom_import."""
    dump_folder: PathName = "./outputs"
    """Run folder: config.toml, metrics.jsonl, checkpoint/, tb/. The same folder again resumes the run."""
    description: str = "default job"
    """One line for the log."""
    print_config: bool = False
    """Log the resolved config at start."""
    leaderboard: PathName | None = None
    """Markdown table of finished runs, by bits per byte, with the keys in which they differ; each run enters itself."""
    notify: str = ""
    """Command that runs when the run has ended, however it did, such as "python tell.py": without a shell, for at most
    30 seconds, with TITAN_PT_CODE, TITAN_PT_REASON and TITAN_PT_FOLDER in its environment."""


class Model(Section):
    """[model] architecture. Any field of the model's own arguments overrides its flavor."""

    name: str = "transformer"
    """Registered model: "transformer" or a name brought by experimental.custom_import."""
    flavor: str = "debugmodel"
    """Named size; the transformer has debugmodel, tiny, small, medium. "depth-6": six blocks; width, heads, and in
    pretraining rate, batch, weight decay and tokens follow, each unless it is set (titan-pt plan shows them)."""
    from_hf: PathName | None = None
    """Hugging Face folder whose config.json sets the architecture, and whose tokenizer is the default one."""
    vocab_size: Annotated[Size, Field(gt=0, lt=1 << 31)] | None = None
    """Rows of the embedding. Unset: the tokenizer's size rounded up to a multiple of 64."""
    attention: Literal["sdpa"] = "sdpa"
    """Attention implementation: "sdpa" is torch's scaled_dot_product_attention."""
    sdpa_backend: Literal["auto", "flash", "efficient", "math", "cudnn"] = "auto"
    """Kernel of scaled_dot_product_attention; "auto" lets torch choose. A kernel the device lacks is refused."""
    converters: list[Literal["quantize.linear.float8"]] | None = None
    """What the layers are converted to: [] nothing, ["quantize.linear.float8"] as that table says."""


class TokenizerSection(Section):
    """[tokenizer] text to token ids."""

    name: PathName = "byte"
    """"byte", "gpt2", or a path: a .tiktoken rank file, a tokenizer.json, or a Hugging Face folder that holds one."""
    eos_token: str | None = None
    """End-of-document token of a tokenizer.json. Unset: what its tokenizer_config.json says, else a common name."""


class Comm(Section):
    """[comm] process groups."""

    mode: Literal["default", "fake_backend"] = "default"
    """"fake_backend" is a dry run: one process builds the run of NGPU ranks on tensors without numbers, does one
    micro-batch and one update, tells what that proved. No data, tokenizer or weights are opened, no file written."""
    init_timeout_seconds: Timeout = 300.0
    """Longest time without progress until the first step is done, and for the ranks to meet."""
    train_timeout_seconds: Timeout = 100.0
    """Longest time without progress after the first step: a micro-batch, 16 tokens of a completion, a document."""
    compile_timeout_seconds: Timeout = 1800.0
    """Longest compilation of one graph."""
    save_timeout_seconds: Timeout = 1800.0
    """Longest time without progress while a checkpoint or an export is read or written, and of a wait for ranks of
    another machine."""
    trace_buf_size: Count = 20000
    """Entries of NCCL's flight recorder, written when a rank hangs; 0 is off."""
    save_traces_folder: PathName = "comm_traces"
    """Folder of the flight recorder and of the stacks of a rank that hangs, inside the run folder."""
    grace_seconds: Timeout = 120.0
    """Time the ranks have after SIGTERM to save, upload (half of it) and leave, before the launcher kills them."""

    @field_validator("mode", mode="before")
    @classmethod
    def _known_mode(cls, mode: Any) -> Any:
        if mode == "local_tensor":  # TorchTitan's other one
            raise ValueError('titan_pt has no "local_tensor"; "fake_backend" is its dry run, "default" trains')
        return mode


class Debug(Section):
    """[debug]"""

    seed: int = 42
    """Seed of the initial weights; the data seed derives from it."""
    deterministic: bool = False
    """Only deterministic kernels."""
    deterministic_warn_only: bool = False
    """Warn where a kernel has no deterministic form, instead of failing."""


class Experimental(Section):
    """[experimental]"""

    custom_import: str = ""
    """Python module imported before the config is read; it registers trainers, models or sources of your own."""
