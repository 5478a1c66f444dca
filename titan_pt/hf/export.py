"""Write a model as a Hugging Face folder: safetensors in shards, config.json, tokenizer, generation_config, README.md.

Tensors are read one by one, so an export takes the memory of one shard. The folder is written under another name and
renamed when it is whole.
"""

import contextlib
import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.hf.chat import stop_ids
from titan_pt.hf.model_card import model_card
from titan_pt.hf.tensor_readers import INDEX, SINGLE, TensorInfo, TensorReader
from titan_pt.hf.tokenizer_files import write_tokenizer
from titan_pt.protocols.model_spec import HuggingFaceLayout
from titan_pt.run.files import sync_folder, write_json
from titan_pt.run.progress import Progress
from titan_pt.run.removal import remove_folder

MAX_SHARD_BYTES = 2 * 10**9
# A key of config.json that other tools pass over.
_CONTINUES_TEXT = {"titan_pt": {"prompt": "plain text"}}


@dataclass(frozen=True)
class Exported:
    """A model to export and how to write it.

    Args:
        args: the model's arguments, with vocab_size, num_tokens and max_seq_len.
        facts: lines of the model card, by label.
        keep_padding: write the padding rows of the vocabulary too, as a model that came from elsewhere had them.
            Without them nothing can choose such a row; with them generation_config.json forbids it.
        knows_chat: it was trained on conversations. The chat template is written for any model, so config.json marks
            models that were not.
        ends_turns: the tokens that end an answer are those of its chat template too, which its training has rendered;
            of a Hugging Face folder they stay its own, and no template is rendered.
    """

    args: Any
    layout: HuggingFaceLayout[Any]
    tokenizer: Tokenizer
    tensors: TensorReader
    facts: Mapping[str, str]
    keep_padding: bool
    knows_chat: bool
    ends_turns: bool = True

    @property
    def num_rows(self) -> int:
        """Number of vocabulary rows that are written."""
        return self.args.vocab_size if self.keep_padding else (self.args.num_tokens or self.args.vocab_size)


def continues_text(config: Mapping[str, Any]) -> bool:
    """Whether a config.json marks its model as one that continues text and was not trained on conversations."""
    return config.get("titan_pt") == _CONTINUES_TEXT["titan_pt"]


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise a ConfigError unless a folder may be written at the target."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() and not overwrite:
        raise ConfigError(f"{target}: exists already; give another folder, or --overwrite")
    if target.exists() and not (target / "config.json").is_file():
        raise ConfigError(f"{target}: has no config.json, so it is no Hugging Face folder; it is not overwritten")


def export(source: Exported, target: Path, dtype: torch.dtype | None = None, max_shard: int = MAX_SHARD_BYTES) -> None:
    """Write a model as a Hugging Face folder; an existing one is replaced when the new one is whole.

    Args:
        dtype: of the weights; None: as they are stored.
        max_shard: most bytes of one file; a larger tensor has a file of its own.

    Raises:
        ConfigError: the layout cannot hold this model.
        OSError: it cannot be written; nothing is left.
    """
    source.layout.write_config(source.args)  # refuses a model that it cannot hold
    with replacement(target) as folder:
        stored = _write_tensors(source, folder, dtype, max_shard)
        _write_config(source, folder, stored)
        write_tokenizer(source.tokenizer, folder, source.args.max_seq_len)
        card = model_card(
            source.facts, target.name, source.num_rows, source.tokenizer.vocab_size, knows_chat=source.knows_chat
        )
        (folder / "README.md").write_text(card, encoding="utf-8")


@contextlib.contextmanager
def replacement(target: Path) -> Iterator[Path]:
    """A folder to write in, which takes the place of `target` when it is whole; at an error nothing is left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f"{glob.escape(target.name)}.tmp-*"):
        if (held := _lock(leftover)) is not None:  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(held)
    temporary, lock = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:8]}"), None
    try:
        temporary.mkdir()
        lock = _lock(temporary)
        yield temporary
        sync_folder(temporary)
        if target.exists():
            remove_folder(target)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Hold a folder while it is written; the system lets go of it when this process is gone. None: it is held."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def plan_shards(infos: Mapping[str, TensorInfo], max_shard: int) -> list[list[str]]:
    """Distribute tensors over files in order, as many as fit in each; returns the names in each file."""
    shards: list[list[str]] = []
    left = 0
    for name, info in infos.items():
        if not shards or info.num_bytes > left:
            shards.append([])
            left = max_shard
        shards[-1].append(name)
        left -= info.num_bytes
    return shards


def _write_tensors(source: Exported, folder: Path, dtype: torch.dtype | None, max_shard: int) -> torch.dtype:
    """Write the weights and return their type, the most common one where there are several."""
    infos = {name: _written_info(source, name, info, dtype) for name, info in source.tensors.infos.items()}
    shards = plan_shards(infos, max_shard)
    weight_map: dict[str, str] = {}
    total = sum(info.num_bytes for info in infos.values())
    with Progress("Export", "bytes", total) as progress:
        for number, names in enumerate(shards, 1):
            file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file(dict(_read_shard(source, names, infos)), folder / file, metadata={"format": "pt"})
            settle(folder / file)
            weight_map |= {source.layout.to_name(name): file for name in names}
            progress.add(sum(infos[name].num_bytes for name in names))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / INDEX, index, indent=2)
    dtypes = [info.dtype for info in infos.values()]
    return max(set(dtypes), key=dtypes.count)


def settle(file: Path) -> None:
    """Flush a file to the disk and let all read it who may read the folder: safetensors writes for its owner alone."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    file.chmod(file.parent.stat().st_mode & 0o666)


def _written_info(source: Exported, name: str, info: TensorInfo, dtype: torch.dtype | None) -> TensorInfo:
    rows = source.num_rows if name in source.layout.vocabulary else info.shape[0]
    return TensorInfo((rows, *info.shape[1:]), dtype or info.dtype)


def _read_shard(
    source: Exported, names: list[str], infos: Mapping[str, TensorInfo]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name in names:
        tensor, info = source.tensors.read(name), infos[name]
        if tensor.shape != info.shape:
            tensor = tensor[: info.shape[0]].clone()  # a part would keep the whole in memory
        yield source.layout.to_name(name), tensor.to(info.dtype).contiguous()


def _write_config(source: Exported, folder: Path, dtype: torch.dtype) -> None:
    args = source.args.model_copy(update={"vocab_size": source.num_rows, "num_tokens": None})
    eos, stops = source.tokenizer.eos_id, stop_ids(source.tokenizer, chat=source.ends_turns)
    config = source.layout.write_config(args)
    # transformers 4 and most tools read torch_dtype; transformers 5 reads either and writes dtype.
    bos = getattr(source.tokenizer, "roles", {}).get("bos_token", "")
    ids = {"bos_token_id": source.tokenizer.special_ids.get(bos), "eos_token_id": eos, "pad_token_id": eos}
    config |= {**ids, "torch_dtype": str(dtype).removeprefix("torch.")}
    if not source.knows_chat:
        config |= _CONTINUES_TEXT
    write_json(folder / "config.json", config, indent=2)
    generation: dict[str, Any] = {**ids, "eos_token_id": stops}
    padding = list(range(source.tokenizer.vocab_size, source.num_rows))
    if padding:
        generation["suppress_tokens"] = padding
    write_json(folder / "generation_config.json", generation, indent=2)


__all__ = [
    "MAX_SHARD_BYTES",
    "Exported",
    "check_target",
    "continues_text",
    "export",
    "plan_shards",
    "replacement",
    "settle",
]
