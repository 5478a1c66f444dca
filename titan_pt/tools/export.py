"""`python -m titan_pt.tools.export MODEL --output DIR`: any model as a Hugging Face folder.

Of a run with [lora] the adapters alone are written, as a PEFT folder; --merge writes the whole model."""

import argparse
import re
import sys

from titan_pt.config.errors import ConfigError, shown
from titan_pt.protocols.registry import import_attribute
from titan_pt.run.tool_files import flag_path
from titan_pt.tools.command import ToolParser, run_tool
from titan_pt.tools.model import add_source_flags, open_source

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def main(argv: list[str] | None = None) -> int:
    """Export as the arguments say; returns the exit code."""
    return run_tool(lambda: _export(_parser().parse_args(argv)))


def parse_bytes(text: str) -> int:
    """ "2GB" as 2 * 10^9. Raises ValueError where it is no positive size."""
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMG]?)B?\s*", text, re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise ValueError(f"{shown(text)} is no size; write 500MB or 2GB")
    return size


def _parser() -> ToolParser:
    parser = ToolParser(prog="python -m titan_pt.tools.export", description=__doc__)
    add_source_flags(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="type of the weights (default: as they are stored; checkpoints of runs hold float32)",
    )
    parser.add_argument(
        "--max_shard_size",
        default="2GB",
        metavar="SIZE",
        help="most bytes of one file, and about the memory that is used (default: %(default)s)",
    )
    parser.add_argument("--merge", action="store_true", help="with adapters: the whole model, they merged into it")
    parser.add_argument("--overwrite", action="store_true", help="replace an older export in DIR")
    return parser


def _export(arguments: argparse.Namespace) -> None:
    import torch

    from titan_pt.hf.export import check_target, export

    try:
        max_shard = parse_bytes(arguments.max_shard_size)
    except ValueError as error:
        raise ConfigError(f"--max_shard_size: {error}") from None
    output = flag_path("--output", arguments.output)
    check_target(output, overwrite=arguments.overwrite)
    source = open_source(arguments)
    if output.resolve() == source.folder.resolve():
        raise ConfigError(f"--output = {arguments.output!r}: is the checkpoint itself; give another folder")
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    adapted = hasattr(source.tensors, "stored")
    if arguments.merge and not adapted:
        raise ConfigError(f"--merge: {source.folder} holds no adapters; leave it out")
    if adapted and not arguments.merge:
        import_attribute("titan_pt.lora.folders:write_peft")(source, output, dtype)
        print(output)
        return
    export(source.to_export(), output, dtype, max_shard)
    print(output)


if __name__ == "__main__":
    sys.exit(main())
